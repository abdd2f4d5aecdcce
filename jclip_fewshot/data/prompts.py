"""Class name and domain to sentences: pure strings, and the data files behind them. A prompts folder holds:

    templates/<domain>.txt      a template a line, the plainest first; default.txt: for domains that have no file
    class_names.tsv             raw class name <tab> what to call it [<tab> its article: a, an, - for none]
    descriptions/<domain>.json  {raw class name: [sentence, ...]}: what the class looks like
    openai80.txt                short templates for a class of any kind, in the manner of OpenAI's 80

Prompt sets: seeds, the domain's first template; templates, all of them; openai80, the general ones (Radford et al.
2021, section 3.1.4); descriptions (CuPL, Pratt et al. 2022); both, templates and descriptions.

In a template `a {}` stands for the name with its article: "an accordion", but "scissors". A template of a user's own
file may be for one class: `raw class name <tab> template`. Empty lines and those that begin with # are skipped.
"""

import functools
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from jclip_fewshot.data.listing import is_utf8, read_json, read_text
from jclip_fewshot.errors import UserError, nearest
from jclip_fewshot.storage.files import shipped_folder

DEFAULT_DOMAIN = "default"
ARTICLES = ("a", "an", "-")

VOWEL_SOUND = re.compile(r"[aeiou]|hour|heir|honest|honou?r|8|(?:11|18)(?:[0-9]{2})?(?![0-9])", re.IGNORECASE)
CONSONANT_SOUND = re.compile(r"eu|ewe|(?:one|once|ouija)\b|"
                             r"u(?:ni(?!n|m)|s[aeiu]|k[erou]|t[aeio]|r[aeou]|bi|fo|ga)", re.IGNORECASE)
SPELLED_WITH_VOWEL = "AEFHILMNORSX"  # letters whose own names begin with a vowel sound: an SUV, an MRI
SLOT = re.compile(r"\b(?:a|an) \{\}|\{\}", re.IGNORECASE)
NUMBERED = re.compile(r"^[0-9]{3}\.(?=[A-Za-z])")  # CUB-200 and Caltech-256: 001.Black_footed_Albatross


@dataclass(frozen=True)
class Prompts:
    """What a prompts folder says, and a user's own files in place of it."""

    templates: dict[str, list[str]]  # of each domain; "default" serves the others
    names: dict[str, tuple[str, str | None]] = field(default_factory=dict)  # what to call a class, and its article
    descriptions: dict[str, list[str]] = field(default_factory=dict)  # sentences of a class
    general: list[str] = field(default_factory=list)  # templates for a class of any kind
    own_templates: dict[str, list[str]] = field(default_factory=dict)  # of a class, in place of its domain's


def domain_of(class_name: str) -> str:
    """The part before the first underscore, "" where there is none: Animal_Polar_bear is of Animal."""
    return class_name.partition("_")[0] if "_" in class_name else ""


def domains_of(class_names: Sequence[str]) -> list[str]:
    """Return `domain_of` each class if all are known domains, else "": polar_bear is no bear of the domain polar."""
    domains = [domain_of(name) for name in class_names]
    return domains if set(domains) <= known_domains() else [""] * len(domains)


def known_domains() -> frozenset[str]:
    """The domains that the built-in prompts have templates for."""
    return frozenset(load().templates) - {DEFAULT_DOMAIN}


def class_sentences(class_names: Sequence[str], domains: Sequence[str], folder: str | Path | None = None,
                    names: str | Path = "", templates: str | Path = "",
                    prompt_set: str = "both", descriptions: str | Path = "") -> list[list[str]]:
    """Return the sentences of each class in a prompt set; the templates where a set of descriptions has none for one.

    folder: of prompts; the package's by default. names, templates, descriptions: a user's own files, in place of the
    folder's. Raise UserError for what is wrong with them, a class that there is not, and a set without any sentence.
    """
    prompts = _with_own_words(load(folder or None), class_names, names, templates, descriptions)
    if prompt_set == "descriptions" and not any(name in prompts.descriptions for name in class_names):
        raise UserError(f"--prompt-set {prompt_set}: no class has a description; give yours with --descriptions "
                        "FILE.json, or choose another set")
    if prompt_set == "openai80" and not prompts.general:
        raise UserError(f"--prompt-set {prompt_set}: no openai80.txt in the prompts folder {folder}")
    return [sentences(name, domain, prompts, prompt_set) for name, domain in zip(class_names, domains)]


