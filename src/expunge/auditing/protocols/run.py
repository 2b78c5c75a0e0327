"""A bench: methods × concepts of one domain, with the papers' measures, on any model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from expunge import names
from expunge.auditing.jobs import Draw, Worker
from expunge.auditing.protocols.base import Domain
from expunge.auditing.protocols.figures import Pair
from expunge.auditing.protocols.jobs import ALIGNED, Align, Erase
from expunge.auditing.protocols.log import SCHEMA, BenchLog, check_folder_is, claim
from expunge.auditing.protocols.notes import notes
from expunge.auditing.protocols.plan import ORIGINAL, SPLIT, Drawn, Plan, method_record, plan
from expunge.auditing.protocols.reported import SOURCES
from expunge.auditing.protocols.rows import Benched, Cost, matrix, rows
from expunge.auditing.protocols.seen import Look, Seen
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Concept
from expunge.judge.base import BROKEN, Features, Judge
from expunge.judge.choose import default_judge, text_and_picture
from expunge.measure.harmonic import Resamples
from expunge.miniature.references import renders
from expunge.run.executor import InProcess
from expunge.run.jobs import Failure, Job
from expunge.run.progress import progress_bar
from expunge.run.store import Record, Store
from expunge.run.typed import plain
from expunge.run.versions import versions

ERASURES = "erasures"
"""Folder of what the methods made, each as `expunge erase` writes it."""


def bench(
    pipe: Any,
    protocol: str,
    methods: Sequence[str],
    concepts: Sequence[str | Concept] = (),
    *,
    prompts: int = 200,
    judge: Judge | None = None,
    clip: str | None = None,
    sampling: Sampling | None = None,
    preset: bool = True,
    folder: str | Path,
    store: str | Path | None = None,
    command: str = "",
) -> BenchLog:
    """Erase every concept by every method, and measure what the domain's papers do.

    Every erasure, every batch and every look at it is kept as soon as it is done: the same call
    after a stop, or with one method more, does only what is missing. The original is drawn once.

    Args:
        pipe: the model, a diffusers pipeline or a backbone.
        protocol: `objects`, `people`, `styles` or `explicit`.
        methods: erasers by name, with settings as in `esd:steps=200`.
        concepts: what is erased, one after the other; none for all of the domain that the model
            is known to draw.
        prompts: distinct held-out ones for each concept and way of asking; a Fréchet distance
            takes 1,000 pictures of other things.
        judge: says what a picture shows; None for the model's own.
        clip: hub id or folder of a CLIP that says how well it fits a text; None for the model's
            own, where it has one.
        sampling: how to draw; None for the model's usual way.
        preset: start methods from what is tuned for the model, not from their own defaults.
        folder: where the tables go, with all that was done for them.
        store: where pictures go, shared between benches and audits if one likes.
        command: how to run this again.

    Raises:
        ValueError: see `plan`; or the folder holds something else.
        StoreError: the folder cannot be written.
        JobsError: something could not be erased, drawn or judged; all else is kept.
    """
    laid = lay_out(
        pipe,
        protocol,
        methods,
        concepts,
        prompts=prompts,
        judge=judge,
        clip=clip,
        sampling=sampling,
        preset=preset,
        folder=folder,
    )
    return run_plan(laid, protocol, prompts, Path(folder), store, command)


def lay_out(
    pipe: Any,
    protocol: str,
    methods: Sequence[str],
    concepts: Sequence[str | Concept] = (),
    *,
    prompts: int,
    judge: Judge | None = None,
    clip: str | None = None,
    sampling: Sampling | None = None,
    preset: bool = True,
    folder: str | Path,
) -> Plan:
    """What `bench` will do; nothing is written.

    Raises:
        ValueError: something does not fit.
    """
    if prompts < 1:
        raise ValueError(f"prompts must be at least 1, got {prompts}")
    check_methods(methods)
    domain: Domain = names.make("protocol", protocol)
    backbone = as_backbone(pipe)
    check_folder_is(Path(folder), protocol, backbone.name)
    named = [each for each in concepts if isinstance(each, str)]
    made = [each for each in concepts if isinstance(each, Concept)]
    vocabulary = backbone.profile.vocabulary
    found = made + (domain.concepts(vocabulary, named) if named or not made else [])
    for concept in found:
        if concept.kind != domain.kind:
            raise ValueError(f"{concept.name!r} is of kind {concept.kind!r}, not {domain.kind!r}")
    return plan(
        backbone,
        domain,
        methods,
        found,
        prompts=prompts,
        sampling=sampling or backbone.profile.sampling,
        judge=judge or default_judge(backbone),
        clip=text_and_picture(backbone, clip),
        runs=Path(folder) / ERASURES,
        preset=preset,
    )


def check_methods(methods: Sequence[str]) -> None:
    """Refuse methods that there are none of, without importing them.

    Raises:
        ValueError: none is named, one is named twice, or there is no such eraser.
    """
    if not methods:
        raise ValueError("methods must name at least one; see expunge list erasers")
    for text in methods:
        names.check("eraser", text)
        if methods.count(text) > 1:
            raise ValueError(f"the method {text} is named twice; name it once")


def run_plan(
    laid: Plan, protocol: str, prompts: int, folder: Path, store: str | Path | None, command: str
) -> BenchLog:
    """Do what was laid out, and write the log.

    Raises:
        StoreError: the folder cannot be written.
        JobsError: something could not be done; all else is kept.
    """
    start, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    shelf = Store(Path(store or folder))
    claim(folder, protocol, laid.backbone.name)
    shelf.check_writable()
    judges = {laid.judge.name: laid.judge} | ({ALIGNED: laid.clip} if laid.clip else {})
    with Worker(laid.backbone, shelf, judges) as worker:
        found = _Bench(laid, shelf).run(worker)
    original, benched = found[0], found[1:]
    resamples = Resamples()
    every = [row for each in found for row in rows(each, protocol, laid.domain, resamples)]
    log = BenchLog(
        {
            "schema": SCHEMA,
            "protocol": protocol,
            "model": _model(laid.backbone),
            "judge": laid.judge.record(),
            "clip": laid.clip and laid.clip.record(),
            "sampling": asdict(laid.sampling),
            "prompts": prompts,
            "split": SPLIT,
            "methods": {label: method_record(each) for label, each in laid.methods.items()},
            "concepts": list(laid.asked),
            "rows": [row.to_dict() for row in every],
            "matrix": [line for each in found for line in matrix(each)],
            "sources": SOURCES,
            "flags": [plain(flag) for flag in notes(laid, original, benched)],
            "made": {
                "command": command,
                "started": started,
                "seconds": round(time.monotonic() - start, 1),
                "versions": versions(),
            },
        },
        shelf.folder,
    )
    log.save(folder)
    return log


def _model(backbone: Backbone) -> dict[str, str]:
    return {
        "name": backbone.name,
        "hash": backbone.content_hash(),
        "architecture": backbone.architecture,
    }


class _Bench:
    """Goes through a plan, one erasure at a time, and keeps of each only what was seen.

    Args:
        laid: the plan.
        store: holds the records.
    """

    def __init__(self, laid: Plan, store: Store) -> None:
        self.laid, self.store = laid, store
        self.records: dict[str, Record] = {}
        self.before: dict[str, Seen] = {}
        self.after: dict[str, dict[str, tuple[Seen, Cost]]] = {m: {} for m in laid.methods}

    def run(self, worker: Worker) -> list[Benched]:
        """Do what is missing, and say what was seen: of the original first.

        Raises:
            JobsError: something failed; all else is kept.
        """
        waves = self._waves()
        asked: set[str] = set()

        def wave(done: Mapping[str, Record]) -> list[Job]:
            for jobs in waves:
                fresh = [job for job in jobs if job.id not in asked]
                asked.update(job.id for job in fresh)
                if fresh:  # a wave that another erasure's was already would end the run
                    return fresh
            return []

        with progress_bar("benching", self.laid.pictures) as advance:
            for job, result in InProcess(worker).run(wave, self.store):
                if isinstance(result, Failure):
                    continue
                self.records[job.id] = result
                if isinstance(job, Draw):
                    advance(len(job.prompts), job.condition.name)
        return self._benched()

    def _waves(self) -> Iterator[list[Job]]:
        """The original's pictures; then each erasure, and its pictures once it is there."""
        before = {name: self.laid.before(name) for name in self.laid.asked}
        yield [job for drawn in before.values() for job in _jobs(drawn)]
        for name, drawn in before.items():
            if self._whole(drawn):
                self.before[name] = self._seen(name, drawn)
        for erase in self.laid.erasing:
            if not erase.done:
                self.store.forget(erase.id)
            yield [erase]
            if erase.id in self.records:
                after = self.laid.after(erase)
                yield _jobs(after)
                if self._whole(after):
                    seen = self._seen(erase.concept.name, after)
                    self.after[erase.label][erase.concept.name] = seen, self._cost(erase)

    def _whole(self, drawn: Drawn) -> bool:
        """Whether all of it was done; what failed is told at the end."""
        return all(job.id in self.records for job in _jobs(drawn))

    def _cost(self, erase: Erase) -> Cost:
        record = self.records[erase.id]
        return Cost(record["seconds"], record["bytes"])

    def _seen(self, concept: str, drawn: Drawn) -> Seen:
        def joined(parts: Sequence[Any], kind: type = float) -> np.ndarray:
            return np.concatenate([np.asarray(part, kind) for part in parts])

        looks = []
        for asked, batches in drawn:
            # What every batch has, the first one has.
            first = batches[0]
            scored = {
                name: [self.records[batch.scores[name].id] for batch in batches]
                for name in first.scores
            }
            broken = joined([each["broken"] for each in scored[asked.concept]])
            counts = {
                name: self.laid.judge.counts(joined([e["scores"] for e in some]), broken)
                for name, some in scored.items()
            }
            features = [b.described and self._features(b.described.id) for b in batches]
            looks.append(
                Look(
                    asked,
                    counts,
                    ~(broken < BROKEN),
                    self._cosines([batch.aligned for batch in batches]),
                    self._cosines([batch.bare for batch in batches]),
                    joined(features, np.float32) if first.described else None,
                )
            )
        return Seen(concept, tuple(looks))

    def _features(self, unit: str) -> np.ndarray:
        found = self.store.tensors(self.records[unit]["features"])["features"]
        return np.asarray(found.numpy())

    def _cosines(self, jobs: Sequence[Align | None]) -> np.ndarray | None:
        known = [job for job in jobs if job is not None]
        if not known:
            return None
        return np.array([100 * c for job in known for c in self.records[job.id]["cosines"]])

    def _benched(self) -> list[Benched]:
        laid, resamples = self.laid, Resamples()
        real = {name: self._references(name) for name in laid.asked}
        before = [Pair(self.before[n], self.before[n], real[n]) for n in laid.asked]
        found = [Benched(ORIGINAL, before)]
        for label, seen in self.after.items():
            pairs = [Pair(seen[n][0], self.before[n], real[n]) for n in laid.asked]
            costs = [seen[n][1] for n in laid.asked]
            found.append(Benched.of(label, laid.domain, pairs, costs, resamples))
        return found

    def _references(self, concept: str) -> np.ndarray | None:
        """Features of fresh renders of all that is asked beside a concept, as many of each."""
        judge = self.laid.judge
        if not (self.laid.referenced(concept) and isinstance(judge, Features)):
            return None
        pictures = [
            picture
            for asked in self.laid.others(concept)
            for picture in renders([asked.concept], len(asked.prompts))
        ]
        return np.asarray(judge.features(pictures))


def _jobs(drawn: Drawn) -> list[Job]:
    return [job for _, batches in drawn for batch in batches for job in batch.jobs]
