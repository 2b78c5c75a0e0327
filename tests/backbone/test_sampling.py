"""One loop serves drawing, denoising, inverting; guards act in all of it, or nothing is changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from backbone.architectures import SIDE, TINY
from torch import Tensor

from expunge import hooks
from expunge.backbone.base import Backbone
from expunge.backbone.call import Call
from expunge.backbone.conditioning import Conditioning
from expunge.backbone.guidance import Arithmetic, Away, ClassifierFree, Completion, Plain, Switch
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.backbone.sampling import Step, follow, invert, levels_below, steps
from expunge.backbone.solvers import FixedPoint, Straight, solver_named

SAMPLING = Sampling(num_inference_steps=4, guidance_scale=3.0, height=SIDE, width=SIDE)
LEVELS = levels_below(1.0, 4)


@pytest.fixture(scope="module", params=["sd", "sd2", "sdxl", "sd3", "flux_dev"])
def tiny(request: pytest.FixtureRequest) -> Backbone:
    backbone = as_backbone(TINY[request.param]())
    backbone.precision = "own"
    return backbone


@pytest.fixture
def sd() -> Backbone:
    backbone = as_backbone(TINY["sd"]())
    backbone.precision = "own"
    return backbone


def told(backbone: Backbone, *prompts: str) -> Conditioning:
    return backbone.encode_prompts(prompts or ["a cat"])


def noise(backbone: Backbone, count: int = 1) -> Tensor:
    return backbone.initial_noise(list(range(count)), SAMPLING)


class Silent:
    """A guard that leaves everything as it is, and counts."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.steps: list[Step] = []

    def conditioning(self, call: Call) -> Conditioning:
        self.calls.append(call)
        return call.conditioning

    def prediction(self, call: Call, out: Tensor) -> Tensor:
        return out

    def latents(self, step: Step) -> Tensor:
        self.steps.append(step)
        return step.reached


# --- the loop


@pytest.mark.parametrize("path", [SAMPLING, LEVELS])
def test_steps_join_from_noise_to_clean(tiny: Backbone, path: Any) -> None:
    guidance, start = tiny.guidance_for(told(tiny), 3.0), noise(tiny)
    taken = list(steps(tiny, start, guidance, path))
    assert len(taken) == 4
    assert torch.equal(taken[0].latents, start)
    for first, second in itertools.pairwise(taken):
        assert first.to == second.level < first.level
        assert torch.equal(first.reached, second.latents)
    last = taken[-1]
    assert last.to == 0
    # At 0 nothing is left but what the last prediction stands for.
    assert torch.allclose(last.reached, last.clean, atol=1e-4)
    with torch.no_grad():
        again = guidance(tiny, taken[1].latents, taken[1].level)
    assert torch.equal(taken[1].prediction, again)


def test_down_and_up_again_is_where_it_began(tiny: Backbone) -> None:
    guidance, start = tiny.guidance_for(told(tiny), 1.0), noise(tiny)
    levels = levels_below(0.8, 8)
    clean = follow(tiny, start, guidance, levels)
    back = invert(tiny, clean, guidance, levels, solver=FixedPoint(25))
    assert float((back - start).norm() / start.norm()) < 5e-4
    assert float((follow(tiny, back, guidance, levels) - clean).norm() / clean.norm()) < 5e-4


def test_level_zero_is_clean_and_has_no_noise(tiny: Backbone) -> None:
    clean, some = torch.randn_like(noise(tiny, 2)), torch.randn_like(noise(tiny, 2))
    assert torch.equal(tiny.add_noise(clean, some, 0.0), clean)
    assert torch.equal(tiny.clean(clean, some, 0.0), clean)
    mixed = tiny.add_noise(clean, some, torch.tensor([0.0, 0.5]))
    assert torch.equal(mixed[0], clean[0]) and not torch.equal(mixed[1], clean[1])


def test_only_the_last_steps_keep_a_graph(tiny: Backbone) -> None:
    start = noise(tiny).requires_grad_()
    guidance = tiny.guidance_for(told(tiny), 3.0)
    for path in (SAMPLING, LEVELS):
        plain = list(steps(tiny, start, guidance, path))
        with torch.no_grad():  # whatever the caller has set
            taken = list(steps(tiny, start, guidance, path, graph_last=2))
        assert [step.reached.requires_grad for step in taken] == [False, False, True, True]
        assert not any(step.reached.requires_grad for step in plain)
        assert torch.equal(taken[-1].reached, plain[-1].reached)
        whole = follow(tiny, start, guidance, path, graph_last=4)
        (slope,) = torch.autograd.grad(whole.sum(), start)
        assert torch.isfinite(slope).all() and slope.abs().max() > 0


