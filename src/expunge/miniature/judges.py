"""Train the miniature's judges on renders, on their round trips, and on broken pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.judge.base import weights_hash
from expunge.judge.miniature import JudgeNet, Variant, Verdict, build
from expunge.miniature.data import NO_SIGN, NOBODY, PERSON_LABELS, SIGN_LABELS, Pictures
from expunge.run.checkpoint import Workspace
from expunge.run.files import write_atomically
from expunge.run.fit import fit
from expunge.run.objective import Minimise, Player, Step
from expunge.run.plan import Plan
from expunge.run.progress import progress_bar

PLANS: dict[Variant, Plan] = {
    "conv": Plan(steps=1500, decay_from=0.3),
    "patch": Plan(steps=2200, decay_from=0.3),
}
"""The patches learn more slowly, at two thirds of the cost a step."""
LR, WEIGHT_DECAY = 2e-3, 0.01
BATCH = 96
BROKEN = 20
"""Broken pictures in a batch; the others are half renders, half round trips."""
TRIPS = 6000
WRECKS = 600
SEEDS: dict[Variant, int] = {"conv": 11, "patch": 12}


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 64) -> Tensor:
    """Pictures of unscaled latents (n, 4, 16, 16) as uint8, (n, 3, 64, 64)."""
    device = next(vae.parameters()).device
    drawn = [_uint8(vae.decode(part.to(device)).sample) for part in torch.split(latents, batch)]
    return torch.cat(drawn)


def _signed(pixels: Tensor) -> Tensor:
    return pixels.float().div(127.5).sub(1)


def _uint8(images: Tensor) -> Tensor:
    return images.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).cpu()


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pixels: Tensor, batch: int = 64) -> Tensor:
    """Pictures through encoder and decoder and back, uint8, (n, 3, 64, 64)."""
    device, trips = next(vae.parameters()).device, []
    with progress_bar("round trips", len(pixels)) as advance:
        for part in torch.split(pixels, batch):
            images = _signed(part.to(device)).contiguous(memory_format=torch.channels_last)
            latents = vae.encode(images).latent_dist.mode()
            trips.append(_uint8(vae.decode(latents).sample))
            advance(len(part), "")
    return torch.cat(trips)


def wrecked_latents(vae: AutoencoderKL, trips: Tensor, count: int, seed: int) -> Tensor:
    """Latents of no picture, (count, 4, 16, 16): noise, and pictures drowned in noise."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((count, 4, 16, 16), generator=generator)
    latents /= float(vae.config.scaling_factor)
    device = next(vae.parameters()).device
    some = torch.randperm(len(trips), generator=generator)[: count // 2]
    images = _signed(trips[some]).to(device)
    with torch.no_grad():
        parts = [vae.encode(part).latent_dist.mode() for part in torch.split(images, 64)]
        clean = torch.cat(parts).float().cpu()
    kept = torch.rand((len(clean), 1, 1, 1), generator=generator) * 0.5
    latents[: len(clean)] = kept.sqrt() * clean + (1 - kept).sqrt() * latents[: len(clean)]
    return latents


@dataclass(frozen=True)
class Lessons:
    """What a judge learns from.

    Attributes:
        data: rendered pictures with their labels.
        trips: round trips of the first m of them, uint8, (m, 3, 64, 64).
        wrecks: stores of broken pictures, uint8, (k, 3, 64, 64) each, none of them empty.
    """

    data: Pictures
    trips: Tensor
    wrecks: tuple[Tensor, ...]

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Pictures, and the indices of those with labels, which come first.

        Returns:
            Float pictures in [-1, 1], (96, 3, 64, 64), and int64 indices into `data`, (76,).
        """
        half = (BATCH - BROKEN) // 2
        plain = torch.randint(len(self.data.captions), (half,), generator=generator)
        trip = torch.randint(len(self.trips), (half,), generator=generator)
        proper = _signed(torch.cat([self.data.pixels[plain], self.trips[trip]]))
        broken = self.broken(BROKEN, generator)
        return augment(torch.cat([proper, broken]), generator), torch.cat([plain, trip])

    def broken(self, count: int, generator: torch.Generator) -> Tensor:
        """Broken pictures of every kind in turn, float in [-1, 1], (count, 3, 64, 64)."""
        kinds = [noise, jumbled, blended, blended, *([None] * 2)]
        parts = []
        for at, kind in enumerate(kinds):
            share = count // len(kinds) + (at < count % len(kinds))
            if kind is None:
                store = self.wrecks[at % len(self.wrecks)]
                index = torch.randint(len(store), (share,), generator=generator)
                parts.append(_signed(store[index]))
            else:
                parts.append(kind(self._proper(2 * share, generator), generator))
        return torch.cat(parts)

    def _proper(self, count: int, generator: torch.Generator) -> Tensor:
        store = self.trips if torch.rand((), generator=generator) < 0.5 else self.data.pixels
        index = torch.randint(len(store), (count,), generator=generator)
        return _signed(store[index])


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


def augment(images: Tensor, generator: torch.Generator, reach: int = 3) -> Tensor:
    """Small shifts, a little blur, noise, brightness: what a judge is to see through."""
    n, _, height, width = images.shape
    padded = F.pad(images, (reach,) * 4, mode="reflect")
    corners = torch.randint(2 * reach + 1, (n, 2), generator=generator).tolist()
    images = torch.stack(
        [one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, corners, strict=True)]
    )
    strength = torch.rand((4, n, 1, 1, 1), generator=generator)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, blurred, (2 * strength[0] - 1).clamp(min=0))
    grain = torch.randn(images.shape, generator=generator)
    images = images + grain * (0.16 * strength[1] - 0.08).clamp(min=0)
    return images * (0.85 + 0.3 * strength[2]) + 0.2 * strength[3] - 0.1


def judgement_loss(verdict: Verdict, objects: Tensor, choices: Tensor) -> Tensor:
    """Sum of the five heads' cross-entropies; pictures beyond the labels are the broken ones."""
    known = len(objects)
    loss = 10 * F.binary_cross_entropy_with_logits(verdict.objects[:known].float(), objects)
    for head, wanted in zip(verdict[2:5], choices.T, strict=True):
        loss = loss + F.cross_entropy(head[:known].float(), wanted)
    broken = (torch.arange(len(verdict.broken), device=objects.device) >= known).float()
    return loss + F.binary_cross_entropy_with_logits(verdict.broken[:, 0].float(), broken)


def _cached_trips(vae: AutoencoderKL, data: Pictures, folder: Path) -> Tensor:
    """Round trips of the first pictures, kept in the folder for the next judge."""
    path, pixels = folder / "judge-round-trips.safetensors", data.pixels[:TRIPS]
    made_by = {"vae": weights_hash(vae), "pictures": str(pixels.long().sum().item())}
    if path.exists():
        with safe_open(path, "pt") as handle:
            if handle.metadata() == made_by:
                trips: Tensor = handle.get_tensor("pixels")
                return trips
    trips = round_trip(vae, pixels).contiguous()
    write_atomically(path, lambda target: save_file({"pixels": trips}, target, metadata=made_by))
    return trips


def prepare(data: Pictures, vae: AutoencoderKL, early: Tensor, folder: Path) -> Lessons:
    """Make round trips (or read those a former call left in `folder`) and stores of wrecks."""
    device = next(vae.parameters()).device.type
    with torch.autocast(device, dtype=torch.bfloat16):  # half the time, three grey levels at most
        trips = _cached_trips(vae, data, folder)
        wrecks = decode(vae, wrecked_latents(vae, trips, WRECKS, seed=5))
    return Lessons(data, trips, (wrecks, early) if len(early) else (wrecks,))


def train(
    data: Pictures,
    vae: AutoencoderKL,
    early: Tensor,
    folder: Path,
    variant: Variant,
    plan: Plan | None = None,
    device: str = "cpu",
) -> JudgeNet:
    """Train one judge. Broken pictures teach only the head that tells them from proper ones.

    Args:
        data: rendered pictures.
        vae: the autoencoder whose traces a judge must see through.
        early: what early checkpoints of the denoiser drew, uint8, (n, 3, 64, 64); n may be 0.
        folder: where checkpoints and round trips go; both judges share the round trips.
        variant: which network.
        plan: length and speed, by default the variant's own.
        device: where to train.
    """
    lessons = prepare(data, vae, early, folder)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEEDS[variant])
        net = build(variant).to(device)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: Step) -> Tensor:
        images, index = lessons.batch(step.generator)
        images = images.to(device, memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16):
            verdict = net(images)
        wanted = data.objects[index].to(device), data.choices[index].to(device)
        return judgement_loss(verdict, *wanted)

    player = {str(variant): Player(net, LR, weight_decay=WEIGHT_DECAY)}
    workspace = Workspace(folder, {"pictures": len(data.captions), "batch": BATCH})
    plan = plan or PLANS[variant]
    fit(f"judge-{variant}", player, Minimise(loss), plan, workspace, seed=SEEDS[variant])
    return net.eval()


