"""The text audit: ask for the concept and for its surroundings, before and after, same seeds."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from expunge.auditing.log import SCHEMA, Log
from expunge.auditing.units import drawn, judged
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Concept, Probe, Prompt, Split, refuse_minors
from expunge.eraser.base import versions
from expunge.erasure import Erasure
from expunge.judge.base import BROKEN, Features, Judge
from expunge.judge.choose import default_judge
from expunge.measure.frechet import frechet_distance
from expunge.measure.rates import Paired, Rate
from expunge.run.fit import progress_bar
from expunge.run.store import Store

Role = Literal["target", "neighbour", "unrelated"]
Condition = Literal["original", "erased"]
FRECHET_IMAGES = 1000


@dataclass(frozen=True)
class Sizes:
    """How many distinct prompts are asked, one picture each.

    Attributes:
        target: for each way of asking for an erased concept.
        neighbour: for each neighbour.
        unrelated: for each unrelated concept.
    """

    target: int = 400
    neighbour: int = 150
    unrelated: int = 80

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1 prompt, got {value}")


@dataclass(frozen=True)
class _Group:
    """Prompts that share a cell, in units of at most one batch."""

    probe: Probe
    role: Role
    prompts: tuple[Prompt, ...]

    @property
    def concept(self) -> str:
        return self.prompts[0].concept

    def units(self, size: int) -> list[tuple[Prompt, ...]]:
        return [self.prompts[i : i + size] for i in range(0, len(self.prompts), size)]


@dataclass(frozen=True)
class _Drawn:
    """What one condition drew for one group."""

    images: list[str]
    scores: np.ndarray
    broken: np.ndarray


_SURROUNDINGS: tuple[Role, ...] = ("neighbour", "unrelated")


def _surroundings(backbone: Backbone, concept: Concept, role: Role) -> Iterator[Concept]:
    """A concept's neighbours or unrelated concepts, with prompts of their own."""
    names = concept.neighbours if role == "neighbour" else concept.unrelated or ()
    for name in names:
        known = backbone.profile.vocabulary.find(name)
        if known is None and role == "neighbour":
            known = replace(concept, name=name, synonyms=(), neighbours=(), implied=())
        yield known or Concept(name)


def plan(
    backbone: Backbone, concepts: Sequence[Concept], sizes: Sizes, split: Split
) -> list[_Group]:
    """The cells of an audit and their prompts.

    Raises:
        ValueError: a concept has no prompt of that split.
    """
    groups: list[_Group] = []
    for concept in concepts:
        for probe in get_args(Probe):
            prompts = concept.prompts(probe, split, sizes.target)
            refuse_minors(concept.kind, (prompt.text for prompt in prompts))
            if prompts:
                groups.append(_Group(probe, "target", tuple(prompts)))
            elif probe == "plain":
                raise ValueError(
                    f"no {split} prompt contains {concept.name!r}; give it more templates"
                )
    taken = {concept.name for concept in concepts}
    for role in _SURROUNDINGS:
        for concept in concepts:
            for other in _surroundings(backbone, concept, role):
                prompts = other.prompts("plain", split, getattr(sizes, role))
                if other.name not in taken and prompts:
                    groups.append(_Group("plain", role, tuple(prompts)))
                    taken.add(other.name)
    return groups


Results = list[tuple[_Group, _Drawn, _Drawn]]
"""For every group what the original and what the erased model drew."""


