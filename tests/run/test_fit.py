from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge.run.fit import DivergedError, Plan, fit

PLAN = Plan(steps=12, lr=0.05, warmup=2, ema=0.9, save_every=3, keep=(4,))


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(3, 1)


def _loss(model: nn.Module, stop_at: int | None = None, poison_at: int | None = None):  # type: ignore[no-untyped-def]
    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        if step == stop_at:
            os.kill(os.getpid(), signal.SIGINT)
        x = torch.randn(8, 3, generator=generator)
        value: torch.Tensor = (model(x) - x.sum(1, keepdim=True)).square().mean()
        return value * float("nan") if step == poison_at else value

    return loss


def _weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns() -> None:
    losses: list[float] = []
    model = _model()
    fit("line", model, _loss(model), Plan(steps=200, lr=0.05), log=lambda _, v: losses.append(v))
    assert losses[-1] < 0.05 * losses[0]


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    straight = _model()
    whole = fit("line", straight, _loss(straight), PLAN, folder=tmp_path / "a")
    broken = _model()
    with pytest.raises(KeyboardInterrupt, match="goes on from step 6"):
        fit("line", broken, _loss(broken, stop_at=5), PLAN, folder=tmp_path / "b")
    again, seen = _model(), []
    resumed = fit(
        "line", again, _loss(again), PLAN, folder=tmp_path / "b", log=lambda s, _: seen.append(s)
    )
    assert seen == list(range(6, 12))
    assert torch.equal(_weights(again), _weights(straight))
    assert torch.equal(_weights(resumed), _weights(whole))
    assert not torch.equal(_weights(whole), _weights(straight))
    assert (tmp_path / "b" / "line-weights-4.safetensors").exists()
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    model = _model()
    fit("line", model, _loss(model), PLAN, folder=tmp_path)
    again = _model()
    fit("line", again, _loss(again, poison_at=0), PLAN, folder=tmp_path)
    assert torch.equal(_weights(again), _weights(model))


def test_nan_says_step_checkpoint_and_remedy(tmp_path: Path) -> None:
    model = _model()
    with pytest.raises(DivergedError, match=r"nan at step 7.*checkpoint is step 6.*below 0.05"):
        fit("line", model, _loss(model, poison_at=7), PLAN, folder=tmp_path)
    assert torch.isfinite(_weights(model)).all()


def test_other_settings_do_not_resume(tmp_path: Path) -> None:
    model = _model()
    fit("line", model, _loss(model), PLAN, folder=tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        fit("line", model, _loss(model), Plan(steps=13, lr=0.05, ema=0.9), folder=tmp_path)


def test_the_rate_rises_holds_and_falls() -> None:
    plan = Plan(steps=100, lr=1.0, warmup=10, decay_from=0.5)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[49] == 1.0
    assert 0 < rates[99] < 0.05
    with pytest.raises(ValueError, match="steps"):
        Plan(steps=0, lr=1.0)
