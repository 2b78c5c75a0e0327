"""VINE's published weights: where they are, and how their names map to our networks'."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from expunge.watermark.scheme.vine_network import VINEDecoder, VINEEncoder

SD_TURBO = "stabilityai/sd-turbo"
"""Whose configuration and empty prompt the encoder uses; its other weights are VINE's own."""

Names = list[tuple[str, str]]
"""Regular expressions and what stands for them, applied in order."""

ENCODER_NAMES: Names = [
    (r"^sec_encoder\.secret_dense1\.linear\.", "message.0."),
    (r"^sec_encoder\.secret_dense2\.linear\.", "message.2."),
    (r"^sec_encoder\.conv1\.conv\.", "mix.0."),
    (r"^sec_encoder\.conv2\.conv\.", "mix.2."),
    *((rf"^vae_a2b\.decoder\.skip_conv_{i + 1}\.", f"skips.{i}.") for i in range(4)),
    (r"^vae_a2b\.", "vae."),
]

# The decoder is torchvision's ConvNeXt: stem, then stages at odd and reductions at even places.
DECODER_NAMES: Names = [
    (r"^convnext\.features\.0\.0\.", "body.embeddings.patch_embeddings."),
    (r"^convnext\.features\.0\.1\.", "body.embeddings.layernorm."),
    *(
        (rf"^convnext\.features\.{2 * k + 1}\.", f"body.encoder.stages.{k}.layers.")
        for k in range(4)
    ),
    *(
        (rf"^convnext\.features\.{2 * k}\.", f"body.encoder.stages.{k}.downsampling_layer.")
        for k in range(1, 4)
    ),
    (r"\.layer_scale$", ".layer_scale_parameter"),
    (r"\.block\.0\.", ".dwconv."),
    (r"\.block\.2\.", ".layernorm."),
    (r"\.block\.3\.", ".pwconv1."),
    (r"\.block\.5\.", ".pwconv2."),
    (r"^convnext\.classifier\.0\.", "body.layernorm."),
    (r"^convnext\.classifier\.2\.", "head.0."),
    (r"^convnext\.classifier\.3\.", "head.1."),
]


def published(repository: str) -> Path:
    """The weights of a hub repository, fetched once."""
    return Path(hf_hub_download(repository, "model.safetensors"))


def load_encoder(path: Path, base: str | Path = SD_TURBO, side: int = 64) -> VINEEncoder:
    """The encoder with the weights of a file.

    Args:
        path: a safetensors file with the names that `VINE-B-Enc` and `VINE-R-Enc` use.
        base: hub id or folder of SD-Turbo.
        side: of the plane the message is spread over.

    Raises:
        ValueError: the file holds something else.
        OSError: the hub gives no SD-Turbo.
    """
    scheduler = DDPMScheduler.from_pretrained(base, subfolder="scheduler")
    embeds = _empty_prompt(base)
    with torch.device("meta"):  # no memory before the weights are there
        unet = UNet2DConditionModel.from_config(_config(UNet2DConditionModel, base, "unet"))
        vae = AutoencoderKL.from_config(_config(AutoencoderKL, base, "vae"))
        encoder = VINEEncoder(unet, vae, scheduler, embeds, side=side)
    fill(encoder, ENCODER_NAMES, path)
    return encoder


def load_decoder(path: Path) -> VINEDecoder:
    """The decoder with the weights of a file, named as in `VINE-B-Dec` and `VINE-R-Dec`.

    Raises:
        ValueError: the file holds something else.
    """
    decoder = VINEDecoder()
    fill(decoder, DECODER_NAMES, path)
    return decoder


def fill(network: nn.Module, names: Names, path: Path) -> None:
    """Give a network the weights of a file, all of them and no others; freeze it.

    Raises:
        ValueError: the file is no safetensors file, or a name or shape in it does not fit.
    """
    try:
        held: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    found = {_renamed(name, names): value.float() for name, value in held.items()}
    for name in found:
        if name.endswith("layer_scale_parameter"):  # (channels, 1, 1) in torchvision
            found[name] = found[name].flatten()
    own = {name: value.shape for name, value in network.state_dict().items()}
    wrong = {n for n in own.keys() | found.keys() if n not in found or own.get(n) != found[n].shape}
    if wrong or len(found) < len(held):
        raise ValueError(
            f"{path} holds no {type(network).__name__}: {len(wrong)} weights are missing, unknown "
            f"or of another shape, such as {min(wrong, default='two of the same name')}"
        )
    network.load_state_dict(found, assign=True)
    network.requires_grad_(False).eval()


def _renamed(name: str, names: Names) -> str:
    for pattern, replacement in names:
        name = re.sub(pattern, replacement, name)
    return name


def _config(kind: Any, base: str | Path, folder: str) -> Any:
    return kind.load_config(base, subfolder=folder)


@torch.no_grad()
def _empty_prompt(base: str | Path) -> Tensor:
    """SD-Turbo's embedding of the empty prompt, (1, tokens, width)."""
    tokenizer: Any = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
    encoder: Any = CLIPTextModel.from_pretrained(
        base, subfolder="text_encoder", use_safetensors=True, dtype=torch.float32
    )
    tokens = tokenizer("", padding="max_length", truncation=True, return_tensors="pt").input_ids
    embeds: Tensor = encoder(tokens).last_hidden_state
    return embeds
