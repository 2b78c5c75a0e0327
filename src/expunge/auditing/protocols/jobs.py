"""What a bench does beyond an audit's jobs: erase, hold pictures against texts, describe them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from expunge.auditing.jobs import Worker
from expunge.concept import Concept, run_folder
from expunge.erasure import Erasure
from expunge.folder import ADAPTERS
from expunge.judge.base import Features
from expunge.judge.clip import CLIPJudge
from expunge.presets import Choice
from expunge.record import RECORD
from expunge.run.jobs import Job
from expunge.run.store import Record


@dataclass(frozen=True)
class Erase(Job):
    """Erase one concept by one method, in a folder as `expunge erase` writes it.

    Attributes:
        identity: of the model.
        label: of the method, as it was asked for.
        choice: the eraser, and the preset it starts from.
        concept: what goes.
        runs: folder of all erasures of the bench.
    """

    identity: Mapping[str, Any]
    label: str
    choice: Choice
    concept: Concept
    runs: Path

    @property
    def group(self) -> str:
        return "erasing"

    @property
    def spec(self) -> dict[str, Any]:
        eraser = self.choice.eraser
        return {
            "job": "erase",
            "model": self.identity,
            "eraser": eraser.name,
            "hyperparameters": asdict(eraser),
            "concept": self.concept.to_dict(),
        }

    @property
    def name(self) -> str:
        return f"{self.concept.name} erased by {self.label}"

    @property
    def folder(self) -> Path:
        """Where the erasure lies."""
        method = re.sub(r"[^a-z0-9]+", "-", self.choice.eraser.name.lower())
        return self.runs / f"{method}-{run_folder([self.concept.name])}-{self.id[:8]}"

    @property
    def done(self) -> bool:
        """Whether it lies there."""
        return (self.folder / RECORD).is_file()

    def erasure(self) -> Erasure:
        """What was made."""
        return Erasure.load(self.folder)

    def run(self, worker: Worker, needs: Mapping[str, Record]) -> Record:
        worker.leave()  # it is made from the original, with nothing applied
        if not self.done:
            made = self.choice.erase(worker.backbone, [self.concept], self.folder)
            made.save(self.folder)
        erasure = self.erasure()
        files = (self.folder / ADAPTERS).glob("*.safetensors")
        return {
            "id": erasure.id,
            "seconds": float(erasure.record["seconds"]),
            "bytes": sum(path.stat().st_size for path in files),
        }


@dataclass(frozen=True)
class Align(Job):
    """Hold the pictures of one batch against texts.

    Attributes:
        clip: record of what scores.
        texts: one a picture.
        drawn: id of the batch.
    """

    clip: Mapping[str, Any]
    texts: tuple[str, ...]
    drawn: str

    @property
    def group(self) -> str:
        return "judging"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.drawn,)

    @property
    def spec(self) -> dict[str, Any]:
        return {"job": "align", "clip": self.clip, "texts": list(self.texts), "drawn": self.drawn}

    def run(self, worker: Worker, needs: Mapping[str, Record]) -> Record:
        clip = worker.judges[ALIGNED]
        assert isinstance(clip, CLIPJudge)
        pictures = [worker.store.image(name) for name in needs[self.drawn]["images"]]
        return {"cosines": clip.similarity(pictures, self.texts).astype(float).tolist()}


@dataclass(frozen=True)
class Describe(Job):
    """Turn the pictures of one batch into vectors for a Fréchet distance.

    Attributes:
        judge: record of what sees them.
        drawn: id of the batch.
    """

    judge: Mapping[str, Any]
    drawn: str

    @property
    def group(self) -> str:
        return "judging"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.drawn,)

    @property
    def spec(self) -> dict[str, Any]:
        return {"job": "describe", "judge": self.judge, "drawn": self.drawn}

    def run(self, worker: Worker, needs: Mapping[str, Record]) -> Record:
        judge = worker.judges[self.judge["name"]]
        assert isinstance(judge, Features)
        pictures = [worker.store.image(name) for name in needs[self.drawn]["images"]]
        features = torch.from_numpy(judge.features(pictures))
        return {"features": worker.store.put_tensors({"features": features})}


ALIGNED = "text and picture"
"""The worker's name for what holds pictures against texts; a judge may be another CLIP."""
