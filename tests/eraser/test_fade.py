"""FADE: who moves whom, what saliency leaves alone, and that a stop changes nothing."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from safetensors.torch import load_file
from torch import Tensor

from expunge import leakage
from expunge.adapter import Adapter
from expunge.backbone.base import Backbone
from expunge.backbone.guidance import ClassifierFree
from expunge.backbone.load import as_backbone
from expunge.change import Dense
from expunge.concept import Concept
from expunge.discriminator import Discriminator, steepness
from expunge.eraser.adversary import DISCRIMINATOR, Adversarial, seen_levels
from expunge.eraser.fade import FADE
from expunge.eraser.finetune import Student, Students
from expunge.eraser.saliency import saliency, salient_layers, salient_masks
from expunge.run.checkpoint import Workspace
from expunge.run.fit import fit
from expunge.run.objective import Step
from expunge.run.plan import Plan

QUICK = FADE(
    steps=4,
    head_start=1,
    batch_size=2,
    refill=1,
    refill_every=2,
    trajectories=2,
    rank=2,
    lr=1e-3,
    discriminator_lr=1e-3,
    salient=1.0,
    resolution=32,
)


@pytest.fixture(autouse=True)
def _few_steps(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = replace(backbone.profile.sampling, num_inference_steps=4)
    monkeypatch.setattr(backbone, "profile", replace(backbone.profile, sampling=usual))


@contextlib.contextmanager
def hooked(eraser: FADE, backbone: Backbone, *concepts: Concept) -> Iterator[Students]:
    """Students in training, as the framework hooks them in."""
    students = {}
    for number, concept in enumerate(concepts):
        changes = eraser.fresh(backbone, concept, torch.Generator().manual_seed(number))
        for change in changes.values():
            change.requires_grad_(True)
        students[concept.name] = Student(concept, changes)
    adapter = Adapter(backbone.networks, {n: s.changes for n, s in students.items()})
    try:
        yield students
    finally:
        adapter.remove(backbone.networks)


def flat(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten().clone() for p in module.parameters()])


@pytest.mark.usefixtures("untouched")
def test_each_player_moves_itself_alone(backbone: Backbone, cat: Concept) -> None:
    eraser = replace(QUICK, head_start=0)
    with hooked(eraser, backbone, cat) as students:
        objective = eraser.objective(backbone, students)
        assert isinstance(objective, Adversarial)
        players = eraser.players(students, objective)
        assert list(players) == [DISCRIMINATOR, "cat"]
        for name, other in ((DISCRIMINATOR, "cat"), ("cat", DISCRIMINATOR)):
            before = {each: flat(player.module) for each, player in players.items()}
            fit(name, {name: players[name]}, objective, Plan(steps=2, warmup=0))
            assert not torch.equal(flat(players[name].module), before[name])
            assert torch.equal(flat(players[other].module), before[other])


@pytest.mark.usefixtures("untouched")
def test_a_step_of_the_student_lowers_what_the_discriminator_sees(
    backbone: Backbone, cat: Concept
) -> None:
    eraser = replace(QUICK, preserve=0.0, batch_size=4, refill=2, head_start=1000)
    with hooked(eraser, backbone, cat) as students:
        objective = eraser.objective(backbone, students)
        assert isinstance(objective, Adversarial)
        player = eraser.players(students, objective)[DISCRIMINATOR]
        fit("telling", {DISCRIMINATOR: player}, objective, Plan(steps=12, warmup=0))
        objective.method = replace(eraser, head_start=0)

        def told() -> tuple[Tensor, Tensor]:
            """The loss, and how surely D says that the concept was asked for."""
            # Step 1 draws no runs, and its generator chooses the same points of them again.
            step = Step(1, torch.Generator().manual_seed(1))
            objective.before(step)
            terms, batch = objective.loss(step, "cat"), objective._batch
            assert isinstance(terms, dict) and set(terms) == {"remove"} and batch is not None
            logits = objective.discriminator(batch.shown, batch.levels)
            return terms["remove"], logits.sigmoid().mean()

        parameters = list(students["cat"].module.parameters())
        loss, before = told()
        grads = torch.autograd.grad(loss, parameters)
        norm = torch.stack([grad.norm() for grad in grads]).norm()
        with torch.no_grad():
            for parameter, grad in zip(parameters, grads, strict=True):
                parameter -= 0.1 * grad / norm
        assert told()[1] < before - 1e-4


@pytest.mark.usefixtures("untouched")
def test_a_batch_of_one_concept_moves_its_own_student_alone(
    backbone: Backbone, cat: Concept, tmp_path: Path
) -> None:
    ada = backbone.profile.vocabulary.resolve("Ada Lindqvist")
    eraser = replace(QUICK, head_start=0)
    with hooked(eraser, backbone, cat, ada) as students:
        objective = eraser.objective(backbone, students)
        players = eraser.players(students, objective)
        start = {name: player.module.state_dict() for name, player in players.items()}
        start = {n: {k: v.clone() for k, v in state.items()} for n, state in start.items()}
        plan = Plan(steps=2, warmup=0, keep=(1,))
        fit("two", players, objective, plan, Workspace(tmp_path))
    first = load_file(tmp_path / "Ada%20Lindqvist-weights-1.safetensors")
    assert all(torch.equal(first[k], v) for k, v in start["Ada Lindqvist"].items())
    first = load_file(tmp_path / "cat-weights-1.safetensors")
    assert not all(torch.equal(first[k], v) for k, v in start["cat"].items())
    last = players["cat"].module.state_dict()
    assert all(torch.equal(first[k], v) for k, v in last.items())


@pytest.mark.usefixtures("untouched")
def test_preservation_is_felt(backbone: Backbone, cat: Concept) -> None:
    held = QUICK.erase(backbone, [cat])
    free = replace(QUICK, preserve=0.0).erase(backbone, [cat])
    assert "cat/preserve" in held.record["losses"]
    assert "cat/preserve" not in free.record["losses"]
    assert len(held.record["logged"]["cat/remove gradient"]) == QUICK.steps - QUICK.head_start
    first, second = held.delta(), free.delta()
    assert any(not torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("untouched")
def test_weights_off_the_mask_stay_exactly_as_they_were(backbone: Backbone, cat: Concept) -> None:
    eraser = replace(QUICK, form="dense", salient=0.05)
    (part,) = eraser.erase(backbone, [cat]).parts
    moved = 0
    for change in part.tuned.values():
        assert isinstance(change, Dense) and change.mask is not None
        assert not change.weight[~change.mask].any()
        moved += int((change.delta != 0).sum())
    chosen = backbone.select("attention").values()
    every = sum(p.numel() for layer in chosen for n, p in layer.named_parameters() if n == "weight")
    assert 0 < moved <= 0.05 * every + 1


@pytest.mark.usefixtures("untouched")
def test_a_run_that_was_stopped_ends_as_an_unbroken_one(
    backbone: Backbone, cat: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    eraser = replace(QUICK, spectral=True, told=True)
    whole = eraser.erase(backbone, [cat])
    before = Adversarial.before

    def stopped(self: Adversarial, step: Step) -> None:
        before(self, step)
        if step.number == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Adversarial, "before", stopped)
        with pytest.raises(KeyboardInterrupt, match="after step 3"):
            eraser.erase(backbone, [cat], folder=tmp_path)
    resumed = eraser.erase(backbone, [cat], folder=tmp_path)
    assert resumed.id == whole.id
    assert resumed.record["losses"] == whole.record["losses"]


@pytest.mark.usefixtures("untouched")
def test_leakage_is_written_into_the_record(
    backbone: Backbone, cat: Concept, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = functools.partial(leakage.leakage, train=2, test=2, steps=2)
    monkeypatch.setattr(leakage, "leakage", small)
    erasure = replace(QUICK, steps=2, leakage=True).erase(backbone, [cat])
    record = json.loads((erasure.save(tmp_path / "run") / "erasure.json").read_text())
    found = record["leakage"]["cat"]
    assert found["original"]["pairs"] == found["erased"]["pairs"] == {"train": 2, "test": 2}
    assert "leakage" not in QUICK.erase(backbone, [cat]).record


@pytest.mark.parametrize("family", ["sdxl", "flux_dev", "flux_schnell"])
def test_it_runs_on_other_architectures(family: str) -> None:
    backbone = as_backbone(TINY[family]())
    usual = replace(backbone.profile.sampling, num_inference_steps=4, height=64, width=64)
    backbone.profile = replace(backbone.profile, sampling=usual)
    cat = Concept("cat", anchor="dog", templates=("a [photo|picture|drawing|view] of a {}",))
    eraser = replace(QUICK, steps=2, salient=0.5, tail=2, from_level=0.9, preserve_from=0.2)
    erasure = eraser.erase(backbone, [cat])
    assert erasure.record["fingerprint"]["predictions"][0]["shift"] > 0


def test_saliency_finds_what_a_layer_carries(backbone: Backbone, cat: Concept) -> None:
    layers, sampling = backbone.select("attention"), QUICK.sampling(backbone)
    before = [layer.weight.requires_grad for layer in layers.values()]
    found = saliency(backbone, cat.training_pairs(1, synonyms=False), layers, sampling, seed=0)
    assert all(found[name].shape == layers[name].weight.shape for name in layers)
    assert [layer.weight.requires_grad for layer in layers.values()] == before
    read = torch.cat([found[n].flatten() for n in layers if n.endswith("attn2.to_v")])
    asked = torch.cat([found[n].flatten() for n in layers if n.endswith("to_q")])
    assert read.mean() > 3 * asked.mean()  # what is read of the prompt, not where it is looked for


def test_masks_and_layers_hold_the_share_asked_for() -> None:
    found = {"a": torch.tensor([[9.0, 8.0], [0.0, 0.0]]), "b": torch.full((2, 2), 5.0)}
    found["c"] = torch.zeros(1, 4)
    assert salient_layers(found, 0.4) == ["b"]
    assert salient_layers(found, 0.7) == ["a", "b"]
    masks = salient_masks(found, 0.2)
    assert list(masks) == ["a"] and masks["a"].tolist() == [[True, True], [False, False]]
    assert "c" not in salient_masks(found, 1.0)  # what never mattered may not move


@pytest.mark.parametrize("spectral", [False, True])
def test_a_discriminator_has_an_output_for_each_concept(spectral: bool) -> None:
    state = torch.random.get_rng_state()
    network, again = (Discriminator((4, 16, 8), 3, told=6, spectral=spectral) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(flat(network), flat(again))
    latents = torch.randn(2, 4, 16, 8, requires_grad=True)
    low, high = torch.zeros(2), torch.ones(2)
    logits = network(latents, low, torch.zeros(2, 6))
    assert logits.shape == (2, 3)
    assert not torch.equal(logits, network(latents, high, torch.zeros(2, 6)))
    assert not torch.equal(logits, network(latents, low, torch.ones(2, 6)))
    assert steepness(logits[:, 0], latents).requires_grad


def test_the_negative_branch_holds_no_graph(backbone: Backbone) -> None:
    """The same guided prediction, each row at its own level, with half the gradient's way."""
    states = backbone.encode_prompts(["a cat", "a dog"])
    latents = torch.randn(2, *backbone.latent_shape(64, 64), requires_grad=True)
    levels = torch.tensor([0.2, 0.6])
    whole, detached = (ClassifierFree(states, 3.0, detached=flag) for flag in (False, True))
    with backbone.exact():
        both, parted = whole(backbone, latents, levels), detached(backbone, latents, levels)
        alone = whole(backbone, latents[1:].repeat(2, 1, 1, 1), 0.6)[1:]
        toward = backbone.predict(latents, levels, states)
        assert torch.allclose(both, parted, atol=1e-4)
        assert torch.allclose(both[1:], alone, atol=1e-4)
        grads = [torch.autograd.grad(out.sum(), latents)[0] for out in (parted, toward)]
    assert torch.allclose(grads[0], 3 * grads[1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"salient": 0.0}, "salient must be positive"),
        ({"salient": 1.5}, "salient must be at most 1"),
        ({"tail": 0}, "tail must be at least 1"),
        ({"form": "sparse"}, "form must be one of low-rank, dense"),
        ({"batch_size": 3}, "at most twice refill"),
        ({"r1": float("nan")}, "r1 must be a finite number"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(QUICK, **settings)


def test_settings_without_effect_are_refused_before_any_work(
    backbone: Backbone, cat: Concept
) -> None:
    with pytest.raises(ValueError, match=r"begin at noise level 0\.01 or below"):
        replace(QUICK, from_level=0.01).erase(backbone, [cat])
    with pytest.raises(ValueError, match="steps must exceed head_start"):
        replace(QUICK, head_start=4).erase(backbone, [cat])
    assert seen_levels([1.0, 0.7, 0.4, 0.2, 0.0], 0.7, 2) == [1, 2]
