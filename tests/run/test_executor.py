from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from expunge.run.executor import InProcess
from expunge.run.jobs import Failure, Job, JobsError, Wave
from expunge.run.store import Record, Store, StoreError, UnwritableError


class Diary(list[str]):
    """The worker of these tests: writes down what was done, and may be told to break."""

    breaks: Mapping[str, BaseException] = {}

    def note(self, name: str) -> None:
        self.append(name)
        if name in self.breaks:
            raise self.breaks[name]


@dataclass(frozen=True)
class Number(Job):
    value: int
    needs: tuple[str, ...] = ()
    group: str = ""
    text: str = ""

    @property
    def spec(self) -> Mapping[str, Any]:
        return {"job": "number", "value": self.value}

    @property
    def name(self) -> str:
        return self.text or f"n{self.value}"

    def run(self, worker: Any, needs: Mapping[str, Record]) -> Mapping[str, Any]:
        worker.note(self.name)
        return {"sum": self.value + sum(record["sum"] for record in needs.values())}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def once(*jobs: Job) -> Wave:
    """One wave, whose jobs are named again for as long as they are not done."""
    return lambda _: jobs


def settle(
    wave: Wave, store: Store, worker: Diary | None = None, *, keep_going: bool = False
) -> tuple[dict[str, Record | Failure], Diary]:
    worker = Diary() if worker is None else worker
    found = InProcess(worker, keep_going).run(wave, store)
    return {job.name: result for job, result in found}, worker


ONE = Number(1)
TWO = Number(2, needs=(ONE.id,))
THREE = Number(3, needs=(ONE.id, TWO.id))


def test_needs_come_first_and_are_handed_over(store: Store) -> None:
    found, worker = settle(once(THREE, TWO, ONE), store)
    assert worker == ["n1", "n2", "n3"]
    assert found == {"n1": {"sum": 1}, "n2": {"sum": 3}, "n3": {"sum": 7}}


def test_twice_does_nothing_the_second_time(store: Store) -> None:
    first, _ = settle(once(ONE, TWO, THREE, THREE), store)
    again, worker = settle(once(ONE, TWO, THREE), store)
    assert worker == []
    assert again == first


def test_jobs_of_one_group_follow_each_other(store: Store) -> None:
    jobs = [Number(i, group="ab"[i % 2]) for i in range(6)]
    late = Number(9, needs=(jobs[0].id,), group="b")
    _, worker = settle(once(late, *jobs), store)
    assert worker == ["n0", "n2", "n4", "n1", "n3", "n5", "n9"]


def test_a_killed_run_goes_on(store: Store) -> None:
    worker = Diary()
    worker.breaks = {"n2": KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        settle(once(ONE, TWO, THREE), store, worker)
    found, worker = settle(once(ONE, TWO, THREE), store)
    assert worker == ["n2", "n3"]
    assert found["n3"] == {"sum": 7}


def test_a_later_wave_depends_on_what_was_found(store: Store) -> None:
    """Doubling until a hundred is passed: nobody can say beforehand how often."""

    def next_wave(records: Mapping[str, Record]) -> Sequence[Job]:
        best = max((record["sum"] for record in records.values()), default=1)
        need = tuple(unit for unit, record in records.items() if record["sum"] == best)
        return [Number(best, need)] if best < 100 else []

    found = [result for _, result in InProcess(Diary()).run(next_wave, store)]
    assert found == [{"sum": 2**power} for power in range(8)]
    _, worker = settle(next_wave, store)
    assert worker == []


def test_a_failed_need_fails_what_needs_it_by_name(store: Store) -> None:
    worker = Diary()
    worker.breaks = {"n1": ValueError("no such thing\nand more")}
    other = Number(5)
    found, worker = settle(once(ONE, TWO, THREE, other), store, worker, keep_going=True)
    assert worker == ["n1", "n5"]
    assert found["n1"] == Failure("no such thing", error=worker.breaks["n1"])
    assert found["n2"] == Failure("it needs n1, which failed (no such thing)", ONE.id)
    assert found["n5"] == {"sum": 5}


def test_failures_are_an_error_at_the_end(store: Store) -> None:
    worker = Diary()
    worker.breaks = {"n1": TypeError("odd")}
    said = r"not done: n1 \(TypeError: odd\), n2 \(it needs n1.*same command does only what"
    with pytest.raises(JobsError, match=said) as error:
        settle(once(TWO, ONE, Number(5)), store, worker)
    assert error.value.__cause__ is worker.breaks["n1"]
    assert worker == ["n1", "n5"]
    _, worker = settle(once(TWO, ONE, Number(5)), store)
    assert worker == ["n1", "n2"]


def test_a_need_that_nobody_makes(store: Store) -> None:
    with pytest.raises(JobsError, match=f"n2 .it needs {ONE.id}, which no job of this run"):
        settle(once(TWO), store)


def test_a_record_that_json_cannot_express_is_a_failure(store: Store) -> None:
    class Broken(Number):
        def run(self, worker: Any, needs: Mapping[str, Record]) -> Mapping[str, Any]:
            return {"sum": float("nan")}

    with pytest.raises(JobsError, match="record must hold only what JSON can express"):
        settle(once(Broken(1)), store)
    assert store.get(ONE.id) is None


def test_nothing_goes_on_where_nothing_can_be_kept(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    worker = Diary()
    with pytest.raises(UnwritableError):
        settle(once(ONE, Number(5)), Store(tmp_path / "file"), worker)
    assert worker == ["n1"]


def test_a_damaged_record_is_a_failure_and_not_done_again(store: Store) -> None:
    settle(once(ONE), store)
    (path,) = (store.folder / "units").iterdir()
    path.write_text(path.read_text().replace('"sum":1', '"sum":2'))
    with pytest.raises(JobsError, match="is damaged"):
        settle(once(ONE, Number(5)), store)
    with pytest.raises(StoreError, match="is damaged"):
        store.get(ONE.id)


@dataclass(frozen=True)
class Picture(Job):
    """A picture that comes out differently each time."""

    @property
    def spec(self) -> Mapping[str, Any]:
        return {"job": "picture"}

    def run(self, worker: Any, needs: Mapping[str, Record]) -> Mapping[str, Any]:
        worker.note("picture")
        pixels = np.full((4, 4, 3), len(list(worker.store.folder.rglob("*.json"))), np.uint8)
        name = worker.store.put_image(Image.fromarray(pixels))
        return {"image": name, "sum": int(pixels[0, 0, 0])}


def test_what_was_made_from_a_picture_that_was_drawn_again_is_made_again(store: Store) -> None:
    """Otherwise a score would speak of a picture that is no longer there."""
    picture = Picture()
    score = Number(1, needs=(picture.id,), text="score")
    worker = Diary()
    worker.store = store  # type: ignore[attr-defined]
    first, _ = settle(once(picture, score), store, worker)
    next(store.folder.rglob("*.png")).unlink()
    again, _ = settle(once(picture, score), store, worker)
    assert worker == ["picture", "score", "picture", "score"]
    assert first["score"] != again["score"]


def test_what_a_job_needs_is_part_of_its_name() -> None:
    assert Number(2).id != TWO.id
    assert TWO.kept_spec == {"job": "number", "value": 2, "needs": [ONE.id]}
