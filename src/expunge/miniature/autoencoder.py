"""The miniature's autoencoder: 64x64 pictures to 16x16 latents of four channels."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from expunge.miniature.data import Pictures
from expunge.run.checkpoint import Workspace
from expunge.run.fit import fit
from expunge.run.objective import Minimise, Player, Step
from expunge.run.plan import Plan

PLAN = Plan(steps=1800, decay_from=0.3)
LR, WEIGHT_DECAY = 2e-3, 0.01
BATCH = 16
KL_WEIGHT = 1e-6


def build() -> AutoencoderKL:
    """An untrained autoencoder."""
    levels = 3
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        mid_block_add_attention=False,
        sample_size=64,
    )


@torch.no_grad()
def encode(vae: AutoencoderKL, data: Pictures, batch: int = 64) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every picture's latent, (n, 4, 16, 16) each, unscaled."""
    means, deviations = [], []
    device = next(vae.parameters()).device
    for index in torch.split(torch.arange(len(data.captions)), batch):
        latent = vae.encode(data.images(index).to(device)).latent_dist
        means.append(latent.mean.cpu())
        deviations.append(latent.std.cpu())
    return torch.cat(means), torch.cat(deviations)


def train(data: Pictures, folder: Path, plan: Plan = PLAN, device: str = "cpu") -> AutoencoderKL:
    """Train on the sum of L1, half the squared error, and a trace of KL; set the latent scale."""
    vae = build().to(device, memory_format=torch.channels_last)

    def loss(step: Step) -> Tensor:
        generator = step.generator
        index = torch.randint(len(data.captions), (BATCH,), generator=generator)
        images = data.images(index).to(device, memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            drawn = vae.decode(posterior.mean + posterior.std * noise).sample
        error: Tensor = drawn.float() - images
        divergence: Tensor = posterior.kl().float().mean()
        return error.abs().mean() + error.square().mean() / 2 + KL_WEIGHT * divergence

    player = {"autoencoder": Player(vae, LR, weight_decay=WEIGHT_DECAY)}
    workspace = Workspace(folder, {"pictures": len(data.captions)})
    fit("autoencoder", player, Minimise(loss), plan, workspace, seed=1)
    vae.eval()
    sample = Pictures(
        data.pixels[:1000], data.captions[:1000], data.objects, data.choices, data.owners
    )
    mean, deviation = encode(vae, sample)
    scale = (mean.var() + deviation.square().mean()).rsqrt().item()
    vae.register_to_config(scaling_factor=scale)
    return vae


@torch.no_grad()
def psnr(vae: AutoencoderKL, data: Pictures, batch: int = 64) -> Tensor:
    """Peak signal-to-noise ratio of every picture's round trip, in dB, (n,)."""
    values = []
    device = next(vae.parameters()).device
    for index in torch.split(torch.arange(len(data.captions)), batch):
        images = data.images(index).to(device)
        drawn = vae.decode(vae.encode(images).latent_dist.mode()).sample.clamp(-1, 1)
        error = F.mse_loss(drawn, images, reduction="none").mean(dim=(1, 2, 3))
        values.append((10 * torch.log10(4 / error)).cpu())
    return torch.cat(values)
