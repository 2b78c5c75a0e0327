from __future__ import annotations

import json
import os
import signal
import struct
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from expunge.run import checkpoint
from expunge.run.checkpoint import Kept, Workspace
from expunge.run.fit import DivergedError, Trained, fit
from expunge.run.objective import (
    Grads,
    Loss,
    Minimise,
    Objective,
    Player,
    Step,
    gradients_by_term,
)
from expunge.run.plan import Plan
from expunge.run.trainee import Trainee

PLAN = Plan(steps=12, warmup=2, ema=0.9, save_every=3, keep=(4,))
LR = 0.05


def _model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 1), nn.Dropout(0.2))


def _error(model: nn.Module, step: Step) -> Tensor:
    x = torch.randn(8, 3, generator=step.generator)
    value: Tensor = (model(x) - x.sum(1, keepdim=True)).square().mean()
    return value


def line(
    workspace: Workspace | None = None,
    plan: Plan = PLAN,
    *,
    at: int | None = None,
    happens: Callable[[Tensor], Tensor | None] = lambda value: value,
    **player: Any,
) -> tuple[Trained, list[int]]:
    """Fit a line; at one step something happens to the loss. Also the steps that were done."""
    model, seen = _model(), []

    def loss(step: Step) -> Loss:
        seen.append(step.number)
        value = _error(model, step)
        return happens(value) if step.number == at else value

    players = {"line": Player(model, **{"lr": LR, **player})}
    return fit("line", players, Minimise(loss), plan, workspace), seen


def send(number: int) -> Callable[[Tensor], Tensor]:
    def happens(value: Tensor) -> Tensor:
        os.kill(os.getpid(), number)
        return value

    return happens


def _weights(trained: Trained) -> Tensor:
    return torch.cat([p.detach().flatten() for p in trained.modules["line"].parameters()])


def test_it_learns() -> None:
    trained, _ = line(plan=Plan(steps=200))
    losses = trained.losses["line"]
    assert len(losses) == trained.steps == 200
    assert losses[-1] < 0.05 * losses[0] or min(losses[-20:]) < 0.2 * losses[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, number: int) -> None:
    """Dropout included; the losses are those of the whole run."""
    whole, _ = line(Workspace(tmp_path / "a"))
    handler = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="step 6; the same command goes on from step 6"):
        line(Workspace(tmp_path / "b"), at=5, happens=send(number))
    assert signal.getsignal(number) is handler
    resumed, seen = line(Workspace(tmp_path / "b"))
    assert seen == list(range(6, 12))
    assert torch.equal(_weights(resumed), _weights(whole))
    assert resumed.losses == whole.losses
    assert resumed.norms == whole.norms
    assert (tmp_path / "b" / "line-weights-4.safetensors").exists()
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_stopping_without_a_workspace_promises_nothing() -> None:
    with pytest.raises(KeyboardInterrupt, match="step 6; nothing is kept"):
        line(at=5, happens=send(signal.SIGTERM))


def test_the_callers_random_state_is_left_alone() -> None:
    _model()
    torch.manual_seed(7)
    wanted = torch.rand(1)
    model = _model()
    torch.manual_seed(7)
    fit("line", {"line": Player(model, LR)}, Minimise(lambda step: _error(model, step)), PLAN)
    assert torch.equal(torch.rand(1), wanted)


@pytest.mark.parametrize("seed", [-3, 10**30])
def test_any_integer_is_a_seed(seed: int) -> None:
    model = _model()
    players = {"line": Player(model, LR)}
    fit("line", players, Minimise(lambda step: _error(model, step)), Plan(steps=2), seed=seed)


def test_the_average_is_not_the_last_weights() -> None:
    model = _model()
    players = {"line": Player(model, LR)}
    trained = fit("line", players, Minimise(lambda step: _error(model, step)), PLAN)
    assert not torch.equal(_weights(trained), _weights(replace(trained, modules={"line": model})))


def test_a_finished_run_does_nothing_more(tmp_path: Path) -> None:
    first, _ = line(Workspace(tmp_path))
    again, seen = line(Workspace(tmp_path))
    assert seen == []
    assert torch.equal(_weights(again), _weights(first))


