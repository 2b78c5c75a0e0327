"""One training loop for everything that is trained: progress, checkpoints, checks for NaN."""

from __future__ import annotations

import contextlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from expunge.run.files import write_atomically

StepLoss = Callable[[int, torch.Generator], Tensor]
"""Step number and a CPU generator seeded for that step -> scalar loss with a graph."""


class DivergedError(ArithmeticError):
    """The loss is no longer a finite number."""


@dataclass(frozen=True)
class Plan:
    """How long and how fast to train.

    Attributes:
        steps: optimiser steps, at least 1.
        lr: peak learning rate of AdamW.
        warmup: steps of linear warm-up.
        decay_from: share of the steps after which the rate falls linearly to zero.
        weight_decay: AdamW's.
        clip: norm the gradient is clipped to.
        ema: decay of the running average of the weights, None for no average.
        save_every: steps between checkpoints.
        keep: steps whose weights are kept beside the checkpoint, as `weights-<step>.safetensors`.
    """

    steps: int
    lr: float
    warmup: int = 100
    decay_from: float = 0.6
    weight_decay: float = 0.01
    clip: float = 1.0
    ema: float | None = None
    save_every: int = 250
    keep: tuple[int, ...] = field(default=())

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")

    def shortened(self, share: float) -> Plan:
        """The same plan with a share of the steps.

        Raises:
            ValueError: the share is not in (0, 1].
        """
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        steps, *keep = (max(1, round(step * share)) for step in (self.steps, *self.keep))
        return replace(self, steps=steps, keep=tuple(keep))

    def rate(self, step: int) -> float:
        """The share of `lr` used at a step (counted from 0)."""
        start = self.decay_from * self.steps
        falling = (self.steps - step) / max(self.steps - start, 1)
        return min((step + 1) / max(self.warmup, 1), falling, 1.0)


@contextlib.contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[[int, str], None]]:
    """A bar on standard error, silent when that is no terminal. Yields `advance(n, note)`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(count: int, note: str) -> None:
            bar.update(task, advance=count, note=note)

        yield advance


@contextlib.contextmanager
def _between_steps() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until the step in flight is done. Yields a question: was it pressed?"""
    pressed = False

    def remember(*_: object) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    try:
        before = signal.signal(signal.SIGINT, remember)
    except ValueError:  # only the main thread may listen for signals
        yield lambda: False
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _Checkpoint:
    """Modules, their average and the optimiser in one safetensors file, the step in its header."""

    def __init__(
        self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, settings: str
    ) -> None:
        self.path, self.model, self.optimizer, self.settings = path, model, optimizer, settings

    def save(self, step: int) -> None:
        tensors = {f"model.{key}": value for key, value in self.model.state_dict().items()}
        for index, slot in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in slot.items()}
        tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
        header = {"step": str(step), "settings": self.settings}
        write_atomically(self.path, lambda path: save_file(tensors, path, metadata=header))

    def load(self) -> int:
        """Restore what was saved and return its step; 0 when nothing was."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as handle:
            header = handle.metadata()
        if header["settings"] != self.settings:
            raise ValueError(
                f"{self.path} was written with other settings ({header['settings']} instead of "
                f"{self.settings}); delete it or choose another folder"
            )
        tensors = load_file(self.path)
        self.model.load_state_dict(
            {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        )
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".")
                state.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        return int(header["step"])


def fit(
    title: str,
    model: nn.Module,
    loss: StepLoss,
    plan: Plan,
    *,
    folder: Path | None = None,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    log: Callable[[int, float], None] | None = None,
) -> nn.Module:
    """Train the parameters of `model` that require a gradient.

    Every step draws its randomness from a generator seeded by (seed, step), so a run that was
    stopped and goes on sees what an unbroken run would have seen.

    Args:
        title: name of the progress bar, and of the checkpoint file.
        model: what `loss` reads; trained in place.
        loss: scalar loss of one step.
        plan: length and speed.
        folder: where checkpoints go. With one, the same call after a stop goes on where it was.
        settings: whatever else a checkpoint must have in common with this run, of JSON values.
        log: called with (step, loss) after every step.

    Returns:
        `model`, or its running average if the plan asks for one.

    Raises:
        DivergedError: the loss became NaN or infinite; says the step and the last good checkpoint.
        ValueError: the folder holds a checkpoint of another plan.
        KeyboardInterrupt: Ctrl-C, after the step in flight and its checkpoint.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.lr, weight_decay=plan.weight_decay)
    average = None
    if plan.ema:
        rule = get_ema_multi_avg_fn(plan.ema)  # type: ignore[no-untyped-call]
        average = AveragedModel(model, multi_avg_fn=rule)
    holder = nn.ModuleDict({"now": model, "average": average}) if average else model
    described = {"steps": plan.steps, "lr": plan.lr, "seed": seed, **(settings or {})}
    checkpoint = folder and _Checkpoint(
        folder / f"{title}.safetensors", holder, optimizer, json.dumps(described)
    )
    start = checkpoint.load() if checkpoint else 0

    saved = start
    with progress_bar(title, plan.steps, start) as advance, _between_steps() as interrupted:
        for step in range(start, plan.steps):
            generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * plan.rate(step)
            value = loss(step, generator)
            if not torch.isfinite(value):
                good = (
                    f"the last good checkpoint is step {saved}"
                    if checkpoint
                    else "nothing was saved"
                )
                raise DivergedError(
                    f"the loss of {title} is {value.item()} at step {step}; {good}; "
                    f"a learning rate below {plan.lr:g} usually helps"
                )
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(value)
            nn.utils.clip_grad_norm_(trained, plan.clip)
            optimizer.step()
            if average:
                average.update_parameters(model)
            advance(1, f"loss {value.item():.4f}")
            if log:
                log(step, value.item())
            done = step + 1
            if folder and done in plan.keep:
                tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
                target = folder / f"{title}-weights-{done}.safetensors"
                write_atomically(target, partial(save_file, tensors))
            if checkpoint and (done % plan.save_every == 0 or done == plan.steps or interrupted()):
                checkpoint.save(done)
                saved = done
            if interrupted():
                kept = (
                    f"the same command goes on from step {saved}"
                    if checkpoint
                    else "nothing is kept"
                )
                raise KeyboardInterrupt(f"{title} stopped after step {done}; {kept}")
    return average.module if average else model