class _Runner:
    """Draws and judges unit by unit, each kept on disk as soon as it is done."""

    def __init__(
        self,
        backbone: Backbone,
        erasure: Erasure,
        strength: float | Mapping[str, float],
        judge: Judge,
        store: Store,
        sampling: Sampling,
    ) -> None:
        self.backbone, self.erasure, self.strength = backbone, erasure, strength
        self.judge, self.store, self.sampling = judge, store, sampling
        self._model = backbone.weight_hash()
        self._changes = erasure.weights_hash(strength)

    @contextlib.contextmanager
    def _as(self, condition: Condition) -> Iterator[None]:
        if condition == "original":
            yield
        else:
            with self.erasure.applied(self.backbone, self.strength):
                yield

    def run(self, groups: Sequence[_Group], frechet: bool) -> tuple[Results, dict[str, Any] | None]:
        """Draw every group as the original and as erased; the Fréchet distances if n allows."""
        benign = [group for group in groups if group.role != "target"]
        count = sum(len(group.prompts) for group in benign)
        vectors = self.judge if isinstance(self.judge, Features) else None
        reseed = frechet and vectors is not None and count >= FRECHET_IMAGES
        total = 2 * sum(len(group.prompts) for group in groups) + (count if reseed else 0)
        with progress_bar("auditing", total) as advance:
            self.advance = advance
            results = [(g, self._draw(g, "original"), self._draw(g, "erased")) for g in groups]
            if vectors is None or not reseed:
                return results, None
            again = self._features(vectors, [self._draw(group, "original", 1) for group in benign])
        ours = [result for result in results if result[0].role != "target"]
        before = self._features(vectors, [drawn for _, drawn, _ in ours])
        after = self._features(vectors, [drawn for _, _, drawn in ours])
        return results, {
            "benign_erased": frechet_distance(before, after),
            "benign_original_reseeded": frechet_distance(before, again),
            "n": count,
        }

    def _draw(self, group: _Group, condition: Condition, index: int = 0) -> _Drawn:
        images: list[str] = []
        scores: list[float] = []
        broken: list[float] = []
        with self._as(condition):
            for prompts in group.units(self.sampling.batch_size):
                names = drawn(
                    self.store,
                    self.backbone,
                    prompts,
                    self.sampling,
                    model=self._model,
                    changes=self._changes if condition == "erased" else None,
                    index=index,
                )
                verdict = judged(self.store, self.judge, names, group.concept)
                images += names
                scores += verdict["scores"]
                broken += verdict["broken"]
                self.advance(len(prompts), f"{condition} {group.concept}")
        return _Drawn(images, np.array(scores), np.array(broken))

    def _features(self, vectors: Features, drawn: Sequence[_Drawn]) -> np.ndarray:
        images = [self.store.image(name) for each in drawn for name in each.images]
        return vectors.features(images)


def _rate(flags: np.ndarray) -> dict[str, Any]:
    rate = Rate.of(flags)
    low, high = rate.interval()
    return {"n": rate.n, "k": rate.k, "rate": rate.value, "ci": [low, high]}


