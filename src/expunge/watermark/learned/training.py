"""Train the learned scheme: the distortions it must survive are part of every step."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.judge.base import weights_hash
from expunge.miniature.captions import random_pair
from expunge.miniature.render import render
from expunge.run.checkpoint import Workspace
from expunge.run.files import check_writable, write_atomically
from expunge.run.fit import fit
from expunge.run.objective import Minimise, Player, Step
from expunge.run.plan import Plan
from expunge.run.progress import progress_bar
from expunge.watermark.edit.base import Distortion
from expunge.watermark.edit.distortions import (
    JPEG,
    Blur,
    Brightness,
    Contrast,
    Crop,
    Noise,
    Rotation,
    Scaling,
)
from expunge.watermark.learned.network import SIDE, Decoder, Encoder, add_mark, seen
from expunge.watermark.learned.textures import dead_leaves

Variant = Literal["learned", "learned-vae"]

BITS = 32
PICTURES = 24_000
SEED = 4
WEIGHT_DECAY = 1e-4
BATCH = 32
"""Pictures a step."""
RAMP = 0.4
"""Share of the steps after which mark and distortions have their final strength."""


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        name: of its checkpoints.
        plan: length.
        lr: peak learning rate.
        psnr: dB at which the mark is embedded, at the first step and from the ramp's end on. It
            begins loud, so that the decoder finds it at all.
        hard: strength of the distortions at the first step, 0 to 1.
        crops: share of the distortions that are crops, the hardest to learn.
        largest_crop: share of each side that the strongest crop takes.
        vae: whether the round trip through an autoencoder is in the loop.
    """

    name: str
    plan: Plan
    lr: float
    psnr: tuple[float, float]
    hard: float = 0.0
    crops: float = 0.18
    largest_crop: float = 0.16
    vae: bool = False

    def at(self, step: int) -> tuple[float, float]:
        """The mark's PSNR and the distortions' strength at a step."""
        ramp = min(1.0, step / (RAMP * self.plan.steps))
        first, last = self.psnr
        return first + (last - first) * ramp, self.hard + (1 - self.hard) * ramp


_PLAN = Plan(steps=9000, warmup=200, decay_from=0.45, ema=0.999)
_BASE = Stage("base", _PLAN, 1.5e-3, (27.0, 37.0))
_CROPS = Stage(
    "crops", replace(_PLAN, steps=4000), 1e-3, (33.0, 36.5), 0.3, crops=0.5, largest_crop=0.2
)
_VAE = Stage(
    "vae",
    replace(_PLAN, steps=2600),
    1e-3,
    (29.0, 35.0),
    0.3,
    crops=0.5,
    largest_crop=0.2,
    vae=True,
)
STAGES: dict[Variant, tuple[Stage, ...]] = {
    "learned": (_BASE, _CROPS),
    "learned-vae": (_BASE, _VAE),
}
"""What each variant goes through; both begin alike."""


def training_pixels(count: int) -> Tensor:
    """Renders of the miniature world and made-up photographs, half each, uint8, (n, 3, 64, 64)."""
    rng = random.Random(SEED)
    pixels = np.empty((count, SIDE, SIDE, 3), np.uint8)
    with progress_bar("rendering", count) as advance:
        for index in range(count):
            drawn = dead_leaves(index, SIDE) if index % 2 else render(random_pair(rng)[0]).image
            pixels[index] = np.asarray(drawn)
            advance(1, "")
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def drawn_distortion(generator: torch.Generator, stage: Stage, hard: float) -> Distortion:
    """A distortion drawn at random, no stronger than the curriculum allows."""
    crop, kind, at = torch.rand(3, generator=generator).tolist()
    at *= hard
    if crop < stage.crops:
        return Crop(stage.largest_crop * at)
    choices: tuple[Callable[[], Distortion], ...] = (
        lambda: JPEG(round(95 - 55 * at)),
        lambda: JPEG(round(95 - 55 * at)),
        lambda: Noise(0.055 * at),
        lambda: Noise(0.055 * at),
        lambda: Rotation(12 * (at - hard / 2)),
        lambda: Scaling(1 - 0.4 * at),
        lambda: Blur(0.8 * at),
        lambda: Brightness(1 + 0.8 * (at - hard / 2)),
        lambda: Contrast(1 + 0.8 * (at - hard / 2)),
    )
    return choices[int(kind * len(choices))]()


def distorted(marked: Tensor, generator: torch.Generator, stage: Stage, hard: float) -> Tensor:
    """Every eighth of a batch under a distortion of its own."""
    parts = []
    for part in marked.chunk(8):
        seeds = torch.randint(2**31, (len(part),), generator=generator).tolist()
        parts.append(drawn_distortion(generator, stage, hard).distort(part, seeds).clamp(0, 1))
    return torch.cat(parts)