def sentences(class_name: str, domain: str | None = None, prompts: Prompts | None = None, prompt_set: str = "both"
              ) -> list[str]:
    """Return the sentences of a class, by its raw name, in a prompt set; see `class_sentences`.

    domain: by default `domain_of` the name. prompts: by default the package's.
    Raise UserError if the prompts have no templates for the domain and no default.txt.
    """
    prompts = prompts or load()
    domain = domain_of(class_name) if domain is None else domain
    name, article = name_and_article(class_name, domain, prompts)
    described = prompts.descriptions.get(class_name, [])
    if prompt_set == "descriptions" and described:  # led by the name, or a sentence could be of anything
        return [said if name.lower() in said.lower() else f"{name}: {said}" for said in described]
    templates = prompts.general if prompt_set == "openai80" else (
        prompts.own_templates.get(class_name) or prompts.templates.get(domain) or prompts.templates.get(DEFAULT_DOMAIN))
    if not templates:
        raise UserError(f"no templates for the domain {domain!r} (class {class_name}) and no default.txt; "
                        "add one of the two")
    filled = [fill(template, name, article) for template in templates[:1 if prompt_set == "seeds" else None]]
    return list(dict.fromkeys(filled + (described if prompt_set == "both" else [])))


def plain_sentences(class_names: Sequence[str], domains: Sequence[str], folder: str | Path | None = None,
                    names: str | Path = "") -> list[str]:
    """Return a sentence a class, always "a photo of a NAME.", as methods have it that train a text tower."""
    return [f"a photo of a {name}." for name in display_names(class_names, domains, folder, names)]


def display_names(class_names: Sequence[str], domains: Sequence[str], folder: str | Path | None = None,
                  names: str | Path = "") -> list[str]:
    """Return what to call each class: "Caltech-101_car_side" is a "car seen from the side"."""
    prompts = _with_own_words(load(folder or None), class_names, names)
    return [name_and_article(name, domain, prompts)[0] for name, domain in zip(class_names, domains)]


def name_and_article(class_name: str, domain: str, prompts: Prompts) -> tuple[str, str]:
    """Return (name, article) of a class; the article is "a", "an" or "" for plurals and substances."""
    name, article = prompts.names.get(class_name) or (plain_name(class_name, domain), None)
    return name, indefinite_article(name) if article is None else article


def plain_name(class_name: str, domain: str = "") -> str:
    """Return what to call a class that is in no table: "Thu-dog_RedHound_mix" of Thu-dog is "Red Hound mix"."""
    name = NUMBERED.sub("", class_name.removeprefix(f"{domain}_") if domain else class_name)
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.replace("_", " "))
    return " ".join(words.split()) or class_name


def indefinite_article(name: str) -> str:
    """Return "a" or "an", by the sound that the name begins with: a unicorn, an hour, an SUV, an 18-wheeler."""
    word = re.split(r"[\s-]", name.strip(), maxsplit=1)[0]
    if re.fullmatch(r"[A-Z]{1,3}s?", word):
        return "an" if word[0] in SPELLED_WITH_VOWEL else "a"
    return "an" if VOWEL_SOUND.match(word) and not CONSONANT_SOUND.match(word) else "a"


def fill(template: str, name: str, article: str | None = None) -> str:
    """Put a class's name into a template; `a {}` and `an {}` take its own article, by default by the name's sound."""
    article = indefinite_article(name) if article is None else article
    phrase = f"{article} {name}" if article else name
    begins = {"{": name, "a": phrase, "A": f"{article.capitalize()} {name}" if article else name}
    return SLOT.sub(lambda slot: begins[slot.group()[0]], template)


