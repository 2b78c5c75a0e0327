"""An audit: conditions × cases × attacks × judges, drawn with the same prompts and seeds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from expunge.attack.base import Attack
from expunge.attack.plain import Plain
from expunge.auditing import log as schema
from expunge.auditing.cases import Asked, Sizes, attacked, cases
from expunge.auditing.figures import figures
from expunge.auditing.flags import FRECHET_IMAGES, cut_short, flags
from expunge.auditing.jobs import Draw, Propose, Score, Worker, batches
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
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Prompt
from expunge.condition import Condition, erased, guarded, original, random_weights
from expunge.erasure import Erasure
from expunge.guard.base import Guard
from expunge.judge.base import Features, Judge
from expunge.judge.choose import default_judge, second_judge
from expunge.measure.frechet import frechet_distance
from expunge.prompts import Split
from expunge.run.executor import InProcess
from expunge.run.jobs import Failure, Job, JobsError
from expunge.run.progress import progress_bar
from expunge.run.store import Record, Store
from expunge.run.versions import versions


@dataclass(frozen=True)
class _Batch:
    """One batch of one cell: its drawing, and what each judge says of it."""

    asked: Asked
    attack: Attack
    condition: Condition
    prompts: tuple[Prompt, ...]
    draw: Draw
    scores: Mapping[str, Score]


@dataclass(frozen=True)
class Plan:
    """Everything an audit will do, before any of it is done.

    Attributes:
        conditions: models that are asked, the original first.
        attacks: ways of asking, `plain` first.
        judges: who judges, the first gives the headline.
        sampling: how pictures are drawn.
        batches: what is drawn and judged.
        proposals: attempts that attacks make before.
        reseeded: benign pictures that the original draws once more, with other seeds.
    """

    conditions: tuple[Condition, ...]
    attacks: tuple[Attack, ...]
    judges: tuple[Judge, ...]
    sampling: Sampling
    batches: tuple[_Batch, ...]
    proposals: tuple[Propose, ...]
    reseeded: tuple[Draw, ...] = field(default=())

    @property
    def jobs(self) -> list[Job]:
        """All of it; each job once."""
        drawn = [batch.draw for batch in self.batches]
        scored = [score for batch in self.batches for score in batch.scores.values()]
        return [*self.proposals, *drawn, *scored, *self.reseeded]

    @property
    def pictures(self) -> int:
        """That are drawn, attacks' references left out."""
        drawn = {batch.draw.id: len(batch.prompts) for batch in self.batches}
        return sum(drawn.values()) + sum(len(draw.prompts) for draw in self.reseeded)

    def left(self, store: Store) -> int:
        """Pictures that are not in the store yet."""
        draws = {b.draw.id: b.draw for b in self.batches} | {d.id: d for d in self.reseeded}
        return sum(len(d.prompts) for d in draws.values() if store.get(d.id) is None)


def plan(
    backbone: Backbone,
    erasure: Erasure,
    *,
    sizes: Sizes,
    judges: Sequence[Judge],
    sampling: Sampling,
    strength: float | Mapping[str, float] = 1.0,
    attacks: Sequence[Attack] = (),
    guards: Sequence[Guard] = (),
    split: Split = "test",
    frechet: bool = True,
) -> Plan:
    """Lay out an audit and check all of it before any heavy work.

    Raises:
        ValueError: no prompt contains a concept, a judge does not know one, the erasure is applied
            already or was made for another model, an attack or guard does not fit the model.
    """
    conditions = [original(), erased(erasure, strength)]
    conditions += [guarded(conditions[1], guard) for guard in guards]
    if any(attack.white_box for attack in attacks):
        conditions.append(random_weights())
    for condition in conditions:
        condition.check(backbone)
    for attack in attacks:
        attack.check(backbone)
    asked = cases(backbone.profile.vocabulary, erasure.concepts, sizes, split)
    _check_judges(judges, asked)
    layout = _Layout(backbone, tuple(judges), sampling)
    drawn: list[_Batch] = []
    proposals: list[Propose] = []
    for each in asked:
        for condition in conditions:
            if condition.role != "control":
                drawn += layout.batches(each, Plain(), condition, None)
    for attack in attacks:
        for each in attacked(erasure.concepts, sizes, split):
            for condition in conditions:
                seen = condition if attack.white_box else conditions[0]
                proposal = Propose(layout.identity, seen, attack, each.case, sampling)
                proposals.append(proposal)
                drawn += layout.batches(each, attack, condition, proposal.id)
    reseeded = layout.reseeded(asked, conditions[0]) if frechet else ()
    unique = {proposal.id: proposal for proposal in proposals}
    return Plan(
        tuple(conditions),
        (Plain(), *attacks),
        tuple(judges),
        sampling,
        tuple(drawn),
        tuple(unique.values()),
        reseeded,
    )


def _check_judges(judges: Sequence[Judge], asked: Sequence[Asked]) -> None:
    for judge in judges:
        unknown = sorted({each.concept for each in asked if not judge.knows(each.concept)})
        if unknown:
            raise ValueError(
                f"the judge {judge.name} does not know {', '.join(unknown)}; name another one "
                "(judge=…, --judge)"
            )


