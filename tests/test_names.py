"""Every name leads somewhere, and a wrong one to a sentence."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

import expunge
from expunge import names

EVERY = [(kind, name) for kind, table in names.TABLES.items() for name in table]


@pytest.mark.parametrize(("kind", "name"), EVERY)
def test_every_name_leads_somewhere_that_says_what_it_is(kind: str, name: str) -> None:
    found = names.find(kind, name)
    assert callable(found)
    assert (found.__doc__ or "").strip(), "`expunge list` shows its first line"
    assert name == name.lower() and ":" not in name and "," not in name
    names.settings(found)


def test_the_public_face_follows_from_the_table() -> None:
    for kind in ("eraser", "attack", "guard"):
        for home in names.TABLES[kind].values():
            module, _, attribute = home.partition(":")
            assert getattr(expunge, attribute) is getattr(
                importlib.import_module(module), attribute
            )


def test_every_eraser_has_a_row_in_the_matrix() -> None:
    text = (Path(__file__).parent / "eraser" / "methods.py").read_text()
    rows = text[text.index("ERASERS") : text.index("\n}", text.index("ERASERS"))]
    for home in names.ERASERS.values():
        assert f"{home.partition(':')[2]}(" in rows, home


def test_every_eraser_can_be_made_and_checked_without_torch() -> None:
    code = (
        "import sys\nfrom expunge import names\n"
        "for name in names.ERASERS: names.find('eraser', name)()\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def _judge(
    labels: tuple[str, ...],
    model: str = "m",
    folder: Path | None = None,
    count: int | None = None,
    level: float = 1.0,
    bare: bool = False,
    mode: Literal["a", "b"] = "a",
) -> dict[str, object]:
    """Shows what it was made with."""
    return dict(locals())


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(names.JUDGES, "shown", f"{__name__}:_judge")
    monkeypatch.setitem(sys.modules, __name__, sys.modules[_judge.__module__])


@pytest.mark.usefixtures("table")
def test_settings_are_read_by_their_types() -> None:
    made = names.make(
        "judge",
        "shown:0.5,labels=Claude Monet | Van Gogh, in Arles,folder=a b/c,count=3,bare=true,mode=b",
    )
    assert made == {
        "labels": ("Claude Monet", "Van Gogh, in Arles"),
        "model": "m",
        "folder": Path("a b/c"),
        "count": 3,
        "level": 0.5,
        "bare": True,
        "mode": "b",
    }
    assert names.make("judge", "shown:labels=x,count=none")["count"] is None


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("shwn", "did you mean 'shown'"),
        ("", "no judge ''"),
        ("shown", "needs labels: say shown:labels="),
        ("shown:labels=x,cuont=3", "did you mean 'count'"),
        ("shown:labels=x,count=1.5", "must be a whole number, got '1.5'"),
        ("shown:labels=x,level=nan", "must be finite"),
        ("shown:labels=x,level=1e999", "must be finite"),
        ("shown:labels=x,bare=yes", "must be true or false"),
        ("shown:labels=x,mode=c", "must be one of a, b"),
        ("shown:labels=x,count=1,count=2", "given count twice"),
        ("y" * 100_000, "no judge"),
        ("shown:labels=x,count=" + "y" * 100_000, "whole number"),
        ("shown:" + "y" * 100_000 + "=3", "no setting"),
    ],
)
def test_a_wrong_name_gets_one_short_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        names.make("judge", text)
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


def test_a_comma_ends_a_name_but_not_its_settings() -> None:
    texts = ["none,jpeg:20", "regeneration:0.3,prompt=caption, vae", "tree-ring:radius=0.3", ""]
    assert names.listed(texts) == [
        *("none", "jpeg:20", "regeneration:0.3,prompt=caption", "vae", "tree-ring:radius=0.3")
    ]


def test_a_kind_without_things_says_so() -> None:
    error = names.unknown("protocol", "standard", {})
    assert str(error) == "no protocol 'standard': there is none yet"
