"""Which weights of the original a concept hangs on, and which layers they lie in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from expunge.backbone.base import Backbone
from expunge.backbone.profile import Sampling
from expunge.eraser.points import walk
from expunge.hooks import original

Saliency = Mapping[str, Tensor]
"""Non-negative numbers by layer, shaped like its weight."""


def saliency(
    backbone: Backbone,
    pairs: Sequence[tuple[str, str]],
    layers: Mapping[str, nn.Module],
    sampling: Sampling,
    *,
    seed: int,
    points: int = 4,
) -> Saliency:
    """Summed |∇ ‖ε₀(x_t, c) − ε₀(x_t, ¬c)‖²| by each weight (FADE, section 4.3; as in ANT).

    Args:
        backbone: the model.
        pairs: prompts with the concept, each beside one without; one sampling run for each.
        layers: whose weights are asked about, by name.
        sampling: of the runs, which are guided by the prompt with the concept.
        seed: of their noise.
        points: evenly spaced noise levels that are looked at in each run.

    Returns:
        On the CPU, as large as all the layers' weights together.
    """
    prompts = [prompt for prompt, _ in pairs]
    weights = {name: _weight(layer) for name, layer in layers.items()}
    sums = {name: torch.zeros(weight.shape) for name, weight in weights.items()}
    with original(), backbone.exact(), _learning(list(weights.values())):
        seen = walk(backbone, prompts, sampling, seed=seed)
        levels = sorted(set(seen.levels.tolist()))
        last, most = len(levels) - 1, max(points - 1, 1)
        chosen = {levels[round(i * last / most)] for i in range(points)}
        for row in (i for i, level in enumerate(seen.levels.tolist()) if level in chosen):
            texts = backbone.encode_prompts(pairs[int(seen.owners[row])])
            latents = seen.latents[row].to(backbone.device).expand(2, *seen.latents.shape[1:])
            asked, clear = backbone.predict(latents, float(seen.levels[row]), texts)
            difference = (asked - clear).float().square().sum()
            grads = torch.autograd.grad(difference, list(weights.values()), allow_unused=True)
            for name, grad in zip(sums, grads, strict=True):
                if grad is not None:
                    sums[name] += grad.abs().float().cpu()
    return sums


def salient_masks(found: Saliency, share: float) -> dict[str, Tensor]:
    """Masks of the `share` of all weights that matter most; layers without any are left out."""
    flat = torch.cat([each.flatten() for each in found.values()])
    count = max(1, round(share * len(flat)))
    least = flat.kthvalue(len(flat) - count + 1).values
    masks = {name: (each >= least) & (each > 0) for name, each in found.items()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def agreed_masks(found: Iterable[Saliency], share: float) -> dict[str, Tensor]:
    """Masks of what lies in the top `share` of its own tensor by all of several saliencies (ANT).

    Raises:
        ValueError: no weight does.
    """
    masks: dict[str, Tensor] = {}
    for each in found:
        for name, values in each.items():
            count = max(1, round(share * values.numel()))
            least = values.flatten().kthvalue(values.numel() - count + 1).values
            mask = (values >= least) & (values > 0)
            masks[name] = masks[name] & mask if name in masks else mask
    chosen = {name: mask for name, mask in masks.items() if mask.any()}
    if not chosen:
        raise ValueError(
            f"no weight lies in the top {share:g} of its tensor by all maps of what the concept "
            "hangs on: raise salient, or lower maps"
        )
    return chosen


def salient_layers(found: Saliency, share: float) -> list[str]:
    """Layers that matter most by the mean of their weights, until they hold `share` of all weights.

    At least one, in the order of `found`. A low-rank change takes a layer whole: a mask on single
    weights would destroy its rank.
    """
    ranked = sorted(found, key=lambda name: float(found[name].mean()), reverse=True)
    room = share * sum(each.numel() for each in found.values())
    chosen: set[str] = set()
    for name in ranked:
        if chosen and found[name].numel() > room:
            break
        chosen.add(name)
        room -= found[name].numel()
    return [name for name in found if name in chosen]


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


@contextlib.contextmanager
def _learning(weights: Sequence[nn.Parameter]) -> Iterator[None]:
    """Within this context these weights take a gradient, and afterwards what they took before."""
    before = [weight.requires_grad for weight in weights]
    try:
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for weight, flag in zip(weights, before, strict=True):
            weight.requires_grad_(flag)