def _nan(value: Tensor) -> Tensor:
    return value * float("nan")


def _nan_slope(value: Tensor) -> Tensor:
    """A finite loss whose gradient is none: the root of zero."""
    return value + (value - value).sqrt()


@pytest.mark.parametrize("happens", [_nan, _nan_slope])
def test_nan_says_step_checkpoint_and_remedy(
    tmp_path: Path, happens: Callable[[Tensor], Tensor]
) -> None:
    what = "loss" if happens is _nan else "gradient"
    said = rf"step 7: the {what} .*nan; the last good checkpoint is step 6; .* below 0.05"
    with pytest.raises(DivergedError, match=said):
        line(Workspace(tmp_path), at=7, happens=happens)
    with pytest.raises(DivergedError, match="nothing was saved"):
        line(at=7, happens=happens)
    resumed, seen = line(Workspace(tmp_path))
    assert seen == list(range(6, 12))
    assert torch.isfinite(_weights(resumed)).all()


def test_weights_that_overflow_are_never_a_good_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match="weights of line are not finite; nothing was saved"):
        line(Workspace(tmp_path), replace(PLAN, save_every=1), lr=1e308)
    assert not (tmp_path / "line.safetensors").exists()


def test_a_checkpoint_belongs_to_what_wrote_it(tmp_path: Path) -> None:
    cat = Workspace(tmp_path, {"concepts": [{"name": "cat"}], "model": "a"})
    line(cat)
    dog = Workspace(tmp_path, {"concepts": [{"name": "dog"}], "model": "a"})
    assert dog.digest != cat.digest
    with pytest.raises(ValueError, match=r'concepts\[0\].name "cat" there, "dog" here\); delete'):
        line(dog)
    with pytest.raises(ValueError, match=r"training.steps 12 there, 13 here"):
        line(cat, replace(PLAN, steps=13))
    with pytest.raises(ValueError, match=r"training.players.line.lr 0.05 there, 0.1 here"):
        line(cat, lr=0.1)
    assert line(cat, replace(PLAN, save_every=4))[1] == []


def test_a_long_value_is_not_echoed_whole(tmp_path: Path) -> None:
    line(Workspace(tmp_path, {"concept": "x" * 100_000}))
    with pytest.raises(ValueError, match="there") as error:
        line(Workspace(tmp_path, {"concept": "y" * 100_000}))
    assert len(str(error.value)) < 400 + len(str(tmp_path))


def test_networks_of_other_shapes_do_not_resume(tmp_path: Path) -> None:
    line(Workspace(tmp_path))
    other = nn.Linear(4, 1)
    with pytest.raises(ValueError, match="networks of other shapes"):
        fit("line", {"line": Player(other, LR)}, Minimise(lambda _: other.bias), PLAN,
            Workspace(tmp_path))  # fmt: skip


