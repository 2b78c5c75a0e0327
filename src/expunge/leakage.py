"""Leakage: what a fresh network still tells of a concept in an erased model's pictures.

A discriminator that was never used in making the erasure learns, from pictures for training
prompts, whether the concept was asked for, and is tested on held-out prompts and seeds. What it
finds is a lower bound: an accuracy a bounds the total variation between pictures with and without
the concept in the prompt from below, by 2a − 1. A better network may find more, so nothing found
is no proof that nothing is there. Nor need what is told show the concept: an anchor that is drawn
otherwise than what takes the concept's place is told as well.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.concept import Concept, Prompt
from expunge.discriminator import Discriminator, steepness, telling
from expunge.erasure import Erasure, refuse_applied
from expunge.measure.rates import Rate
from expunge.prompts import Split
from expunge.run.fit import fit
from expunge.run.objective import Loss, Minimise, Player, Step
from expunge.run.plan import Plan
from expunge.run.progress import progress_bar

BATCH = 16
"""Pairs in a step of the network that tells."""


@dataclass(frozen=True)
class Pairs:
    """Finished latents of one model, in pairs of one seed, on the CPU.

    Attributes:
        shown: with the concept in the prompt, (n, …).
        clear: with the anchor in its place, (n, …).
    """

    shown: Tensor
    clear: Tensor


def leakage(
    backbone: Backbone,
    erasure: Erasure,
    concept: Concept,
    *,
    train: int = 100,
    test: int = 80,
    steps: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """What a fresh discriminator tells, of the original and of the erased model.

    Args:
        backbone: the model, with nothing applied.
        erasure: of any method.
        concept: one of those that are erased.
        train: pairs of training prompts that the network learns from, at most.
        test: pairs of test prompts it is tested on, at most; the model never saw them.
        steps: the network's.
        seed: of its weights and batches.

    Returns:
        For `original` and `erased` what `leaking` gives.

    Raises:
        ValueError: the erasure does not hold the concept or does not fit, something is applied,
            or the concept has no prompts of a split.
    """
    refuse_applied(backbone, "measure its leakage")
    if concept.name not in [each.name for each in erasure.concepts]:
        raise ValueError(
            f"concept must be one that is erased, got {concept.name!r}; this erasure holds "
            f"{[each.name for each in erasure.concepts]}"
        )
    found = {}
    for condition in ("original", "erased"):
        with erasure.applied(backbone) if condition == "erased" else contextlib.nullcontext():
            found[condition] = leaking(
                backbone, concept, train=train, test=test, steps=steps, seed=seed
            )
    return found


def leaking(
    backbone: Backbone,
    concept: Concept,
    *,
    train: int = 100,
    test: int = 80,
    steps: int = 300,
    seed: int = 0,
) -> dict[str, Any]:
    """What a fresh discriminator tells of the model as it stands.

    Returns:
        `unpaired`, the share of pictures that are told rightly one by one, and `paired`, the share
        of pairs of one seed in which the picture with the concept is told; each with n and a 95 %
        interval, and 50 % at chance. `variation_at_least` is the bound of the total variation that
        the low end of the unpaired interval leaves; `pairs` counts what was drawn.

    Raises:
        ValueError: the concept has no two prompts of a split.
    """
    splits: tuple[tuple[Split, int], ...] = (("train", train), ("test", test))
    asked = {split: concept.pairs(split, limit) for split, limit in splits}
    for split, pairs in asked.items():
        if len(pairs) < 2:
            raise ValueError(f"the templates of {concept.name!r} give no two {split} prompts")
    drawn = {split: _drawn(backbone, pairs) for split, pairs in asked.items()}
    found = _told(drawn["train"], drawn["test"], steps, seed)
    return {"pairs": {split: len(pairs) for split, pairs in asked.items()}, **found}


def _drawn(backbone: Backbone, asked: Sequence[tuple[str, str]]) -> Pairs:
    """Finished latents, as the model usually draws."""
    seeds = [Prompt(text, "").seed() for text, _ in asked]
    size, sides = backbone.profile.sampling.batch_size, (list[Tensor](), list[Tensor]())
    with progress_bar("drawing pairs", 2 * len(asked)) as advance:
        for start in range(0, len(asked), size):
            part = slice(start, start + size)
            for side, found in enumerate(sides):
                texts = [pair[side] for pair in asked[part]]
                found.append(backbone.sample(texts, seeds[part]).float().cpu())
                advance(len(texts), "")
    return Pairs(torch.cat(sides[0]), torch.cat(sides[1]))


def _told(train: Pairs, test: Pairs, steps: int, seed: int) -> dict[str, Any]:
    """Train a network on one set of pairs and test it on another."""
    network = Discriminator(train.shown.shape[1:], 1, seed=seed)

    def loss(step: Step) -> Loss:
        count = len(train.shown)
        rows = torch.randint(count, (min(BATCH, count),), generator=step.generator)
        shown, clear = train.shown[rows].requires_grad_(), train.clear[rows].requires_grad_()
        told, other = _logits(network, shown), _logits(network, clear)
        return telling(told, other) + 0.25 * (steepness(told, shown) + steepness(other, clear))

    player = Player(network, 1e-3, weight_decay=1e-2, clip=None)
    fit("telling apart", {"network": player}, Minimise(loss), Plan(steps, warmup=10), seed=seed)
    with torch.no_grad():
        shown, clear = _logits(network.eval(), test.shown), _logits(network, test.clear)
    right = torch.cat([shown > 0, clear < 0]).numpy()
    # Where both are alike to the last bit, nothing is told: a coin decides, the same every time.
    coin = torch.arange(len(shown)) % 2 == 0
    better = torch.where(shown == clear, coin, shown > clear)
    unpaired = Rate.of(right, clusters=[*range(len(shown))] * 2)
    return {
        "unpaired": _row(unpaired),
        "paired": _row(Rate.of(better.numpy())),
        "variation_at_least": max(0.0, 2 * unpaired.interval()[0] - 1),
    }


def _logits(network: Discriminator, latents: Tensor) -> Tensor:
    """Of finished pictures, (n,)."""
    logits: Tensor = network(latents, torch.zeros(len(latents)))
    return logits[:, 0]


def _row(rate: Rate) -> dict[str, Any]:
    return {"accuracy": rate.value, "n": rate.n, "ci": list(rate.interval())}
