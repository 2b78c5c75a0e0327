"""The miniature's FLUX transformer: rectified flow on frozen text and frozen latents."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from expunge.run.fit import Plan, fit

PLAN = Plan(steps=12_000, lr=1e-3, warmup=300, decay_from=0.5, ema=0.999)
BATCH = 32
EMPTY_SHARE = 0.1
SIDE = 8
"""Tokens along a side of the picture: 16 latents, packed two by two."""

SCHEDULE = {
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
"""FLUX.1-dev's own noise schedule."""
SHIFT = math.exp(0.5 - (1.15 - 0.5) / (4096 - 256) * (256 - SIDE * SIDE))
"""What that schedule makes of 64 tokens: 1.6."""


def build(guidance_embeds: bool = False) -> FluxTransformer2DModel:
    """An untrained transformer, 6.5 million parameters."""
    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=3,
        num_single_layers=4,
        attention_head_dim=48,
        num_attention_heads=4,
        joint_attention_dim=128,
        pooled_projection_dim=128,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(8, 20, 20),
    )


def pack(latents: Tensor) -> Tensor:
    """(n, 4, 16, 16) to (n, 64, 16): each token holds two by two neighbours, channel by channel."""
    count, channels, height, width = latents.shape
    blocks = latents.view(count, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(count, -1, channels * 4)


def positions(tokens: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Rotary positions of the picture's tokens, (64, 3), and of the text's, (tokens, 3)."""
    picture = torch.zeros(SIDE, SIDE, 3)
    picture[..., 1] += torch.arange(SIDE)[:, None]
    picture[..., 2] += torch.arange(SIDE)
    return picture.view(-1, 3).to(device), torch.zeros(tokens, 3, device=device)


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Levels to train at, (count,): logit-normal, shifted as when drawing (Esser et al. 2024)."""
    uniform = torch.randn(count, generator=generator).sigmoid()
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


def train(
    latents: tuple[Tensor, Tensor],
    scale: float,
    text: tuple[Tensor, Tensor],
    empty: tuple[Tensor, Tensor],
    folder: Path,
    plan: Plan = PLAN,
    device: str = "cpu",
) -> FluxTransformer2DModel:
    """Train on predicting noise minus picture.

    Args:
        latents: mean and standard deviation of every picture, (n, 4, 16, 16), unscaled.
        scale: the autoencoder's scaling factor.
        text: T5's token states (n, 32, 128) and CLIP's pooled state (n, 128) of every caption.
        empty: the same of the empty prompt, n = 1.
        folder: where checkpoints go.
        plan: length and speed.
        device: where to train.

    Returns:
        The running average of the weights.
    """
    model = build().to(device)
    mean, deviation = latents
    states, pooled = text
    picture, words = positions(states.shape[1], device)

    def loss(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(mean), (BATCH,), generator=generator)
        spread = torch.randn(mean[index].shape, generator=generator)
        clean = pack((mean[index] + deviation[index] * spread) * scale)
        noise = torch.randn(clean.shape, generator=generator)
        levels = noise_levels(BATCH, generator)
        at = levels[:, None, None]
        blank = torch.rand(BATCH, generator=generator) < EMPTY_SHARE
        read = torch.where(blank[:, None, None], empty[0], states[index]).float()
        summed = torch.where(blank[:, None], empty[1], pooled[index]).float()
        with torch.autocast(device, dtype=torch.bfloat16):
            predicted: Tensor = model(
                hidden_states=((1 - at) * clean + at * noise).to(device),
                timestep=levels.to(device),
                encoder_hidden_states=read.to(device),
                pooled_projections=summed.to(device),
                img_ids=picture,
                txt_ids=words,
            ).sample
        return (predicted.float() - (noise - clean).to(device)).square().mean()

    return fit("transformer", model, loss, plan, folder=folder, seed=5).eval()
