"""Erasures of random changes, of any kind and on any network, for tests of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

import expunge
from expunge import hooks
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.change import Change, Dense, LowRank
from expunge.concept import Concept
from expunge.erasure import Erasure, Part
from expunge.fingerprint import describe

CAT = Concept("cat", anchor="dog", synonyms=("kitten",))
KINDS = (nn.Linear, nn.Conv2d)


def low_rank(module: nn.Module, generator: torch.Generator, rank: int = 2) -> LowRank:
    """A change about a fifth as large as the layer's weight."""
    change = LowRank.fresh(module, rank, generator)
    up = torch.randn(change.up.shape, generator=generator)
    weight = module.weight
    assert isinstance(weight, torch.Tensor)
    up *= 0.2 * float(weight.detach().norm()) / (LowRank(change.down, up).norm + 1e-9)
    return LowRank(change.down.detach(), up)


def dense(module: nn.Module, generator: torch.Generator) -> Dense:
    """A change of every weight."""
    return Dense(low_rank(module, generator, 99).delta.float())


def places(pipe: Any, components: Sequence[str], ends: tuple[str, ...]) -> dict[str, nn.Module]:
    """Linear layers and convolutions whose names end so, by place."""
    networks = as_backbone(pipe).networks
    return {
        f"{component}/{name}": module
        for component in components
        if component in networks
        for name, module in hooks.layers(networks[component]).items()
        if isinstance(module, KINDS) and name.endswith(ends)
    }


def erasure(
    pipe: Any,
    layers: Mapping[str, nn.Module],
    make: Callable[[nn.Module, torch.Generator], Change] = low_rank,
    **part: Any,
) -> Erasure:
    """An erasure that changes layers at random, described as an eraser's would be."""
    generator = torch.Generator().manual_seed(0)
    changes = {place: make(module, generator) for place, module in layers.items()}
    record = {
        "eraser": "Random",
        "hyperparameters": {"seed": 0},
        "command": "expunge erase /home/x",
    }
    made = Erasure([Part(CAT, {}, changes, **part)], record)
    return describe(as_backbone(pipe), made)


def loaded(build: Callable[[], Any], folder: Path) -> Any:
    """A pipeline from a folder, as a user's is."""
    build().save_pretrained(folder)
    return expunge.load(folder, device="cpu")


@torch.no_grad()
def predictions(pipe: Any) -> torch.Tensor:
    """What a pipeline predicts for three prompts at once, in a backbone of its own."""
    backbone: Backbone = as_backbone(pipe)
    shape = backbone.latent_shape(64, 64)
    latents = torch.randn((3, *shape), generator=torch.Generator().manual_seed(5))
    states = backbone.encode_prompts(["a photo of a cat", "a dog in the tree", ""])
    with backbone.exact():
        return backbone.predict(latents, 0.5, states, 1.0)


def shift(first: torch.Tensor, second: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((first - second).abs().max() / second.abs().max())