def test_a_run_of_no_steps_ends_where_it_began(sd: Backbone) -> None:
    start = noise(sd)
    assert follow(sd, start, Plain(told(sd)), [0.0]) is start
    with pytest.raises(ValueError, match="solver must be None"):
        next(steps(sd, start, Plain(told(sd)), SAMPLING, solver=Straight()))
    with pytest.raises(ValueError, match="solver must be one of euler, midpoint, fixed_point"):
        solver_named("heun")


# --- guidance


def test_guidances_are_what_their_formulas_say(sd: Backbone) -> None:
    latents, cat, dog = noise(sd, 2), told(sd, "a cat", "a dog"), told(sd, "a dog", "a cat")
    with torch.no_grad():
        toward, other = (sd.predict(latents, 0.4, states) for states in (cat, dog))
        empty = sd.predict(latents, 0.4, sd.unconditional().repeat(2))
        guided = sd.guidance_for(cat, 5.0)(sd, latents, 0.4)
        negative = ClassifierFree(cat, 5.0, dog)(sd, latents, 0.4)
        away = Away(cat, 2.0)(sd, latents, 0.4)
        sum_of = Arithmetic([(2.0, Plain(cat)), (-0.5, Plain(dog))])(sd, latents, 0.4)
        plain = sd.guidance_for(cat, 1.0)(sd, latents, 0.4)
    assert torch.allclose(guided, empty + 5 * (toward - empty), atol=1e-5)
    assert torch.allclose(negative, other + 5 * (toward - other), atol=1e-5)
    assert torch.allclose(away, empty - 2 * (toward - empty), atol=1e-5)
    assert torch.allclose(sum_of, 2 * toward - 0.5 * other, atol=1e-5)
    assert torch.equal(plain, toward)


def test_a_switch_guides_first_by_one_then_by_the_other(sd: Backbone) -> None:
    cat, dog = Plain(told(sd, "a cat")), Plain(told(sd, "a dog"))
    switched = list(steps(sd, noise(sd), Switch(0.5, cat, dog), LEVELS))
    straight = list(steps(sd, noise(sd), cat, LEVELS))
    same = [
        torch.equal(a.prediction, b.prediction) for a, b in zip(switched, straight, strict=True)
    ]
    assert [step.level for step in switched] == [1.0, 0.75, 0.5, 0.25]
    assert same == [True, True, False, False]


def test_models_that_read_no_negative_say_so() -> None:
    backbone = as_backbone(TINY["flux_dev"]())
    states = told(backbone)
    with pytest.raises(ValueError, match=r"negative must be None.*guidance is embedded"):
        backbone.guidance_for(states, 3.5, states)


# --- what hangs on the denoiser is felt


class Hung:
    """Something attached to a network."""

    def __init__(self) -> None:
        self.ran = False

    def state(self) -> None: ...

    def begin(self) -> None:
        self.ran = False

    def check_ran(self) -> None:
        if not self.ran:
            raise hooks.NotFeltError("did not run")


@pytest.fixture
def hung(sd: Backbone) -> Iterator[Hung]:
    found = hooks.attached(sd.denoiser)["hung"] = Hung()
    yield found
    del hooks.attached(sd.denoiser)["hung"]


@pytest.mark.parametrize("path", [SAMPLING, LEVELS])
def test_a_change_that_does_not_run_stops_the_first_step(
    sd: Backbone, hung: Hung, path: Any
) -> None:
    guidance = sd.guidance_for(told(sd), 3.0)
    run = steps(sd, noise(sd), guidance, path)
    with pytest.raises(hooks.NotFeltError):
        next(run)
    with hooks.original():
        follow(sd, noise(sd), guidance, path)


def test_a_completion_is_checked_where_the_original_ends(sd: Backbone, hung: Hung) -> None:
    silent: list[bool] = []
    cat = Plain(told(sd))

    def spy(backbone: Backbone, latents: Tensor, level: float) -> Tensor:
        silent.append(hooks.silent())
        return cat(backbone, latents, level)

    run = steps(sd, noise(sd), Completion(spy, 0.6), LEVELS)
    next(run), next(run)
    with pytest.raises(hooks.NotFeltError):
        next(run)
    assert silent == [True, True, False]


