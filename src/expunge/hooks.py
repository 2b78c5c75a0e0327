"""What Expunge hangs on a user's networks: named, removable, and noticed where it does not act.

Knows torch alone. A forward hook is silent wherever a module is not called as itself: with fused
projections, in code that was compiled before, behind another tool's wrapper. So layers are found
through wrappers, compiled code is dropped, and at the first whole step of a sampling run everything
that is attached must have run.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import nn

_OFF: ContextVar[bool] = ContextVar("changes_off", default=False)
_INSIDE = ("_orig_mod", "base_layer")
"""Where `torch.compile` and peft keep the module they wrap."""
_PLACE = "_expunge_attached"
"""Attribute of a network that holds what is attached to it, so that copies know it as well."""


class NotFeltError(RuntimeError):
    """Something is attached to a network, and the network was run around it."""


@contextlib.contextmanager
def original() -> Iterator[None]:
    """Within this context every change is silent: the student is its own teacher.

    Run backward outside of it. A graph built inside holds no change, so it gives no gradient.
    """
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


def silent() -> bool:
    """Whether changes are silent at this moment."""
    return _OFF.get()


def unwrapped(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` or peft wrapped, or the module itself."""
    for name in _INSIDE:
        inside = module._modules.get(name)
        if inside is not None:
            return unwrapped(inside)
    return module


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """Every module of a network by its clean name, the network itself under the empty one.

    Names hold neither peft's `base_layer` nor `_orig_mod`, and the modules are the wrapped ones, so
    a name means the same layer with and without another tool's adapters.
    """
    found: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def walk(module: nn.Module, name: str) -> None:
        module = unwrapped(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        found[name] = module
        for child, inside in module.named_children():
            walk(inside, f"{name}.{child}" if name else child)

    walk(network, "")
    return found


def refuse_fused(network: nn.Module, component: str) -> None:
    """Refuse a network whose attention computes with fused projections, around its own layers.

    Raises:
        ValueError: says how to undo it.
    """
    if any(getattr(module, "fused_projections", False) for module in network.modules()):
        raise ValueError(
            f"the {component} has fused projections, which would leave the change of single ones "
            f"out: call pipe.{component}.unfuse_qkv_projections() first, or export the erasure as "
            "a merged model and fuse that"
        )


def forget_compiled(network: nn.Module) -> None:
    """Drop code that was compiled before: it has no place for hooks added later."""
    compiled = any(
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
        for module in network.modules()
    )
    if compiled:
        torch.compiler.reset()


# --- what is attached


class Attached(Protocol):
    """Something that hangs on a network."""

    def state(self) -> Hashable:
        """What of it changes the network's output, for caches."""

    def begin(self) -> None:
        """A step begins: nothing has run yet."""

    def check_ran(self) -> None:
        """A whole step is over.

        Raises:
            NotFeltError: part of it did not run.
        """


def attached(network: nn.Module) -> dict[str, Any]:
    """What hangs on a network, by name; a copy of a network carries copies of it."""
    found: dict[str, Any] = unwrapped(network).__dict__.setdefault(_PLACE, {})
    return found


def state(network: nn.Module) -> Hashable:
    """What of all that hangs on a network changes its output now."""
    if silent():
        return None
    return tuple((name, each.state()) for name, each in sorted(attached(network).items()))


def step_begun(network: nn.Module) -> None:
    """Say that a sampling step begins."""
    for each in attached(network).values():
        each.begin()


def step_done(network: nn.Module) -> None:
    """Say that a whole sampling step is over: all that hangs on the network must have run.

    Raises:
        NotFeltError: names the layers that did not.
    """
    if silent():
        return
    for each in attached(network).values():
        each.check_ran()


# --- a pipeline's steps

AfterStep = Callable[["StepTaken"], None]


class StepTaken:
    """One call of a scheduler's `step`.

    Attributes:
        scheduler: whose step it was.
        timestep: as it was given.
        first: whether a sampling run begins with it.
        sample: the latents before it.
        output: what the scheduler returns: a tuple or an object with `prev_sample`.
    """

    def __init__(
        self, scheduler: Any, timestep: Any, *, first: bool, sample: Any, output: Any
    ) -> None:
        self.scheduler, self.timestep, self.first = scheduler, timestep, first
        self.sample, self.output = sample, output


class _Steps:
    """Stands in for one scheduler's `step`: calls it, then all who watch it."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler
        self.watchers: dict[str, AfterStep] = {}
        self.last: float | None = None
        # Pipelines ask the signature which arguments (eta, generator) a step takes.
        self.__signature__ = inspect.signature(type(scheduler).step.__get__(scheduler))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        given = self.__signature__.bind(*args, **kwargs).arguments
        timestep = float(given["timestep"])
        first = (
            self.scheduler._step_index is None
            if hasattr(self.scheduler, "_step_index")
            else self.last is None or timestep >= self.last
        )
        self.last = timestep
        output = type(self.scheduler).step(self.scheduler, *args, **kwargs)
        taken = StepTaken(
            self.scheduler, given["timestep"], first=first, sample=given["sample"], output=output
        )
        for watcher in list(self.watchers.values()):
            watcher(taken)
        return taken.output


def watch_steps(scheduler: Any, name: str, after: AfterStep) -> None:
    """Call `after` behind every step of a scheduler, until `unwatch_steps` with the same name.

    `after` may put another `output` in place.
    """
    steps = scheduler.__dict__.get("step")
    if not isinstance(steps, _Steps):
        steps = scheduler.__dict__["step"] = _Steps(scheduler)
    steps.watchers[name] = after


def unwatch_steps(scheduler: Any, name: str) -> None:
    """Take a watcher off; without any the scheduler is what it was."""
    steps = scheduler.__dict__.get("step")
    if isinstance(steps, _Steps):
        steps.watchers.pop(name, None)
        if not steps.watchers:
            del scheduler.__dict__["step"]


def watched_by(scheduler: Any) -> Mapping[str, AfterStep]:
    """Who watches a scheduler, by name."""
    steps = scheduler.__dict__.get("step")
    return steps.watchers if isinstance(steps, _Steps) else {}
