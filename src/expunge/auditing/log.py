"""The log of an audit: one typed schema, shared by who writes it and who reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from expunge.auditing.consistency import check, without_schema
from expunge.run.log import Record
from expunge.run.typed import plain, read

SCHEMA = "expunge.audit/2"
BROKEN = 0.5
"""A picture with at least this score is broken, and then shows nothing."""
PLAIN = "plain"
"""The attack that is none."""

Role = Literal["target", "neighbour", "unrelated"]
Access = Literal["prompt", "embedding", "latent", "weights"]
Interval = tuple[float, float]


@dataclass(frozen=True)
class Target:
    """What was audited: concepts that a method took from a model."""

    model: str
    model_hash: str
    architecture: str
    method: str
    concepts: tuple[str, ...]
    strength: float | Mapping[str, float]
    split: str


@dataclass(frozen=True)
class Condition:
    """One model under which pictures were drawn; `text` says in a line what it is."""

    name: str
    role: Literal["original", "erased", "guarded", "control"]
    text: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class Attack:
    """One way to bring a concept back; `plain` is none.

    Attributes:
        name: unique in the log.
        access: what the attacker needs.
        white_box: whether it looked into the model that it attacked.
        budget: what it may spend, such as `{"steps": 32}`.
        text: how a sentence names it, such as "with a learned embedding".
    """

    name: str
    access: Access
    white_box: bool
    budget: Mapping[str, Any]
    text: str


@dataclass(frozen=True)
class Picture:
    """A picture's path in the store, each judge's score for the concept, and for being broken."""

    image: str
    scores: Mapping[str, float]
    broken: float

    @property
    def is_broken(self) -> bool:
        """Whether it is no proper picture."""
        return self.broken >= BROKEN


@dataclass(frozen=True)
class Sample:
    """One prompt and seed under every condition that drew it."""

    attack: str
    probe: str
    concept: str
    role: Role
    prompt: str
    seed: int
    pictures: Mapping[str, Picture]
    budget: float | None = None


@dataclass(frozen=True)
class Cell:
    """How often one judge finds a concept under one condition, with a 95 % interval."""

    condition: str
    attack: str
    probe: str
    concept: str
    role: Role
    judge: str
    n: int
    k: int
    rate: float
    ci: Interval
    budget: float | None = None


@dataclass(frozen=True)
class Difference:
    """Second condition minus first on the same prompts and seeds; p is McNemar's exact test."""

    first: str
    second: str
    attack: str
    probe: str
    concept: str
    role: Role
    judge: str
    n: int
    first_rate: float
    second_rate: float
    difference: float
    ci: Interval
    only_first: int
    only_second: int
    p: float
    budget: float | None = None


@dataclass(frozen=True)
class Broken:
    """Broken pictures; the difference is from the original on the same prompts and seeds."""

    role: Literal["target", "benign"]
    condition: str
    n: int
    k: int
    rate: float
    ci: Interval
    attack: str = PLAIN
    difference: float | None = None
    difference_ci: Interval | None = None


@dataclass(frozen=True)
class Frechet:
    """Distances on `n` benign pictures; the second is what other seeds alone give."""

    benign_erased: float
    benign_original_reseeded: float
    n: int


@dataclass(frozen=True)
class Flag:
    """What a reader must know: it limits the reading, limits precision, or was not measured."""

    code: str
    text: str
    concept: str | None
    kind: Literal["limits", "precision", "unmeasured"]


@dataclass(frozen=True)
class JudgeRecord:
    """A judge that scored; the log's first one gives the headline."""

    name: str
    version: str
    hash: str
    threshold: float
    settings: Mapping[str, Any]

    def finds(self, picture: Picture) -> bool:
        """Whether it finds the concept; a broken picture shows nothing."""
        return not picture.is_broken and picture.scores[self.name] >= self.threshold