# --- guards


def test_guards_that_do_nothing_change_no_bit(tiny: Backbone) -> None:
    prompts, seeds = ["a cat", "a dog"], [0, 1]
    before = tiny.sample(prompts, seeds, SAMPLING)
    guard = Silent()
    with tiny.guarded(guard):
        guarded = tiny.sample(prompts, seeds, SAMPLING)
    assert torch.equal(guarded, before)
    assert len(guard.calls) == len(guard.steps) == 4
    tiny.sample(prompts, seeds, SAMPLING)
    assert len(guard.calls) == 4
    call = guard.calls[0]
    two = tiny.guidance == "classifier-free"
    assert call.rows == (("negative",) * 2 + ("positive",) * 2 if two else ("only",) * 2)
    assert call.texts[-2:] == ("a cat", "a dog")
    assert call.tokens is not None and len(call.tokens[0].ids) == len(call.latents)
    assert call.latents.shape[1:] == before.shape[1:]


def test_what_guards_say_is_done(sd: Backbone) -> None:
    dog, cat = told(sd, "a dog"), sd.guidance_for(told(sd, "a cat"), 1.0)

    class Dog(Silent):
        def conditioning(self, call: Call) -> Conditioning:
            return dog

    class Louder(Silent):
        def prediction(self, call: Call, out: Tensor) -> Tensor:
            return 2 * out

    class Zeros(Silent):
        def latents(self, step: Step) -> Tensor:
            return torch.zeros_like(step.reached)

    wanted = follow(sd, noise(sd), sd.guidance_for(dog, 1.0), SAMPLING)
    assert torch.equal(follow(sd, noise(sd), cat, SAMPLING, guards=[Dog()]), wanted)
    double = Arithmetic([(2.0, cat)])
    with sd.guarded(Louder()):
        louder = follow(sd, noise(sd), cat, SAMPLING)
    assert torch.allclose(louder, follow(sd, noise(sd), double, SAMPLING), atol=1e-5)
    assert not follow(sd, noise(sd), cat, SAMPLING, guards=[Zeros()]).any()


def test_guards_own_passes_are_unguarded(sd: Backbone) -> None:
    class Asking(Silent):
        def prediction(self, call: Call, out: Tensor) -> Tensor:
            return sd.predict(call.latents, call.level, call.conditioning) + out

        def latents(self, step: Step) -> Tensor:
            sd.predict(step.reached, step.to, told(sd))
            return super().latents(step)

    guard = Asking()
    with sd.guarded(guard):
        follow(sd, noise(sd), sd.guidance_for(told(sd), 3.0), SAMPLING)
        assert sd.guards == (guard,)
    assert sd.guards == ()
    assert len(guard.calls) == 4


def test_replaced_latents_have_no_history(sd: Backbone) -> None:
    """From replaced latents a multistep sampler goes on as from a fresh start."""
    cat = sd.guidance_for(told(sd), 3.0)
    fresh = torch.randn(noise(sd).shape, generator=torch.Generator().manual_seed(5))

    class Replace(Silent):
        def latents(self, step: Step) -> Tensor:
            self.steps.append(step)
            return fresh if len(self.steps) == 2 else step.reached

    taken = list(steps(sd, noise(sd), cat, SAMPLING, guards=[Replace()]))
    third = taken[2]
    assert torch.equal(third.latents, fresh)
    with torch.no_grad():
        alone = sd.move(fresh, third.prediction, third.level, third.to)
    assert torch.allclose(third.reached, alone, atol=1e-4), "a step of first order"
    unbroken = list(steps(sd, noise(sd), cat, SAMPLING))[2]
    with torch.no_grad():
        first_order = sd.move(unbroken.latents, unbroken.prediction, unbroken.level, unbroken.to)
    assert not torch.allclose(unbroken.reached, first_order, atol=1e-4)


def test_embeddings_of_unknown_text_are_called_so(sd: Backbone) -> None:
    guard, states = Silent(), replace(told(sd), known=())
    with sd.guarded(guard), torch.no_grad():
        sd.predict(noise(sd), 0.5, states)
    assert guard.calls[0].texts == (None,) and guard.calls[0].tokens is None
