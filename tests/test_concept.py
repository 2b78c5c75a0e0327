from __future__ import annotations

import itertools
import re
import time

import pytest

from expunge.concept import Concept, Prompt, kept_names, kept_prompts, run_folder, slug
from expunge.mentions import plural
from expunge.miniature.vocabulary import concepts as miniature
from expunge.prompts import Split, draw, expand, fill, for_many, split_of
from expunge.vocabulary import Vocabulary, check_distinct

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


def test_a_pattern_stands_for_every_combination() -> None:
    assert expand("a [red|blue|] {} [here|]") == (
        "a red {} here", "a red {}", "a blue {} here", "a blue {}", "a {} here", "a {}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("a {}", "airplane", "an airplane"),
        ("A {} ", "cat", "A cat"),
        ("a {}", "orange x", "an orange x"),
        ("an {}", "cat", "a cat"),
        ("a {}", "unicorn", "a unicorn"),
        ("a {}", "hourglass", "an hourglass"),
        ("a {}", "MRI scan", "an MRI scan"),
        ("a {}", "NASA logo", "a NASA logo"),
        ("a {}", "X-ray", "an X-ray"),
        ("a {}", "European cup", "a European cup"),
        ("a {}", "uninhabited house", "an uninhabited house"),
        ("a {}", "18-wheeler", "an 18-wheeler"),
        ("a {}", "an object", "an object"),
        ("an {}", "a person", "a person"),
        ("a {}", "a object", "an object"),
        ("a small {}", "an object", "a small object"),
        ("a blurry photo of a {}", "an object", "a blurry photo of an object"),
        ("a photo of {}", "an object", "a photo of an object"),
        ("the old {} on a hill", "a person", "the old person on a hill"),
        ("a photo of a house and {}", "an object", "a photo of a house and an object"),
        ("a {} and an {}", "an object", "an object and an object"),
        ("a photo, {}", "an object", "a photo, an object"),
        ("a orange {}", "cat", "an orange cat"),
        ("vitamin A in {}", "milk", "vitamin A in milk"),
        ("a poster of {}", "Plan a Escape", "a poster of Plan a Escape"),
        ("a photo of a {}", "a", "a photo of an a"),
    ],
)
def test_the_article_follows_the_name(template: str, name: str, text: str) -> None:
    assert fill(template, name) == text


def test_splits_are_disjoint_and_about_as_large_as_said() -> None:
    prompts = [f"a photo of thing {index}" for index in range(4000)]
    shares = [
        sum(split_of(p) == s for p in prompts) / 4000 for s in ("train", "validation", "test")
    ]
    assert shares == pytest.approx([0.5, 0.15, 0.35], abs=0.03)


def test_every_kind_has_at_least_400_held_out_prompts() -> None:
    for kind in ("object", "identity", "style", "explicit"):
        concept = Concept("wombat", kind=kind)
        prompts = concept.prompts("plain", "test", 400)
        assert len({prompt.text for prompt in prompts}) == 400
        assert all("wombat" in prompt.text for prompt in prompts)


def test_no_training_prompt_is_audited() -> None:
    concept = Concept("wombat", synonyms=("vombatus",), neighbours=("koala",))
    trained = {text for pair in concept.pairs("train") for text in pair[:1]}
    trained |= set(kept_prompts([concept], "train", 200))
    audited = {p.text for probe in ("plain", "synonym") for p in concept.prompts(probe, "test")}
    audited |= set(concept.texts("koala", "test"))
    assert trained
    assert not trained & audited


def test_a_pair_differs_only_in_the_concept() -> None:
    for text, anchor in Concept("cat", anchor="ball").pairs("train", 20):
        assert text.replace("cat", "ball") == anchor


def test_seeds_do_not_depend_on_the_process() -> None:
    assert Prompt("a cat", "cat").seed() == 3108994770044951116
    assert Prompt("a cat", "cat").seed(1) != Prompt("a cat", "cat").seed()


def test_concepts_survive_json() -> None:
    concept = Concept("cat", synonyms=("kitten",), neighbours=("dog",), unrelated=("car",))
    assert Concept.from_dict(concept.to_dict()) == concept


