"""Points on sampling trajectories of the original, where a student is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.guidance import Switch
from expunge.backbone.profile import Sampling
from expunge.backbone.sampling import steps


@dataclass(frozen=True)
class Points:
    """Noisy latents, and what the student shall predict there. They lie on the CPU.

    Attributes:
        latents: (n, …).
        levels: noise level of each, float64, (n,).
        prompts: what the student is told at each.
        targets: shaped like `latents`.
        away: what it shall not predict there, where a method says so, shaped like `latents`.
    """

    latents: Tensor
    levels: Tensor
    prompts: list[str]
    targets: Tensor
    away: Tensor | None = None

    def pick(self, index: Tensor) -> Points:
        """Some of them."""
        prompts = [self.prompts[i] for i in index.tolist()]
        away = None if self.away is None else self.away[index]
        return Points(self.latents[index], self.levels[index], prompts, self.targets[index], away)

    def above(self, level: float) -> Points:
        """Those at a noise level or over it."""
        return self.pick((self.levels >= level).nonzero().flatten())

    def sample(self, count: int, generator: torch.Generator) -> Points:
        """`count` of them at random."""
        return self.pick(torch.randint(len(self.prompts), (count,), generator=generator))


@dataclass(frozen=True)
class Walk:
    """Latents on sampling runs, on the CPU.

    Attributes:
        latents: (n, …).
        levels: noise level of each, float64, (n,).
        owners: the run that each belongs to, (n,).
    """

    latents: Tensor
    levels: Tensor
    owners: Tensor

    def below(self, level: float) -> Walk:
        """Those at a noise level or under it."""
        low = self.levels <= level
        return Walk(self.latents[low], self.levels[low], self.owners[low])

    def above(self, level: float) -> Walk:
        """Those at a noise level or over it."""
        high = self.levels >= level
        return Walk(self.latents[high], self.levels[high], self.owners[high])

    def told(self, prompts: Sequence[str]) -> list[str]:
        """For every latent the prompt of its run."""
        return [prompts[i] for i in self.owners.tolist()]


@torch.no_grad()
def walk(
    backbone: Backbone,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    seed: int,
    then: Sequence[str] | None = None,
    below: float = 0.0,
) -> Walk:
    """Sample and keep every latent on the way.

    Args:
        backbone: the model as it stands.
        prompts: one for each run.
        sampling: steps and guidance.
        seed: of the noise.
        then: what guides each run from noise level `below` down; None for the same prompt.
        below: where to switch.
    """
    latents, levels, owners = [], [], []
    size = sampling.batch_size
    for start in range(0, len(prompts), size):
        part = slice(start, min(start + size, len(prompts)))

        def guide(texts: Sequence[str], part: slice = part) -> object:
            states = backbone.encode_prompts(texts[part])
            return backbone.guidance_for(states, sampling.guidance_scale)

        guidance = guide(prompts)
        if then is not None:
            guidance = Switch(below, guidance, guide(then))  # type: ignore[arg-type]
        noise = backbone.initial_noise(
            [seed * 100_000 + i for i in range(start, part.stop)], sampling
        )
        for step in steps(backbone, noise, guidance, sampling):  # type: ignore[arg-type]
            latents.append(step.latents.cpu())
            levels.append(torch.full((len(step.latents),), step.level, dtype=torch.float64))
            owners.append(torch.arange(start, part.stop))
    return Walk(torch.cat(latents), torch.cat(levels), torch.cat(owners))


@torch.no_grad()
def predictions(
    backbone: Backbone, latents: Tensor, levels: Tensor, prompts: Sequence[str] | None
) -> Tensor:
    """What the model predicts at many points, in batches, without a graph, on the CPU.

    Args:
        backbone: the model as it stands.
        latents: (n, …).
        levels: noise level of each, (n,).
        prompts: one for each; None for the unconditional prediction.
    """
    size = 2 * backbone.profile.sampling.batch_size
    found = []
    for start in range(0, len(latents), size):
        part = slice(start, start + size)
        some = latents[part].to(backbone.device)
        states = (
            backbone.unconditional().repeat(len(some))
            if prompts is None
            else backbone.encode_prompts(prompts[part])
        )
        found.append(backbone.predict(some, levels[part], states).cpu())
    return torch.cat(found)