def _flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def _bare(data: bytes) -> bytes:
    """The same tensors without metadata."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    del header["__metadata__"]
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "half": lambda data: data[: len(data) // 2],
    "zeros": lambda data: bytes(len(data)),
    "text": lambda _: b"[]" * 50,
    "no metadata": _bare,
    "a weight": lambda data: _flip(data, len(data) - 1),
    "a number": lambda data: data.replace(b'"step":"12"', b'"step":"11"'),
    "a setting": lambda data: data.replace(b"lr", b"1r"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, kind: str) -> None:
    line(Workspace(tmp_path))
    path = tmp_path / "line.safetensors"
    damaged = DAMAGE[kind](path.read_bytes())
    assert damaged != path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match=r"line\.safetensors is damaged; delete it and"):
        line(Workspace(tmp_path))


@pytest.mark.parametrize("step", [10**9, 0, -5])
def test_a_checkpoint_of_no_possible_step_is_refused(tmp_path: Path, step: int) -> None:
    workspace, path = Workspace(tmp_path), tmp_path / "x.safetensors"
    kept = Kept(step, False, {"a": torch.arange(3)})
    checkpoint.write(path, workspace, kept)
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.read(path, workspace, 12)


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    workspace, path = Workspace(tmp_path, {"concept": "cat"}), tmp_path / "x.safetensors"
    checkpoint.write(path, workspace, Kept(3, False, {"a": torch.arange(4.0), "b": torch.ones(())}))
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(_flip(data, at))
        try:
            found = checkpoint.read(path, workspace, 12)
        except ValueError:
            continue
        # A space of padding in the header may become another character that means nothing.
        assert found is not None
        assert found.step == 3 and torch.equal(found.tensors["a"], torch.arange(4.0))


class Adversaries(Objective):
    """A student that is told apart from noise, by a discriminator with a gradient penalty."""

    def __init__(self, done_at: int | None = None) -> None:
        torch.manual_seed(1)
        self.student, self.discriminator = nn.Linear(2, 2), nn.Linear(2, 1)
        self.pool = nn.BatchNorm1d(1, affine=False)
        self.networks = {"pool": self.pool}
        self.order: list[tuple[int, str]] = []
        self.done_at = done_at

    @property
    def players(self) -> dict[str, Player]:
        return {
            "discriminator": Player(self.discriminator, 1e-2, betas=(0.0, 0.9)),
            "student": Player(self.student, 3e-2, every=2),
        }

    def before(self, step: Step) -> None:
        assert self.pool.running_mean is not None
        self.pool.running_mean.add_(torch.rand(1, generator=step.generator))

    def loss(self, step: Step, player: str) -> Mapping[str, Tensor]:
        self.order.append((step.number, player))
        noise = torch.randn(16, 2, generator=step.generator)
        if player == "student":
            step.log("mean", noise.mean())
            return {"fool": self.discriminator(self.student(noise)).square().mean()}
        made = self.student(noise).detach().requires_grad_()
        verdict = self.discriminator(made)
        (slope,) = torch.autograd.grad(verdict.sum(), made, create_graph=True)
        return {"tell": -verdict.mean() + self.discriminator(noise).mean(), "r1": slope.norm()}

    def done(self, step: Step) -> bool:
        return step.number == self.done_at


def test_players_take_turns_with_their_own_rates(tmp_path: Path) -> None:
    game = Adversaries()
    trained = fit("game", game.players, game, PLAN, Workspace(tmp_path))
    assert game.order[:3] == [(0, "discriminator"), (0, "student"), (1, "discriminator")]
    losses = trained.losses
    assert len(losses["discriminator"]) == 12 and len(losses["student/fool"]) == 6
    parts = zip(losses["discriminator/tell"], losses["discriminator/r1"], strict=True)
    assert losses["discriminator"] == pytest.approx([tell + r1 for tell, r1 in parts])
    assert len(trained.norms["student"]) == len(trained.logged["mean"]) == 6
    assert not trained.early


def test_a_game_goes_on_after_a_stop_with_everything_it_keeps(tmp_path: Path) -> None:
    whole = Adversaries()
    first = fit("game", whole.players, whole, PLAN, Workspace(tmp_path / "a"))
    broken = Adversaries(done_at=5)
    stopped = fit("game", broken.players, broken, PLAN, Workspace(tmp_path / "b"))
    assert stopped.early and stopped.steps == 6

    class Stops(Adversaries):
        def before(self, step: Step) -> None:
            super().before(step)
            if step.number == 6:
                os.kill(os.getpid(), signal.SIGINT)

    game = Stops()
    with pytest.raises(KeyboardInterrupt):
        fit("game", game.players, game, PLAN, Workspace(tmp_path / "c"))
    again = Adversaries()
    resumed = fit("game", again.players, again, PLAN, Workspace(tmp_path / "c"))
    assert again.order[0][0] == 7
    assert resumed.losses == first.losses
    for name in ("student", "discriminator", "pool"):
        one, other = getattr(whole, name).state_dict(), getattr(again, name).state_dict()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_an_early_end_is_remembered(tmp_path: Path) -> None:
    game = Adversaries(done_at=5)
    fit("game", game.players, game, PLAN, Workspace(tmp_path))
    again = Adversaries()
    resumed = fit("game", again.players, again, PLAN, Workspace(tmp_path))
    assert resumed.early and resumed.steps == 6 and again.order == []


def test_a_loss_moves_only_its_own_player() -> None:
    """The student's loss runs through the discriminator, and leaves no trace there."""
    game = Adversaries()
    before = game.discriminator.weight.detach().clone()
    fit("game", {"student": game.players["student"]}, game, PLAN)
    assert torch.equal(game.discriminator.weight, before)
    assert game.discriminator.weight.grad is None