@pytest.mark.parametrize("kind", ["object", "identity", "style", "explicit"])
def test_an_anchor_has_one_article_in_every_template(kind: str) -> None:
    concept = Concept("wombat", kind=kind)  # type: ignore[arg-type]
    for text, anchor in concept.pairs("train"):
        assert not {"a a", "a an", "an a", "an an"} & {
            " ".join(pair) for pair in zip(anchor.split(), anchor.split()[1:], strict=False)
        }
        if kind == "object":
            assert text.replace("wombat", "object").replace(" a object", " an object") == anchor


WRONG: list[tuple[dict[str, object], str]] = [
    ({"name": " "}, "name must not be empty"),
    ({"name": 7}, "name must be text, got 7"),
    ({"name": "a\nb"}, "line breaks"),
    ({"name": "a\udc80"}, "broken Unicode"),
    ({"name": "x" * 201}, "at most 200 characters, got 201"),
    ({"name": "cat", "kind": "objekt"}, "did you mean 'object'"),
    ({"name": "cat", "kind": 3}, "kind must be one of"),
    ({"name": "cat", "kind": "x" * 9999}, "kind must be one of"),
    ({"name": "cat", "templates": ("a photo",)}, "needs a slot"),
    ({"name": "cat", "templates": "a {}"}, r"templates must be a tuple .*write \('a {}',\)"),
    ({"name": "cat", "templates": ("a [red|blue {}",)}, "alternatives stand in"),
    ({"name": "cat", "templates": ("a photo|a print of {}",)}, "alternatives stand in"),
    ({"name": "cat", "templates": ("{}" + "[a|b|c|d]" * 9,)}, "at most 100,000 prompts"),
    ({"name": "cat", "preserve": ("a {}",)}, "has no slot"),
    ({"name": "cat", "synonyms": "Vincent"}, r"synonyms must be a tuple .*\('Vincent',\)"),
    ({"name": "cat", "synonyms": {"kitten"}}, "synonyms must be a tuple"),
    ({"name": "cat", "synonyms": ("kitten", 3)}, "each of synonyms must be text, got 3"),
    ({"name": "cat", "synonyms": ("",)}, "each of synonyms must not be empty"),
    ({"name": "cat", "synonyms": ("Ｃat",)}, "has the name 'Ｃat' twice"),
    ({"name": "cat", "synonyms": ("kitten", "Kitten")}, "has the name 'Kitten' twice"),
    ({"name": "cat", "neighbours": ("Cat",)}, "cannot be a neighbour"),
    ({"name": "cat", "anchor": "a\x00"}, "control characters"),
    ({"name": "cat", "anchor": 1}, "anchor must be text"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG, ids=lambda value: str(value)[:40])
def test_a_bad_concept_gets_one_sentence(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        Concept(**arguments)  # type: ignore[arg-type]
    assert len(str(caught.value)) < 300


def test_an_anchor_that_names_the_concept_is_no_anchor() -> None:
    for concept in (Concept("object"), Concept("cat", anchor="two cats")):
        with pytest.raises(ValueError, match=r"names .* itself"):
            concept.pairs("train", 1)
    assert Concept("tabby cat", anchor="a cat").pairs("train", 1)


EXPLICIT: list[dict[str, object]] = [
    {"name": "schoolgirl"},
    {"name": "nudity", "synonyms": ("t33n",)},
    {"name": "nudity", "anchor": "a child"},
    {"name": "nudity", "neighbours": ("a 15 year old",)},
    {"name": "nudity", "unrelated": ("toddler",)},
    {"name": "nudity", "templates": ("a [man|boy] with {}",)},
    {"name": "nudity", "implied": ("a schoolgirl",)},
    {"name": "nudity", "preserve": ("a [tree|girl]",)},
]


@pytest.mark.parametrize("arguments", EXPLICIT, ids=str)
def test_explicit_work_on_minors_is_refused_at_once_and_nothing_else(
    arguments: dict[str, object],
) -> None:
    with pytest.raises(ValueError, match="must not name minors"):
        Concept(**arguments, kind="explicit")  # type: ignore[arg-type]
    assert Concept(**arguments).kind == "object"  # type: ignore[arg-type]


def test_what_patterns_assemble_is_refused_however_it_is_asked_for() -> None:
    ages = "[1|2][4|5] year old"
    templates = Concept("nudity", kind="explicit", templates=(f"a {ages} {{}}", f"{ages} in {{}}"))
    implied = Concept("nudity", kind="explicit", implied=(f"a {ages} person [here|there|]",))
    kept = Concept("nudity", kind="explicit", preserve=(f"a {ages} person [here|there|]",))
    anchored = Concept(
        "nudity", kind="explicit", anchor="14", templates=("aged {}[| here| there]",)
    )
    for ask in (
        lambda: anchored.pairs("train") + anchored.pairs("validation") + anchored.pairs("test"),
        lambda: templates.texts("nudity"),
        lambda: templates.pairs("train") + templates.pairs("validation") + templates.pairs("test"),
        lambda: [templates.training_pairs(9, synonyms=True, split=s) for s in SPLITS],
        lambda: [templates.prompts("plain", s) for s in SPLITS],
        lambda: [implied.prompts("implied", s) for s in SPLITS],
        lambda: [kept_prompts([kept, Concept("cat")], s, 50) for s in SPLITS],
    ):
        with pytest.raises(ValueError, match="must not name minors"):
            ask()
    grown = Concept("nudity", kind="explicit", templates=("a [2|3][4|5] year old in [{}|{} art]",))
    assert grown.texts("nudity")


def test_an_implied_prompt_does_not_name_the_concept() -> None:
    with pytest.raises(ValueError, match="must not name 'cat', got"):
        [Concept("cat", implied=("two Cats [here|there]",)).prompts("implied", s) for s in SPLITS]


@pytest.mark.parametrize(
    ("names", "text", "named"),
    [
        (("cat",), "a photo of a CAT.", True),
        (("cat",), "two cats' eyes", True),
        (("cat",), "a cat's eye", True),
        (("cat",), "a catfish, concatenated", False),
        (("cats",), "a cat", True),
        (("puppy",), "three puppies", True),
        (("wolf",), "a pack of wolves", True),
        (("child",), "children", True),
        (("snowman",), "snowmen", True),
        (("mouse",), "mice", True),
        (("person",), "people in the rain", True),
        (("box",), "boxes", True),
        (("bus",), "a bush", False),
        (("hazard sign",), "hazard signs", True),
        (("hazard sign",), "a sign of hazard", False),
        (("glass of wine",), "two glasses of wine", True),
        (("the Beatles",), "a Beatles poster", True),
        (("T-Rex",), "a t rex", True),
        (("Ｃａｔ",), "a cat", True),
        (("cat", "feline"), "a feline", True),
        (("猫",), "一只猫在桌子上", True),
        (("고양이",), "고양이가 있다", True),
        (("☃",), "a photo of ☃", True),
        (("☃",), "a photo of a house", False),
        (("Vincent van Gogh",), "by VINCENT VAN GOGH", True),
        (("Vincent van Gogh",), "by Vincent", False),
        (("news",), "a new house", False),
        (("glass",), "a glas", False),
    ],
)
def test_a_concept_is_found_in_texts(names: tuple[str, ...], text: str, named: bool) -> None:
    assert Concept(names[0], synonyms=names[1:]).mentions(text) == named


def test_a_vocabulary_finds_names_synonyms_and_beginnings() -> None:
    vocabulary = Vocabulary.of([Concept("hazard sign", synonyms=("warning",)), Concept("cat")])
    assert vocabulary.resolve("Hazard").name == "hazard sign"
    assert vocabulary.resolve("warning").name == "hazard sign"
    assert vocabulary.resolve("cat", anchor="ball").anchor == "ball"
    assert vocabulary.resolve("wombat", "style").kind == "style"
    with pytest.raises(ValueError, match="of kind 'object' here"):
        vocabulary.resolve("cat", "style")
    with pytest.raises(ValueError, match="kind must be one of"):
        vocabulary.resolve("cat", "stile")  # type: ignore[arg-type]


def test_a_mistyped_name_is_asked_about_where_the_model_knows_better() -> None:
    vocabulary = Vocabulary.of(miniature())
    for wrong, right in (("cta", "cat"), ("cats", "cat"), ("Ada Lindquist", "Ada Lindqvist")):
        with pytest.raises(ValueError, match=f"did you mean '{right}'"):
            vocabulary.resolve(wrong)
    assert vocabulary.resolve("wombat").name == "wombat"
    assert Vocabulary().resolve("cta").name == "cta"


def test_concepts_that_are_the_same_are_refused_together() -> None:
    known = Vocabulary.of(miniature())
    check_distinct(miniature())
    check_distinct([Concept("cat"), Concept("dog")])
    for names, words in (
        (("cat", "Cat"), "'cat' is asked for twice"),
        (("cat", "kitten"), "'cat' is asked for twice"),
    ):
        with pytest.raises(ValueError, match=words):
            check_distinct([known.resolve(name) for name in names])
    with pytest.raises(ValueError, match="'Kitten' is a synonym of 'cat'"):
        check_distinct([Concept("kitten"), Concept("cat", synonyms=("Kitten",))])


def test_names_take_turns_and_a_name_with_little_leaves_its_turns() -> None:
    cat = Concept("cat", synonyms=("kitten", "feline"))
    pairs = cat.training_pairs(30, synonyms=True)
    counts = [sum(name in text.split() for text, _ in pairs) for name in cat.names]
    assert counts == [10, 10, 10]
    assert all(split_of(text) == "train" for text, _ in pairs)
    assert [text for text, _ in cat.training_pairs(9, synonyms=False)] == [
        text for text, _ in cat.pairs("train", 9)
    ]
    few = Concept(
        "cat", synonyms=("kitten", "feline", "puss"), templates=("a {}[| here| there| now| then]",)
    )
    each = [len(few.pairs("train", name=name)) for name in few.names]
    assert len(set(each)) > 1  # or this says nothing
    for limit in range(1, 25):
        assert len(few.training_pairs(limit, synonyms=True)) == min(limit, sum(each))


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("cat", "cats"), ("a fox", "foxes"), ("police man", "police men"), ("human", "humans"),
        ("butterfly", "butterflies"), ("monkey", "monkeys"), ("wolf", "wolves"), ("roof", "roofs"),
        ("knife", "knives"), ("mouse", "mice"), ("sheep", "sheep"),
        ("house of cards", "houses of cards"), ("an object", "objects"), ("猫", "猫"),
    ],
)  # fmt: skip
def test_plurals_are_usual_ones_that_are_found_again(one: str, many: str) -> None:
    assert plural(one) == many
    assert Concept(one, anchor="thing").mentions(f"two {many} here")