@torch.inference_mode()
def verdicts(net: nn.Module, pixels: Tensor, batch: int = 64) -> Verdict:
    """What a network says of uint8 pictures, (n, 3, 64, 64), on the CPU."""
    device = next(net.parameters()).device
    parts = [net(_signed(part.to(device))) for part in torch.split(pixels, batch)]
    return Verdict(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


def accuracy(net: nn.Module, pixels: Tensor, data: Pictures) -> dict[str, tuple[int, int]]:
    """How often every head is right.

    Args:
        net: a judge's network.
        pixels: the pictures of `data` or their round trips, uint8, (n, 3, 64, 64).
        data: the labels.

    Returns:
        (right, of) by head. `objects` counts pictures with all ten flags right; `faces` and
        `signs` are the person and the sign head where there is a face and a sign; `broken` counts
        pictures wrongly called broken.
    """
    verdict = verdicts(net, pixels)
    right = {"objects": ((verdict.objects > 0) == data.objects.bool()).all(dim=1)}
    for column, head in enumerate(("person", "style", "sign")):
        right[head] = getattr(verdict, head).argmax(dim=1) == data.choices[:, column]
    right["faces"] = right["person"][data.choices[:, 0] != PERSON_LABELS.index(NOBODY)]
    right["signs"] = right["sign"][data.choices[:, 2] != SIGN_LABELS.index(NO_SIGN)]
    counts = {head: (int(flags.sum()), len(flags)) for head, flags in right.items()}
    return counts | {"broken": called_broken(net, pixels)}


def called_broken(net: nn.Module, pixels: Tensor) -> tuple[int, int]:
    """(pictures called broken, pictures) of uint8 pictures, (n, 3, 64, 64)."""
    return int((verdicts(net, pixels).broken > 0).sum()), len(pixels)
