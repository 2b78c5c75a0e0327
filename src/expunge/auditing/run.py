"""An audit: conditions × cases × attacks × judges, drawn with the same prompts and seeds."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from expunge.attack.base import Attack
from expunge.auditing import log as schema
from expunge.auditing.cases import Sizes
from expunge.auditing.figures import figures
from expunge.auditing.flags import cut_short, flags
from expunge.auditing.jobs import Draw, Worker
from expunge.auditing.log import (
    Frechet,
    JudgeRecord,
    Log,
    Made,
    Picture,
    Sample,
    Target,
    Thresholds,
)
from expunge.auditing.plan import Plan, plan
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.erasure import Erasure
from expunge.guard.base import Guard
from expunge.judge.base import Features, Judge
from expunge.judge.choose import default_judge, second_judge
from expunge.measure.frechet import frechet_distance
from expunge.prompts import Split
from expunge.run.executor import InProcess
from expunge.run.jobs import Failure
from expunge.run.progress import progress_bar
from expunge.run.store import Record, Store
from expunge.run.versions import versions


def audit(
    pipe: Any,
    erasure: Erasure,
    *,
    sizes: Sizes | None = None,
    judge: Judge | Sequence[Judge] | None = None,
    sampling: Sampling | None = None,
    strength: float | Mapping[str, float] = 1.0,
    attacks: Sequence[Attack] = (),
    guards: Sequence[Guard] = (),
    control: bool = True,
    split: Split = "test",
    frechet: bool = True,
    folder: str | Path = "runs/audit",
    store: str | Path | None = None,
    command: str = "",
    thresholds: Thresholds | None = None,
) -> Log:
    """Ask for erased concepts by name, by synonym and without naming them, and attack them.

    Every condition (the original, the erased model, guarded ones, controls) draws the same prompts
    with the same seeds; the original with every change silent. Neighbours and unrelated concepts
    are asked as well, to see what else was damaged. White-box attacks are made on each condition
    anew, and on a denoiser with random weights: what they bring along by themselves is not what the
    model remembers. Every job is kept as soon as it is done: the same call after a stop does only
    what is missing.

    Args:
        pipe: the original model, a diffusers pipeline or a backbone.
        erasure: what was erased from it.
        sizes: how many prompts of each sort.
        judge: says what a picture shows; several give figures each, the first the headline. None
            for all that are known for the model.
        sampling: how to draw; None for the model's usual way.
        strength: of the erasure.
        attacks: what is tried to bring concepts back.
        guards: each gives a condition of its own, on the erased model.
        control: attack random weights too; off, what comes back cannot be told from what attacks
            bring along, and a note says so.
        split: `test` for figures, `validation` for choosing hyperparameters.
        frechet: measure Fréchet distances where there are enough benign pictures; this draws them
            once more with other seeds.
        folder: where the log goes.
        store: where pictures go, shared between audits if one likes; None for the folder.
        command: how to run this again, for the report.
        thresholds: where the report's verdict turns.

    Raises:
        ValueError: see `plan`.
        StoreError: the folder cannot be written.
        JobsError: something could not be drawn or judged; all else is kept.
    """
    start = time.monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    backbone = as_backbone(pipe)
    judges = [judge] if isinstance(judge, Judge) else list(judge or usual_judges(backbone))
    laid = plan(
        backbone,
        erasure,
        sizes=sizes or Sizes(),
        judges=judges,
        sampling=sampling or backbone.profile.sampling,
        strength=strength,
        attacks=attacks,
        guards=guards,
        control=control,
        split=split,
        frechet=frechet,
    )
    shelf = Store(Path(store or folder))
    shelf.check_writable()
    with Worker(backbone, shelf, {each.name: each for each in laid.judges}) as worker:
        records = _do(laid, worker, shelf)
    samples, frechet_found = _samples(laid, records), _frechet(laid, records, shelf)
    texts = sorted({prompt.text for batch in laid.batches for prompt in batch.prompts})
    log = _log(
        laid,
        samples,
        frechet_found,
        cut=cut_short(backbone.cut_short(texts)),
        target=Target(
            model=backbone.name,
            model_hash=backbone.content_hash(),
            architecture=backbone.architecture,
            method=str(erasure.record["eraser"]),
            concepts=tuple(concept.name for concept in erasure.concepts),
            strength=strength,
            split=split,
        ),
        erasure=erasure.record,
        made=Made(command, started, round(time.monotonic() - start, 1), versions()),
        thresholds=thresholds or Thresholds(),
        store=shelf.folder,
    )
    log.save(Path(folder))
    return log


def usual_judges(backbone: Backbone) -> list[Judge]:
    """The judges that are made for a model, the first gives the headline.

    Raises:
        ValueError: none is known for it.
    """
    second = second_judge(backbone)
    return [default_judge(backbone), *([second] if second else [])]


def _do(laid: Plan, worker: Worker, store: Store) -> dict[str, Record]:
    """Run all jobs.

    Raises:
        JobsError: some failed; names them. All others are kept.
    """
    records: dict[str, Record] = {}
    jobs = laid.jobs
    with progress_bar("auditing", laid.pictures) as advance:
        for job, result in InProcess(worker).run(lambda done: () if done else jobs, store):
            if isinstance(result, Failure):
                continue
            records[job.id] = result
            if isinstance(job, Draw):
                advance(len(job.prompts), job.condition.name)
    return records


def _samples(laid: Plan, records: Mapping[str, Record]) -> list[Sample]:
    """One for each prompt, with the pictures of every condition."""
    found: dict[tuple[str, str, str, str, str], Sample] = {}
    for batch in laid.batches:
        images = records[batch.draw.id]["images"]
        scored = {name: records[score.id] for name, score in batch.scores.items()}
        for index, prompt in enumerate(batch.prompts):
            asked = batch.asked
            key = (batch.attack.label, asked.probe, asked.concept, asked.role, prompt.text)
            if key not in found:
                found[key] = Sample(*key, prompt.seed(), {})
            scores = {name: record["scores"][index] for name, record in scored.items()}
            # Broken is what every judge calls so: no score of it counts then, and one judge alone
            # shall not turn a find of the others into a success of the erasure.
            broken = min(record["broken"][index] for record in scored.values())
            pictures = dict(found[key].pictures)
            pictures[batch.condition.name] = Picture(images[index], scores, broken)
            found[key] = Sample(*key, prompt.seed(), pictures)
    return list(found.values())


def _frechet(laid: Plan, records: Mapping[str, Record], store: Store) -> Frechet | None:
    judge = laid.judges[0]
    if not (laid.reseeded and isinstance(judge, Features)):
        return None

    def features(draws: Sequence[Draw]) -> np.ndarray:
        names = [name for draw in draws for name in records[draw.id]["images"]]
        found: np.ndarray = judge.features([store.image(name) for name in names])
        return found

    sides = {
        role: features([
            batch.draw for batch in laid.batches
            if batch.asked.role != "target" and batch.condition.role == role
        ])
        for role in ("original", "erased")
    }  # fmt: skip
    again = features(laid.reseeded)
    return Frechet(
        frechet_distance(sides["original"], sides["erased"]),
        frechet_distance(sides["original"], again),
        len(again),
    )


def _log(
    laid: Plan,
    samples: Sequence[Sample],
    frechet: Frechet | None,
    *,
    cut: tuple[schema.Flag, ...],
    **known: Any,
) -> Log:
    """The log of what was drawn.

    Args:
        laid: what was done.
        samples: what was seen.
        frechet: distances, where they were measured.
        cut: notes on prompts that are too long.
        known: the log's parts that do not follow from these.
    """
    conditions = tuple(
        schema.Condition(each.name, each.role, each.text, each.spec()) for each in laid.conditions
    )
    attacks = tuple(
        schema.Attack(a.label, a.access, a.white_box, dict(a.budget), a.text) for a in laid.attacks
    )
    judges = tuple(JudgeRecord(**judge.record()) for judge in laid.judges)
    found = figures(samples, conditions, judges)
    notes = flags(
        samples, found, conditions=conditions, attacks=attacks, judges=judges, frechet=frechet
    )
    return Log(
        conditions=conditions,
        attacks=attacks,
        samples=tuple(samples),
        cells=found.cells,
        differences=found.differences,
        broken=found.broken,
        frechet=frechet,
        flags=(*notes, *cut),
        judges=judges,
        sampling=asdict(laid.sampling),
        **known,
    )
