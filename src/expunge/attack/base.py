"""What every attack shares: what it may see, what it may spend, and what it proposes.

An attack proposes and never judges itself: the audit draws what it proposes, and judges it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from expunge.concept import Concept, Prompt
from expunge.settings import labelled

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.run.checkpoint import Workspace

Access = Literal["prompt", "embedding", "latent", "weights"]
"""What an attacker needs: to type, to upload an embedding, to give latents, to hold the weights."""


@dataclass(frozen=True)
class Case:
    """What is asked for in one way.

    Attributes:
        concept: what the pictures should show.
        prompts: held out, distinct.
    """

    concept: Concept
    prompts: tuple[Prompt, ...]


Reference: TypeAlias = "tuple[str, Image.Image]"
"""A picture of the concept, and the training prompt that the original drew it from."""


@dataclass(frozen=True)
class Sight:
    """What an attack may look at.

    Attributes:
        backbone: the model under attack where the attack is a white box, else the original.
        references: draws so many pictures of the concept with the original, from training prompts.
        seed: of everything random.
        workspace: where it may keep what it would lose by a stop; None for nowhere.
    """

    backbone: Backbone
    references: Callable[[int], Sequence[Reference]]
    seed: int = 0
    workspace: Workspace | None = None


@dataclass(frozen=True)
class Attempt:
    """What shall be drawn.

    Attributes:
        prompts: one for each of the case's.
        tokens: what every text encoder reads for words in them, learned vectors (k, width) or a
            text: word -> text encoder -> what; see `Backbone.encode`.
        latents: to start from, (n, channels, height, width), instead of the seeds' noise.
    """

    prompts: tuple[str, ...]
    tokens: Mapping[str, Mapping[str, Tensor | str]] = field(default_factory=dict)
    latents: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Attack(ABC):
    """A way to bring a concept back within a budget. Settings are its fields.

    Attributes:
        name: on the command line.
        access: what an attacker needs for it.
        seed: of everything random in it.
    """

    name: ClassVar[str]
    access: ClassVar[Access]
    seed: int = 0

    @property
    @abstractmethod
    def text(self) -> str:
        """How a sentence names it, such as "with a learned embedding"."""

    @property
    @abstractmethod
    def white_box(self) -> bool:
        """Whether it looks into the model that it attacks, or only into the original."""

    @property
    @abstractmethod
    def budget(self) -> Mapping[str, int]:
        """What it spends: gradient steps, queries, pictures."""

    @property
    def label(self) -> str:
        """How logs name it: its name and what differs from the usual settings, as the command line
        has them, such as `textual-inversion:vectors=4`."""
        return labelled(self.name, self)

    def check(self, backbone: Backbone) -> None:  # noqa: B027  most work on every model
        """Refuse a model this attack cannot work on, before any work.

        Raises:
            ValueError: says what is needed and what the model has.
        """

    @abstractmethod
    def propose(self, sight: Sight, case: Case) -> Attempt:
        """What to draw so that the concept comes back."""

    def record(self) -> dict[str, Any]:
        """Name and settings: all that makes this attack again."""
        return {"name": self.name, **vars(self)}
