"""What a fresh network tells: all where all differs, nothing where nothing does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from expunge import leakage as module
from expunge.backbone.base import Backbone
from expunge.concept import Concept
from expunge.erasure import Erasure
from expunge.leakage import Pairs, _told, leakage


def pairs(count: int, seed: int, apart: float) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    shown, clear = torch.randn(2, count, 4, 8, 8, generator=generator)
    return Pairs(shown + apart, clear)


def test_a_difference_is_told_and_none_is_not() -> None:
    found = _told(pairs(40, 0, 1.0), pairs(40, 1, 1.0), 60, 0)
    assert found["unpaired"]["accuracy"] > 0.95 and found["paired"]["accuracy"] > 0.95
    assert found["variation_at_least"] > 0.7
    found = _told(pairs(40, 0, 0.0), pairs(40, 1, 0.0), 60, 0)
    for how in ("unpaired", "paired"):
        low, high = found[how]["ci"]
        assert low < 0.5 < high
    assert found["variation_at_least"] == 0


def test_pictures_that_are_the_same_are_at_chance() -> None:
    same = torch.randn(20, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = _told(pairs(40, 0, 0.0), Pairs(same, same.clone()), 20, 0)
    assert found["unpaired"]["accuracy"] == found["paired"]["accuracy"] == 0.5


@pytest.mark.usefixtures("untouched")
def test_original_and_erased_are_measured_on_the_same_pairs(
    backbone: Backbone, erasure: Erasure, cat: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = replace(backbone.profile.sampling, num_inference_steps=2)
    monkeypatch.setattr(backbone, "profile", replace(backbone.profile, sampling=few))
    drawn: list[Pairs] = []

    def seen(train: Pairs, *rest: Any) -> Any:
        drawn.append(train)
        return _told(train, *rest)

    monkeypatch.setattr(module, "_told", seen)
    found: dict[str, Any] = leakage(backbone, erasure, cat, train=4, test=3, steps=20)
    assert found["original"]["pairs"] == found["erased"]["pairs"] == {"train": 4, "test": 3}
    assert found["original"]["unpaired"]["n"] == found["erased"]["unpaired"]["n"] == 6
    original, erased = drawn
    assert not torch.equal(original.shown, erased.shown)
    assert not torch.equal(original.shown, original.clear)
    with pytest.raises(ValueError, match="concept must be one that is erased, got 'dog'"):
        leakage(backbone, erasure, Concept("dog"))
    with erasure.applied(backbone), pytest.raises(ValueError, match="remove it before"):
        leakage(backbone, erasure, cat)
