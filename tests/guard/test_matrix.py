"""Properties that every guard has to show, on a plain pipeline and in a backbone's own runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from backbone.architectures import SIDE, TINY
from diffusers import DPMSolverMultistepScheduler
from guard.guards import GUARDS
from torch import Tensor

import expunge
from expunge import UCE, hooks, names
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.condition import erased, guarded, original
from expunge.erasure import Erasure
from expunge.guard.base import Guard
from expunge.hooks import NotFeltError

ALWAYS = [name for name in GUARDS if "looking" not in name]
ARCHITECTURES = ["sd", "sdxl", "sd3", "flux_dev", "flux_schnell"]
STEPS = 6


def _drawn(pipe: Any, steps: int = STEPS, **options: Any) -> Tensor:
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, **options}
    generator = torch.Generator().manual_seed(0)
    found: Tensor = pipe("a cat", generator=generator, output_type="latent", **size).images
    return found


def _hooks(pipe: Any) -> list[Any]:
    modules = [m for part in as_backbone(pipe).networks.values() for m in part.modules()]
    return [hook for m in modules for hook in (*m._forward_hooks, *m._forward_pre_hooks)]


def test_every_guard_has_a_row() -> None:
    assert set(names.GUARDS) == {guard.name for guard in GUARDS.values()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("row", ALWAYS)
def test_attached_it_is_felt_and_detached_nothing_is_left(row: str, architecture: str) -> None:
    pipe = TINY[architecture]()
    plain, hooked = _drawn(pipe), _hooks(pipe)
    with GUARDS[row].attach(pipe):
        guarded = _drawn(pipe)
        assert not torch.equal(guarded, plain)
        assert torch.equal(_drawn(pipe), guarded)  # each run anew
    assert torch.equal(_drawn(pipe), plain)
    assert _hooks(pipe) == hooked
    assert "step" not in vars(pipe.scheduler)
    assert not hooks.attached(as_backbone(pipe).denoiser)


@pytest.mark.parametrize("row", ALWAYS)
@pytest.mark.parametrize("model", ["miniature", "flux_schnell"])
def test_it_acts_alike_on_the_pipeline_and_in_a_backbones_run(
    row: str, model: str, pipe: Any
) -> None:
    pipe = expunge.load("miniature-sd", device="cpu") if model == "miniature" else TINY[model]()
    backbone, guard = as_backbone(pipe), GUARDS[row]
    if model == "miniature":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(
            pipe.scheduler.config, algorithm_type="dpmsolver++", final_sigmas_type="zero"
        )
    more = {} if model == "miniature" else {"max_sequence_length": 256}
    scale = 3.0 if model == "miniature" else 1.0
    sampling = Sampling(STEPS, scale, *(2 * [64]), batch_size=2)
    noise = backbone.initial_noise([0], sampling)
    with backbone.exact(), backbone.guarded(guard.on(backbone)):
        own = backbone.sample(["a cat"], [0], sampling)
    with backbone.exact():
        without = backbone.sample(["a cat"], [0], sampling)
    with backbone.exact(), guard.attach(backbone):
        given = backbone.as_given(noise)
        found = pipe(
            "a cat", latents=given, guidance_scale=scale, num_inference_steps=STEPS,
            height=64, width=64, output_type="latent", **more,
        ).images  # fmt: skip
    assert torch.allclose(backbone.as_given(own), found, atol=2e-3)
    assert not torch.allclose(backbone.as_given(without), found, atol=2e-3)


@pytest.mark.parametrize("row", GUARDS)
def test_a_run_without_a_step_to_act_after_is_an_error(row: str) -> None:
    pipe = TINY["flux_schnell"]()
    with GUARDS[row].attach(pipe), pytest.raises(NotFeltError, match=GUARDS[row].name):
        _drawn(pipe, steps=1)
    backbone = as_backbone(pipe)
    with backbone.guarded(GUARDS[row].on(backbone)), pytest.raises(NotFeltError):
        backbone.sample(["a cat"], [0], Sampling(1, 1.0, SIDE, SIDE))


@pytest.mark.parametrize("row", GUARDS)
def test_every_batch_gets_the_same(row: str) -> None:
    backbone = as_backbone(TINY["sd"]())
    acting = GUARDS[row].on(backbone)
    sampling = Sampling(STEPS, 3.0, SIDE, SIDE)
    with backbone.guarded(acting):
        both = backbone.sample(["a cat", "a dog"], [0, 1], sampling)
        one = backbone.sample(["a dog"], [1], sampling)
    assert torch.allclose(both[1:], one, atol=1e-3)


@pytest.mark.parametrize("row", GUARDS)
def test_it_is_made_again_from_its_record(row: str) -> None:
    record = json.loads(json.dumps(GUARDS[row].record()))
    again: Guard = names.find("guard", record.pop("name"))(**record)
    assert json.dumps(again.record()) == json.dumps(GUARDS[row].record())


@pytest.mark.usefixtures("untouched")
def test_in_a_condition_it_guards_against_what_was_erased(
    backbone: Backbone, erasure: Erasure
) -> None:
    condition = guarded(erased(erasure), names.make("guard", "irece"))
    assert condition.name == "erased + irece"
    assert [c["name"] for c in condition.spec()["guards"][0]["concepts"]] == ["cat"]
    condition.check(backbone)
    with pytest.raises(ValueError, match="what to look for"):
        guarded(original(), names.make("guard", "irece")).check(backbone)


def test_an_erasure_and_a_guard_hang_on_one_pipeline() -> None:
    pipe = TINY["sd"]()
    erasure = UCE(prompts=3, tokens="suffix", to_anchor=True).erase(
        pipe, [as_backbone(pipe).profile.vocabulary.resolve("cat")]
    )
    plain = _drawn(pipe)
    with erasure.applied(pipe):
        changed = _drawn(pipe)
        with GUARDS["irece"].attach(pipe):
            both = _drawn(pipe)
        assert torch.equal(_drawn(pipe), changed)
    assert not torch.equal(both, changed)
    assert torch.equal(_drawn(pipe), plain)
