"""Whatever scheduler a pipeline has: what a guard puts in place is what the denoiser reads next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from backbone.architectures import SIDE, TINY
from diffusers import (
    DPMSolverMultistepScheduler,
    LCMScheduler,
    PNDMScheduler,
    SASolverScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.sampling import Step
from expunge.guard.base import Acting, Guard, Once
from expunge.guard.schedulers import KNOWN, memory_of
from expunge.hooks import NotFeltError

VALUE = 0.25
STEPS = 8


class _Sets(Acting):
    def __init__(self, level: float) -> None:
        self.once, self.steps = Once(level, "sets"), []

    def latents(self, step: Step) -> Tensor:
        self.steps.append(step)
        if not self.once.due(step):
            return step.reached
        return torch.full_like(step.reached, VALUE)


@dataclass(frozen=True, kw_only=True)
class Sets(Guard):
    """Sets latents to one value, once."""

    name: ClassVar[str] = "sets"
    level: float = 0.6

    def check(self, backbone: Backbone) -> None:
        pass

    def on(self, backbone: Backbone) -> _Sets:
        return _Sets(self.level)


def _schedulers() -> list[tuple[str, Any, dict[str, Any]]]:
    found = []
    for name in ("sd", "sdxl", "flux_dev", "sd3"):
        scheduler = TINY[name]().scheduler
        found += [(name, kind, {}) for kind in scheduler.compatibles]
    more: list[tuple[str, Any, dict[str, Any]]] = [
        ("sd", LCMScheduler, {}),
        ("sd", TCDScheduler, {}),
        ("sd", SASolverScheduler, {}),
        ("sd", PNDMScheduler, {"skip_prk_steps": False}),
        ("sd", DPMSolverMultistepScheduler, {"solver_order": 3}),
        ("sd", UniPCMultistepScheduler, {"solver_order": 3}),
        ("flux_dev", UniPCMultistepScheduler, {"use_flow_sigmas": True}),
    ]
    return sorted(found + more, key=str)


def _said(value: Any) -> str:
    return str(getattr(value, "__name__", value))


def _drawn(pipe: Any, steps: int = STEPS) -> Tensor:
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": steps, "output_type": "latent"}
    latents: Tensor = pipe("a cat", generator=torch.Generator().manual_seed(0), **size).images
    return latents


def _pipe(name: str, kind: Any, options: dict[str, Any]) -> Any:
    pipe = TINY[name]()
    options = {"skip_prk_steps": True, **options}
    flow = {"prediction_type": "flow_prediction"} if "use_flow_sigmas" in options else {}
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **options, **flow)
    return pipe


@pytest.mark.parametrize(("name", "kind", "options"), _schedulers(), ids=_said)
def test_the_denoiser_reads_what_was_put_in_place_or_the_scheduler_is_refused(
    name: str, kind: Any, options: dict[str, Any]
) -> None:
    if "dummy" in kind.__module__:  # a stand-in where diffusers misses a library
        with pytest.raises(ValueError, match=kind.__name__):
            memory_of(object.__new__(kind))
        return
    pipe = _pipe(name, kind, options)
    if kind.__name__ not in KNOWN or options == {"skip_prk_steps": False}:
        with pytest.raises(ValueError, match=kind.__name__):
            Sets().attach(pipe)
        return
    plain = _drawn(pipe)
    read: list[Tensor] = []
    with Sets().attach(pipe) as attached:
        attached._acting.conditioning = lambda call: read.append(call.latents) or call.conditioning
        guarded = _drawn(pipe)
    assert torch.equal(_drawn(pipe), plain)
    assert not torch.equal(guarded, plain)
    flat = [bool((latents - VALUE).abs().max() < 1e-3) for latents in read]
    assert sum(flat) == 1
    _check_levels(attached._acting.steps)


def _check_levels(steps: list[Step]) -> None:
    """Whole steps follow on each other, from noise to the end."""
    assert [s.to for s in steps[:-1]] == pytest.approx([s.level for s in steps[1:]], abs=1e-6)
    assert steps[0].level > 0.8
    assert steps[-1].to == 0


@pytest.mark.parametrize("kind", sorted(KNOWN))
def test_the_run_goes_on_from_there_as_if_it_had_begun_there(kind: str) -> None:
    """Latents of two guards that differ only before they act come to the same end."""
    import diffusers

    pipe = TINY["sd"]()
    if "FlowMatch" in kind:
        pipe = TINY["flux_dev"]()
    else:
        pipe.scheduler = getattr(diffusers, kind).from_config(
            pipe.scheduler.config, skip_prk_steps=True
        )
    ends = []
    for seed in (0, 1):
        with Sets().attach(pipe):
            size = {"height": SIDE, "width": SIDE, "num_inference_steps": STEPS}
            generator = torch.Generator().manual_seed(seed)
            torch.manual_seed(0)
            ends.append(pipe("a cat", generator=generator, output_type="latent", **size).images)
    if any(word in kind for word in ("Ancestral", "DDPM", "LCM", "TCD")):
        return  # every step draws noise of its own
    assert torch.allclose(*ends, atol=1e-5)


def test_a_run_that_ends_before_the_guard_acts_is_an_error() -> None:
    pipe = TINY["flux_schnell"]()
    with Sets(level=0.6).attach(pipe), pytest.raises(NotFeltError, match="more steps"):
        _drawn(pipe, steps=1)


def test_another_scheduler_is_noticed_at_the_next_picture() -> None:
    pipe = TINY["sd"]()
    before = pipe.scheduler
    with Sets().attach(pipe):
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        with pytest.raises(NotFeltError, match="another scheduler"):
            _drawn(pipe)
        pipe.scheduler = before
        _drawn(pipe)


def test_another_denoiser_is_noticed_at_the_next_picture() -> None:
    pipe, other = TINY["sd"](), TINY["sd"]()
    with Sets().attach(pipe):
        pipe.unet = other.unet
        with pytest.raises(NotFeltError, match="denoiser"):
            _drawn(pipe)


def test_a_step_that_was_replaced_is_refused_or_noticed() -> None:
    pipe = TINY["sd"]()
    step = pipe.scheduler.step
    pipe.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs)
    with pytest.raises(ValueError, match="replaced"):
        Sets().attach(pipe)
    del pipe.scheduler.step
    with Sets().attach(pipe):
        pipe.scheduler.step = lambda *args, **kwargs: step(*args, **kwargs)
        with pytest.raises(NotFeltError, match="replaced"):
            _drawn(pipe)


def test_drawing_around_the_pipeline_is_noticed() -> None:
    pipe = TINY["sd"]()
    with Sets().attach(pipe), pytest.raises(NotFeltError, match="without a step"):
        as_backbone(pipe).sample(["a cat"], [0])


def test_a_guard_is_attached_once() -> None:
    pipe = TINY["sd"]()
    with Sets().attach(pipe), pytest.raises(ValueError, match="already"):
        Sets().attach(pipe)
