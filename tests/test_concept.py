from __future__ import annotations

import pytest

from expunge.concept import (
    Concept,
    Prompt,
    Vocabulary,
    draw,
    expand,
    fill,
    refuse_minors,
    split_of,
)


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
    trained |= set(concept.preserved("train", 200))
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": " "}, "needs a name"),
        ({"name": "cat", "kind": "objekt"}, "did you mean 'object'"),
        ({"name": "cat", "templates": ("a photo",)}, "needs a slot"),
    ],
)
def test_a_bad_concept_gets_one_sentence(arguments: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Concept(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["child", "a 15 year old", "schoolgirl", "teens"])
def test_explicit_work_on_minors_is_refused_and_nothing_else(name: str) -> None:
    with pytest.raises(ValueError, match="must not name minors"):
        Concept(name, kind="explicit")
    with pytest.raises(ValueError, match="must not name minors"):
        Concept("nudity", kind="explicit", synonyms=(name,))
    with pytest.raises(ValueError, match="must not name minors"):
        refuse_minors("explicit", [f"a photo of {name}"])
    assert Concept(name).kind == "object"
    assert Concept("nudity", kind="explicit", synonyms=("25 year old",)).synonyms


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


def test_drawn_prompts_are_distinct_and_always_the_same() -> None:
    patterns = ("a [red|blue|green] [cat|dog|bird|fish]", "[one|two|three] trees [here|there|]")
    first = draw(patterns, "train", 8)
    assert first == draw(patterns, "train", 8)
    assert len(set(first)) == len(first) > 3
    assert all(split_of(text) == "train" for text in first)
