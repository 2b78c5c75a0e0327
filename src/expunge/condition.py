"""What is audited: one model with all that is on it, entered and left as a context."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from expunge import hooks
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.erasure import Erasure, refuse_applied
from expunge.guard.base import Guard

Role = Literal["original", "erased", "guarded", "control"]


@dataclass(frozen=True)
class Condition:
    """A model as pictures are drawn by it.

    Attributes:
        name: in logs.
        role: what its figures are read as.
        text: in one line what it is.
        erasure: what is applied, None for nothing: then every change is silent, whoever applied it.
        strength: of the erasure.
        guards: what acts while it draws.
        random_seed: replaces the denoiser by one of the same architecture with random weights, to
            see what an attack brings along by itself; None keeps the model's.
    """

    name: str
    role: Role
    text: str
    erasure: Erasure | None = None
    strength: float | Mapping[str, float] = 1.0
    guards: tuple[Guard, ...] = ()
    random_seed: int | None = None

    def spec(self) -> dict[str, Any]:
        """All that determines what this condition does to a model; names do not count."""
        return {
            "erasure": self.erasure and self.erasure.spec(self.strength),
            "guards": [guard.record() for guard in self.guards],
            "random_seed": self.random_seed,
        }

    def check(self, backbone: Backbone) -> None:
        """Refuse before any work what cannot be entered.

        Raises:
            ValueError: an erasure is applied already or fits another model, a guard does not fit,
                or random weights are asked of a quantised model.
        """
        refuse_applied(backbone, "audit it")
        if self.erasure is not None:
            self.erasure.check(backbone)
        for guard in self.guards:
            guard.check(backbone)
        if self.random_seed is not None:
            _check_plain(backbone)

    @contextlib.contextmanager
    def on(self, backbone: Backbone) -> Iterator[Backbone]:
        """Enter the condition.

        Yields:
            The model to draw with: `backbone` itself, or for random weights one of its own.
        """
        if self.random_seed is not None:
            with hooks.original():  # the text encoders are shared
                yield _random(backbone, self.random_seed)
            return
        with contextlib.ExitStack() as entered:
            if self.erasure is None:
                entered.enter_context(hooks.original())
            else:
                entered.enter_context(self.erasure.applied(backbone, self.strength))
            entered.enter_context(backbone.guarded(*(guard.on(backbone) for guard in self.guards)))
            yield backbone


def original() -> Condition:
    """The model before anything was erased."""
    return Condition("original", "original", "the model as it was, every change silent")


def erased(erasure: Erasure, strength: float | Mapping[str, float] = 1.0) -> Condition:
    """The model with an erasure applied."""
    eraser = erasure.record.get("eraser")
    return Condition("erased", "erased", f"with the erasure by {eraser} applied", erasure, strength)


def guarded(before: Condition, *guards: Guard) -> Condition:
    """A condition with guards on it, against what its erasure erased where they do not say."""
    names = " + ".join(guard.label for guard in guards)  # as they were asked for
    if before.erasure is not None:
        guards = tuple(guard.against(before.erasure.concepts) for guard in guards)
    return Condition(
        f"{before.name} + {names}",
        "guarded",
        f"{before.text}, guarded by {names}",
        before.erasure,
        before.strength,
        guards,
    )


def random_weights(seed: int = 0) -> Condition:
    """The control: what an attack draws without any knowledge of the model's."""
    return Condition(
        "random weights",
        "control",
        "a denoiser of the same architecture that was never trained",
        random_seed=seed,
    )


def _check_plain(backbone: Backbone) -> None:
    if backbone.quantised:
        raise ValueError(
            "random weights need a model whose own are plain numbers, and this one is quantised; "
            "load it in half precision, or leave the control out (control=False, --no-control)"
        )


def _random(backbone: Backbone, seed: int) -> Backbone:
    """The same pipeline with an untrained denoiser; the text encoders are shared."""
    old: Any = hooks.unwrapped(backbone.denoiser)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(old).from_config(old.config)
    # As a plain module: diffusers' own cast remarks on layers that this one does not have.
    fresh = nn.Module.to(fresh, backbone.device, backbone.dtype).eval().requires_grad_(False)
    parts = {**backbone.pipe.components, backbone.denoiser_name: fresh}
    options = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    pipe = type(backbone.pipe)(**parts, **options)
    pipe.register_to_config(_name_or_path=backbone.name_or_path)
    found = as_backbone(pipe)
    found.profile, found.precision = backbone.profile, backbone.precision
    return found
