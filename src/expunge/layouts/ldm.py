"""Stable Diffusion and SDXL in one file, under the names of the original latent diffusion code."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor

_BLOCK = re.compile(
    r"(?:(?P<half>encoder|decoder)\.)?(?P<side>down|mid|up)_block(?:s\.(?P<block>\d+))?"
    r"\.(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<index>\d+)\.(?P<inner>.+)"
)
_UNET = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_INNER = {
    "resnets": {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    },
    "downsamplers": {"conv": "op"},
    "upsamplers": {"conv": "conv"},
}
_TRANSFORMER = {"norm", "proj_in", "transformer_blocks", "proj_out"}

_VAE = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"} | {
    f"{half}.{ours}": f"{half}.{theirs}"
    for half in ("encoder", "decoder")
    for ours, theirs in (
        ("conv_in", "conv_in"),
        ("conv_norm_out", "norm_out"),
        ("conv_out", "conv_out"),
    )
}
_VAE_INNER = {
    "resnets": {n: n for n in ("norm1", "conv1", "norm2", "conv2")}
    | {"conv_shortcut": "nin_shortcut"},
    "attentions": {
        "group_norm": "norm",
        "to_q": "q",
        "to_k": "k",
        "to_v": "v",
        "to_out.0": "proj_out",
    },
    "downsamplers": {"conv": "conv"},
    "upsamplers": {"conv": "conv"},
}

_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
    "text_projection.weight": "text_projection",
}
_OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
_SD2_LAYERS = 23
"""Readers skip the layer after these: Stable Diffusion 2 was trained on the one before the last."""


def single_file_tensors(pipe: Any) -> dict[str, Tensor]:
    """All weights of a pipeline as the one file that most front ends read.

    The family follows from the pipeline: with a second text encoder it is SDXL; with one, the
    OpenAI CLIP of Stable Diffusion 1 (`quick_gelu`) or the OpenCLIP of Stable Diffusion 2. A safety
    checker is left out. `from_single_file(path, config=folder)` reads the file back unchanged,
    where the folder holds the pipeline's configuration and tokenizers.

    Args:
        pipe: a Stable Diffusion 1.x, 2.x or SDXL pipeline.

    Returns:
        Contiguous tensors by their original name, in the weights' own types.

    Raises:
        ValueError: the pipeline is of another kind, or part of it has no name in this layout.
    """
    unet, vae = getattr(pipe, "unet", None), getattr(pipe, "vae", None)
    if not (isinstance(unet, UNet2DConditionModel) and isinstance(vae, AutoencoderKL)):
        raise ValueError(
            f"a single file holds a Stable Diffusion or SDXL pipeline, got {type(pipe).__name__}; "
            "write a diffusers folder instead"
        )
    named = {"model.diffusion_model": _unet(unet), "first_stage_model": _vae(vae)}
    named |= _text_encoders(pipe)
    return {
        f"{prefix}.{name}": tensor.detach().contiguous()
        for prefix, tensors in named.items()
        for name, tensor in tensors.items()
    }


def unet_name(name: str, config: Mapping[str, Any]) -> str:
    """The original name of a UNet's layer.

    Args:
        name: diffusers name, such as `down_blocks.1.attentions.0.proj_in`.
        config: the UNet's configuration, of which `layers_per_block` and `up_block_types` count.

    Raises:
        ValueError: the layer has no name there.
    """
    match = _BLOCK.fullmatch(name)
    if match is None:
        found = _UNET.get(name)
    elif match["kind"] == "attentions":
        found = match["inner"] if match["inner"].split(".")[0] in _TRANSFORMER else None
    else:
        found = _UNET_INNER[match["kind"]].get(match["inner"])
    if found is None:
        raise _nameless("UNet", name)
    return found if match is None else f"{_unet_place(match, config)}.{found}"


def _unet_place(match: re.Match[str], config: Mapping[str, Any]) -> str:
    """Where a layer lies in the original's flat lists of blocks."""
    layers, kind, index = config["layers_per_block"], match["kind"], int(match["index"])
    if not isinstance(layers, int):
        raise ValueError(
            "layers_per_block must be one number for a model under original names, got "
            f"{list(layers)}; write a diffusers folder instead"
        )
    if match["side"] == "mid":
        return f"middle_block.{2 * index + (kind == 'attentions')}"
    block = int(match["block"])
    place = block * (layers + 1) + (layers if kind.endswith("samplers") else index)
    if match["side"] == "down":  # the first one is conv_in
        return f"input_blocks.{place + 1}.{int(kind == 'attentions')}"
    attended = config["up_block_types"][block].startswith("CrossAttn")
    slot = {"resnets": 0, "attentions": 1, "upsamplers": 1 + attended}[kind]
    return f"output_blocks.{place}.{slot}"


