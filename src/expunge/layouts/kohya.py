"""LoRA layers under the names of kohya's trainers, which most front ends read.

Readers scale every layer by alpha / rank, with the rank of that layer's own `down`. On FLUX that is
the rank of several layers together where queries, keys and values are one. What is named here has
no alpha yet: whoever writes a file chooses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from expunge.adapter import LowRank
from expunge.layouts.ldm import unet_name

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


def kohya_sd(factors: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Changes of a Stable Diffusion 1.x or 2.x UNet by kohya's names.

    Args:
        factors: changes by diffusers name.

    Returns:
        The same changes by name, without `.lora_down.weight`.
    """
    return {_PREFIX + name.replace(".", "_"): change for name, change in factors.items()}


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
    named: dict[str, LowRank] = {}
    fused: dict[str, dict[str, LowRank]] = {}
    for name, change in factors.items():
        stack, index, inner = _split(name)
        for layer, members in _FUSED.get(stack, {}).items():
            if inner in members:
                fused.setdefault(f"{stack}.{index}.{layer}", {})[inner] = change
                break
        else:
            named[_flux_name(name)] = change
    for key, present in fused.items():
        stack, index, layer = _split(key)
        named[f"{_BLOCKS[stack]}.{index}.{layer}"] = _fuse(present, _FUSED[stack][layer])
    return kohya_sd(named)


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


def is_kohya_flux(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a file's tensors have the names that `kohya_flux` gives."""
    starts = tuple(
        f"{_PREFIX}{start}" for start in ("double_blocks_", "single_blocks_", "txt_in", "vector_in")
    )
    return any(key.startswith(starts) for key in tensors)


def read_kohya_flux(
    tensors: Mapping[str, Tensor], outputs: Mapping[str, int]
) -> dict[str, LowRank]:
    """Changes by diffusers name, as a kohya FLUX file holds them.

    Args:
        tensors: of the file.
        outputs: features that each layer to look for puts out, by diffusers name.

    Returns:
        The changes of those layers that the file has, scaled by alpha / rank.
    """
    found = {}
    for name, rows in outputs.items():
        stack, index, inner = _split(name)
        key, first = _flux_key(name, stack, index, inner, rows)
        key = _PREFIX + key.replace(".", "_")
        if f"{key}.lora_down.weight" not in tensors:
            continue
        down, up = (tensors[f"{key}.lora_{side}.weight"] for side in ("down", "up"))
        scale = float(tensors[f"{key}.alpha"]) / len(down)
        found[name] = LowRank(down, scale * up[first : first + rows])
    return found


def _flux_key(name: str, stack: str, index: str, inner: str, outputs: int) -> tuple[str, int]:
    """The layer's name there, without dots, and the first of its rows in a fused layer."""
    for layer, members in _FUSED.get(stack, {}).items():
        if inner in members:
            place = list(members).index(inner)
            width = outputs // members[inner]
            before = sum(list(members.values())[:place]) * width
            return f"{_BLOCKS[stack]}.{index}.{layer}", before
    return _flux_name(name), 0