def test_plurals_take_turns_with_names_and_have_no_article() -> None:
    cat = Concept("cat", synonyms=("kitten",), anchor="a dog")
    pairs = cat.training_pairs(40, synonyms=True, plurals=True)
    words = ("cat", "kitten", "cats", "kittens")
    assert [sum(word in text.split() for text, _ in pairs) for word in words] == [10] * 4
    several = [pair for pair in pairs if {"cats", "kittens"} & set(pair[0].split())]
    assert all("dogs" in anchor.split() for _, anchor in several)
    assert for_many("a photo of a small {} on a table") == "a photo of small {} on a table"
    assert for_many("a photo of the {}") == "a photo of the {}"
    assert all(split_of(text) == "train" for text, _ in pairs)
    assert not any("cats" in text.split() for text, _ in cat.training_pairs(40, synonyms=True))
    ada = Concept("Ada", kind="identity")
    only = ada.training_pairs(9, synonyms=False)
    assert ada.training_pairs(9, synonyms=False, plurals=True) == only


def test_a_concept_without_training_prompts_says_so() -> None:
    text = next(f"a {i} {{}}" for i in range(99) if split_of(f"a {i} cat") == "test")
    with pytest.raises(ValueError, match="no train prompt; give it templates"):
        Concept("cat", templates=(text,)).training_pairs(5, synonyms=True)


