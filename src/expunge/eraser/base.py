"""What every eraser shares: checks before any work, the record, saving. Methods stay small.

Method files load torch at its first use (`expunge.lazy`), so hyperparameters can be checked at
once; what computes is imported where it is called.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, final, get_args

from expunge.concept import Concept
from expunge.lazy import torch
from expunge.settings import ARCHITECTURES, Format
from expunge.vocabulary import check_distinct

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.erasure import Erasure, Part
    from expunge.request import Request


@dataclass(frozen=True)
class Result:
    """What a method hands to the framework."""

    parts: list[Part]
    requests: Mapping[str, Request] = field(default_factory=dict)
    losses: Mapping[str, list[float]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Eraser(ABC):
    """A method with its hyperparameters, which default to its paper's.

    Attributes:
        architectures: families of models that it works on.
        exports: formats that what it makes can be written in for other tools, as a LoRA at a stated
            rank where whole weights change; none for what is no fixed change of weights.
        seed: of everything random in the method.
    """

    architectures: ClassVar[tuple[str, ...]] = ARCHITECTURES
    exports: ClassVar[tuple[str, ...]] = get_args(Format)

    seed: int = 0

    @property
    def name(self) -> str:
        """The method's name."""
        return type(self).__name__

    def erase(
        self, pipe: Any, concepts: Sequence[Concept], *, folder: Path | None = None
    ) -> Erasure:
        """Erase concepts from a model, whose weights stay untouched.

        Args:
            pipe: a diffusers pipeline or a backbone.
            concepts: what goes, at least one.
            folder: where a long method keeps checkpoints; the same call after a stop resumes.

        Raises:
            ValueError: no concept, one asked for twice, one that no prompt of its templates
                contains or that the model cannot read; another erasure is applied; the method does
                not fit the model.
            DivergedError: training produced a loss or gradient that is no finite number.
        """
        from expunge.backbone.load import as_backbone
        from expunge.erasure import Erasure, refuse_applied
        from expunge.fingerprint import describe
        from expunge.run.memory import peak_memory

        check_concepts(concepts)
        backbone = as_backbone(pipe)
        refuse_applied(backbone, "erase from it")
        check_readable(backbone, concepts)
        self.check_fits(backbone)
        start = time.monotonic()
        if backbone.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result = self._run(backbone, concepts, folder)
        on_gpu = backbone.device.type == "cuda"
        record = {
            "eraser": self.name,
            "hyperparameters": asdict(self),
            "seconds": round(time.monotonic() - start, 3),
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if on_gpu else peak_memory(),
            "losses": dict(result.losses),
            **result.notes,
        }
        return describe(backbone, Erasure(result.parts, record, result.requests))

    @final
    def check_fits(self, backbone: Backbone) -> None:
        """Refuse a model this method is not for, or cannot work on with these settings.

        Raises:
            ValueError: says what is needed and what the model has.
        """
        self.check(backbone)  # first, since a method's own sentence says more
        if backbone.architecture not in self.architectures:
            raise ValueError(
                f"{self.name} works on {', '.join(self.architectures)}, and {backbone.name} is of "
                f"architecture {backbone.architecture}; choose another method"
            )

    def check(self, backbone: Backbone) -> None:  # noqa: B027  most work on every model
        """Refuse a model this method cannot work on, before any work.

        Raises:
            ValueError: says what is needed and what the model has.
        """

    @abstractmethod
    def _run(
        self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None
    ) -> Result: ...


def check_concepts(concepts: Sequence[Concept]) -> None:
    """Refuse what cannot be erased, before a model is asked.

    Raises:
        ValueError: no concept, one asked for twice, or one without training prompts.
    """
    if not concepts:
        raise ValueError("concepts must hold at least one concept, got none")
    check_distinct(concepts)
    for concept in concepts:
        if not concept.pairs("train", 1):
            raise ValueError(
                f"the templates of {concept.name!r} give no training prompt; give it templates "
                "with more alternatives"
            )


def check_readable(backbone: Backbone, concepts: Sequence[Concept]) -> None:
    """Refuse training prompts whose end, and perhaps the concept, the text encoder never reads.

    Raises:
        ValueError: a prompt is too long, or a name has tokens the model does not know.
    """
    check_texts(backbone, [t for c in concepts for pair in c.pairs("train", 50) for t in pair])
    check_names(backbone, [name for concept in concepts for name in concept.names])


def check_texts(backbone: Backbone, texts: Sequence[str]) -> None:
    """Refuse training prompts whose end the text encoder never reads.

    Raises:
        ValueError: one is too long.
    """
    for text, (count, limit) in backbone.cut_short(texts).items():
        raise ValueError(
            f"a template gives {text!r}, which has {count} tokens; the text encoder reads {limit}, "
            "so shorten the template or the name"
        )


def check_names(backbone: Backbone, names: Sequence[str]) -> None:
    """Refuse words that the model does not know.

    Raises:
        ValueError: one has tokens that no text encoder reads.
    """
    for name in names:
        if backbone.unreadable(name):
            raise ValueError(
                f"no text encoder of this model can read {name!r}: it stands for the same "
                "unknown token as any other such word, and all of them would go with it"
            )