def round_trip(vae: Any, pixels: Tensor, generator: torch.Generator, hard: float) -> Tensor:
    """Encode, disturb the latent as a low level of diffusion would, decode."""
    hosts = (pixels * 2 - 1).contiguous(memory_format=torch.channels_last)
    latent = vae.encode(hosts).latent_dist.mode()
    amount = 0.5 * hard * torch.rand(len(pixels), 1, 1, 1, generator=generator)
    noise = torch.randn(latent.shape, generator=generator) * amount / vae.config.scaling_factor
    decoded = vae.decode(latent + noise.to(latent)).sample
    clamped: Tensor = (decoded.float() / 2 + 0.5).clamp(0, 1)
    return clamped


def rounded(pixels: Tensor) -> Tensor:
    """As saved with eight bits; the gradient passes."""
    return pixels + ((pixels * 255).round() / 255 - pixels).detach()


def train(
    nets: nn.ModuleDict,
    pixels: Tensor,
    stage: Stage,
    *,
    folder: Path,
    vae: Any = None,
) -> nn.ModuleDict:
    """Train encoder and decoder together on random messages.

    Half of every batch is read as it was saved, half after distortions; in a stage with an
    autoencoder the first half also after its round trip.

    Args:
        nets: `encoder` and `decoder`.
        pixels: uint8, (n, 3, 64, 64).
        stage: how.
        folder: for checkpoints; the same call after a stop goes on.
        vae: a diffusers autoencoder, for a stage that has its round trip in the loop.

    Returns:
        Both networks' running averages, in evaluation mode.
    """
    bits = len(nets["encoder"].carriers)  # type: ignore[arg-type]

    def loss(step: Step) -> Tensor:
        generator = step.generator
        psnr, hard = stage.at(step.number)
        index = torch.randint(len(pixels), (BATCH,), generator=generator)
        hosts = (pixels[index].float() / 255).contiguous(memory_format=torch.channels_last)
        message = torch.randint(0, 2, (BATCH, bits), generator=generator).float()
        half = BATCH // 2
        with torch.autocast("cpu", torch.bfloat16):
            change = nets["encoder"](seen(hosts), message * 2 - 1)
            marked = rounded(add_mark(hosts, change, psnr))
            read = [marked[:half], distorted(marked[half:], generator, stage, hard)]
            told = [message]
            if stage.vae:
                read.append(round_trip(vae, marked[:half], generator, hard))
                told.append(message[:half])
            logits = nets["decoder"](seen(torch.cat(read)))
        return F.binary_cross_entropy_with_logits(logits, torch.cat(told))

    about = {key: value for key, value in asdict(stage).items() if key != "plan"}
    settings = {
        **about,
        "bits": bits,
        "pictures": len(pixels),
        "autoencoder": weights_hash(vae) if stage.vae else None,
    }
    player = {"nets": Player(nets, stage.lr, weight_decay=WEIGHT_DECAY)}
    workspace = Workspace(folder, settings)
    trained = fit(stage.name, player, Minimise(loss), stage.plan, workspace, seed=SEED)
    averages = trained.modules["nets"]
    assert isinstance(averages, nn.ModuleDict)
    return averages.eval()


def make(
    out: Path,
    variant: Variant,
    *,
    bits: int = BITS,
    vae: Any = None,
    share: float = 1.0,
    count: int = PICTURES,
) -> Path:
    """Train a variant from nothing and write it.

    Args:
        out: where to; `VARIANT.safetensors` and `checkpoints/` are made in it. A stage that both
            variants share is done once.
        variant: which.
        bits: of a payload.
        vae: a diffusers autoencoder on the CPU in float32, needed by `learned-vae`; its weights
            stay as they are.
        share: of the full steps, above 0 and at most 1.
        count: pictures to train on.

    Returns:
        The file of weights.

    Raises:
        ValueError: a share or a number of bits out of range, no autoencoder, or checkpoints of
            other settings.
    """
    if not 1 <= bits <= 256:
        raise ValueError(f"bits must lie between 1 and 256, got {bits}")
    stages = [replace(stage, plan=stage.plan.shortened(share)) for stage in STAGES[variant]]
    if vae is None and any(stage.vae for stage in stages):
        raise ValueError(f"{variant} is trained with an autoencoder in the loop: pass vae=…")
    check_writable(out)
    torch.manual_seed(SEED)
    nets = nn.ModuleDict({"encoder": Encoder(bits), "decoder": Decoder(bits)})
    pixels = training_pixels(count)
    with _frozen(vae):
        for stage in stages:
            nets = train(nets, pixels, stage, folder=out / "checkpoints", vae=vae)
    path = out / f"{variant}.safetensors"
    save(nets, path, {"bits": str(bits), "variant": variant})
    return path


@contextlib.contextmanager
def _frozen(vae: Any) -> Iterator[None]:
    """The autoencoder without gradients of its own, in the memory layout that is fast on a CPU."""
    if vae is None:
        yield
        return
    flags = [weight.requires_grad for weight in vae.parameters()]
    vae.requires_grad_(False).to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        for weight, flag in zip(vae.parameters(), flags, strict=True):
            weight.requires_grad_(flag)


def save(nets: nn.Module, path: Path, settings: dict[str, str]) -> None:
    """Write both networks in half precision, with what they were trained for in the header."""
    tensors = {name: value.half().contiguous() for name, value in nets.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=settings))
