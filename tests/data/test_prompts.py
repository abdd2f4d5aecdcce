"""Class names to sentences: the rules, the built-in data, and the mistakes in one's own data."""

import json
import re

import pytest

from jclip_fewshot.clip.tokenizer import encode
from jclip_fewshot.data import prompts
from jclip_fewshot.errors import UserError

BUILTIN = prompts.load()
DOMAINS = ["Animal", "Caltech-101", "Food-101", "Thu-dog", "Stanford-Cars"]
SEED_TEMPLATES = {"Animal": "a photo of a {}, a kind of an animal",
                  "Thu-dog": "a photo of a {}, a category of a dog",
                  "Caltech-101": "a photo of a {}, a kind of an object",
                  "Food-101": "a photo of a {}, a type of food"}
CLASSES = sorted(BUILTIN.names)


def display_name(raw):
    return prompts.display_names([raw], [prompts.domain_of(raw)])[0]


@pytest.mark.parametrize("article, names", [
    ("a", "unicorn uniform union euphonium European ewer ukulele useful Uruguayan one-eyed 2012 4Runner FIAT "
          "bee 1999 USB Ugandan house honey"),
    ("an", "accordion elk uninteresting umbrella usher urchin otter owl hour hourglass heirloom honest SUV "
           "MRI X-ray 8-ball 18-wheeler 11th 1800s Airedale onion"),
])
def test_articles_follow_the_sound(article, names):
    assert [name for name in names.split() if prompts.indefinite_article(name) != article] == []


@pytest.mark.parametrize("template, name, article, text", [
    ("a photo of a {}, a kind of an animal", "elk", None, "a photo of an elk, a kind of an animal"),
    ("a photo of a {}, a kind of an animal", "bee", None, "a photo of a bee, a kind of an animal"),
    ("a photo of an {}.", "bee", None, "a photo of a bee."),
    ("A {} and the {}", "owl", None, "An owl and the owl"),
    ("a photo of a {}", "scissors", "", "a photo of scissors"),
    ("a plate of {}", "pie", "a", "a plate of pie"),
    ("pizza {}", "owl", None, "pizza owl"),
])
def test_fill(template, name, article, text):
    assert prompts.fill(template, name, article) == text


@pytest.mark.parametrize("raw, domain, name", [
    ("Thu-dog_EntleBucher_x", "Thu-dog", "Entle Bucher x"),
    ("Flowers_water__lily", "Flowers", "water lily"),
    ("golden_retriever", "", "golden retriever"),
    ("Cars_Dodge_Charger_SRT-8_2009", "Cars", "Dodge Charger SRT-8 2009"),
    ("beagle", "", "beagle"),
    ("Animal_", "Animal", "Animal_"),
])
def test_names_that_are_in_no_table(raw, domain, name):
    assert prompts.plain_name(raw, domain) == name


def test_unknown_domains_take_the_default_templates():
    assert prompts.sentences("Flowers_iris", prompt_set="seeds") == ["a photo of an iris"]
    assert prompts.sentences("lap_dog", domain="", prompt_set="seeds") == ["a photo of a lap dog"]
    assert len(prompts.sentences("Flowers_iris")) == len(BUILTIN.templates["default"])
    assert prompts.sentences("Animal_Yak", prompt_set="seeds") == ["a photo of a Yak, a kind of an animal"]


def test_the_seeds_templates_come_first():
    for domain, template in SEED_TEMPLATES.items():
        assert BUILTIN.templates[domain][0] == template
    for domain in [*DOMAINS, "default"]:
        assert 7 <= len(BUILTIN.templates[domain]) == len(set(BUILTIN.templates[domain])) <= 12


@pytest.mark.parametrize("raw, sentence", [
    ("Caltech-101_accordion", "a photo of an accordion, a kind of an object"),
    ("Caltech-101_euphonium", "a photo of a euphonium, a kind of an object"),
    ("Caltech-101_scissors", "a photo of scissors, a kind of an object"),
    ("Caltech-101_water_lilly", "a photo of a water lily, a kind of an object"),
    ("Caltech-101_yin_yang", "a photo of a yin-yang symbol, a kind of an object"),
    ("Food-101_french_fries", "a photo of french fries, a type of food"),
    ("Food-101_sushi", "a photo of sushi, a type of food"),
    ("Food-101_omelette", "a photo of an omelette, a type of food"),
    ("Thu-dog_EntleBucher", "a photo of an Entlebucher mountain dog, a category of a dog"),
    ("Thu-dog_Scotch_terrier", "a photo of a Scottish terrier, a category of a dog"),
    ("Stanford-Cars_Audi_R8_Coupe_2012", "a photo of a 2012 Audi R8 coupe, a type of car"),
])
def test_names_read_naturally(raw, sentence):
    assert prompts.sentences(raw, prompt_set="seeds") == [sentence]


