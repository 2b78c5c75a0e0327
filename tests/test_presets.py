"""Presets: which concepts get which, and what the record says of it."""

from __future__ import annotations

import pytest

from expunge import names, presets
from expunge.concept import Concept
from expunge.presets import choose, preset

TRACE = names.find("eraser", "trace")


@pytest.mark.parametrize(("family", "method"), list(presets.PRESETS))
def test_every_preset_can_be_made(family: str, method: str) -> None:
    found = names.find("eraser", method)
    for kind in ("object", "identity", "style", "explicit"):
        choice = choose(family, found, [Concept("x", kind=kind)])  # type: ignore[arg-type]
        assert isinstance(choice.eraser, found) and choice.eraser != found()
        assert choice.preset is not None and choice.preset.startswith(f"{method} on {family}")


def test_what_is_particular_to_a_kind_needs_all_concepts_of_that_kind() -> None:
    usual, name = preset("miniature-sd", "TRACE", ["object"])
    style, of_style = preset("miniature-sd", "TRACE", ["style", "style"])
    mixed, of_mixed = preset("miniature-sd", "TRACE", ["style", "object"])
    assert style != usual == mixed
    assert name == of_mixed == "TRACE on miniature-sd"
    assert of_style == "TRACE on miniature-sd, style"


def test_what_is_given_wins_and_unknown_models_get_the_methods_own() -> None:
    choice = choose("miniature-sd", TRACE, [Concept("cat")], {"steps": 7})
    assert choice.eraser.steps == 7  # type: ignore[attr-defined]
    assert choice.eraser != TRACE(steps=7)
    unknown = choose("sd", TRACE, [Concept("cat")], {"steps": 7})
    assert unknown.eraser == TRACE(steps=7) and unknown.preset is None


def test_a_preset_cannot_hide_a_wrong_value() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        choose("miniature-sd", TRACE, [Concept("cat")], {"steps": 0})