def _unet(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    tensors = {}
    for key, tensor in unet.state_dict().items():
        name, _, parameter = key.rpartition(".")
        tensors[f"{unet_name(name, unet.config)}.{parameter}"] = tensor
    return tensors


def _vae_name(name: str, blocks: int) -> str:
    match = _BLOCK.fullmatch(name)
    found = _VAE_INNER[match["kind"]].get(match["inner"]) if match else _VAE.get(name)
    if found is None or (match and match["kind"] == "attentions" and match["side"] != "mid"):
        raise _nameless("VAE", name)
    if match is None:
        return found
    half, side, kind, index = match["half"], match["side"], match["kind"], int(match["index"])
    if side == "mid":
        place = f"block_{index + 1}" if kind == "resnets" else f"attn_{index + 1}"
        return f"{half}.mid.{place}.{found}"
    block = int(match["block"])
    if side == "up":  # the original counts from the finest one
        block = blocks - 1 - block
    place = f"block.{index}" if kind == "resnets" else kind.removesuffix("rs")
    return f"{half}.{side}.{block}.{place}.{found}"


def _vae(vae: AutoencoderKL) -> dict[str, Tensor]:
    blocks, tensors = len(vae.config["block_out_channels"]), {}
    for key, tensor in vae.state_dict().items():
        name, _, parameter = key.rpartition(".")
        if ".attentions." in name and tensor.ndim == 2:  # the original's are 1×1 convolutions
            tensor = tensor[:, :, None, None]
        tensors[f"{_vae_name(name, blocks)}.{parameter}"] = tensor
    return tensors


def _text_encoders(pipe: Any) -> dict[str, dict[str, Tensor]]:
    first, second = pipe.text_encoder, getattr(pipe, "text_encoder_2", None)
    for encoder in (first, second) if hasattr(pipe, "text_encoder_2") else (first,):
        kind = "none" if encoder is None else encoder.config.model_type
        if kind != "clip_text_model":
            raise ValueError(
                f"a single file holds CLIP text encoders, got {kind}; "
                "write a diffusers folder instead"
            )
    if second is not None:
        if first.config.hidden_size == second.config.hidden_size:
            raise ValueError(
                "readers of a single SDXL file tell its text encoders apart by their width, and "
                f"both are {first.config.hidden_size} wide; write a diffusers folder instead"
            )
        return {
            "conditioner.embedders.0.transformer": _clip(first),
            "conditioner.embedders.1.model": _open_clip(second),
        }
    if first.config.hidden_act == "quick_gelu":
        return {"cond_stage_model.transformer": _clip(first)}
    if first.config.num_hidden_layers > _SD2_LAYERS:
        raise ValueError(
            f"a Stable Diffusion 2 text encoder has at most {_SD2_LAYERS} layers in a single file, "
            f"got {first.config.num_hidden_layers}; write a diffusers folder instead"
        )
    return {"cond_stage_model.model": _open_clip(first)}


def _clip(encoder: Any) -> dict[str, Tensor]:
    return {f"text_model.{key}": tensor for key, tensor in _bare(encoder).items()}


def _bare(encoder: Any) -> dict[str, Tensor]:
    """An encoder's state without `text_model.`, which only some classes still put in front."""
    return {key.removeprefix("text_model."): t for key, t in encoder.state_dict().items()}


def _open_clip(encoder: Any) -> dict[str, Tensor]:
    """OpenCLIP's names: queries, keys and values in one matrix, the projection transposed."""
    state, tensors = _bare(encoder), {}
    for key, tensor in state.items():
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key)
        if match is None:
            name = _OPEN_CLIP.get(key)
        elif match[2] == "self_attn.q_proj":
            name = f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"
            tensor = torch.cat([state[key.replace("q_proj", f"{part}_proj")] for part in "qkv"])
        elif match[2] in ("self_attn.k_proj", "self_attn.v_proj"):
            continue
        else:
            inner = _OPEN_CLIP_LAYER.get(match[2])
            name = inner and f"transformer.resblocks.{match[1]}.{inner}.{match[3]}"
        if name is None:
            raise _nameless("text encoder", key)
        tensors[name] = tensor.T if name == "text_projection" else tensor
    return tensors


def _nameless(part: str, name: str) -> ValueError:
    return ValueError(
        f"the {part}'s layer {name!r} has no name in the original layout; "
        "write a diffusers folder instead"
    )
