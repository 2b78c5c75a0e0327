"""ANT: where it follows and where it turns, what ∅ learns, and which weights may change."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from eraser.methods import WALKS

from expunge.adapter import Adapter
from expunge.backbone.base import Backbone
from expunge.change import Dense
from expunge.concept import Concept
from expunge.eraser.ant import ANT
from expunge.eraser.finetune import Student
from expunge.eraser.points import predictions
from expunge.eraser.saliency import agreed_masks, saliency
from expunge.run.objective import Step

QUICK = ANT(**WALKS | {"trajectories": 1}, maps=2, attention="cross")


def test_the_first_steps_follow_the_concept_and_the_others_lead_away(
    backbone: Backbone, cat: Concept
) -> None:
    points, empty = replace(QUICK, negative_guidance=0.5).lesson(backbone, cat)
    toward = predictions(backbone, points.latents, points.levels, points.prompts)
    step = 0.5 * (toward - empty)
    # 0.14 of ten steps are two, as 7 of 50 are.
    assert points.levels.tolist() == sorted(points.levels.tolist(), reverse=True)
    assert torch.allclose(points.targets[:2], (empty + step)[:2], atol=1e-5)
    assert torch.allclose(points.targets[2:], (empty - step)[2:], atol=1e-5)


@pytest.mark.parametrize(("share", "first"), [(0.0, 0), (0.14, 2), (0.3, 3), (0.9, 9)])
def test_the_turn_comes_after_its_share_of_the_steps(
    backbone: Backbone, share: float, first: int
) -> None:
    path = backbone.levels(backbone.profile.sampling)
    assert replace(QUICK, follow=share).turn(backbone) == path[first]


def test_a_run_that_never_turns_is_refused(
    backbone: Backbone, cat: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "predict", None)  # whatever predicts fails otherwise
    with pytest.raises(ValueError, match="none lead away"):
        replace(QUICK, follow=0.95).erase(backbone, [cat])


@pytest.mark.usefixtures("untouched")
def test_the_empty_prompt_is_held_with_a_gradient(backbone: Backbone, cat: Concept) -> None:
    """The published code's term has none, so nothing would hold ∅."""
    method = replace(QUICK, batch_size=10)
    changes = method.fresh(backbone, cat, torch.Generator())
    for change in changes.values():
        change.requires_grad_(True)
    student = Student(cat, changes)
    adapter = Adapter(backbone.networks, {"cat": changes})
    try:
        objective = method.objective(backbone, {"cat": student})
        parameters = list(student.module.parameters())
        with torch.no_grad():
            for parameter in parameters:
                parameter.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
        with backbone.exact():
            before = objective.loss(Step(0, torch.Generator().manual_seed(1)), "cat")
            assert isinstance(before, dict)
            grads = torch.autograd.grad(before["hold"], parameters, allow_unused=True)
            norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
            with torch.no_grad():
                for parameter, grad in zip(parameters, grads, strict=True):
                    if grad is not None:
                        parameter -= 0.1 * grad / norm
            after = objective.loss(Step(0, torch.Generator().manual_seed(1)), "cat")
            assert isinstance(after, dict)
    finally:
        adapter.remove(backbone.networks)
    assert after["hold"] < before["hold"]


def test_masks_hold_the_most_salient_half_of_every_tensor_that_all_maps_agree_on() -> None:
    one = {"a": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([0.1, 0.2])}
    two = {"a": torch.tensor([[1.0, 4.0], [2.0, 3.0]]), "b": torch.tensor([9.0, 1.0])}
    assert {n: m.tolist() for n, m in agreed_masks([one], 0.5).items()} == {
        "a": [[False, False], [True, True]],
        "b": [False, True],
    }
    both = agreed_masks(iter([one, two]), 0.5)
    assert {n: m.tolist() for n, m in both.items()} == {"a": [[False, False], [False, True]]}
    with pytest.raises(ValueError, match="raise salient"):
        agreed_masks([{"b": one["b"]}, {"b": two["b"]}], 0.5)


def test_only_weights_that_matter_change(backbone: Backbone, cat: Concept) -> None:
    [part] = QUICK.erase(backbone, [cat]).parts
    layers = backbone.select("cross")
    sampling, [(text, _)] = QUICK.sampling(backbone), QUICK.training_pairs(cat, 1)
    found = saliency(backbone, [(text, "")], layers, sampling, seed=0)
    for place, [change] in part.by_place().items():
        assert isinstance(change, Dense) and change.mask is not None
        moved, matters = change.delta != 0, found[place.partition("/")[2]]
        assert moved.any() and 0 < change.mask.float().mean() <= 0.51
        assert matters[moved].min() >= matters.median()