def test_descriptions_are_used_when_present():
    mine = prompts.Prompts({"default": ["a {}", "the {}"]}, {}, {"X_owl": ["An owl has round eyes."]})
    assert prompts.sentences("X_owl", prompts=mine) == ["an owl", "the owl", "An owl has round eyes."]
    assert prompts.sentences("X_owl", prompts=mine, prompt_set="seeds") == ["an owl"]
    assert prompts.sentences("X_owl", prompts=mine, prompt_set="templates") == ["an owl", "the owl"]
    assert prompts.sentences("X_elk", prompts=mine) == ["an elk", "the elk"]
    for raw, lines in BUILTIN.descriptions.items():
        assert prompts.sentences(raw)[-len(lines):] == lines


def test_every_class_of_the_contest_has_a_name(shared):
    text = (shared / "competition" / "classes_b.txt").read_text()
    assert list(BUILTIN.names) == [line.rsplit(None, 1)[0] for line in text.splitlines()]


def test_the_built_in_names_are_plain_and_distinct():
    assert len(CLASSES) == 403
    assert {raw.partition("_")[0] for raw in CLASSES} == set(DOMAINS)
    for raw in CLASSES:
        name = display_name(raw)
        assert "_" not in name and "," not in name and name == " ".join(name.split())
    for domain in DOMAINS:
        names = [display_name(raw) for raw in CLASSES if raw.startswith(domain)]
        assert len(set(names)) == len(names)


def test_every_class_is_described_in_three_to_six_sentences():
    assert sorted(BUILTIN.descriptions) == CLASSES
    lines = [line for lines in BUILTIN.descriptions.values() for line in lines]
    assert len(set(lines)) == len(lines)
    for raw, own in BUILTIN.descriptions.items():
        assert 3 <= len(own) <= 6, raw
        for line in own:
            assert re.fullmatch(r"[A-Z0-9][^\n{}]*[.]", line) and "  " not in line, line
            assert len(line.split()) < 40, line
            assert mentions(display_name(raw), line), f"{raw}: {line}"


def mentions(name, line):
    """Whether the sentence says what it is about: some word of the name that tells it from its like."""
    common = {"dog", "terrier", "hound", "spaniel", "mountain", "small", "whole", "seen", "pair", "and"}
    words = [re.sub(r"'s$|s$", "", word) for word in re.split(r"[^\w'é]+", name.lower()) if len(word) > 2]
    return any(word in line.lower() for word in words if word not in common)


def test_no_dog_is_described_by_another():
    """A sentence that names another breed would pull the class's text row towards it."""
    names = {raw: display_name(raw).lower() for raw in CLASSES if raw.startswith("Thu-dog")}
    for raw, own in names.items():
        text = " ".join(BUILTIN.descriptions[raw]).lower()
        others = [other for other in names.values() if other not in own and re.search(rf"\b{other}\b", text)]
        assert not others, f"{raw}: {others}"


def test_every_sentence_fits_into_clips_context():
    for raw in CLASSES:
        for line in prompts.sentences(raw):
            assert len(encode(line)) + 2 <= 77, line


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "templates").mkdir()
    (tmp_path / "descriptions").mkdir()
    (tmp_path / "templates" / "Tool.txt").write_text("# tools\na {}, a tool\n\nthe  {}\r\n")
    (tmp_path / "class_names.tsv").write_text("Tool_saw1\thand saw\nTool_pliers\tpliers\t-\n")
    (tmp_path / "descriptions" / "Tool.json").write_text(json.dumps({"Tool_saw1": ["A hand saw has teeth."]}))
    return tmp_path


def test_ones_own_folder(folder):
    mine = prompts.load(folder)
    assert prompts.sentences("Tool_saw1", prompts=mine) == ["a hand saw, a tool", "the hand saw",
                                                            "A hand saw has teeth."]
    assert prompts.sentences("Tool_pliers", prompts=mine) == ["pliers, a tool", "the pliers"]
    with pytest.raises(UserError, match="no templates for the domain 'Animal' .* and no default.txt"):
        prompts.sentences("Animal_Elk", prompts=mine)


@pytest.mark.parametrize("file, text, message", [
    ("templates/Tool.txt", "a photo\n", r"Tool.txt, line 1: 'a photo' needs {} where the class name goes"),
    ("templates/Tool.txt", "# \n\na {name}\n", "Tool.txt, line 3: 'a {name}' needs {}"),
    ("templates/Tool.txt", "\n", "Tool.txt holds no template"),
    ("class_names.tsv", "Tool_saw hand saw\n", "class_names.tsv, line 1: .* is not <raw name> tab"),
    ("class_names.tsv", "Tool_saw\tsaw\tthe\n", "class_names.tsv, line 1: "),
    ("class_names.tsv", "Tool_saw\tsaw\nTool_saw\tsaw\n", "line 2: Tool_saw stands there twice"),
    ("descriptions/Tool.json", "{\n'a': 1}", "Tool.json: no JSON .*line 2"),
    ("descriptions/Tool.json", '{"a": "b"}', "Tool.json: it must be {raw class name: "),
    ("descriptions/More.json", '{"Tool_saw1": ["A saw."]}', "Tool_saw1 is described in another file too"),
])
def test_mistakes_in_ones_own_folder(folder, file, text, message):
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        prompts.load(folder)