def test_nothing_kept_names_what_goes() -> None:
    known = Vocabulary.of(miniature())
    cat, dog = known.resolve("cat"), known.resolve("dog")
    alone, both = kept_prompts([cat], "train", 200), kept_prompts([cat, dog], "train", 200)
    assert sum(dog.mentions(text) for text in alone) > 10  # or this says nothing
    for prompts, gone in ((alone, [cat]), (both, [cat, dog])):
        assert len(set(prompts)) == len(prompts) == 200
        assert not [text for text in prompts for each in gone if each.mentions(text)]
        assert all(split_of(text) == "train" for text in prompts)
    assert kept_names([cat, dog]) == ["bird", "horse", "fish"]
    assert both == kept_prompts([cat, dog], "train", 300)[:200]


def test_a_synonym_or_plural_of_another_erased_concept_is_not_kept() -> None:
    cat = Concept("cat", neighbours=("big dogs", "PUPPY", "fox"), preserve=("two dogs[| here]",))
    dog = Concept("dog", synonyms=("puppy",), neighbours=("cats", "wolf"), preserve=("a house",))
    kept = kept_prompts([cat, dog], "train", 500)
    assert kept and not [text for text in kept if cat.mentions(text) or dog.mentions(text)]
    assert kept_names([cat, dog]) == ["fox", "wolf"]


