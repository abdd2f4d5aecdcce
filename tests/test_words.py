"""Texts for readers: no private words, READMEs of 150 lines, links that lead somewhere, options that exist."""

import ast
import dataclasses
import re
import urllib.parse
from pathlib import Path

import pytest

from jclip_fewshot import config
from tests.conftest import ROOT

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), ROOT / "weights/README.md"]
FOR_USERS = [ROOT / "README.md", ROOT / "README.zh.md", *ROOT.glob("docs/guide*/*.md")]
CODE = [path for folder in ("jclip_fewshot", "benchmarks", "tools") for path in (ROOT / folder).rglob("*")
        if path.suffix in {".py", ".cpp", ".j2", ".js"}] + [ROOT / "train.py", ROOT / "test.py"]

# A private word, and what the field calls it. In code, names count as well.
WORDS = {
    "paces?": "lr_factor, learning-rate factor",
    "settle[sd]?": "fixed-point step",
    "guests?": "held-out images",
    "shrunk": "interpolated",
    "banks?": "activations",
    "members?": "methods",
    "closed": "class_mask",
    "Parts?": "EncoderSlice",
}
HEADS = r"(?<!attention )(?<!a linear )\bheads?\b"  # in texts for users a method is called a method
ALLOWED = [  # (file, pattern of the line, why)
    ("", "closed[ -]form", "mathematics' own term"),
    ("jclip_fewshot/(cli|data)/", "closed", "streams and pipes are closed"),
    ("jclip_fewshot/storage/arrays.py", "member", "what a zip archive holds is called so in its specification"),
    ("jclip_fewshot/clip/preprocess.py", "shrunk|shrank", "a picture that its decoder made smaller"),
    ("", "head.?width|heads? (and norms|\\d+ wide|wide|of any width)|<thead|</?head", "attention heads; HTML"),
    ("", "`heads`", "the name of a field in exported files"),
    ("jclip_fewshot/cli/(doctor|flags).py", "heads", "attention heads; the option before --methods"),
    ("docs/(methods|scale).md", "benchmarks/heads.py", "a file's name"),
]
# Still there, in files that are being worked on: (file, word). Empty this list; add nothing to it.
STILL_THERE: set[tuple[str, str]] = set()


def found_in(path: Path, text: str, word: str, pattern: str) -> list[str]:
    """Where a word stands: "file: line", without what is allowed or known."""
    place = path.relative_to(ROOT).as_posix()
    if (place, word) in STILL_THERE:
        return []
    allowed = [line for where, line, _ in ALLOWED if re.match(where, place)]
    return [f"{place}: {line.strip()[:100]}" for line in text.splitlines()
            if re.search(pattern, re.sub("|".join(allowed), "", line))]


def strings_of(path: Path) -> str:
    """All texts of a Python file: what its users may read."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return "\n".join(node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)
                     and isinstance(node.value, str))


@pytest.mark.parametrize("word", WORDS)
def test_no_private_word(word):
    pattern = f"(?<![A-Za-z]){word}(?![A-Za-z])"
    assert [line for path in [*PAGES, *CODE]
            for line in found_in(path, path.read_text(encoding="utf-8"), word, pattern)] == [], f"say {WORDS[word]}"


def test_a_method_is_called_a_method():
    said = [*PAGES, *(ROOT / "jclip_fewshot/report").glob("*.j2")]
    spoken = [ROOT / "train.py", ROOT / "test.py", ROOT / "jclip_fewshot/config.py",
              *(ROOT / "jclip_fewshot/cli").glob("*.py")]
    texts = [(path, path.read_text(encoding="utf-8")) for path in said] + [(path, strings_of(path)) for path in spoken]
    assert [line for path, text in texts if path.name != "CHANGELOG.md"
            for line in found_in(path, text, HEADS, HEADS)] == []


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_a_readme_is_read_in_five_minutes(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 150


def test_links_lead_somewhere():
    wrong = []
    for page in PAGES:
        text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target = urllib.parse.unquote(link.partition("#")[0])
            if target and "://" not in link and not (page.parent / target).exists():
                wrong.append(f"{page.relative_to(ROOT)}: {link}")
    assert wrong == []


def test_pages_that_the_code_names_exist():
    pages = {page.name for page in ROOT.glob("docs/**/*.md")}
    named = [(path, name) for path in CODE
             for name in re.findall(r"\bdocs/(?:\w+/)*(\w+\.md)", path.read_text(encoding="utf-8"))]
    wrong = [f"{path.relative_to(ROOT)}: {name}" for path, name in named if name not in pages]
    assert wrong == []


def test_options_in_texts_for_users_exist():
    ours = {"--" + field.name.replace("_", "-") for kind in vars(config).values()
            if isinstance(kind, type) and dataclasses.is_dataclass(kind) for field in dataclasses.fields(kind)}
    others = {"--no-deps", "--no-index", "--find-links", "--user",  # pip, docker
              "--curves"}  # benchmarks/results.py
    wrong = [f"{page.relative_to(ROOT)}: {option}" for page in FOR_USERS
             for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", page.read_text(encoding="utf-8"))
             if option not in ours | others]
    assert wrong == []


def test_every_page_of_the_guide_is_in_the_site():
    site = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in ROOT.glob("docs/**/*.md")]
    assert [page for page in pages if page.startswith("guide") and page not in site] == []


def test_both_readmes_have_the_same_commands():
    def commands(name: str) -> list[str]:
        blocks = re.findall(r"```\w*\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.S)
        return [line.partition("  #")[0].rstrip() for block in blocks for line in block.splitlines()]
    assert commands("README.md") == commands("README.zh.md")
