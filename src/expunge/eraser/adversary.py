"""Training against a network that tells the concept: pairs of runs, their ends, two players."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from expunge.backbone.base import Backbone
from expunge.backbone.conditioning import token_states
from expunge.backbone.guidance import ClassifierFree
from expunge.backbone.sampling import steps
from expunge.discriminator import Discriminator, fooling, steepness, telling
from expunge.eraser.points import Points
from expunge.run.objective import Grads, Loss, Objective, Step, gradients_by_term

if TYPE_CHECKING:
    from expunge.eraser.fade import FADE

DISCRIMINATOR = "(discriminator)"
"""The player that tells; students go by their concepts' names."""


class Pool(nn.Module):
    """Latents on runs of the student, in pairs that differ in the prompt alone.

    Buffers, so that a run that was stopped goes on with them. They stay on the CPU.

    Args:
        pairs: how many it holds.
        levels: how many noise levels of each.
        shape: of one latent.
    """

    latents: Tensor
    prompts: Tensor

    def __init__(self, pairs: int, levels: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("latents", torch.zeros(pairs, 2, levels, *shape))
        self.register_buffer("prompts", torch.zeros(pairs, dtype=torch.long))


@dataclass(frozen=True)
class Lesson:
    """What one student learns from.

    Attributes:
        pairs: prompts with the concept, each beside the one without.
        kept: where it goes on as before, None for nowhere.
    """

    pairs: Sequence[tuple[str, str]]
    kept: Points | None


@dataclass(frozen=True)
class _Batch:
    """Ends of runs in one step: with a graph to the student, and without the concept.

    `levels` are those of the predictions they stand on, (n,); `told` is what D may know.
    """

    whose: str
    shown: Tensor
    clear: Tensor
    levels: Tensor
    told: Tensor | None


class Adversarial(Objective):
    """The discriminator tells the concept, the student whose turn it is learns to hide it.

    In each step one concept has its turn: the discriminator's output for it moves, then its student
    on the same ends of runs. Backward goes through the last predictions of a run alone.
    """

    def __init__(self, method: FADE, backbone: Backbone, lessons: Mapping[str, Lesson]) -> None:
        self.method, self.backbone, self.lessons = method, backbone, lessons
        self.names = list(lessons)
        self.sampling = method.sampling(backbone)
        self.path = backbone.levels(self.sampling)
        self.seen = seen_levels(self.path, method.from_level, method.tail)
        shape = backbone.latent_shape(*backbone.size(self.sampling))
        width = backbone.unconditional().prompt_embeds.shape[-1] if method.told else 0
        self.discriminator = Discriminator(
            shape, len(self.names), told=width, spectral=method.spectral, seed=method.seed
        ).to(backbone.device)
        self.pools = {n: Pool(2 * method.refill, len(self.seen), shape) for n in self.names}
        self.networks = {f"pool of {name}": pool for name, pool in self.pools.items()}
        self._batch: _Batch | None = None

    def _turn(self, step: Step) -> tuple[str, int]:
        """Whose turn it is, and the how many-th of theirs."""
        turn, index = divmod(step.number, len(self.names))
        return self.names[index], turn

    def before(self, step: Step) -> None:
        whose, turn = self._turn(step)
        method, lesson, pool = self.method, self.lessons[whose], self.pools[whose]
        if turn == 0:
            self._draw(pool, slice(None), lesson, step.generator)
        elif turn % method.refill_every == 0:
            first = (turn // method.refill_every) % 2 * method.refill
            self._draw(pool, slice(first, first + method.refill), lesson, step.generator)
        rows = torch.randperm(len(pool.latents), generator=step.generator)[: method.batch_size]
        at = torch.randint(len(self.seen), (len(rows),), generator=step.generator)
        texts = [lesson.pairs[i] for i in pool.prompts[rows].tolist()]
        begun = pool.latents[rows, :, at].to(self.backbone.device, self.backbone.dtype)
        levels = torch.tensor(self.path, dtype=torch.float64)
        levels = torch.stack(
            [levels[torch.tensor(self.seen)[at] + k] for k in range(method.tail)], dim=1
        )
        # Until D has learnt its first lesson the student only looks on.
        learning = turn >= method.head_start
        with self.backbone.exact():
            shown = self._end(begun[:, 0], levels, [text for text, _ in texts], learning)
            clear = self._end(begun[:, 1], levels, [text for _, text in texts], False)
        told = self._told([text for _, text in texts]) if method.told else None
        self._batch = _Batch(whose, shown, clear, levels[:, -1], told)

    @torch.no_grad()
    def _draw(self, pool: Pool, rows: slice, lesson: Lesson, generator: torch.Generator) -> None:
        """Fill some rows with runs of the model as it stands; both of a pair from one noise."""
        count = len(pool.prompts[rows])
        pool.prompts[rows] = torch.randint(len(lesson.pairs), (count,), generator=generator)
        asked = [lesson.pairs[i] for i in pool.prompts[rows].tolist()]
        seeds = torch.randint(2**62, (count,), generator=generator).tolist()
        for side in (0, 1):
            texts = [pair[side] for pair in asked]
            pool.latents[rows, side] = self._runs(texts, seeds)

    def _runs(self, texts: Sequence[str], seeds: Sequence[int]) -> Tensor:
        """Latents at the levels that are looked at, (n, levels, …), on the CPU."""
        found, size, backbone = [], self.sampling.batch_size, self.backbone
        for start in range(0, len(texts), size):
            part = slice(start, start + size)
            states = backbone.encode_prompts(texts[part])
            guidance = backbone.guidance_for(states, self.sampling.guidance_scale)
            noise = backbone.initial_noise(seeds[part], self.sampling)
            run = steps(backbone, noise, guidance, self.sampling)
            seen = [step.latents.float().cpu() for i, step in enumerate(run) if i in self.seen]
            found.append(torch.stack(seen, dim=1))
        return torch.cat(found)

    def _end(self, latents: Tensor, levels: Tensor, texts: Sequence[str], graph: bool) -> Tensor:
        """Clean latents that the last of a few predictions stands for.

        Args:
            latents: at the first level, (n, …).
            levels: of each prediction, (n, predictions).
            texts: n prompts.
            graph: whether to keep one, to what the prompt gets; what guidance leads away from has
                none, so that the student does not move the picture by the empty prompt.
        """
        backbone = self.backbone
        states = backbone.encode_prompts(texts)
        guidance = backbone.guidance_for(states, self.sampling.guidance_scale)
        if isinstance(guidance, ClassifierFree):
            guidance = replace(guidance, detached=True)
        with torch.set_grad_enabled(graph):
            for now, then in zip(levels.T[:-1], levels.T[1:], strict=True):
                predicted = guidance(backbone, latents, now)
                latents = backbone.move(latents, predicted, now, then)
            last = levels[:, -1]
            return backbone.clean(latents, guidance(backbone, latents, last), last)

    def _told(self, texts: Sequence[str]) -> Tensor:
        """A state for each text, (n, width)."""
        return token_states(self.backbone.encode_prompts(texts)).mean(1)

    # --- losses

    def loss(self, step: Step, player: str) -> Loss:
        batch = self._batch
        assert batch is not None
        if player == DISCRIMINATOR:
            return self._telling(step, batch)
        if player != batch.whose or not batch.shown.requires_grad:
            return None
        terms = {"remove": fooling(self._logits(batch, batch.shown))}
        kept = self.lessons[player].kept
        if kept is not None:
            terms["preserve"] = self.method.preserve * self._drift(kept, step)
        return terms

    def _telling(self, step: Step, batch: _Batch) -> Mapping[str, Tensor]:
        shown = batch.shown.detach().requires_grad_()
        clear = batch.clear.detach().requires_grad_()
        with_concept, without = self._logits(batch, shown), self._logits(batch, clear)
        right = torch.cat([with_concept > 0, without < 0])
        step.log(f"{batch.whose}/told rightly", right.float().mean())
        terms = {"tell": telling(with_concept, without)}
        if self.method.r1:
            both = steepness(with_concept, shown) + steepness(without, clear)
            terms["r1"] = self.method.r1 / 4 * both  # γ/2 times the mean over both
        return terms

    def _logits(self, batch: _Batch, latents: Tensor) -> Tensor:
        """Of the concept whose turn it is, (n,)."""
        logits: Tensor = self.discriminator(latents, batch.levels, batch.told)
        return logits[:, self.names.index(batch.whose)]

    def _drift(self, kept: Points, step: Step) -> Tensor:
        """Mean squared distance from the original where nothing is to change."""
        some, backbone = kept.sample(self.method.batch_size, step.generator), self.backbone
        with backbone.exact():
            predicted = backbone.predict(
                some.latents.to(backbone.device),
                some.levels,
                backbone.encode_prompts(some.prompts),
            )
        return (predicted - some.targets.to(predicted)).float().square().mean()

    def gradient(
        self, step: Step, player: str, terms: Mapping[str, Tensor], parameters: Sequence[Tensor]
    ) -> Grads:
        """The sum's; a student's by its terms, whose norms say how they are balanced."""
        if player == DISCRIMINATOR:
            return super().gradient(step, player, terms, parameters)
        found = gradients_by_term(terms, parameters)
        for name, grads in found.items():
            step.log(f"{player}/{name} gradient", nn.utils.get_total_norm(grads))
        return [torch.stack(each).sum(0) for each in zip(*found.values(), strict=True)]


def seen_levels(path: Sequence[float], highest: float, tail: int) -> list[int]:
    """Where on a run its last `tail` predictions may begin: at most at noise level `highest`.

    Raises:
        ValueError: nowhere.
    """
    last = len(path) - 1 - tail
    seen = [i for i, level in enumerate(path) if level <= highest + 1e-9 and i <= last]
    if not seen:
        raise ValueError(
            f"no {tail} predictions of a run begin at noise level {highest:g} or below; its levels "
            f"are {', '.join(f'{level:.2f}' for level in path)}: raise from_level, or lower tail"
        )
    return seen
