"""What every guard shares: an inference-time defence on hooks that come off again.

Method files load torch at its first use (`expunge.lazy`), so settings can be checked at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

from expunge.concept import Concept
from expunge.settings import labelled

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.backbone.call import Call
    from expunge.backbone.call import Guard as Protocol
    from expunge.backbone.conditioning import Conditioning
    from expunge.backbone.sampling import Step
    from expunge.guard.attachment import Attachment


@dataclass(frozen=True, kw_only=True)
class Guard(ABC):
    """A defence that acts while a model draws, without training. Settings are its fields.

    Attributes:
        name: on the command line.
    """

    name: ClassVar[str]

    @property
    def label(self) -> str:
        """How logs name it: its name and what differs from the usual settings."""
        return labelled(self.name, self)

    @abstractmethod
    def check(self, backbone: Backbone) -> None:
        """Refuse a model this guard cannot act on, before any work.

        Raises:
            ValueError: says what is needed and what the model has.
        """

    @abstractmethod
    def on(self, backbone: Backbone) -> Protocol:
        """The guard at work on one model; its text is encoded here."""

    def against(self, concepts: Sequence[Concept]) -> Self:
        """The guard for an erasure of these concepts, where it names none itself."""
        return self

    @final
    def attach(self, pipe: Any) -> Attachment:
        """Act on a plain diffusers pipeline until the attachment is detached.

            with IRECE(concepts=["cat"]).attach(pipe):
                pipe("a photo of a cat")

        Raises:
            ValueError: the guard does not fit the model, one of its name is attached already, or
                the pipeline's scheduler is not known to guards.
        """
        from expunge.backbone.load import as_backbone
        from expunge.guard.attachment import Attachment

        backbone = as_backbone(pipe)
        self.check(backbone)
        return Attachment(self, backbone)

    def record(self) -> dict[str, Any]:
        """Name and settings: all that makes this guard again."""
        return {"name": self.name, **vars(self)}


def refuse_attached(backbone: Backbone) -> None:
    """Refuse to draw with a backbone around a guard that hangs on its pipeline.

    Raises:
        ValueError: one is attached.
    """
    from expunge import hooks
    from expunge.guard.attachment import Attachment

    if any(isinstance(each, Attachment) for each in hooks.attached(backbone.denoiser).values()):
        raise ValueError(
            "a guard is attached to this pipeline; detach it, and name it among the audit's guards"
        )


class Acting:
    """A guard at work that leaves everything as it is; methods override where they act."""

    def conditioning(self, call: Call) -> Conditioning:
        """What the denoiser is told instead; `call.conditioning` to leave it."""
        return call.conditioning

    def prediction(self, call: Call, out: Tensor) -> Tensor:
        """What stands for the denoiser's prediction; `out` to leave it."""
        return out

    def latents(self, step: Step) -> Tensor:
        """Latents from where the run goes on; `step.reached` to leave them."""
        return step.reached


class Once:
    """Says when to act once in a run: after its first step that ends at or below a noise level.

    Args:
        level: between 0 and 1.
        name: of the guard, for messages.
    """

    def __init__(self, level: float, name: str) -> None:
        self.level, self.name = level, name
        self._at: float | None = None
        self._done = False

    def due(self, step: Step) -> bool:
        """Whether to act now.

        Raises:
            NotFeltError: the run ends here and nothing was done.
        """
        from expunge.hooks import NotFeltError

        if step.level != self._at:
            self._done = False  # another run begins
        self._at = step.to
        if self._done or step.to > min(step.level, self.level):
            return False
        if step.to == 0:
            raise NotFeltError(
                f"the guard {self.name} acts where a step ends at noise level {self.level:g} or "
                f"below, and this run went from {step.level:g} to the end at once; take more steps"
            )
        self._done = True
        return True
