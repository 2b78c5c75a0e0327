"""How a model draws best and what is known of it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from expunge.concept import Concept
from expunge.vocabulary import Vocabulary

PROFILE = "expunge.json"
"""What a model's folder may say about itself: how it is sampled best and what it can draw."""

_WEIGHTS = Path(__file__).parent.parent / "miniature" / "weights"
_NAMES = ("miniature-sd", "miniature-flux", "miniature-flux-dev")
BUNDLED = {name: _WEIGHTS / name for name in _NAMES}
"""Models that come with the package, by name."""


@dataclass(frozen=True)
class Sampling:
    """How pictures are drawn.

    Attributes:
        num_inference_steps: denoising steps.
        guidance_scale: 1 switches guidance off. Models that were distilled with guidance as an
            input read it there; for all others it is classifier-free guidance.
        height: pixels; None for the model's own size.
        width: pixels; None for the model's own size.
        batch_size: prompts a guided call takes at once.
    """

    num_inference_steps: int = 30
    guidance_scale: float = 7.5
    height: int | None = None
    width: int | None = None
    batch_size: int = 8

    def __post_init__(self) -> None:
        if self.num_inference_steps < 1:
            raise ValueError(
                f"num_inference_steps must be at least 1, got {self.num_inference_steps}"
            )
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")


@dataclass(frozen=True)
class Profile:
    """What is known of one model.

    Attributes:
        sampling: how it draws best.
        vocabulary: concepts it is known to draw.
        judge: name of the judge made for its pictures.
        preset: name of the hyperparameters tuned on it.
        max_sequence_length: tokens its T5 reads, if it has one; None for the pipeline's default.
    """

    sampling: Sampling = field(default_factory=Sampling)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    judge: str | None = None
    preset: str | None = None
    max_sequence_length: int | None = None

    @classmethod
    def read(cls, folder: Path) -> Profile | None:
        """The profile in a model's folder, or None where there is none."""
        path = folder / PROFILE
        if not path.is_file():
            return None
        data = json.loads(path.read_text())
        return cls(
            Sampling(**data["sampling"]),
            Vocabulary.of(Concept.from_dict(entry) for entry in data["concepts"]),
            data.get("judge"),
            data.get("preset"),
            data.get("max_sequence_length"),
        )
