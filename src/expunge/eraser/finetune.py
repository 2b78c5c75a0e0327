"""What every fine-tuner shares: trajectories, teacher predictions, the training loop."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from expunge.adapter import Adapter, Factors, LowRank, original
from expunge.backbone.base import Backbone
from expunge.backbone.guidance import Switch
from expunge.backbone.layers import Branch
from expunge.backbone.profile import Sampling
from expunge.backbone.sampling import steps
from expunge.closed_form import Targets
from expunge.concept import Concept
from expunge.eraser.base import Eraser, Result
from expunge.erasure import Part, solve_streams
from expunge.run.fit import Plan, fit, progress_bar


@dataclass(frozen=True)
class Points:
    """Noisy latents on sampling trajectories, and what the student shall predict there.

    Attributes:
        latents: (n, …).
        levels: noise level of each, float64, (n,).
        prompts: what the student is told at each.
        targets: shaped like `latents`.
    """

    latents: Tensor
    levels: Tensor
    prompts: list[str]
    targets: Tensor

    def pick(self, index: Tensor) -> Points:
        """Some of them."""
        prompts = [self.prompts[i] for i in index.tolist()]
        return Points(self.latents[index], self.levels[index], prompts, self.targets[index])


@dataclass(frozen=True, kw_only=True)
class FineTuner(Eraser):
    """A method that trains low-rank adapters along sampling trajectories of the original.

    Attributes:
        steps: optimiser steps.
        lr: AdamW's peak learning rate.
        batch_size: points of the erased concept in a step; as many kept ones are added.
        rank: of the adapter on each projection.
        attention: which layers are trained: `cross`, `self` or `attention` (both).
        trajectories: sampling runs per concept that training points are taken from.
        guidance_scale: of those runs; None for 3 where guidance is classifier-free, and for the
            model's own where it is not.
        resolution: pixels along a side of what is drawn in them; None for the model's own.
        preserve: weight of the loss that holds other prompts still; 0 for none.
        synonyms: whether the concept's synonyms are trained on as well.
    """

    steps: int = 1000
    lr: float = 1e-4
    batch_size: int = 4
    rank: int = 4
    attention: Branch = "attention"
    trajectories: int = 32
    guidance_scale: float | None = None
    resolution: int | None = None
    preserve: float = 1.0
    synonyms: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "rank", "trajectories"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive, got {self.lr}")
        if self.preserve < 0:
            raise ValueError(f"preserve must not be negative, got {self.preserve}")

    @abstractmethod
    def points(self, backbone: Backbone, concept: Concept) -> Points:
        """Where the student is trained to forget, and what it shall predict there.

        Called once per concept with every adapter switched off.
        """

    def closed_form(self, backbone: Backbone, concepts: Sequence[Concept]) -> dict[str, Targets]:
        """A closed form to start from, by text stream; empty for none."""
        return {}

    def keep_weight(self, levels: Tensor) -> Tensor:
        """Weight of a kept point by noise level, (n,)."""
        return torch.ones_like(levels)

    def training_pairs(self, concept: Concept) -> list[tuple[str, str]]:
        """One prompt per trajectory, each with its anchor, names taking turns."""
        names = concept.names if self.synonyms else (concept.name,)
        share = -(-self.trajectories // len(names))
        each = [concept.pairs("train", share, name) for name in names]
        turns = [pair for group in zip(*each, strict=True) for pair in group]
        return turns[: self.trajectories]

    def _sampling(self, backbone: Backbone) -> Sampling:
        usual, scale = backbone.profile.sampling, self.guidance_scale
        if scale is None:
            scale = 3.0 if backbone.guidance == "classifier-free" else usual.guidance_scale
        usual = replace(usual, guidance_scale=scale)
        if self.resolution is None:
            return usual
        return replace(usual, height=self.resolution, width=self.resolution)

    def walk(
        self,
        backbone: Backbone,
        prompts: Sequence[str],
        *,
        then: Sequence[str] | None = None,
        below: float = 0.0,
        salt: int = 0,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample with the original and keep every latent on the way.

        Args:
            backbone: the model.
            prompts: one per trajectory.
            then: what guides each below noise level `below`; None for the same prompt.
            below: where to switch.
            salt: makes the noise differ from that of other walks.

        Returns:
            Latents (n, …), noise levels (n,) and the trajectory each belongs to (n,).
        """
        sampling = self._sampling(backbone)
        size = sampling.batch_size
        latents, levels, owners = [], [], []
        for start in range(0, len(prompts), size):
            part = slice(start, min(start + size, len(prompts)))
            first, second = (
                backbone.guidance_for(backbone.encode_prompts(texts[part]), sampling.guidance_scale)
                for texts in (prompts, prompts if then is None else then)
            )
            seeds = [(self.seed * 1000 + salt) * 100_000 + i for i in range(start, part.stop)]
            noise = backbone.initial_noise(seeds, sampling)
            for step in steps(backbone, noise, Switch(below, first, second), sampling):
                latents.append(step.latents)
                levels.append(torch.full((len(noise),), step.level, dtype=torch.float64))
                owners.append(torch.arange(start, part.stop))
        return torch.cat(latents), torch.cat(levels), torch.cat(owners)

    def predictions(
        self, backbone: Backbone, latents: Tensor, levels: Tensor, prompts: Sequence[str] | None
    ) -> Tensor:
        """What the model predicts at many points, in batches, without a graph.

        Args:
            backbone: the model.
            latents: (n, …).
            levels: noise level of each, (n,).
            prompts: one for each; None for the unconditional prediction.
        """
        size = 2 * backbone.profile.sampling.batch_size
        found = []
        with torch.no_grad():
            for start in range(0, len(latents), size):
                part = slice(start, start + size)
                some = latents[part]
                states = (
                    backbone.unconditional().repeat(len(some))
                    if prompts is None
                    else backbone.encode_prompts(prompts[part])
                )
                found.append(backbone.predict(some, levels[part], states))
        return torch.cat(found)

    def kept_points(self, backbone: Backbone, concept: Concept) -> Points:
        """Other prompts, where the student shall go on as before."""
        prompts = [*concept.preserved("train", self.trajectories - 1), ""]
        latents, levels, owner = self.walk(backbone, prompts, salt=1)
        asked = [prompts[i] for i in owner.tolist()]
        return Points(latents, levels, asked, self.predictions(backbone, latents, levels, asked))

    def loss(self, backbone: Backbone, erased: Points, kept: Points | None) -> Tensor:
        """Mean squared distance from the targets, erased and kept."""
        both = [erased] if kept is None else [erased, kept]
        prompts = [text for points in both for text in points.prompts]
        predicted = backbone.predict(
            torch.cat([points.latents for points in both]),
            torch.cat([points.levels for points in both]),
            backbone.encode_prompts(prompts),
        )
        wanted = torch.cat([points.targets for points in both])
        error = (predicted - wanted).float().square().flatten(1).mean(1)
        count = len(erased.prompts)
        if kept is None:
            return error.mean()
        weight = self.keep_weight(kept.levels).to(error)
        return error[:count].mean() + self.preserve * (weight * error[count:]).mean()

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        sampling = self._sampling(backbone)
        backbone.check_guidance(sampling.guidance_scale)
        backbone.latent_shape(sampling.height or 0, sampling.width or 0)
        targets = self.closed_form(backbone, concepts)
        closed = solve_streams(backbone, targets)
        with original(), progress_bar("sampling trajectories", len(concepts)) as advance:
            points = []
            for concept in concepts:
                kept = self.kept_points(backbone, concept) if self.preserve else None
                points.append((self.points(backbone, concept), kept))
                advance(1, concept.name)
        frozen = Adapter(backbone.denoiser, closed) if closed else None
        layers = cast("dict[str, nn.Linear]", backbone.select(self.attention))
        adapters = [
            Adapter(
                backbone.denoiser,
                {concept.name: _fresh(layers, self.rank, self.seed + index)},
                trainable=True,
            )
            for index, concept in enumerate(concepts)
        ]
        try:
            losses = self._train(backbone, adapters, points, folder)
        finally:
            for adapter in (*adapters, *([frozen] if frozen else [])):
                adapter.remove()
        parts = [
            Part(concept, closed.get(concept.name, {}), adapter.factors(concept.name))
            for concept, adapter in zip(concepts, adapters, strict=True)
        ]
        return Result(parts, targets, losses)

    def _train(
        self,
        backbone: Backbone,
        adapters: Sequence[Adapter],
        points: Sequence[tuple[Points, Points | None]],
        folder: Path | None,
    ) -> list[float]:
        losses: list[float] = []

        def loss(step: int, generator: torch.Generator) -> Tensor:
            erased, kept = points[step % len(points)]
            index = torch.randint(len(erased.prompts), (self.batch_size,), generator=generator)
            others = None
            if kept:
                other = torch.randint(len(kept.prompts), (self.batch_size,), generator=generator)
                others = kept.pick(other)
            for number, adapter in enumerate(adapters):
                # A batch of one concept moves only that concept's adapter.
                adapter.module.requires_grad_(number == step % len(points))
            return self.loss(backbone, erased.pick(index), others)

        plan = Plan(
            steps=self.steps, lr=self.lr, warmup=min(10, self.steps), weight_decay=0, save_every=50
        )
        model = nn.ModuleList(adapter.module for adapter in adapters)
        checkpoints = folder / "checkpoints" if folder else None
        frozen = [p for p in backbone.denoiser.parameters() if p.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(False)
        try:
            fit(
                self.name,
                model,
                loss,
                plan,
                folder=checkpoints,
                seed=self.seed,
                log=lambda step, value: losses.append(round(value, 6)),
            )
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        if checkpoints:
            shutil.rmtree(checkpoints)
        return losses


def _fresh(layers: dict[str, nn.Linear], rank: int, seed: int) -> Factors:
    """Changes of zero that can learn: a random `down` and an empty `up`."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: LowRank(
            torch.randn(rank, layer.in_features, generator=generator) / layer.in_features**0.5,
            torch.zeros(layer.out_features, rank),
        )
        for name, layer in layers.items()
    }
