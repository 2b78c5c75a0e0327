"""Whether what is applied to a pipeline ran: asked at the first whole step of every run."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from expunge import hooks
from expunge.backbone.base import Backbone


class StepCheck:
    """Watches a pipeline's steps, and its next scheduler's where it is given another.

    Args:
        backbone: of the pipeline.
        components: what is changed there.
        name: whose check it is.
    """

    def __init__(self, backbone: Backbone, components: Sequence[str], name: str) -> None:
        networks = backbone.networks
        self._name, self._networks = name, [networks[component] for component in components]
        self._pipe: Callable[[], Any] = weakref.ref(backbone.pipe)
        self._scheduler = backbone.pipe.scheduler
        hooks.watch_steps(self._scheduler, name, self._after_step)
        denoiser: nn.Module = backbone.denoiser
        self._handle = denoiser.register_forward_pre_hook(self._follow)

    def __deepcopy__(self, memo: dict[int, Any]) -> StepCheck:
        """Of a copied pipeline; a network copied without one has no steps to watch."""
        found = object.__new__(StepCheck)
        pipe = memo.get(id(self._pipe()))
        found._name, found._pipe = self._name, weakref.ref(pipe) if pipe else lambda: None
        memo[id(self)] = found
        parts = (self._scheduler, self._networks) if pipe else (None, [])
        found._scheduler, found._networks = copy.deepcopy(parts, memo)
        found._handle = copy.deepcopy(self._handle, memo)
        return found

    def stop(self) -> None:
        """Leave the pipeline as it was."""
        self._handle.remove()
        if self._scheduler is not None:
            hooks.unwatch_steps(self._scheduler, self._name)

    def _follow(self, *_: Any) -> None:
        if torch.compiler.is_compiling():
            return
        pipe = self._pipe()
        if pipe is not None and pipe.scheduler is not self._scheduler:
            hooks.unwatch_steps(self._scheduler, self._name)
            self._scheduler = pipe.scheduler
            hooks.watch_steps(self._scheduler, self._name, self._after_step)

    def _after_step(self, taken: hooks.StepTaken) -> None:
        for network in self._networks:
            if taken.first:
                hooks.step_done(network)
            hooks.step_begun(network)
