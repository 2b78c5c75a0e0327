"""What an audit will do, laid out and checked before any of it is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from expunge.attack.base import Attack
from expunge.attack.plain import Plain
from expunge.auditing.cases import Asked, Sizes, attacked, cases
from expunge.auditing.flags import FRECHET_IMAGES
from expunge.auditing.jobs import Draw, Propose, Score, batches
from expunge.backbone.base import Backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Prompt
from expunge.condition import Condition, erased, guarded, original, random_weights
from expunge.erasure import Erasure
from expunge.guard.base import Guard
from expunge.judge.base import Features, Judge
from expunge.prompts import Split
from expunge.run.jobs import Job
from expunge.run.store import Store


@dataclass(frozen=True)
class Batch:
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
    batches: tuple[Batch, ...]
    proposals: tuple[Propose, ...]
    reseeded: tuple[Draw, ...] = field(default=())

    @property
    def jobs(self) -> list[Job]:
        """All of it; each job once."""
        drawn = [batch.draw for batch in self.batches]
        scored = [score for batch in self.batches for score in batch.scores.values()]
        every: list[Job] = [*self.proposals, *drawn, *scored, *self.reseeded]
        return list({job.id: job for job in every}.values())

    @property
    def pictures(self) -> int:
        """That are drawn, attacks' references left out."""
        return sum(len(draw.prompts) for draw in self._draws)

    def left(self, store: Store) -> int:
        """Pictures that are not in the store yet.

        Raises:
            StoreError: a record is damaged.
        """
        return sum(len(draw.prompts) for draw in self._draws if store.get(draw.id) is None)

    @property
    def _draws(self) -> list[Draw]:
        draws = [*(batch.draw for batch in self.batches), *self.reseeded]
        return list({draw.id: draw for draw in draws}.values())


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
    control: bool = True,
    split: Split = "test",
    frechet: bool = True,
) -> Plan:
    """Lay out an audit and check all of it before any heavy work.

    Raises:
        ValueError: no prompt contains a concept, a judge does not know one, the erasure is applied
            already or was made for another model, an attack or guard does not fit the model, or
            two of one sort go by the same name.
    """
    conditions = [original(), erased(erasure, strength)]
    conditions += [guarded(conditions[1], guard) for guard in guards]
    if control and attacks:
        conditions.append(random_weights())
    _check_names("attacks", [Plain().label, *(attack.label for attack in attacks)])
    _check_names("guards", [condition.name for condition in conditions])
    _check_names("judges", [judge.name for judge in judges])
    for condition in conditions:
        condition.check(backbone)
    for attack in attacks:
        attack.check(backbone)
    asked = cases(backbone.profile.vocabulary, erasure.concepts, sizes, split)
    _check_judges(judges, asked)
    layout = _Layout(backbone, tuple(judges), sampling, tuple(conditions))
    plain = [batch for each in asked for batch in layout.plain(each)]
    under = [
        layout.attacked(attack, each)
        for attack in attacks
        for each in attacked(erasure.concepts, sizes, split)
    ]
    proposals = {each.id: each for proposed, _ in under for each in proposed}
    return Plan(
        tuple(conditions),
        (Plain(), *attacks),
        tuple(judges),
        sampling,
        (*plain, *(batch for _, batches in under for batch in batches)),
        tuple(proposals.values()),
        layout.reseeded(asked) if frechet else (),
    )


def _check_names(what: str, names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{what} must differ, got {name} twice (attacks always hold plain, no attack)"
                if what == "attacks"
                else f"{what} must differ, got {name} twice"
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
    """Turns cells into jobs; the first condition is the original."""

    def __init__(
        self,
        backbone: Backbone,
        judges: tuple[Judge, ...],
        sampling: Sampling,
        conditions: tuple[Condition, ...],
    ) -> None:
        self.identity = backbone.identity()
        self.records = {judge.name: judge.record() for judge in judges}
        self.featured = isinstance(judges[0], Features)
        self.sampling, self.conditions = sampling, conditions

    def plain(self, asked: Asked) -> Iterator[Batch]:
        """Without an attack; a control that was never trained draws nothing then."""
        for condition in self.conditions:
            if condition.role != "control":
                yield from self._batches(asked, Plain(), condition, None)

    def attacked(self, attack: Attack, asked: Asked) -> tuple[list[Propose], list[Batch]]:
        """Attempts, and what is drawn of them. A white box makes one for each condition."""
        proposals: list[Propose] = []
        drawn: list[Batch] = []
        for condition in self.conditions:
            seen = condition if attack.white_box else self.conditions[0]
            proposal = Propose(self.identity, seen, attack, asked.case, self.sampling)
            proposals.append(proposal)
            drawn += self._batches(asked, attack, condition, proposal.id)
        return proposals, drawn

    def _batches(
        self, asked: Asked, attack: Attack, condition: Condition, proposed: str | None
    ) -> Iterator[Batch]:
        for first, prompts in batches(asked.prompts, self.sampling.batch_size):
            draw = Draw(self.identity, condition, prompts, self.sampling, first, proposed)
            scores = {
                name: Score(record, asked.concept, draw.id) for name, record in self.records.items()
            }
            yield Batch(asked, attack, condition, prompts, draw, scores)

    def reseeded(self, asked: Sequence[Asked]) -> tuple[Draw, ...]:
        """Benign pictures by the original with other seeds, where a distance can be measured."""
        benign = [each for each in asked if each.role != "target"]
        enough = sum(len(each.prompts) for each in benign) >= FRECHET_IMAGES
        if not (enough and self.featured):
            return ()
        return tuple(
            Draw(self.identity, self.conditions[0], prompts, self.sampling, index=1)
            for each in benign
            for _, prompts in batches(each.prompts, self.sampling.batch_size)
        )
