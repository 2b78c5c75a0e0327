"""LoRA layers under the names of kohya's trainers, which most front ends read.

Readers scale every layer by alpha / rank, with the rank of that layer's own `down`. On FLUX that is
the rank of several layers together where queries, keys and values are one. What is named here has
no alpha yet: whoever writes a file chooses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from expunge.change import LowRank
from expunge.layouts.ldm import unet_name
from expunge.layouts.text import refuse_unread, text_name, whole_attentions

_Any = TypeVar("_Any")
_PREFIX = "lora_unet_"

_FLUX = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "proj_out": "final_layer.linear",
} | {
    f"time_text_embed.{ours}_embedder.linear_{number}": f"{theirs}_in.{layer}_layer"
    for ours, theirs in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance"))
    for number, layer in ((1, "in"), (2, "out"))
}
_BLOCKS = {"transformer_blocks": "double_blocks", "single_transformer_blocks": "single_blocks"}
_INNER = {
    "transformer_blocks": {
        "attn.to_out.0": "img_attn.proj",
        "attn.to_add_out": "txt_attn.proj",
        "ff.net.0.proj": "img_mlp.0",
        "ff.net.2": "img_mlp.2",
        "ff_context.net.0.proj": "txt_mlp.0",
        "ff_context.net.2": "txt_mlp.2",
        "norm1.linear": "img_mod.lin",
        "norm1_context.linear": "txt_mod.lin",
    },
    "single_transformer_blocks": {"proj_out": "linear2", "norm.linear": "modulation.lin"},
}
_FUSED = {
    "transformer_blocks": {
        "img_attn.qkv": {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1},
        "txt_attn.qkv": {"attn.add_q_proj": 1, "attn.add_k_proj": 1, "attn.add_v_proj": 1},
    },
    "single_transformer_blocks": {
        "linear1": {"attn.to_q": 1, "attn.to_k": 1, "attn.to_v": 1, "proj_mlp": 4},
    },
}
"""Members of each fused layer, with the outputs of each as a multiple of its inputs."""


KOHYA = ("sd", "sdxl", "flux")
"""Architectures that kohya has names for."""


def kohya(
    changes: Mapping[str, LowRank], architecture: str, components: Mapping[str, Any]
) -> dict[str, LowRank]:
    """Changes of any of a pipeline's networks by kohya's names.

    Args:
        changes: by place.
        architecture: family of the pipeline.
        components: configurations of the changed networks and of the denoiser.

    Returns:
        Changes by name, without `.lora_down.weight`.

    Raises:
        ValueError: kohya has no names for the architecture or for a layer.
    """
    _check(changes, architecture)
    named: dict[str, LowRank] = {}
    for component, own in by_component(changes).items():
        if component.startswith("text_encoder"):
            prefix = _text_prefix(component, architecture)
            whole = whole_attentions(own)
            named |= {_flat(prefix, text_name(name)): c for name, c in whole.items()}
        elif architecture == "sdxl":
            named |= kohya_sdxl(own, components[component])
        else:
            named |= (kohya_flux if architecture == "flux" else kohya_sd)(own)
    return named


def kohya_deltas(
    deltas: Mapping[str, Tensor], architecture: str, components: Mapping[str, Any]
) -> dict[str, Tensor]:
    """Whole changes of weights by kohya's names; see `kohya`.

    Args:
        deltas: by place, each shaped like the layer's weight.
        architecture: family of the pipeline.
        components: configurations of the changed networks and of the denoiser.
    """
    _check(deltas, architecture)
    named: dict[str, Tensor] = {}
    for component, own in by_component(deltas).items():
        if component.startswith("text_encoder"):
            prefix = _text_prefix(component, architecture)
            named |= {_flat(prefix, text_name(name)): delta for name, delta in own.items()}
        elif architecture == "flux":
            named |= _flux_deltas(own)
        else:
            for name, delta in own.items():
                other = unet_name(name, components[component]) if architecture == "sdxl" else name
                named[_flat(_PREFIX, other)] = delta
    return named


def by_component(changes: Mapping[str, _Any]) -> dict[str, dict[str, _Any]]:
    """What stands by place, by component of the pipeline and name in it."""
    found: dict[str, dict[str, _Any]] = {}
    for place, change in changes.items():
        component, _, name = place.partition("/")
        found.setdefault(component, {})[name] = change
    return found


def _check(changes: Mapping[str, object], architecture: str) -> None:
    if architecture not in KOHYA:
        raise ValueError(
            f"the format 'kohya' has no names for {architecture}, expected one of "
            f"{', '.join(KOHYA)}; use the format 'diffusers'"
        )
    refuse_unread(changes, architecture)


def _text_prefix(component: str, architecture: str) -> str:
    if architecture == "sd":
        return "lora_te_"
    return "lora_te2_" if component == "text_encoder_2" else "lora_te1_"


def _flat(prefix: str, name: str) -> str:
    return prefix + name.replace(".", "_")


def kohya_sd(factors: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Changes of a Stable Diffusion 1.x or 2.x UNet by kohya's names.

    Args:
        factors: changes by diffusers name.

    Returns:
        The same changes by name, without `.lora_down.weight`.
    """
    return {_flat(_PREFIX, name): change for name, change in factors.items()}