class _Layout:
    """Turns cells into jobs."""

    def __init__(self, backbone: Backbone, judges: tuple[Judge, ...], sampling: Sampling) -> None:
        self.identity = backbone.identity()
        self.judges, self.sampling = judges, sampling

    def batches(
        self, asked: Asked, attack: Attack, condition: Condition, proposed: str | None
    ) -> Iterator[_Batch]:
        for first, prompts in batches(asked.prompts, self.sampling.batch_size):
            draw = Draw(self.identity, condition, prompts, self.sampling, first, proposed)
            scores = {
                judge.name: Score(judge.record(), asked.concept, draw.id) for judge in self.judges
            }
            yield _Batch(asked, attack, condition, prompts, draw, scores)

    def reseeded(self, asked: Sequence[Asked], condition: Condition) -> tuple[Draw, ...]:
        benign = [each for each in asked if each.role != "target"]
        enough = sum(len(each.prompts) for each in benign) >= FRECHET_IMAGES
        if not (enough and isinstance(self.judges[0], Features)):
            return ()
        return tuple(
            Draw(self.identity, condition, prompts, self.sampling, index=1)
            for each in benign
            for _, prompts in batches(each.prompts, self.sampling.batch_size)
        )


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
        split=split,
        frechet=frechet,
    )
    shelf = Store(Path(store or folder))
    shelf.check_writable()
    with Worker(backbone, shelf, {each.name: each for each in laid.judges}) as worker:
        records = _do(laid, worker, shelf)
    samples = _samples(laid, records)
    complete = _log(
        laid, samples, _frechet(laid, records, shelf), shelf, thresholds or Thresholds()
    )
    target = Target(
        model=backbone.name,
        model_hash=backbone.content_hash(),
        architecture=backbone.architecture,
        method=str(erasure.record["eraser"]),
        concepts=tuple(concept.name for concept in erasure.concepts),
        strength=strength,
        split=split,
    )
    made = Made(command, started, round(time.monotonic() - start, 1), versions())
    texts = {prompt.text for batch in laid.batches for prompt in batch.prompts}
    found = complete(target, erasure, made, cut_short(backbone.cut_short(sorted(texts))))
    found.save(Path(folder))
    return found


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
        JobsError: some failed.
    """
    records: dict[str, Record] = {}
    jobs = laid.jobs
    with progress_bar("auditing", laid.pictures) as advance:
        for job, result in InProcess(worker).run(lambda done: () if done else jobs, store):
            if isinstance(result, Failure):
                if isinstance(result.error, (ValueError, RuntimeError)):
                    raise result.error
                raise JobsError(result.reason)
            records[job.id] = result
            if isinstance(job, Draw):
                advance(len(job.prompts), f"{job.condition.name}")
    return records


def _samples(laid: Plan, records: Mapping[str, Record]) -> list[Sample]:
    """One for each prompt, with the pictures of every condition."""
    found: dict[tuple[str, str, str, str, str], Sample] = {}
    for batch in laid.batches:
        images = records[batch.draw.id]["images"]
        scored = {name: records[score.id] for name, score in batch.scores.items()}
        for index, prompt in enumerate(batch.prompts):
            asked = batch.asked
            key = (batch.attack.name, asked.probe, asked.concept, asked.role, prompt.text)
            if key not in found:
                found[key] = Sample(*key, prompt.seed(), {})
            scores = {name: record["scores"][index] for name, record in scored.items()}
            # A picture is broken where any judge calls it broken: no score of it counts then.
            broken = max(record["broken"][index] for record in scored.values())
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
    store: Store,
    thresholds: Thresholds,
) -> Callable[..., Log]:
    """From samples to the log, but for what only the caller knows."""
    conditions = [
        schema.Condition(each.name, each.role, each.text, each.spec()) for each in laid.conditions
    ]
    attacks = [
        schema.Attack(a.name, a.access, a.white_box, dict(a.budget), a.text) for a in laid.attacks
    ]
    judges = [
        JudgeRecord(j.name, j.version, j.hash, j.threshold, j.record()["settings"])
        for j in laid.judges
    ]
    counted = figures(samples, conditions, judges)
    notes = flags(
        samples, counted, conditions=conditions, attacks=attacks, judges=judges, frechet=frechet
    )

    def completed(
        target: Target, erasure: Erasure, made: Made, more: tuple[schema.Flag, ...]
    ) -> Log:
        return Log(
            target=target,
            conditions=tuple(conditions),
            attacks=tuple(attacks),
            samples=tuple(samples),
            cells=counted.cells,
            differences=counted.differences,
            broken=counted.broken,
            frechet=frechet,
            flags=(*notes, *more),
            judges=tuple(judges),
            sampling=asdict(laid.sampling),
            erasure=erasure.record,
            made=made,
            thresholds=thresholds,
            store=store.folder,
        )

    return completed