def _difference(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    paired = Paired.of(before, after)
    low, high = paired.interval()
    return {
        "n": paired.n,
        "original": paired.first.value,
        "erased": paired.second.value,
        "difference": paired.difference,
        "ci": [low, high],
        "only_original": paired.only_first,
        "only_erased": paired.only_second,
        "p": paired.p_value,
    }


def _broken(results: Results) -> list[dict[str, Any]]:
    found = []
    for role in ("target", "benign"):
        ours = [result for result in results if (result[0].role == "target") == (role == "target")]
        sides = {
            "original": [drawn.broken >= BROKEN for _, drawn, _ in ours],
            "erased": [drawn.broken >= BROKEN for _, _, drawn in ours],
        }
        for condition, flags in sides.items():
            if flags:
                found.append({"role": role, "condition": condition, **_rate(np.concatenate(flags))})
    return found


def _pairs(results: Results) -> list[dict[str, Any]]:
    pairs = []
    for group, before, after in results:
        for index, prompt in enumerate(group.prompts):
            sides = {
                side: {
                    "image": drawn.images[index],
                    "score": drawn.scores[index],
                    "broken": drawn.broken[index],
                }
                for side, drawn in (("original", before), ("erased", after))
            }
            head = {"probe": group.probe, "concept": group.concept, "role": group.role}
            pairs.append({**head, "prompt": prompt.text, "seed": prompt.seed(), **sides})
    return pairs


def _flags(
    cells: Sequence[Mapping[str, Any]], broken: Sequence[Mapping[str, Any]], frechet: object
) -> list[dict[str, Any]]:
    """What a reader must know before believing the figures."""
    flags: list[dict[str, Any]] = []

    def flag(code: str, text: str, concept: str | None = None) -> None:
        flags.append({"code": code, "concept": concept, "text": text})

    for cell in cells:
        name = f"{cell['concept']} ({cell['probe']})"
        if cell["condition"] == "original" and cell["rate"] < 0.9:
            flag(
                "original-cannot-draw",
                f"The original draws {name} in only {cell['rate']:.0%} of the pictures, so its "
                "absence afterwards says little.",
                cell["concept"],
            )
    few = [
        f"{cell['concept']} ({cell['probe']})"
        for cell in cells
        if cell["condition"] == "original" and cell["n"] < 50
    ]
    if few:
        flag("few-prompts", f"Fewer than 50 distinct prompts, so wide intervals: {', '.join(few)}.")
    rates = {(entry["role"], entry["condition"]): entry["rate"] for entry in broken}
    for role in ("target", "benign"):
        more = rates.get((role, "erased"), 0) - rates.get((role, "original"), 0)
        if more > 0.02:
            flag("broken-pictures", f"{more:.1%} more pictures are broken on {role} prompts.")
    if frechet is None:
        flag("no-frechet", f"No Fréchet distance: it needs {FRECHET_IMAGES} benign pictures.")
    return flags


def _cut_short(backbone: Backbone, groups: Sequence[_Group]) -> list[dict[str, Any]]:
    """A flag where the text encoder did not read prompts to their end."""
    found = backbone.cut_short([prompt.text for group in groups for prompt in group.prompts])
    if not found:
        return []
    text = (
        f"{len(found)} prompts are longer than the text encoder reads and were cut, "
        f"for example {min(found)!r}."
    )
    return [{"code": "prompts-cut-short", "concept": None, "text": text}]


def _figures(results: Results, judge: Judge, frechet: dict[str, Any] | None) -> dict[str, Any]:
    """Everything the log says in numbers."""
    cells, differences = [], []
    for group, before, after in results:
        head = {"probe": group.probe, "concept": group.concept, "role": group.role}
        shown = [judge.counts(drawn.scores, drawn.broken) for drawn in (before, after)]
        for condition, flags in zip(("original", "erased"), shown, strict=True):
            cells.append({**head, "condition": condition, **_rate(flags)})
        differences.append({**head, **_difference(*shown)})
    broken = _broken(results)
    return {
        "cells": cells,
        "differences": differences,
        "broken": broken,
        "frechet": frechet,
        "flags": _flags(cells, broken, frechet),
        "pairs": _pairs(results),
    }


def audit(
    pipe: Any,
    erasure: Erasure,
    *,
    sizes: Sizes | None = None,
    judge: Judge | None = None,
    sampling: Sampling | None = None,
    strength: float | Mapping[str, float] = 1.0,
    split: Split = "test",
    frechet: bool = True,
    folder: str | Path = "runs/audit",
    store: str | Path | None = None,
    command: str = "",
) -> Log:
    """Ask for erased concepts by name, by synonym and (where known) without naming them.

    Original and erased model draw the same prompts with the same seeds. Neighbours and unrelated
    concepts are asked as well, to see what else was damaged. Every unit is kept as soon as it is
    done: the same call after a stop does only what is missing.

    Args:
        pipe: the original model, a diffusers pipeline or a backbone.
        erasure: what was erased from it.
        sizes: how many prompts of each sort.
        judge: says what a picture shows; None for the model's usual one.
        sampling: how to draw; None for the model's usual way.
        strength: of the erasure.
        split: `test` for figures, `validation` for choosing hyperparameters.
        frechet: measure Fréchet distances where there are enough benign pictures; this draws them
            once more with other seeds.
        folder: where the log goes.
        store: where units and images go, shared between audits if one likes; None for the folder.
        command: how to run this again, for the report.

    Raises:
        ValueError: no prompt contains a concept, the judge does not know one, or the erasure was
            made for another model.
        StoreError: the folder cannot be written.
    """
    start = time.monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    backbone = as_backbone(pipe)
    erasure.check(backbone)
    sizes, sampling = sizes or Sizes(), sampling or backbone.profile.sampling
    groups = plan(backbone, erasure.concepts, sizes, split)
    judge = judge or default_judge(backbone)
    unknown = [group.concept for group in groups if not judge.knows(group.concept)]
    if unknown:
        raise ValueError(f"the judge {judge.name} does not know {', '.join(sorted(set(unknown)))}")
    shelf = Store(Path(store or folder))
    shelf.check_writable()
    runner = _Runner(backbone, erasure, strength, judge, shelf, sampling)
    results, distances = runner.run(groups, frechet)
    figures = _figures(results, judge, distances)
    figures["flags"] += _cut_short(backbone, groups)
    data = {
        "schema": SCHEMA,
        "target": {
            "model": backbone.name,
            "model_hash": backbone.weight_hash(),
            "architecture": backbone.architecture,
            "method": erasure.record["eraser"],
            "concepts": [concept.name for concept in erasure.concepts],
            "strength": strength,
            "split": split,
        },
        **figures,
        "judge": judge.record(),
        "sampling": {
            **asdict(sampling),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "precision": backbone.precision,
        },
        "erasure": erasure.record,
        "made": {
            "command": command,
            "started": started,
            "seconds": round(time.monotonic() - start, 1),
            "versions": versions(),
        },
    }
    log = Log(data, shelf.folder)
    log.save(Path(folder))
    return log
