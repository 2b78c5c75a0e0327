"""The miniature's denoiser: a cross-attention UNet on frozen text and frozen latents."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from expunge.run.checkpoint import Workspace
from expunge.run.fit import fit
from expunge.run.objective import Minimise, Player, Step
from expunge.run.plan import Plan

EARLY = (400, 800, 1200)
"""Steps whose weights are kept: what they draw teaches the judges what a broken picture is."""
PLAN = Plan(steps=10_500, warmup=200, decay_from=0.55, ema=0.999, keep=EARLY)
LR, WEIGHT_DECAY = 1e-3, 0.01
BATCH = 32
EMPTY_SHARE = 0.1
MIN_SNR_GAMMA = 5.0

SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "epsilon",
}
"""Stable Diffusion's own noise schedule."""


def build() -> UNet2DConditionModel:
    """An untrained denoiser."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=128,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def train(
    latents: tuple[Tensor, Tensor],
    scale: float,
    text: Tensor,
    empty: Tensor,
    folder: Path,
    plan: Plan = PLAN,
    device: str = "cpu",
) -> UNet2DConditionModel:
    """Train on predicting the noise, weighted by min-SNR.

    Args:
        latents: mean and standard deviation of every picture, (n, 4, 16, 16), unscaled.
        scale: the autoencoder's scaling factor.
        text: token states of every caption, (n, 77, 128).
        empty: token states of the empty prompt, (1, 77, 128).
        folder: where checkpoints go.
        plan: length and speed.
        device: where to train.

    Returns:
        The running average of the weights.
    """
    unet = build().to(device, memory_format=torch.channels_last)
    scheduler = DDPMScheduler(**SCHEDULE)
    alphas: Tensor = scheduler.alphas_cumprod.to(device)
    mean, deviation = latents

    def loss(step: Step) -> Tensor:
        generator = step.generator
        index = torch.randint(len(mean), (BATCH,), generator=generator)
        spread = torch.randn(mean[index].shape, generator=generator)
        clean = ((mean[index] + deviation[index] * spread) * scale).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        timesteps = torch.randint(1000, (BATCH,), generator=generator).to(device)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        blank = torch.rand(BATCH, generator=generator) < EMPTY_SHARE
        states = torch.where(blank[:, None, None], empty, text[index]).float().to(device)
        noisy = noisy.to(memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16):
            predicted: Tensor = unet(noisy, timesteps, states).sample.float()
        snr = alphas[timesteps] / (1 - alphas[timesteps])
        weight = snr.clamp(max=MIN_SNR_GAMMA) / snr
        return (weight * (predicted - noise).square().mean(dim=(1, 2, 3))).mean()

    player = {"denoiser": Player(unet, LR, weight_decay=WEIGHT_DECAY)}
    workspace = Workspace(folder, {"pictures": len(mean)})
    trained = fit("denoiser", player, Minimise(loss), plan, workspace, seed=3)
    return trained.modules["denoiser"].eval()