def load(folder: str | Path | None = None) -> Prompts:
    """Return a prompts folder's content, by default the package's (read once).

    Raise UserError if there are no templates, one without {}, a file that does not parse, or a class twice.
    """
    if folder is None:
        return _builtin()
    folder = Path(folder)
    templates = {path.stem: _templates(path)[""] for path in sorted((folder / "templates").glob("*.txt"))}
    if not templates:
        raise UserError(f"no templates in {folder / 'templates'}: a prompts folder holds templates/<domain>.txt")
    table, general = folder / "class_names.tsv", folder / "openai80.txt"
    descriptions: dict[str, list[str]] = {}
    for path in sorted((folder / "descriptions").glob("*.json")):
        found = _descriptions(path)
        if twice := found.keys() & descriptions.keys():
            raise UserError(f"{path}: {min(twice)} is described in another file too; remove one")
        descriptions.update(found)
    return Prompts(templates, _names(table) if table.is_file() else {}, descriptions,
                   _templates(general)[""] if general.is_file() else [])


@functools.cache
def _builtin() -> Prompts:
    return load(shipped_folder("prompt_data", "prompts"))


def _with_own_words(prompts: Prompts, class_names: Sequence[str], names: str | Path = "",
                    templates: str | Path = "", descriptions: str | Path = "") -> Prompts:
    def known(file: str | Path, found: dict) -> dict:
        for name in found:
            if name not in class_names:
                raise UserError(f"{file}: {name!r} is no class of this data set{nearest(name, class_names)}")
        return found

    if names:
        prompts = replace(prompts, names={**prompts.names, **known(names, _names(Path(names)))})
    if templates:
        of_class = _templates(Path(templates), of_classes=True)
        of_all = of_class.pop("", [])
        known(templates, of_class)
        prompts = replace(prompts, own_templates={name: of_class.get(name) or of_all for name in class_names})
    if descriptions:
        found = known(descriptions, _descriptions(Path(descriptions)))
        empty = [name for name, lines in found.items() if not lines]
        if empty or not found:
            wrong = f"{empty[0]!r} has no sentence" if empty else "it describes no class"
            raise UserError(f"{descriptions}: {wrong}; write {{class name: [sentence, ...]}}")
        prompts = replace(prompts, descriptions=found)
    return prompts


def _templates(path: Path, of_classes: bool = False) -> dict[str, list[str]]:
    """The templates by the class in front of a tab, those for all classes by ""; without `of_classes` all by ""."""
    found: dict[str, list[str]] = {}
    for number, line in _lines(path):
        name, _, template = line.rpartition("\t") if of_classes else ("", "", line)
        template = " ".join(template.split())
        if "\t" in line and of_classes and not name.strip():
            raise UserError(f"{path}, line {number}: no class stands in front of the tab")
        rest = template.replace("{}", "")
        if rest == template or "{" in rest or "}" in rest:
            raise UserError(f"{path}, line {number}: {template!r} needs {{}} where the class name goes and no other "
                            "braces")
        found.setdefault(name.strip(), []).append(template)
    if not found:
        raise UserError(f"{path} holds no template; write lines like `a photo of a {{}}`")
    return found


def _names(path: Path) -> dict[str, tuple[str, str | None]]:
    names: dict[str, tuple[str, str | None]] = {}
    for number, line in _lines(path):
        cells = [cell.strip() for cell in line.split("\t")]
        if len(cells) not in (2, 3) or not all(cells) or cells[2:] and cells[2] not in ARTICLES:
            raise UserError(f"{path}, line {number}: {line!r} is not <raw name> tab <display name> [tab a, an or -]")
        if cells[0] in names:
            raise UserError(f"{path}, line {number}: {cells[0]} stands there twice; remove one")
        names[cells[0]] = cells[1], cells[2].replace("-", "") if cells[2:] else None
    return names


def _descriptions(path: Path) -> dict[str, list[str]]:
    def once(pairs: list[tuple[str, object]]) -> dict:
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        if twice:
            raise UserError(f"{path}: {twice[0]!r} stands there twice; put its sentences into one list")
        return dict(pairs)

    data = read_json(read_text(path), str(path), once)
    if not isinstance(data, dict) or not all(isinstance(lines, list) and all(
            isinstance(line, str) and line.strip() and is_utf8(line) for line in lines) for lines in data.values()):
        raise UserError(f"{path}: it must be {{raw class name: [sentence, ...]}}")
    return data


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip() and not line.startswith("#"):
            yield number, line.rstrip("\r")
