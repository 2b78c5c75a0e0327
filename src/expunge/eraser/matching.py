"""Training by matching: at points on trajectories the student predicts what it is told to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from expunge.concept import Concept
from expunge.eraser.finetune import FineTuner, Students
from expunge.lazy import torch
from expunge.run.objective import Loss, Objective, Step
from expunge.settings import check_counts, check_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.eraser.points import Points


@dataclass(frozen=True)
class Lesson:
    """What one student learns from.

    Attributes:
        erased: where it forgets.
        kept: where it goes on as before, None for nowhere.
    """

    erased: Points
    kept: Points | None


@dataclass(frozen=True, kw_only=True)
class Matcher(FineTuner):
    """A method that says where the student shall predict what; ESD, TRACE and their like.

    Attributes:
        trajectories: sampling runs per concept that training points are taken from.
        preserve: weight of the loss that holds other prompts still; 0 for none.
    """

    trajectories: int = 32
    preserve: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_counts(self, "trajectories", least=1)
        check_numbers(self, "preserve", least=0)

    @abstractmethod
    def points(self, backbone: Backbone, concept: Concept) -> Points:
        """Where a student is trained to forget, and what it shall predict there.

        Called once per concept with every change switched off.
        """

    def erase_error(self, predicted: Tensor, points: Points) -> Tensor:
        """How far from what is wanted predictions for the concept are, (n,)."""
        return distances(predicted, points.targets)

    def keep_weight(self, levels: Tensor) -> Tensor:
        """Weight of a kept point by noise level, (n,)."""
        return torch.ones_like(levels)

    def kept_points(self, backbone: Backbone, concept: Concept, gone: Sequence[Concept]) -> Points:
        """Other prompts, where the student shall go on as before; they name nothing that goes."""
        from expunge.eraser.points import Points, predictions, walk

        prompts = self.others(concept, gone, self.trajectories)
        seen = walk(backbone, prompts, self.sampling(backbone), seed=self.seed * 1000 + 1)
        told = seen.told(prompts)
        targets = predictions(backbone, seen.latents, seen.levels, told)
        return Points(seen.latents, seen.levels, told, targets)

    def objective(self, backbone: Backbone, students: Students) -> Objective:
        from expunge.hooks import original
        from expunge.run.progress import progress_bar

        lessons, gone = {}, [student.concept for student in students.values()]
        with original(), progress_bar("sampling trajectories", len(students)) as advance:
            for name, student in students.items():
                kept = self.kept_points(backbone, student.concept, gone) if self.preserve else None
                lessons[name] = Lesson(self.points(backbone, student.concept), kept)
                advance(1, name)
        return Matching(self, backbone, lessons)


class Matching(Objective):
    """Mean squared distance from the targets, erased and kept. Students take turns."""

    def __init__(self, method: Matcher, backbone: Backbone, lessons: Mapping[str, Lesson]) -> None:
        self.method, self.backbone, self.lessons = method, backbone, lessons
        self.names = list(lessons)

    def loss(self, step: Step, player: str) -> Loss:
        # A batch of one concept moves only that concept's student.
        if player != self.names[step.number % len(self.names)]:
            return None
        lesson, size = self.lessons[player], self.method.batch_size
        erased = lesson.erased.sample(size, step.generator)
        if lesson.kept is None:
            return {"erase": self.method.erase_error(self._predicted([erased]), erased).mean()}
        kept = lesson.kept.sample(size, step.generator)
        predicted = self._predicted([erased, kept])
        errors = distances(predicted[size:], kept.targets)
        weight = self.method.keep_weight(kept.levels).to(errors)
        return {
            "erase": self.method.erase_error(predicted[:size], erased).mean(),
            "keep": self.method.preserve * (weight * errors).mean(),
        }

    def _predicted(self, parts: list[Points]) -> Tensor:
        """What the student predicts at all points, in one pass."""
        backbone = self.backbone
        return backbone.predict(
            torch.cat([points.latents for points in parts]).to(backbone.device),
            torch.cat([points.levels for points in parts]),
            backbone.encode_prompts([text for points in parts for text in points.prompts]),
        )


def distances(predicted: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of each prediction, (n,)."""
    return (predicted - wanted.to(predicted.device)).float().square().flatten(1).mean(1)
