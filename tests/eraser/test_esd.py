"""ESD from a surrounding: whose prompts, whose pictures, what stays."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from eraser.methods import WALKS

from expunge.backbone.base import Backbone
from expunge.change import Dense
from expunge.concept import Concept
from expunge.eraser.esd import ESD
from expunge.eraser.points import predictions

FROM_DOGS = ESD(**WALKS, erase_from="dog")


def test_the_target_is_relative_to_the_surrounding(backbone: Backbone, cat: Concept) -> None:
    """ε₀(s) − (1 + η)[ε₀(c) − ε₀(∅)], and the student is told s; a flipped sign is not it."""
    found = replace(FROM_DOGS, negative_guidance=0.5, trajectories=1).points(backbone, cat)
    assert all("dog" in text and not cat.mentions(text) for text in found.prompts)
    seen = found.latents, found.levels
    around = predictions(backbone, *seen, found.prompts)
    toward = predictions(backbone, *seen, ["cat"] * len(found.prompts))
    away = 1.5 * (toward - predictions(backbone, *seen, None))
    assert torch.allclose(found.targets, around - away, atol=1e-5)
    assert not torch.allclose(found.targets, around + away, atol=1e-2)


def test_the_concept_outside_of_the_surrounding_stays(cat: Concept) -> None:
    kept = FROM_DOGS.others(cat, [cat], 12)
    assert kept[-1] == "" and len(kept) == 12
    assert sum(map(cat.mentions, kept)) == 6
    assert not any("dog" in text for text in kept)
    assert not any(map(cat.mentions, ESD(**WALKS).others(cat, [cat], 12)))


@pytest.mark.usefixtures("untouched")
def test_what_the_surrounding_gets_moves_away_from_the_concept(
    pipe: Any, backbone: Backbone, cat: Concept
) -> None:
    settings: dict[str, Any] = {"steps": 16, "lr": 3e-3, "batch_size": 4}
    erasure = replace(FROM_DOGS, **settings).erase(pipe, [cat])
    seen = replace(FROM_DOGS, trajectories=1, seed=7).points(backbone, cat)
    with backbone.exact():
        before = predictions(backbone, seen.latents, seen.levels, seen.prompts)
        with erasure.applied(backbone):
            after = predictions(backbone, seen.latents, seen.levels, seen.prompts)
    wanted, moved = (seen.targets - before).flatten(), (after - before).flatten()
    assert float(torch.nn.functional.cosine_similarity(wanted, moved, dim=0)) > 0.05


def test_the_papers_variants_train_whole_weights_of_their_layers(
    backbone: Backbone, cat: Concept
) -> None:
    x, u = (
        ESD(attention=branch, form="dense").fresh(backbone, cat, torch.Generator())
        for branch in ("cross", "not-cross")
    )
    assert all(isinstance(change, Dense) for change in (*x.values(), *u.values()))
    assert all(".attn2." in place for place in x) and not any(".attn2." in place for place in u)
    assert len(x) + len(u) == len(backbone.select("all"))


def test_a_surrounding_no_explicit_work_may_name_is_refused(pipe: Any) -> None:
    explicit = Concept("a naked person", kind="explicit")
    with pytest.raises(ValueError, match="minor"):
        ESD(**WALKS, erase_from="a child").erase(pipe, [explicit])


def test_a_surrounding_the_model_reads_in_part_is_refused(pipe: Any, cat: Concept) -> None:
    with pytest.raises(ValueError, match="the text encoder reads 77"):
        ESD(**WALKS, erase_from="xxxx " * 39 + "dog").erase(pipe, [cat])
    with pytest.raises(ValueError, match="erase_from"):
        ESD(erase_from="")
