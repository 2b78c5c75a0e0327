"""Running jobs: wave after wave, each once, each kept as soon as it is done."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from expunge.run.digest import digest
from expunge.run.jobs import Failure, Job, JobsError, Wave
from expunge.run.store import Record, Store, UnwritableError


class Executor(Protocol):
    """Runs jobs somewhere."""

    def run(self, jobs: Wave, store: Store) -> Iterator[tuple[Job, Record | Failure]]:
        """Yield every job of every wave with what became of it, as soon as that is known.

        Args:
            jobs: gives the next wave from the records so far; an empty one ends the run.
            store: holds the records. What it has is not done again.

        Raises:
            JobsError: at the end, where jobs failed.
            UnwritableError: a record cannot be kept.
        """


@dataclass(frozen=True)
class InProcess:
    """One job after another in this process; jobs of one group follow each other.

    Attributes:
        worker: handed to every job.
        keep_going: whether a run with failures ends without an error.
    """

    worker: Any = None
    keep_going: bool = False

    def run(self, jobs: Wave, store: Store) -> Iterator[tuple[Job, Record | Failure]]:
        """Yield every job of every wave with what became of it; see `Executor`."""
        run = _Run(self.worker, store)
        while wave := run.unsettled(jobs(run.records)):
            for job in _in_order(wave):
                yield job, run.settle(job)
        if run.failures and not self.keep_going:
            raise _summary(run)


@dataclass
class _Run:
    """What is known so far."""

    worker: Any
    store: Store
    records: dict[str, Record] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def unsettled(self, jobs: Sequence[Job]) -> list[Job]:
        """Those that nothing is known of yet, each once."""
        known = self.records.keys() | self.failures.keys()
        return list({job.id: job for job in jobs if job.id not in known}.values())

    def settle(self, job: Job) -> Record | Failure:
        """Find the job in the store, or do it, or say why not."""
        self.names[job.id] = job.name
        found = self._needs(job)
        if not isinstance(found, Failure):
            found = self._do(job, found)
        if isinstance(found, Failure):
            self.failures[job.id] = found
        else:
            self.records[job.id] = found
        return found

    def _needs(self, job: Job) -> dict[str, Record] | Failure:
        for need in job.needs:
            if need in self.failures:
                why = self.failures[need].reason
                return Failure(f"it needs {self.names[need]}, which failed ({why})", need)
            if need not in self.records:
                return Failure(f"it needs {need}, which no job of this run has made", need)
        return {need: self.records[need] for need in job.needs}

    def _do(self, job: Job, needs: Mapping[str, Record]) -> Record | Failure:
        # A record made from others than these, which were done again since, is not the job's.
        made_from = {need: digest(record) for need, record in needs.items()}
        try:
            kept = self.store.get(job.id, made_from)
            if kept is not None:
                return kept
            return self.store.put(job.kept_spec, job.run(self.worker, needs), made_from)
        except UnwritableError:  # whatever comes next would be lost as well
            raise
        except Exception as error:
            return Failure(_sentence(error), error=error)


def _in_order(wave: Sequence[Job]) -> Iterator[Job]:
    """Needs before what needs them, and as few changes of group as that allows."""
    ids = {job.id for job in wave}
    missing = {job.id: ids & set(job.needs) for job in wave}
    wanted: dict[str, list[Job]] = {}
    for job in wave:
        for need in missing[job.id]:
            wanted.setdefault(need, []).append(job)
    ready: dict[str, deque[Job]] = {}
    for job in wave:
        if not missing[job.id]:
            ready.setdefault(job.group, deque()).append(job)
    while ready:
        group, queue = next(iter(ready.items()))
        while queue:
            job = queue.popleft()
            yield job
            for other in wanted.get(job.id, ()):
                missing[other.id].discard(job.id)
                if not missing[other.id]:
                    ready.setdefault(other.group, deque()).append(other)
        del ready[group]


def _sentence(error: Exception) -> str:
    text = str(error).split("\n")[0]
    return text if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {text}"


def _summary(run: _Run) -> JobsError:
    """Those that failed by themselves are told first; the others follow from them."""
    failed = sorted(run.failures.items(), key=lambda item: item[1].error is None)
    told = [f"{run.names[unit]} ({failure.reason})" for unit, failure in failed]
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""
    error = JobsError(
        f"not done: {', '.join(told[:3])}{more}; all else is kept, and the same command does only "
        "what is missing"
    )
    error.__cause__ = failed[0][1].error
    return error
