"""A guard on a plain diffusers pipeline: hooks on its denoiser, and on its scheduler's steps."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from expunge import hooks
from expunge.backbone.base import Backbone
from expunge.backbone.call import Asked, Call, Row
from expunge.backbone.sampling import Step
from expunge.guard.schedulers import memory_of

if TYPE_CHECKING:
    from expunge.guard.base import Guard

_SILENT: ContextVar[bool] = ContextVar("guards_silent", default=False)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Within this context no attached guard acts: what runs is a guard's own extra pass."""
    token = _SILENT.set(True)
    try:
        yield
    finally:
        _SILENT.reset(token)


class _Begun(NamedTuple):
    """The first call of a step that is being taken."""

    timestep: float
    latents: Tensor
    prediction: Tensor


class Attachment:
    """A guard that hangs on a pipeline, until `detach` or the end of its `with` block.

    It acts, or it is an error: where the pipeline got another scheduler or another denoiser, or its
    steps go around the guard, the next picture raises `NotFeltError`.

    Args:
        guard: what acts.
        backbone: of the pipeline.

    Raises:
        ValueError: a guard of that name is attached, or the scheduler is not known to guards.
    """

    def __init__(self, guard: Guard, backbone: Backbone) -> None:
        self.guard, self.backbone = guard, backbone
        self.name = f"guard {guard.name}"
        denoiser, self.scheduler = backbone.denoiser, backbone.pipe.scheduler
        self._memory = memory_of(self.scheduler)
        if self.name in hooks.attached(denoiser):
            raise ValueError(
                f"a guard {guard.name} is attached to this {backbone.denoiser_name} already; "
                "detach it, or name all concepts in one"
            )
        self._acting = guard.on(backbone)
        inner = hooks.unwrapped(denoiser)
        self._network, self._signature = inner, inspect.signature(type(inner).forward)
        self._heard: list[Asked] = []
        """What the denoiser was asked since the last call of the scheduler."""
        self._begun: _Begun | None = None
        self._packing: dict[str, Any] = {}
        """What of the denoiser's arguments says how latents are packed."""
        self._forgotten = False
        self._handles = [
            inner.register_forward_pre_hook(self._before, with_kwargs=True),
            inner.register_forward_hook(self._after, with_kwargs=True),
        ]
        hooks.forget_compiled(denoiser)
        hooks.attached(denoiser)[self.name] = self
        hooks.watch_steps(self.scheduler, self.name, self._stepped)

    def detach(self) -> None:
        """Take the guard off; the pipeline is bit for bit what it was."""
        for handle in self._handles:
            handle.remove()
        hooks.attached(self._network).pop(self.name, None)
        hooks.unwatch_steps(self.scheduler, self.name)

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.detach()

    # --- as something that hangs on a network

    def state(self) -> Hashable:
        """Something of its own."""
        return id(self)

    def begin(self) -> None:
        """Nothing to forget."""

    def check_ran(self) -> None:
        """The attachment itself sees to it that it is felt."""

    # --- the denoiser's calls

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _SILENT.get():
            return None
        given = self._given(args, kwargs)
        asked = self.backbone.asked(given)
        self._check_followed(asked)
        call = self._call(asked, given)
        self._heard.append(asked)
        self._packing = {name: given[name] for name in ("img_ids",) if name in given}
        with _silence():
            conditioning = self._acting.conditioning(call)
        if conditioning is asked.conditioning:
            return None
        return (), self.backbone.told(given, conditioning)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _after(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        if _SILENT.get():
            return None
        given = self._given(args, kwargs)
        predicted = self.backbone.as_picture(out[0], given)
        call = self._call(self.backbone.asked(given), given, heard=len(self._heard) - 1)
        with _silence():
            instead = self._acting.prediction(call, predicted)
        if instead is predicted:
            return None
        put = self.backbone.as_given(instead)
        return (put, *out[1:]) if isinstance(out, tuple) else type(out)(sample=put)

    def _given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        bound = self._signature.bind(self._network, *args, **kwargs).arguments
        return {name: value for name, value in bound.items() if name != "self"}

    def _call(self, asked: Asked, given: dict[str, Any], heard: int | None = None) -> Call:
        count = len(asked.latents)
        rows = self._rows(count, given, len(self._heard) if heard is None else heard)
        none = (None,) * count
        return Call(asked.latents, asked.level, asked.conditioning, rows, none, None)

    def _rows(self, count: int, given: dict[str, Any], heard: int) -> tuple[Row, ...]:
        """What each row is for: halves of one call, or with FLUX's true guidance two calls."""
        alone: Row = "negative" if heard else "only"
        both = getattr(self.backbone.pipe, "do_classifier_free_guidance", False)
        if not both or given.get("skip_layers") is not None:
            return (alone,) * count
        halves: list[Row] = ["negative"] * (count // 2)
        halves += ["positive"] * (count - count // 2)
        return tuple(halves)

    def _check_followed(self, asked: Asked) -> None:
        """Refuse a run whose steps the guard does not see.

        Raises:
            NotFeltError: the pipeline has another scheduler, another tool stands in for its step,
                or the noise level fell without one.
        """
        if self.backbone.pipe.scheduler is not self.scheduler:
            raise self._unfelt("the pipeline was given another scheduler since")
        if self.name not in hooks.watched_by(self.scheduler):
            raise self._unfelt("another tool has replaced its scheduler's step since")
        level = float(asked.level.max())
        before = float(self._heard[-1].level.max()) if self._heard else level
        if level != before:
            self._heard = []
            if level < before:
                raise self._unfelt("the noise level fell without a step of its scheduler")

    def _unfelt(self, why: str) -> hooks.NotFeltError:
        return hooks.NotFeltError(
            f"the guard {self.guard.name} is attached and {why}, so it would not act; detach it, "
            "and attach it to the pipeline as it is"
        )

    # --- the scheduler's steps

    def _stepped(self, taken: hooks.StepTaken) -> None:
        if _SILENT.get():
            return
        heard, self._heard = self._heard, []
        if not heard:
            raise self._unfelt("its denoiser was not asked before a step")
        if taken.first:
            self._begun, self._forgotten = None, False
        if self._begun is None:
            prediction = self.backbone.as_picture(taken.prediction, self._packing)
            latents = heard[0].latents[: len(prediction)]
            self._begun = _Begun(float(taken.timestep), latents, prediction)
        if self._forgotten:
            self._forgotten = False
            mended = self._memory.mend(taken)
            if mended is not None:
                taken.output = _with_latents(taken.output, mended)
        if self._memory.whole():
            self._act(taken, self._begun)
            self._begun = None

    def _act(self, taken: hooks.StepTaken, begun: _Begun) -> None:
        """Hand a whole step to the guard, and put its latents in place."""
        step, scale = self._step(taken, begun)
        with _silence():
            latents = self._acting.latents(step)
        if latents is step.reached:
            return
        put = self.backbone.as_given(latents * scale).to(taken.output[0].dtype)
        taken.output = _with_latents(taken.output, put)
        self._memory.forget()
        self._forgotten = True

    def _step(self, taken: hooks.StepTaken, begun: _Begun) -> tuple[Step, float]:
        """A whole step as the backbone says it, and how its latents are scaled."""
        time = self._memory.reached(taken.timestep)
        scale = self._memory.scale(time)
        level, to = self.backbone.level_of(begun.timestep), self.backbone.level_of(time)
        clean = self.backbone.clean(begun.latents, begun.prediction, level)
        reached = self.backbone.as_picture(taken.output[0], self._packing) / scale
        return Step(level, to, begun.latents, begun.prediction, clean, reached), scale


def _with_latents(output: Any, latents: Tensor) -> Any:
    """What a scheduler returned, with other latents."""
    if isinstance(output, tuple):
        return (latents, *output[1:])
    return replace(output, prev_sample=latents)