class Opposed(Objective):
    """Two terms; `surgery` drops the second one's gradient."""

    def __init__(self, surgery: bool) -> None:
        self.point = nn.Linear(1, 1, bias=False)
        self.surgery = surgery

    def loss(self, step: Step, player: str) -> Mapping[str, Tensor]:
        return {"up": -self.point.weight.sum(), "down": 2 * self.point.weight.sum()}

    def gradient(self, step: Step, player: str, terms: Any, parameters: Any) -> Grads:
        if self.surgery:
            return gradients_by_term(terms, parameters)["up"]
        return super().gradient(step, player, terms, parameters)


@pytest.mark.parametrize("surgery", [False, True])
def test_gradients_may_be_combined_otherwise(surgery: bool) -> None:
    objective = Opposed(surgery)
    before = objective.point.weight.item()
    fit("point", {"point": Player(objective.point, 0.1)}, objective, Plan(steps=3))
    assert (objective.point.weight.item() > before) is surgery


def test_clipping_does_not_scale_a_shared_gradient_twice() -> None:
    """Of a sum, autograd gives both sides the very same tensor."""
    first, second = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    trainee = Trainee("sum", Player(nn.ModuleList([first, second]), 0.1, clip=0.5), None)
    grads = torch.autograd.grad(100 * (first.weight + second.weight).sum(), trainee.parameters)
    assert grads[0] is grads[1]
    assert trainee.move(grads, 1.0) == pytest.approx(100 * 2**0.5)
    wanted = 0.1 * 0.5 / 2**0.5  # AdamW's average after one step, of a gradient of norm 0.5
    assert trainee.remembered()["0/exp_avg"].item() == pytest.approx(wanted, rel=1e-4)


def test_training_without_effect_is_an_error() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    players = {"line": Player(model, LR)}
    for function in (lambda _: other.bias.sum(), lambda _: model.bias.detach().sum()):
        with pytest.raises(ValueError, match="does not depend on what is trained in step 0"):
            fit("line", players, Minimise(function), PLAN)
    with pytest.raises(ValueError, match=r"learnt nothing in 12 steps .* gradient was zero"):
        fit("line", players, Minimise(lambda _: (model.bias * 0).sum()), PLAN)
    with pytest.raises(ValueError, match=r"learnt nothing in 12 steps .* always passed"):
        fit("line", players, Minimise(lambda _: None), PLAN)
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of line requires a gradient"):
        fit("line", players, Minimise(lambda _: model.bias.sum()), PLAN)


def test_players_share_no_parameter() -> None:
    model = nn.Linear(2, 1)
    players = {"a": Player(model, LR), "b": Player(nn.ModuleList([model]), LR)}
    with pytest.raises(ValueError, match="a and b share a parameter"):
        fit("line", players, Minimise(lambda _: model.bias.sum()), PLAN)


def test_it_trains_outside_the_main_thread_too() -> None:
    found: list[Trained] = []
    thread = threading.Thread(target=lambda: found.append(line()[0]))
    thread.start()
    thread.join()
    assert torch.equal(_weights(found[0]), _weights(line()[0]))


def test_the_rate_rises_holds_and_falls() -> None:
    plan = Plan(steps=100, warmup=10, decay_from=0.5)
    rates = [plan.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[20] == rates[49] == 1.0
    assert 0 < rates[99] < 0.05


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"save_every": 0}, {"warmup": -1}, {"decay_from": 1.5}, {"ema": 1.0}]
)
def test_a_plan_says_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Plan(**{"steps": 5, **wrong})


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0}, {"lr": float("inf")}, {"lr": float("nan")}, {"betas": (1.0, 0.9)},
     {"weight_decay": -1}, {"clip": 0.0}, {"every": 0}],
)  # fmt: skip
def test_a_player_says_what_is_wrong(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Player(nn.Linear(1, 1), **{"lr": 0.1, **wrong})
