"""The jobs an audit is made of: propose an attempt, draw it, judge what was drawn."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from expunge import hooks
from expunge.attack.base import Attack, Attempt, Case, Reference, Sight
from expunge.backbone.base import Backbone
from expunge.backbone.profile import Sampling
from expunge.backbone.sampling import follow
from expunge.concept import Concept, Prompt
from expunge.condition import Condition
from expunge.judge.base import Judge
from expunge.run.checkpoint import Workspace
from expunge.run.jobs import Job
from expunge.run.store import Record, Store


class Worker:
    """What jobs work with: one model, entered in one condition at a time.

    Args:
        backbone: the model.
        store: where pictures and vectors go.
        judges: by name.
    """

    def __init__(self, backbone: Backbone, store: Store, judges: Mapping[str, Judge]) -> None:
        self.backbone, self.store, self.judges = backbone, store, judges
        self._entered: contextlib.ExitStack | None = None
        self._condition: Condition | None = None
        self._model = backbone

    def under(self, condition: Condition) -> Backbone:
        """The model in a condition, which stays until another is asked for."""
        if self._condition is not condition:
            self.leave()
            self._entered = contextlib.ExitStack()
            self._model = self._entered.enter_context(condition.on(self.backbone))
            self._condition = condition
        return self._model

    def leave(self) -> None:
        """Leave the condition; the model is what it was."""
        if self._entered is not None:
            self._entered.close()
        self._entered = self._condition = None

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()


@dataclass(frozen=True)
class Propose(Job):
    """Let an attack find what to draw.

    Attributes:
        identity: of the model.
        seen: the condition that the attack looks at.
        attack: which.
        case: what shall come back.
        sampling: how its references are drawn.
    """

    identity: Mapping[str, Any]
    seen: Condition
    attack: Attack
    case: Case
    sampling: Sampling

    @property
    def group(self) -> str:
        return self.seen.name

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "job": "propose",
            "model": self.identity,
            "condition": self.seen.spec(),
            "attack": self.attack.record(),
            "concept": self.case.concept.to_dict(),
            "prompts": [prompt.text for prompt in self.case.prompts],
            "sampling": asdict(self.sampling),
        }

    @property
    def name(self) -> str:
        return f"{self.attack.label} on {self.seen.name}, {self.case.concept.name}"

    def run(self, worker: Worker, needs: Mapping[str, Record]) -> Record:
        backbone = worker.under(self.seen)

        def references(count: int) -> list[Reference]:
            return _references(worker.backbone, self.case.concept, count, self.sampling)

        workspace = Workspace(worker.store.folder / "checkpoints" / self.id, {"attempt": self.id})
        sight = Sight(backbone, references, self.attack.seed, workspace)
        attempt = self.attack.propose(sight, self.case)
        shutil.rmtree(workspace.folder, ignore_errors=True)
        _check_attempt(attempt, self)
        learned = {(w, e): value for w, own in attempt.tokens.items() for e, value in own.items()}
        tensors = {f"{w}/{e}": v for (w, e), v in learned.items() if isinstance(v, Tensor)}
        if attempt.latents is not None:
            tensors["latents"] = attempt.latents
        return {
            "prompts": list(attempt.prompts),
            "texts": {f"{w}/{e}": v for (w, e), v in learned.items() if isinstance(v, str)},
            "tensors": worker.store.put_tensors(tensors) if tensors else None,
        }


def _check_attempt(attempt: Attempt, job: Propose) -> None:
    """Refuse what is no attack, or would be drawn as something else.

    Raises:
        ValueError: the attempt asks for exactly what is asked without an attack, has another number
            of prompts or latents, or holds numbers that are not finite.
    """
    asked = tuple(prompt.text for prompt in job.case.prompts)
    lengths = {len(attempt.prompts), len(asked if attempt.latents is None else attempt.latents)}
    if lengths != {len(asked)}:
        raise ValueError(f"{job.name} must propose {len(asked)} prompts and latents, as asked")
    if attempt.prompts == asked and not attempt.tokens and attempt.latents is None:
        raise ValueError(f"{job.name} proposes the prompts as they are, which is no attack")
    vectors = [v for own in attempt.tokens.values() for v in own.values() if isinstance(v, Tensor)]
    for found in (*vectors, *([] if attempt.latents is None else [attempt.latents])):
        if not torch.isfinite(found).all():
            raise ValueError(f"{job.name} proposes numbers that are not finite")


def _references(
    backbone: Backbone, concept: Concept, count: int, sampling: Sampling
) -> list[Reference]:
    """Pictures of a concept by the original, from training prompts, each with its prompt."""
    prompts = concept.prompts("plain", "train", count)
    with hooks.original(), backbone.guarded():
        texts, seeds = [p.text for p in prompts], [p.seed() for p in prompts]
        return list(zip(texts, backbone.draw(texts, seeds, sampling), strict=True))


@dataclass(frozen=True)
class Draw(Job):
    """Draw one batch under one condition.

    Attributes:
        identity: of the model.
        condition: that draws.
        prompts: at most one batch.
        sampling: how to draw.
        first: place of the first prompt in its case.
        proposed: id of the attempt that is drawn, None for the prompts themselves.
        index: other numbers give other seeds.
    """

    identity: Mapping[str, Any]
    condition: Condition
    prompts: tuple[Prompt, ...]
    sampling: Sampling
    first: int = 0
    proposed: str | None = None
    index: int = 0

    @property
    def group(self) -> str:
        return self.condition.name

    @property
    def needs(self) -> tuple[str, ...]:
        return () if self.proposed is None else (self.proposed,)

    @property
    def seeds(self) -> list[int]:
        """Of every picture."""
        return [prompt.seed(self.index) for prompt in self.prompts]

    @property
    def spec(self) -> dict[str, Any]:
        return {
            "job": "draw",
            "model": self.identity,
            "condition": self.condition.spec(),
            "prompts": [prompt.text for prompt in self.prompts],
            "seeds": self.seeds,
            "sampling": asdict(self.sampling),
            "attempt": self.proposed,
            "first": self.first if self.proposed else 0,
        }

    def run(self, worker: Worker, needs: Mapping[str, Record]) -> Record:
        backbone = worker.under(self.condition)
        attempt = self._attempt(worker, needs)
        pictures = draw_attempt(backbone, attempt, self.seeds, self.sampling)
        return {"images": [worker.store.put_image(picture) for picture in pictures]}

    def _attempt(self, worker: Worker, needs: Mapping[str, Record]) -> Attempt:
        if self.proposed is None:
            return Attempt(tuple(prompt.text for prompt in self.prompts))
        record = needs[self.proposed]
        part = slice(self.first, self.first + len(self.prompts))
        tensors = worker.store.tensors(record["tensors"]) if record["tensors"] else {}
        latents = tensors.pop("latents", None)
        tokens: dict[str, dict[str, Tensor | str]] = {}
        for key, value in {**tensors, **record["texts"]}.items():
            word, _, encoder = key.rpartition("/")
            tokens.setdefault(word, {})[encoder] = value
        return Attempt(
            tuple(record["prompts"][part]), tokens, None if latents is None else latents[part]
        )


@torch.no_grad()
def draw_attempt(
    backbone: Backbone, attempt: Attempt, seeds: Sequence[int], sampling: Sampling
) -> list[Image.Image]:
    """Pictures of an attempt, one for each of its prompts, as one batch."""
    tokens = {
        word: {e: v.to(backbone.device) if isinstance(v, Tensor) else v for e, v in own.items()}
        for word, own in attempt.tokens.items()
        if any(word in prompt for prompt in attempt.prompts)
    }
    states = backbone.encode(attempt.prompts, tokens or None)
    guidance = backbone.guidance_for(states, sampling.guidance_scale)
    noise = attempt.latents
    if noise is None:
        noise = backbone.initial_noise(seeds, sampling)
    noise = noise.to(backbone.device, backbone.dtype)
    return backbone.decode(follow(backbone, noise, guidance, sampling))


@dataclass(frozen=True)
class Score(Job):
    """Let a judge look at one batch.

    Attributes:
        judge: its record.
        concept: what it looks for.
        drawn: id of the batch.
    """

    judge: Mapping[str, Any]
    concept: str
    drawn: str

    @property
    def group(self) -> str:
        return "judging"

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.drawn,)

    @property
    def spec(self) -> dict[str, Any]:
        return {"job": "judge", "judge": self.judge, "concept": self.concept, "drawn": self.drawn}

    def run(self, worker: Worker, needs: Mapping[str, Record]) -> Record:
        judge = worker.judges[self.judge["name"]]
        pictures = [worker.store.image(name) for name in needs[self.drawn]["images"]]
        return {
            "scores": judge.score(pictures, self.concept).astype(float).tolist(),
            "broken": judge.broken(pictures).astype(float).tolist(),
        }


def batches(prompts: Sequence[Prompt], size: int) -> Iterator[tuple[int, tuple[Prompt, ...]]]:
    """Prompts in batches, each with the place of its first."""
    for start in range(0, len(prompts), size):
        yield start, tuple(prompts[start : start + size])