def kohya_sdxl(
    factors: Mapping[str, LowRank], unet_config: Mapping[str, Any]
) -> dict[str, LowRank]:
    """Changes of an SDXL UNet by kohya's names, which follow the original code's blocks.

    Args:
        factors: changes by diffusers name.
        unet_config: the UNet's configuration.

    Returns:
        The same changes by name, without `.lora_down.weight`.

    Raises:
        ValueError: a layer has no name there.
    """
    return kohya_sd({unet_name(name, unet_config): change for name, change in factors.items()})


def kohya_flux(factors: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Changes of a FLUX transformer by kohya's names.

    FLUX's original code holds queries, keys, values (and in single blocks the MLP's first half) in
    one layer. Their changes become one: `down` stacked, (members · rank, in), and `up`
    block-diagonal. Members of smaller rank and without a change get zeros, so that readers can
    split it again.

    Args:
        factors: changes by diffusers name.

    Returns:
        Changes by name, without `.lora_down.weight`.

    Raises:
        ValueError: a layer has no name there.
    """
    named, fused = _grouped(factors)
    return kohya_sd(named | {key: _fuse(*group) for key, group in fused.items()})


def _flux_deltas(deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole changes of a FLUX transformer: one above the other where its layers are one."""
    named, fused = _grouped(deltas)
    for key, (present, members) in fused.items():
        like = next(iter(present.values()))
        width = like.shape[1]
        rows = [
            present.get(name, like.new_zeros(times * width, width))
            for name, times in members.items()
        ]
        named[key] = torch.cat(rows)
    return {_flat(_PREFIX, name): delta for name, delta in named.items()}


def _grouped(
    changes: Mapping[str, _Any],
) -> tuple[dict[str, _Any], dict[str, tuple[dict[str, _Any], Mapping[str, int]]]]:
    """Changes by FLUX's own names: of single layers, and of those that are one there."""
    named: dict[str, _Any] = {}
    fused: dict[str, tuple[dict[str, _Any], Mapping[str, int]]] = {}
    for name, change in changes.items():
        stack, index, inner = _split(name)
        for layer, members in _FUSED.get(stack, {}).items():
            if inner in members:
                key = f"{_BLOCKS[stack]}.{index}.{layer}"
                fused.setdefault(key, ({}, members))[0][inner] = change
                break
        else:
            named[_flux_name(name)] = change
    return named, fused


def _split(name: str) -> tuple[str, str, str]:
    """A list of blocks, the index in it and the layer in the block."""
    stack, _, rest = name.partition(".")
    index, _, inner = rest.partition(".")
    return stack, index, inner


def _flux_name(name: str) -> str:
    stack, index, inner = _split(name)
    if name in _FLUX:
        return _FLUX[name]
    if inner not in _INNER.get(stack, {}):
        raise ValueError(
            f"the layer {name!r} has no name in kohya's layout of FLUX; "
            "write it in the diffusers format instead"
        )
    return f"{_BLOCKS[stack]}.{index}.{_INNER[stack][inner]}"


def _fuse(present: Mapping[str, LowRank], members: Mapping[str, int]) -> LowRank:
    """One change for several layers that read the same input."""
    like = next(iter(present.values())).down
    width, rank = like.shape[1], max(change.rank for change in present.values())
    parts, above, below = [], 0, sum(members.values()) * width
    for name, times in members.items():
        below -= times * width
        nothing = LowRank(like.new_zeros(rank, width), like.new_zeros(times * width, rank))
        part = present.get(name, nothing).padded(rank)
        parts.append(LowRank(part.down, F.pad(part.up, (0, 0, above, below))))
        above += times * width
    return LowRank.stack(parts)
