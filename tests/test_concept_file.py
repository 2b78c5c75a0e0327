from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from expunge.concept import Concept
from expunge.concept_file import Request, read_concepts
from expunge.vocabulary import Vocabulary

YAML = """
- cat
- name: Vincent van Gogh
  kind: style
  synonyms: [van Gogh, "Vincent"]
  neighbours: [Claude Monet]
- {name: "1984", anchor: a book}
"""
CSV = """name,kind,synonyms,anchor,neighbours
cat,,,,
Vincent van Gogh,style,van Gogh; Vincent,,Claude Monet
1984,,,a book,
"""


def _written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "text"), [("a.yaml", YAML), ("a.yml", YAML), ("a.csv", CSV), ("b.csv", "\ufeff" + CSV)]
)
def test_both_formats_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    assert read_concepts(_written(tmp_path, name, text)) == [
        Request("cat"),
        Request(
            "Vincent van Gogh",
            "style",
            {"synonyms": ("van Gogh", "Vincent"), "neighbours": ("Claude Monet",)},
        ),
        Request("1984", None, {"anchor": "a book"}),
    ]


def test_a_known_name_brings_what_the_model_knows(tmp_path: Path) -> None:
    known = Vocabulary.of([Concept("cat", synonyms=("kitten",), neighbours=("dog",))])
    text = "- {name: Cat, neighbours: [horse]}\n- {name: zebra, kind: identity}"
    cat, zebra = (r.resolve(known) for r in read_concepts(_written(tmp_path, "a.yaml", text)))
    assert (cat.name, cat.synonyms, cat.neighbours) == ("cat", ("kitten",), ("horse",))
    assert zebra == Concept("zebra", kind="identity")


WRONG = {
    "a.yaml": [
        ("- cat\n- {name: dog, sinonyms: [hound]}", r"entry 2 \(line 2\): .*did you mean synonyms"),
        ("- cat\n- dog\n- CAT", r"entry 3 .*'CAT' is there before, in entry 1"),
        ("- kitten\n- {name: cat, synonyms: [Kitten]}", r"entry 2 .*synonym 'Kitten' is a concept"),
        ("- ''", "entry 1 .*must not be empty"),
        ("- {kind: style}", "entry 1 .*no name"),
        ("", "holds no concept"),
        ("- 1984", "entry 1 .*got '1984'.*quotes"),
        ("- {name: no}", "entry 1 .*name must be text, got False"),
        ("- {name: cat, synonyms: kitten}", r"entry 1 .*synonyms must be a list.*\[one, another\]"),
        ("- {name: cat, synonyms: [1]}", "entry 1 .*each of synonyms must be text, got 1"),
        ("- {name: cat, kind: 3}", "entry 1 .*kind must be text"),
        ("- {name: cat, kind: stile}", "entry 1 .*did you mean 'style'"),
        ("- name: cat\n  name: dog", "entry 1 .*'name' is there twice"),
        ("- [cat, dog]", "entry 1 .*expected a name or a mapping"),
        ("- {name: {a: b}}", "entry 1 .*not nested any deeper"),
        ("- &a {name: cat}\n- {<<: *a}", "entry 2"),
        ("cat: dog", "must be a list"),
        ("- cat\n- {name: [", "no valid YAML at line 2"),
        ("- !!python/object/apply:os.getcwd []", "expected a name|no valid YAML"),
        ("[" * 5000, "no valid YAML"),
        ("\n".join(f"- thing {i}" for i in range(1001)), "holds 1,001 concepts, and at most 1,000"),
        ("- cat\n- {name: nudity, kind: explicit, synonyms: [schoolgirl]}", "entry 2 .*minors"),
        ("- " + "x" * 5000, "entry 1 .*at most 200 characters"),
        ("# " + "x" * 1_000_000, "larger than 1 MB"),
    ],
    "a.csv": [
        ("name,sinonyms\ncat,x", "line 2: unknown key 'sinonyms'; did you mean synonyms"),
        ("name;kind\ncat;object", "parted by commas"),
        ("name,name\ncat,dog", "each once"),
        ("name\ncat\n\ndog\nCat", "line 5: 'Cat' is there before, in line 2"),
        ("name,kind\n,style", "line 2: name must not be empty"),
        ("name", "holds no concept"),
        ("name\nVan Gogh, Vincent", "line 2: 2 values for 1 columns"),
        ('name\n"cat', "no valid CSV at line"),
        ("name,kind\nschoolgirl,explicit", "line 2: .*minors"),
    ],
    "a.txt": [("cat", r"ends in .yaml, .yml or .csv")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [(name, text, words) for name, cases in WRONG.items() for text, words in cases],
    ids=lambda value: str(value)[:24],
)
def test_a_wrong_file_gets_one_sentence(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        read_concepts(_written(tmp_path, name, text))
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"name\n\xff\xfe")
    for name, words in (("b.yaml", "cannot be read"), ("a.csv", "UTF-8")):
        with pytest.raises(ValueError, match=words):
            read_concepts(tmp_path / name)


def test_a_thousand_concepts_are_read_in_seconds(tmp_path: Path) -> None:
    text = "\n".join(f"- {{name: thing {i}, synonyms: [item {i}]}}" for i in range(1000))
    start = time.process_time()
    assert len(read_concepts(_written(tmp_path, "a.yaml", text))) == 1000
    assert time.process_time() - start < 5


def test_reading_needs_no_torch() -> None:
    code = "import expunge.concept_file, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
