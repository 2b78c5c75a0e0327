"""TRCE: the end of the text alone is sent, and early predictions take the anchor's side."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from eraser.methods import WALKS

from expunge.backbone.base import Backbone
from expunge.concept import Concept
from expunge.eraser.points import Points, predictions
from expunge.eraser.trce import TRCE
from expunge.text_rows import concept_rows

QUICK = TRCE(**WALKS, prompts=4, preserved=6)


def test_the_first_stage_sends_one_state_of_every_prompt_of_every_name(
    backbone: Backbone, cat: Concept
) -> None:
    request = QUICK.closed_form(cat)
    assert request is not None
    assert len(request.pairs) == 4 * len(cat.names)
    rows = concept_rows(backbone, {"cat": request})["cat"]["tokens"]
    assert len(rows.sources) == len(request.pairs)
    tokens, states = backbone.tokens([text for text, _ in request.pairs])[0], []
    encoded = backbone.encode_prompts([text for text, _ in request.pairs]).prompt_embeds
    for ids, row in zip(tokens.ids.tolist(), encoded, strict=True):
        states.append(row[ids.index(tokens.end)])
    assert torch.allclose(rows.sources, torch.stack(states), atol=1e-5)


def test_the_second_stage_looks_at_high_noise_alone_and_takes_the_anchors_side(
    backbone: Backbone, cat: Concept
) -> None:
    method = replace(QUICK, trajectories=1, above=0.6)
    found = method.points(backbone, cat)
    assert found.levels.min() >= 0.6 and len(set(found.levels.tolist())) > 2
    assert method.kept_points(backbone, cat, [cat]).levels.min() >= 0.6
    anchors = [text.replace("cat", "ball") for text in found.prompts]
    at = (found.latents, found.levels)
    assert found.away is not None
    assert torch.allclose(found.targets, predictions(backbone, *at, anchors), atol=1e-5)
    assert torch.allclose(found.away, predictions(backbone, *at, found.prompts), atol=1e-5)


def test_the_contrast_ends_where_the_anchor_is_nearer_by_the_margin() -> None:
    """With the sides exchanged, the first would be 0 and the last would not."""
    safe, shown = torch.zeros(3, 1, 2, 2), torch.ones(3, 1, 2, 2)
    points = Points(safe, torch.ones(3), ["cat"] * 3, safe, shown)
    told = torch.tensor([1.0, 0.5, 0.0]).view(-1, 1, 1, 1).expand_as(safe)
    errors = TRCE(margin=0.25).erase_error(told, points)
    assert errors.tolist() == pytest.approx([1.25, 0.25, 0.0])
    assert [points.pick(torch.tensor([1])).away is not None, points.above(2).prompts] == [True, []]


def test_the_picture_side_of_attention_is_trained(backbone: Backbone, cat: Concept) -> None:
    places = QUICK.fresh(backbone, cat, torch.Generator())
    cross = [place for place in places if ".attn2." in place]
    assert cross and all(place.endswith("to_q") for place in cross)
    assert {p for p in places if ".attn1." in p} == {f"unet/{n}" for n in backbone.select("self")}


def test_a_level_no_run_begins_at_is_refused(
    backbone: Backbone, cat: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "predict", None)  # whatever predicts fails otherwise
    with pytest.raises(ValueError, match="nothing would be steered"):
        replace(QUICK, above=1.0).erase(backbone, [cat])
    with pytest.raises(ValueError, match="both off"):
        TRCE(refine=False, tune=False)
