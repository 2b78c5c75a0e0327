"""Going through a bench's plan: what is missing is done, what was seen is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from expunge.auditing.jobs import Draw, Worker
from expunge.auditing.protocols.figures import Pair
from expunge.auditing.protocols.jobs import Align, Erase
from expunge.auditing.protocols.plan import ORIGINAL, Drawn, Plan
from expunge.auditing.protocols.rows import Benched, Cost
from expunge.auditing.protocols.seen import Look, Seen
from expunge.judge.base import BROKEN, Features
from expunge.measure.harmonic import Resamples
from expunge.miniature.references import renders
from expunge.run.executor import InProcess
from expunge.run.jobs import Failure, Job
from expunge.run.progress import progress_bar
from expunge.run.store import Record, Store


class Work:
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
