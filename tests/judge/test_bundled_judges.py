"""What the judges in the package can do; the figures themselves stand in docs/miniature.md."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.backbone.base import Backbone
from expunge.judge.miniature import MiniatureJudge
from expunge.judge.networks import Variant
from expunge.miniature import judges
from expunge.miniature.check import none_of_them, without_objects
from expunge.miniature.data import MASK_LABELS, OBJECT_LABELS, Pictures, pictures
from expunge.miniature.unknown import HELD_OUT, TRAINED, pairs, snails

VARIANTS: tuple[Variant, ...] = ("conv", "patch")
COUNT = 150


@pytest.fixture(scope="module")
def known() -> Pictures:
    return pictures(COUNT, seed=123)


@pytest.fixture(scope="module")
def nothing(backbone: Backbone, known: Pictures) -> dict[str, torch.Tensor]:
    return without_objects(backbone.pipe.vae, known, COUNT)


@cache
def bundled(variant: Variant) -> MiniatureJudge:
    return MiniatureJudge.load(variant)


def opened(pixels: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(array.permute(1, 2, 0).numpy()) for array in pixels]


@pytest.mark.parametrize("variant", VARIANTS)
def test_shapes_never_seen_and_broken_pictures_are_none_of_the_ten(
    variant: Variant, nothing: dict[str, torch.Tensor]
) -> None:
    assert len(nothing) == 3
    for sort, pixels in nothing.items():
        rate = none_of_them(bundled(variant), pixels)
        assert rate.n == COUNT
        assert rate.value >= 0.94, sort


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_snail_is_no_cat(variant: Variant) -> None:
    drawn = snails(60, seed=5)
    assert all("snail" in caption for caption in drawn.captions)
    assert bundled(variant).shown(opened(drawn.pixels), "cat").mean() <= 0.03


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_known_is_still_seen(variant: Variant, known: Pictures) -> None:
    right = judges.accuracy(bundled(variant).network, known.pixels, known)
    for head in ("objects", "person", "style", "sign"):
        assert right[head][0] >= 0.97 * COUNT, head
    assert right["broken"][0] <= 0.02 * COUNT


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_mask_lies_on_the_object(variant: Variant, known: Pictures) -> None:
    """Judged by overlap with what the renderer painted, and empty where there is none."""
    shares, overlaps = judges.shares(known.owners).numpy(), []
    for at, name in enumerate(OBJECT_LABELS):
        mask = bundled(variant).mask(opened(known.pixels), name) > 0.5
        painted = shares[:, MASK_LABELS.index(name)] > 0.5
        there = known.objects[:, at].bool().numpy()
        union = (mask | painted).sum(axis=(1, 2))
        overlaps += list(((mask & painted).sum(axis=(1, 2)) / np.maximum(union, 1))[there])
        assert mask[~there].mean() < 0.005, name
    assert np.mean(overlaps) > 0.6


def test_kinds_held_out_are_not_trained_on() -> None:
    assert not set(HELD_OUT) & set(TRAINED)
    assert "snail" in HELD_OUT
    with pytest.raises(ValueError, match="kinds must be some of"):
        pairs(("unicorn",))
    with pytest.raises(ValueError, match="kinds must be some of"):
        pairs(())


def test_unknown_shapes_have_no_label_but_what_stands_beside_them_has() -> None:
    alone = pictures(30, seed=1, pair=pairs(TRAINED))
    assert not alone.objects.any()
    assert not alone.owners.any()
    beside = pictures(30, seed=1, pair=pairs(TRAINED, beside=1.0))
    assert (beside.objects.sum(dim=1) == 1).all()
    assert (beside.owners.flatten(1) > 0).any(dim=1).all()
    assert torch.equal(beside.pixels, pictures(30, seed=1, pair=pairs(TRAINED, beside=1.0)).pixels)
