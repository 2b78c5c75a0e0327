"""What every fine-tuner shares: students, their training, checkpoints that know whose they are."""

from __future__ import annotations

import contextlib
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from expunge.concept import Concept, kept_prompts
from expunge.eraser.base import Eraser, Result
from expunge.lazy import torch
from expunge.settings import Branch, check_choice, check_counts, check_numbers

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.backbone.profile import Sampling
    from expunge.change import Change, Changes
    from expunge.gate import Gate
    from expunge.request import Request
    from expunge.run.objective import Objective, Player


@dataclass(frozen=True)
class Student:
    """What is trained to forget one concept.

    Attributes:
        concept: what goes.
        changes: in training, by place; hooked into the model.
    """

    concept: Concept
    changes: Changes

    @property
    def module(self) -> torch.nn.ModuleDict:
        """All of them, for an optimiser."""
        return torch.nn.ModuleDict({k.replace(".", "|"): v for k, v in self.changes.items()})


Students = Mapping[str, Student]
"""By the concept's name."""


@dataclass(frozen=True, kw_only=True)
class FineTuner(Eraser):
    """A method that trains changes of the model: an objective, and what is trained.

    Attributes:
        steps: optimiser steps, of all concepts together.
        lr: AdamW's peak learning rate.
        batch_size: points or pictures of the erased concept in a step.
        rank: of the low-rank change of each layer.
        attention: which layers are changed: `cross`, `self` or `attention` (both), all of the
            `transformer` blocks, or `all` there are.
        guidance_scale: of sampling runs that training looks at; None for `usual_guidance` where
            guidance is classifier-free, and for the model's own where it is not.
        resolution: pixels along a side of what is drawn in them; None for the model's own.
        synonyms: whether the concept's synonyms are trained on as well.
        plurals: whether its names are trained on in the plural as well; of objects alone.
    """

    usual_guidance: ClassVar[float] = 3.0

    steps: int = 1000
    lr: float = 1e-4
    batch_size: int = 4
    rank: int = 4
    attention: Branch = "attention"
    guidance_scale: float | None = None
    resolution: int | None = None
    synonyms: bool = False
    plurals: bool = False

    def __post_init__(self) -> None:
        check_counts(self, "steps", "batch_size", "rank", least=1)
        check_numbers(self, "lr", above=0)
        check_choice(self, attention=Branch)
        if self.resolution is not None:
            check_counts(self, "resolution", least=16)
        if self.guidance_scale is not None:
            check_numbers(self, "guidance_scale", least=0)

    # --- what a method says

    @abstractmethod
    def objective(self, backbone: Backbone, students: Students) -> Objective:
        """What the students are trained towards. Each is a player under its concept's name.

        Called once with the students hooked in; run the original under `original()`.
        """

    def fresh(self, backbone: Backbone, concept: Concept, generator: torch.Generator) -> Changes:
        """Changes of nothing that can learn, by place."""
        from expunge.change import LowRank

        return {
            f"{backbone.denoiser_name}/{name}": LowRank.fresh(layer, self.rank, generator)
            for name, layer in backbone.select(self.attention).items()
        }

    def closed_form(self, concept: Concept) -> Request | None:
        """A closed form to start from; None for none."""
        return None

    def gate(self, backbone: Backbone, concept: Concept) -> Gate | None:
        """What the strength of a concept's changes depends on afterwards; it is 1 in training."""
        return None

    def players(self, students: Students, objective: Objective) -> dict[str, Player]:
        """Who moves in a step, in this order: students, unless a method has more."""
        from expunge.run.objective import Player

        return {name: Player(student.module, self.lr) for name, student in students.items()}

    # --- what the framework does

    def others(self, concept: Concept, gone: Sequence[Concept], limit: int) -> list[str]:
        """Prompts that shall go on as before, the empty one last; they name nothing that goes."""
        kept = kept_prompts([concept], "train", limit - 1)
        return [text for text in kept if not any(each.mentions(text) for each in gone)] + [""]

    def training_pairs(self, concept: Concept, count: int) -> list[tuple[str, str]]:
        """At most `count` prompts, each with its anchor, names and their plurals taking turns."""
        return concept.training_pairs(count, synonyms=self.synonyms, plurals=self.plurals)

    def sampling(self, backbone: Backbone) -> Sampling:
        """How training draws."""
        usual, scale = backbone.profile.sampling, self.guidance_scale
        if scale is None:
            own = backbone.guidance != "classifier-free"
            scale = usual.guidance_scale if own else self.usual_guidance
        usual = replace(usual, guidance_scale=scale)
        if self.resolution is None:
            return usual
        return replace(usual, height=self.resolution, width=self.resolution)

    def check(self, backbone: Backbone) -> None:
        sampling = self.sampling(backbone)
        backbone.check_guidance(sampling.guidance_scale)
        backbone.latent_shape(sampling.height or 0, sampling.width or 0)

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        from expunge.erasure import Part
        from expunge.run.checkpoint import Workspace
        from expunge.run.fit import fit
        from expunge.run.plan import Plan
        from expunge.text_edit import solve

        if self.steps < len(concepts):
            raise ValueError(
                f"{len(concepts)} concepts take turns, got {self.steps} steps for them"
            )
        asked = {concept.name: self.closed_form(concept) for concept in concepts}
        requests = {name: request for name, request in asked.items() if request is not None}
        closed = solve(backbone, requests, concepts) if requests else {}
        students = {c.name: self._student(backbone, c, i) for i, c in enumerate(concepts)}
        with _frozen(backbone), contextlib.ExitStack() as hooked:
            if closed:
                hooked.enter_context(_hooked(backbone, closed, "closed form"))
            own = {name: student.changes for name, student in students.items()}
            hooked.enter_context(_hooked(backbone, own, "students"))
            objective = self.objective(backbone, students)
            workspace = folder and Workspace(
                folder / "checkpoints",
                {
                    "eraser": self.name,
                    "hyperparameters": asdict(self),
                    "concepts": [concept.to_dict() for concept in concepts],
                    "model": backbone.content_hash(),
                },
            )
            plan = Plan(steps=self.steps, warmup=min(10, self.steps), save_every=50)
            players = self.players(students, objective)
            trained = fit(self.name, players, objective, plan, workspace or None, seed=self.seed)
        parts = [
            Part(c, closed.get(c.name, {}), _done(students[c.name]), self.gate(backbone, c))
            for c in concepts
        ]
        if workspace:
            shutil.rmtree(workspace.folder, ignore_errors=True)
        notes = {"steps_done": trained.steps, "logged": dict(trained.logged)}
        return Result(parts, requests, trained.losses, notes)

    def _student(self, backbone: Backbone, concept: Concept, number: int) -> Student:
        generator = torch.Generator().manual_seed(self.seed + number)
        changes = self.fresh(backbone, concept, generator)
        for change in changes.values():
            change.to(backbone.device).requires_grad_(True)
        return Student(concept, changes)


def _done(student: Student) -> dict[str, Change]:
    """What was trained, as it is kept."""
    for change in student.changes.values():
        change.requires_grad_(False).to("cpu")
    return dict(student.changes)


@contextlib.contextmanager
def _hooked(backbone: Backbone, slices: Mapping[str, Changes], name: str) -> Iterator[None]:
    from expunge.adapter import Adapter

    networks = backbone.networks
    adapter = Adapter(networks, slices, name=name, dtype=backbone.dtype)
    try:
        yield
    finally:
        adapter.remove(networks)


@contextlib.contextmanager
def _frozen(backbone: Backbone) -> Iterator[None]:
    """Within this context no weight of the pipeline takes a gradient."""
    networks = backbone.networks.values()
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