@dataclass(frozen=True)
class Thresholds:
    """Where the verdict turns.

    Attributes:
        cannot_judge: the original must draw a concept at least this often.
        too_few: above this upper bound "none seen" says too little.
        broken_points: more broken pictures than the original by this much are a broken model.
        damage_tolerance: a loss within it may be called one.
    """

    cannot_judge: float = 0.5
    too_few: float = 0.1
    broken_points: float = 0.05
    damage_tolerance: float = 0.1


@dataclass(frozen=True)
class Made:
    """How the log came to be."""

    command: str
    started: str
    seconds: float
    versions: Mapping[str, str]


class _File(Record):
    """Where a log lies."""

    schema: ClassVar[str] = SCHEMA
    file: ClassVar[str] = "audit.json"
    what: ClassVar[str] = "audit"
    command: ClassVar[str] = "expunge audit"


@dataclass(frozen=True, repr=False)
class Log:
    """A finished audit, and a report's only input.

    Attributes:
        store: folder that the pictures' paths are relative to; no part of the schema.
    """

    target: Target
    conditions: tuple[Condition, ...]
    attacks: tuple[Attack, ...]
    samples: tuple[Sample, ...]
    cells: tuple[Cell, ...]
    differences: tuple[Difference, ...]
    broken: tuple[Broken, ...]
    frechet: Frechet | None
    flags: tuple[Flag, ...]
    judges: tuple[JudgeRecord, ...]
    sampling: Mapping[str, Any]
    erasure: Mapping[str, Any]
    made: Made
    thresholds: Thresholds
    store: Path

    def __post_init__(self) -> None:
        check(self)

    def __repr__(self) -> str:
        what = f"{', '.join(self.target.concepts)} of {self.target.model}"
        return (
            f"<Log of {what}: {len(self.conditions)} conditions, {len(self.attacks) - 1} attacks, "
            f"{len(self.samples)} samples, {len(self.flags)} notes>"
        )

    @property
    def judge(self) -> JudgeRecord:
        """The judge of the headline."""
        return self.judges[0]

    @property
    def kinds(self) -> dict[str, str]:
        """Kind of every erased concept."""
        return {each["name"]: each["kind"] for each in self.erasure["concepts"]}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        parts = [each.name for each in fields(self) if each.name != "store"]
        return {"schema": SCHEMA, **{part: plain(getattr(self, part)) for part in parts}}

    @classmethod
    def from_dict(cls, data: object, store: Path) -> Self:
        """Read plain JSON.

        Raises:
            ValueError: another schema, or anything in it of a wrong type; in one sentence with its
                path.
        """
        return read(cls, without_schema(data, SCHEMA), store=store)

    def save(self, folder: Path) -> Path:
        """Write `audit.json`; the store is named relative to the folder where it can be."""
        return _File(self.to_dict(), self.store).save(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: none is there, it is damaged, or from another schema.
        """
        file = _File.load(folder)
        return cls.from_dict(file.data, file.store)

    def summary(self) -> dict[str, Any]:
        """All but the samples and the erasure's record: what `--json` prints."""
        return {k: v for k, v in self.to_dict().items() if k not in {"samples", "erasure"}}

    def cell(
        self,
        probe: str = "plain",
        condition: str = "erased",
        concept: str | None = None,
        attack: str = PLAIN,
    ) -> Cell:
        """The headline judge's cell, of the largest budget; without a concept the first target's.

        Raises:
            KeyError: there is no such cell.
        """
        wanted = (probe, condition, attack, concept or self.target.concepts[0], self.judge.name)
        found = [
            cell
            for cell in self.cells
            if (cell.probe, cell.condition, cell.attack, cell.concept, cell.judge) == wanted
        ]
        if not found:
            raise KeyError(wanted)
        return max(found, key=lambda cell: cell.budget or 0.0)

    def report(self, out: str | Path) -> Path:
        """Write the report, one HTML file that needs no network."""
        from expunge.report import write_report

        return write_report(self, Path(out))