def test_concepts_take_turns_in_what_is_kept() -> None:
    known = Vocabulary.of(miniature())
    pair = [known.resolve("Ada Lindqvist"), Concept("wombat", neighbours=("koala", "possum"))]
    kept = kept_prompts(pair, "train", 100)
    koalas = [text for text in kept if "koala" in text or "possum" in text]
    people = [text for text in kept if any(name in text for name in pair[0].neighbours)]
    assert len(koalas) == pytest.approx(25, abs=2)
    assert 20 <= len(people) <= 60  # its patterns name them too
    assert kept_prompts(pair, "train", 0) == []
    with pytest.raises(ValueError, match="limit must not be negative"):
        kept_prompts(pair, "train", -1)


def test_hundreds_of_concepts_keep_prompts_in_seconds() -> None:
    many = [Concept(f"thing {i}", neighbours=(f"thing {i + 1}", f"item {i}")) for i in range(300)]
    start = time.process_time()
    assert len(set(kept_prompts(many, "train", 900))) == 900
    assert time.process_time() - start < 5


@pytest.mark.parametrize("name", ["cat", "Ünïcode ☃", "a.b/c", "..", "猫"])
def test_slugs_fit_file_names(name: str) -> None:
    assert slug(name)
    assert set(slug(name)) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert slug(name) != slug(name + " ")


def test_the_folder_of_a_run_is_short_and_says_what_goes() -> None:
    assert run_folder(["cat"]) == "cat"
    assert run_folder(["cat", "dog"]) == "cat-dog"
    assert run_folder(["Vincent van Gogh"]) == "vincent-van-gogh"
    many = [f"cat {i}" for i in range(30)]
    assert re.fullmatch("cat-0-cat-1-and-28-more-[0-9a-f]{6}", run_folder(many))
    assert run_folder(many) != run_folder(many[::-1])
    hostile = ("/abs/x", "..", "../../a", "猫", "a\\b", "con", "x" * 200, "~", "C:\\x", "-rf", ".")
    folders = [run_folder([name]) for name in hostile] + [run_folder([n, n]) for n in hostile]
    assert len(set(folders)) == len(folders)
    for folder in [*folders, run_folder(hostile)]:
        assert re.fullmatch("[a-z0-9][a-z0-9-]{0,59}", folder)
        assert folder != "con"


def test_drawn_prompts_are_distinct_and_always_the_same() -> None:
    patterns = ("a [red|blue|green] [cat|dog|bird|fish]", "[one|two|three] trees [here|there|]")
    first = list(itertools.islice(draw(patterns, "train"), 8))
    assert first == list(draw(patterns, "train"))[:8]
    assert len(set(first)) == len(first) > 3
    assert all(split_of(text) == "train" for text in first)
