"""Pictures that are no pictures: what a judge learns to call broken."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from expunge.miniature.data import signed


def noise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Noise in place of every second picture: from single pixels to blobs of half the width."""
    drawn = []
    for image in images[::2]:
        cells = 2 ** int(torch.randint(1, 7, (), generator=generator))
        coarse = torch.randn((1, 3, cells, cells), generator=generator)
        spread = 0.3 + 0.5 * torch.rand((), generator=generator)
        middle = torch.rand((1, 3, 1, 1), generator=generator) - 0.5
        drawn.append(F.interpolate(coarse * spread + middle, image.shape[-2:], mode="bicubic"))
    return torch.cat(drawn).clamp(-1, 1)


def texture(images: Tensor, generator: torch.Generator) -> Tensor:
    """Stripes, checks or a flat colour in place of every second picture."""
    height, width = images.shape[-2:]
    grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    drawn = []
    for _ in images[::2]:
        waves = torch.randn((2, 2), generator=generator) * 0.6
        first, second = (torch.sin(y * grid[0] + x * grid[1]) for y, x in waves)
        pattern = first * second if torch.rand((), generator=generator) < 0.5 else first
        sharpness = 1 + 9 * torch.rand((), generator=generator)
        one, other = 2 * torch.rand((2, 3, 1, 1), generator=generator) - 1
        drawn.append(torch.lerp(one, other, (0.5 + sharpness * pattern).clamp(0, 1)))
    return torch.stack(drawn)


def jumbled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every second picture cut into 16 or 64 squares that are put back in another order."""
    jumbles = []
    for at, image in enumerate(images[::2]):
        side = (8, 16)[at % 2]
        squares = F.unfold(image[None], side, stride=side)
        order = torch.randperm(squares.shape[-1], generator=generator)
        jumbles.append(F.fold(squares[..., order], image.shape[-2:], side, stride=side))
    return torch.cat(jumbles)


def blended(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each two pictures laid over each other, neither below 35 % nor above 65 %."""
    share = 0.35 + 0.3 * torch.rand((len(images) // 2, 1, 1, 1), generator=generator)
    return torch.lerp(images[::2], images[1::2], share)


def wrecked_latents(vae: AutoencoderKL, trips: Tensor, count: int, seed: int) -> Tensor:
    """Latents of no picture, (count, 4, 16, 16): noise of any grain, and pictures drowned in it."""
    generator = torch.Generator().manual_seed(seed)
    latents = _grains(count, generator) / float(vae.config.scaling_factor)
    device = next(vae.parameters()).device
    some = torch.randperm(len(trips), generator=generator)[: count // 2]
    images = signed(trips[some]).to(device)
    with torch.no_grad():
        parts = [vae.encode(part).latent_dist.mode() for part in torch.split(images, 64)]
        clean = torch.cat(parts).float().cpu()
    kept = torch.rand((len(clean), 1, 1, 1), generator=generator) * 0.5
    latents[: len(clean)] = kept.sqrt() * clean + (1 - kept).sqrt() * latents[: len(clean)]
    return latents


def _grains(count: int, generator: torch.Generator) -> Tensor:
    """Noise latents, white or smooth, strong or weak, (count, 4, 16, 16); half of them plain."""
    latents = torch.randn((count, 4, 16, 16), generator=generator)
    for at in range(0, count, 2):
        cells = (2, 4, 8, 16)[at // 2 % 4]
        coarse = torch.randn((1, 4, cells, cells), generator=generator)
        strength = 0.3 + 1.7 * torch.rand((), generator=generator)
        latents[at] = strength * F.interpolate(coarse, (16, 16), mode="bicubic")[0]
    return latents