def test_no_prompts_folder(tmp_path):
    for folder in (tmp_path / "none", tmp_path):
        with pytest.raises(UserError, match="no templates in .*templates: a prompts folder holds"):
            prompts.load(folder)
        (tmp_path / "templates").mkdir(exist_ok=True)


def test_prompt_sets_differ_as_their_names_say():
    def of(prompt_set, **more):
        return prompts.class_sentences(["Animal_Bear"], ["Animal"], prompt_set=prompt_set, **more)[0]

    assert len(of("seeds")) == 1 and of("seeds") == of("templates")[:1]
    assert set(of("both")) == set(of("templates")) | set(prompts.load().descriptions["Animal_Bear"])
    assert len(of("openai80")) == 80 and all("bear" in sentence.lower() for sentence in of("openai80"))
    assert of("descriptions") and not set(of("descriptions")) & set(of("templates"))


def test_own_descriptions_take_the_place_of_ours_and_lead_with_the_name(tmp_path):
    own = tmp_path / "own.json"
    own.write_text('{"Animal_Bear": ["It is brown."]}')
    found = prompts.class_sentences(["Animal_Bear", "Animal_Cat"], ["Animal"] * 2, prompt_set="descriptions",
                                    descriptions=own)
    assert found[0][0].lower() == "bear: it is brown."
    assert found[1][0] == "a photo of a cat, a kind of an animal"  # without any description: the templates


@pytest.mark.parametrize("text, words", [
    ('{"Animal_Baer": ["x"]}', "'Animal_Baer' is no class of this data set; did you mean 'Animal_Bear'"),
    ('{"Animal_Bear": ["x"], "Animal_Bear": ["y"]}', "'Animal_Bear' stands there twice"),
    ('{"Animal_Bear": "x"}', "it must be"),
    ('{"Animal_Bear": ["\\ud800"]}', "it must be"),
    ('{"Animal_Bear": ' + "[" * 3000000, "own.json: .*too deep|no JSON"),
    ('{"Animal_Bear": ' + "1" * 5000 + "}", "own.json: .*digits"),
])
def test_what_is_wrong_with_own_descriptions_is_said(tmp_path, text, words):
    own = tmp_path / "own.json"
    own.write_text(text)
    with pytest.raises(UserError, match=words):
        prompts.class_sentences(["Animal_Bear"], ["Animal"], descriptions=own)


def test_a_set_of_descriptions_needs_some():
    with pytest.raises(UserError, match="no class has a description"):
        prompts.class_sentences(["Beast_x"], ["Beast"], prompt_set="descriptions")


def test_own_names_and_templates(tmp_path):
    names, templates = tmp_path / "names.tsv", tmp_path / "templates.txt"
    names.write_text("# ours\nAnimal_Bear\tgrizzly\nAnimal_Cat\tox\t-\n")
    templates.write_text("a drawing of a {}\nAnimal_Cat\tlook, {}!\n")

    def found(**words):
        return prompts.class_sentences(["Animal_Bear", "Animal_Cat"], ["Animal"] * 2, prompt_set="templates", **words)

    assert found(names=names)[0][0] == "a photo of a grizzly, a kind of an animal"
    assert found(names=names)[1][0].startswith("a photo of ox, ")  # no article
    assert found(templates=templates) == [["a drawing of a bear"], ["look, cat!"]]
    assert found(names=names, templates=templates) == [["a drawing of a grizzly"], ["look, ox!"]]


@pytest.mark.parametrize("flag, text, words", [
    ("names", "Animal_Baer\tbear\n", "'Animal_Baer' is no class .*Animal_Bear"),
    ("names", "Animal_Bear bear\n", "line 1: .* is not <raw name> tab"),
    ("names", "Animal_Bear\ta\nAnimal_Bear\tb\n", "line 2: Animal_Bear stands there twice"),
    ("templates", "a photo\n", "line 1: 'a photo' needs {}"),
    ("templates", "Animal_Baer\ta {}\n", "'Animal_Baer' is no class .*Animal_Bear"),
    ("templates", "# nothing\n", "holds no template"), ("templates", "\ta {}\n", "no class stands in front of the tab"),
    ("names", None, "no own in"),
])
def test_mistakes_in_own_names_and_templates(tmp_path, flag, text, words):
    path = tmp_path / "own"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words):
        prompts.class_sentences(["Animal_Bear"], ["Animal"], **{flag: path})
