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
from expunge.judge.networks import GRID, JudgeNet, Variant, Verdict, build
from expunge.miniature.broken import blended, jumbled, noise, texture, wrecked_latents
from expunge.miniature.data import (
    MASK_LABELS,
    NO_SIGN,
    NOBODY,
    PERSON_LABELS,
    SIGN_LABELS,
    Pictures,
    signed,
    unsigned,
)
from expunge.run.checkpoint import Workspace
from expunge.run.files import write_atomically
from expunge.run.fit import fit
from expunge.run.objective import Minimise, Player, Step
from expunge.run.plan import Plan
from expunge.run.progress import progress_bar

PLANS: dict[Variant, Plan] = {
    "conv": Plan(steps=3000, decay_from=0.3),
    "patch": Plan(steps=4000, decay_from=0.3),
}
"""The patches learn more slowly."""
LR, WEIGHT_DECAY = 2e-3, 0.01
BATCH = 104
BROKEN = 24
"""Broken pictures in a batch; the others are half renders, half round trips."""
TRIPS = 9000
WRECKS = 600
SEEDS: dict[Variant, int] = {"conv": 11, "patch": 12}


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor, batch: int = 64) -> Tensor:
    """Pictures of unscaled latents (n, 4, 16, 16) as uint8, (n, 3, 64, 64)."""
    device = next(vae.parameters()).device
    drawn = [unsigned(vae.decode(part.to(device)).sample) for part in torch.split(latents, batch)]
    return torch.cat(drawn)


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pixels: Tensor, batch: int = 64) -> Tensor:
    """Pictures through encoder and decoder and back, uint8, (n, 3, 64, 64)."""
    device, trips = next(vae.parameters()).device, []
    with progress_bar("round trips", len(pixels)) as advance:
        for part in torch.split(pixels, batch):
            images = signed(part.to(device)).contiguous(memory_format=torch.channels_last)
            latents = vae.encode(images).latent_dist.mode()
            trips.append(unsigned(vae.decode(latents).sample))
            advance(len(part), "")
    return torch.cat(trips)


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

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures, the indices of those with labels, which come first, and where things are.

        Returns:
            Float pictures in [-1, 1], (104, 3, 64, 64), int64 indices into `data`, (80,), and
            the share of every cell that belongs to each thing, float32, (104, 12, 16, 16).
        """
        half = (BATCH - BROKEN) // 2
        plain = torch.randint(len(self.data.captions), (half,), generator=generator)
        trip = torch.randint(len(self.trips), (half,), generator=generator)
        proper = signed(torch.cat([self.data.pixels[plain], self.trips[trip]]))
        images = torch.cat([proper, self.broken(BROKEN, generator)])
        index = torch.cat([plain, trip])
        owners = F.pad(self.data.owners[index], (0, 0, 0, 0, 0, BROKEN))
        images, owners = shift(images, owners, generator)
        return augment(images, generator), index, shares(owners)

    def broken(self, count: int, generator: torch.Generator) -> Tensor:
        """Broken pictures of every kind in turn, float in [-1, 1], (count, 3, 64, 64)."""
        stores = [None] * len(self.wrecks)
        kinds = [noise, texture, jumbled, blended, blended, *stores, *stores]
        parts = []
        for at, kind in enumerate(kinds):
            share = count // len(kinds) + (at < count % len(kinds))
            if kind is None:
                store = self.wrecks[at % len(self.wrecks)]
                index = torch.randint(len(store), (share,), generator=generator)
                parts.append(signed(store[index]))
            else:
                parts.append(kind(self._proper(2 * share, generator), generator))
        return torch.cat(parts)

    def _proper(self, count: int, generator: torch.Generator) -> Tensor:
        store = self.trips if torch.rand((), generator=generator) < 0.5 else self.data.pixels
        index = torch.randint(len(store), (count,), generator=generator)
        return signed(store[index])


def shift(
    images: Tensor, owners: Tensor, generator: torch.Generator, reach: int = 3
) -> tuple[Tensor, Tensor]:
    """Move pictures, and whose their pixels are, by up to `reach` pixels in both directions."""
    n, _, height, width = images.shape
    both = torch.cat([images, owners[:, None].to(images.dtype)], dim=1)
    padded = F.pad(both, (reach,) * 4, mode="reflect")
    corners = torch.randint(2 * reach + 1, (n, 2), generator=generator).tolist()
    moved = torch.stack(
        [one[:, y : y + height, x : x + width] for one, (y, x) in zip(padded, corners, strict=True)]
    )
    return moved[:, :3], moved[:, 3].round().long()


def shares(owners: Tensor) -> Tensor:
    """How much of every cell belongs to each thing: (n, 64, 64) to (n, 12, 16, 16) in [0, 1]."""
    flags = F.one_hot(owners.long(), len(MASK_LABELS) + 1)[..., 1:].permute(0, 3, 1, 2)
    return F.avg_pool2d(flags.float(), owners.shape[-1] // GRID)


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """A little blur, noise, brightness: what a judge is to see through."""
    strength = torch.rand((4, len(images), 1, 1, 1), generator=generator)
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.lerp(images, blurred, (2 * strength[0] - 1).clamp(min=0))
    grain = torch.randn(images.shape, generator=generator)
    images = images + grain * (0.16 * strength[1] - 0.08).clamp(min=0)
    return images * (0.85 + 0.3 * strength[2]) + 0.2 * strength[3] - 0.1


def judgement_loss(verdict: Verdict, objects: Tensor, choices: Tensor, masks: Tensor) -> Tensor:
    """Sum of the heads' cross-entropies; pictures beyond the labels are the broken ones.

    A broken picture shows none of the objects, nowhere. Of people, styles and signs it teaches
    nothing.
    """
    known, all_of_them = len(objects), len(verdict.objects)
    flags = F.pad(objects, (0, 0, 0, all_of_them - known))
    loss = 10 * F.binary_cross_entropy_with_logits(verdict.objects.float(), flags)
    loss = loss + 10 * F.binary_cross_entropy_with_logits(verdict.masks.float(), masks)
    for head, wanted in zip(verdict[2:5], choices.T, strict=True):
        loss = loss + F.cross_entropy(head[:known].float(), wanted)
    broken = (torch.arange(all_of_them, device=objects.device) >= known).float()
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


def prepare(data: Pictures, vae: AutoencoderKL, poor: Tensor, folder: Path) -> Lessons:
    """Make round trips (or read those a former call left in `folder`) and stores of wrecks."""
    device = next(vae.parameters()).device.type
    with torch.autocast(device, dtype=torch.bfloat16):  # half the time, three grey levels at most
        trips = _cached_trips(vae, data, folder)
        wrecks = decode(vae, wrecked_latents(vae, trips, WRECKS, seed=5))
    return Lessons(data, trips, (wrecks, poor) if len(poor) else (wrecks,))


def train(
    data: Pictures,
    vae: AutoencoderKL,
    poor: Tensor,
    folder: Path,
    variant: Variant,
    plan: Plan | None = None,
    device: str = "cpu",
) -> JudgeNet:
    """Train one judge.

    Args:
        data: rendered pictures, those of unknown shapes among them: see `unknown.pairs`.
        vae: the autoencoder whose traces a judge must see through.
        poor: what the denoiser drew early in its training or in a hurry, uint8, (n, 3, 64, 64);
            n may be 0.
        folder: where checkpoints and round trips go; both judges share the round trips.
        variant: which network.
        plan: length and speed, by default the variant's own.
        device: where to train.
    """
    lessons = prepare(data, vae, poor, folder)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(SEEDS[variant])
        net = build(variant).to(device)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def loss(step: Step) -> Tensor:
        images, index, masks = lessons.batch(step.generator)
        images = images.to(device, memory_format=torch.channels_last)
        with torch.autocast(device, dtype=torch.bfloat16):
            verdict = net(images)
        wanted = data.objects[index].to(device), data.choices[index].to(device)
        return judgement_loss(verdict, *wanted, masks.to(device))

    player = {str(variant): Player(net, LR, weight_decay=WEIGHT_DECAY)}
    workspace = Workspace(folder, {"pictures": len(data.captions), "batch": BATCH})
    plan = plan or PLANS[variant]
    fit(f"judge-{variant}", player, Minimise(loss), plan, workspace, seed=SEEDS[variant])
    return net.eval()


@torch.inference_mode()
def verdicts(net: nn.Module, pixels: Tensor, batch: int = 64) -> Verdict:
    """What a network says of uint8 pictures, (n, 3, 64, 64), on the CPU."""
    device = next(net.parameters()).device
    parts = [net(signed(part.to(device))) for part in torch.split(pixels, batch)]
    return Verdict(*(torch.cat(part).cpu() for part in zip(*parts, strict=True)))


@torch.no_grad()
def balance(net: JudgeNet, data: Pictures, step: float = 0.25, most: float = 2.0) -> float:
    """Raise the objects' logits until as many are found where none is as are missed.

    Pictures without objects outnumber those with each of them in training, so a judge that comes
    from it rather misses one; and an object that is missed reads as erased.

    Args:
        net: changed in place, in the bias of its heads.
        data: pictures with labels, unknown shapes among them, neither trained nor tested on.
        step: by which the logits are raised.
        most: by which they are raised at most.

    Returns:
        By how much they were raised, at least 0.
    """
    logits, wanted, raised = verdicts(net, data.pixels).objects, data.objects.bool(), 0.0
    while raised < most:
        found = logits + raised > 0
        if int((found & ~wanted).sum()) >= int((wanted & ~found).sum()):
            break
        raised += step
    net.heads.bias[: wanted.shape[1]] += raised
    return raised


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
