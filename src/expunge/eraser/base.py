"""What every eraser shares: records, trajectories, training, saving. Methods stay small."""

from __future__ import annotations

import importlib.metadata
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.closed_form import Targets
from expunge.concept import Concept
from expunge.erasure import Erasure, Part, solve_streams
from expunge.fingerprint import fingerprint


@dataclass(frozen=True)
class Result:
    """What a method hands to the framework."""

    parts: list[Part]
    targets: Mapping[str, Targets] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Eraser(ABC):
    """A method with its hyperparameters, which default to its paper's.

    Attributes:
        seed: of everything random in the method.
    """

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
            ValueError: no concept, or one that no prompt of its templates contains.
            DivergedError: training produced a loss that is no finite number.
        """
        backbone = as_backbone(pipe)
        _check_concepts(concepts)
        start = time.monotonic()
        if backbone.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        _check_lengths(backbone, concepts)
        result = self._run(backbone, concepts, folder)
        record = {
            "eraser": self.name,
            "hyperparameters": asdict(self),
            "model": backbone.name_or_path or backbone.name,
            "architecture": backbone.architecture,
            "denoiser": backbone.denoiser_name,
            "denoiser_config": backbone.denoiser_config,
            "prediction": backbone.prediction,
            "model_hash": backbone.content_hash(),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "versions": versions(),
            "seconds": round(time.monotonic() - start, 3),
            "peak_memory_bytes": _peak_memory(backbone.device),
            "losses": result.losses,
            **result.notes,
        }
        erasure = Erasure(result.parts, record, result.targets)
        erasure.record["fingerprint"] = fingerprint(backbone, erasure)
        return erasure

    @abstractmethod
    def _run(
        self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None
    ) -> Result: ...


@dataclass(frozen=True, kw_only=True)
class ClosedForm(Eraser):
    """A method that states where embeddings should go, and solves for it."""

    @abstractmethod
    def targets(self, backbone: Backbone, concepts: Sequence[Concept]) -> dict[str, Targets]:
        """Where which embeddings go, and which stay, by text stream."""

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        return closed_form_result(backbone, concepts, self.targets(backbone, concepts))


def closed_form_result(
    backbone: Backbone, concepts: Sequence[Concept], targets: Mapping[str, Targets]
) -> Result:
    """The exact changes that meet the targets."""
    changes = solve_streams(backbone, targets)
    parts = [Part(concept, closed=changes[concept.name]) for concept in concepts]
    conditions = {stream: target.condition_number for stream, target in targets.items()}
    return Result(parts, targets, notes={"condition_number": conditions})


def _check_concepts(concepts: Sequence[Concept]) -> None:
    if not concepts:
        raise ValueError("concepts must hold at least one concept, got none")
    for concept in concepts:
        if not concept.pairs("train", 1):
            raise ValueError(
                f"the templates of {concept.name!r} give no training prompt; give it templates "
                "with more alternatives"
            )


def _check_lengths(backbone: Backbone, concepts: Sequence[Concept]) -> None:
    """Refuse training prompts whose end, and perhaps the concept, the text encoder never reads."""
    texts = [text for c in concepts for pair in c.pairs("train", 50) for text in pair]
    for text, (count, limit) in backbone.cut_short(texts).items():
        raise ValueError(
            f"a template gives {text!r}, which has {count} tokens; the text encoder reads {limit}, "
            "so shorten the template or the name"
        )


def _peak_memory(device: torch.device) -> int:
    """Peak bytes of the device, or of the process on a CPU."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    names = ("expunge", "torch", "diffusers", "transformers")
    return {name: importlib.metadata.version(name) for name in names}
