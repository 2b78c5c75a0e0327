"""Make the miniature from nothing: text, autoencoder, denoiser, judges."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import get_args

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from expunge.backbone.profile import PROFILE, Sampling
from expunge.judge.networks import Variant
from expunge.judge.networks import save as save_judge
from expunge.miniature import autoencoder, denoiser, judges, text
from expunge.miniature.data import Pictures, pictures
from expunge.miniature.unknown import unknown
from expunge.miniature.vocabulary import concepts
from expunge.run.files import check_writable
from expunge.run.plan import Plan

PICTURES = 30_000
EARLY_PICTURES = 600
HURRIES = ((1, 4.0), (2, 12.0))
"""Steps and guidance with which the finished denoiser draws no proper picture."""
SAMPLING = Sampling(num_inference_steps=10, guidance_scale=4.0, batch_size=25)


@dataclasses.dataclass(frozen=True)
class Plans:
    """How long each stage trains."""

    text: Plan = text.PLAN
    autoencoder: Plan = autoencoder.PLAN
    denoiser: Plan = denoiser.PLAN
    conv: Plan = judges.PLANS["conv"]
    patch: Plan = judges.PLANS["patch"]

    def shortened(self, share: float) -> Plans:
        """The same stages with a share of the steps.

        Raises:
            ValueError: the share is not in (0, 1].
        """
        return Plans(*(getattr(self, f.name).shortened(share) for f in dataclasses.fields(self)))


def assemble(
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline of trained parts."""
    scheduler = DPMSolverMultistepScheduler(**denoiser.SCHEDULE, steps_offset=1)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def save(
    pipe: DiffusionPipeline,
    folder: Path,
    sampling: Sampling = SAMPLING,
    preset: str = "miniature-sd",
    max_sequence_length: int | None = None,
) -> None:
    """Write a pipeline in half precision, with a profile, so that it loads without arguments.

    Args:
        pipe: of the miniature world.
        folder: where to.
        sampling: how it draws best.
        preset: name of the hyperparameters tuned on it.
        max_sequence_length: tokens its T5 reads, if it has one.
    """
    pipe.to(torch.float16).save_pretrained(folder)
    for config in folder.glob("text_encoder*/config.json"):
        # transformers would load a text encoder in half precision beside a float32 denoiser.
        settings = json.loads(config.read_text()) | {"dtype": "float32"}
        config.write_text(json.dumps(settings, indent=2) + "\n")
    chosen = {k: v for k, v in dataclasses.asdict(sampling).items() if v is not None}
    profile = {
        "schema": "expunge.model/1",
        "judge": "miniature-conv",
        "preset": preset,
        "sampling": chosen,
        "max_sequence_length": max_sequence_length,
        "concepts": [concept.to_dict() for concept in concepts()],
    }
    (folder / PROFILE).write_text(json.dumps(profile, indent=1) + "\n")


@torch.no_grad()
def draw_early(
    pipe: StableDiffusionPipeline, weights: list[Path], captions: list[str]
) -> torch.Tensor:
    """What early checkpoints of the denoiser draw, uint8, (n, 3, 64, 64)."""
    drawn = []
    final = {k: v.clone() for k, v in pipe.unet.state_dict().items()}
    share = len(captions) // max(len(weights), 1)
    for index, path in enumerate(weights):
        pipe.unet.load_state_dict(load_file(path))
        for start in range(index * share, (index + 1) * share, 50):
            drawn.append(
                pipe(
                    captions[start : min(start + 50, (index + 1) * share)],
                    num_inference_steps=8,
                    guidance_scale=SAMPLING.guidance_scale,
                    output_type="pt",
                    generator=torch.Generator().manual_seed(start),
                ).images
            )
    pipe.unet.load_state_dict(final)
    return (torch.cat(drawn).clamp(0, 1) * 255).round().to(torch.uint8)


@torch.no_grad()
def draw_hasty(pipe: StableDiffusionPipeline, captions: list[str]) -> torch.Tensor:
    """What the denoiser draws in too few steps, uint8, (n, 3, 64, 64)."""
    drawn = []
    for start in range(0, len(captions), 50):
        steps, guidance = HURRIES[start // 50 % len(HURRIES)]
        drawn.append(
            pipe(
                captions[start : start + 50],
                num_inference_steps=steps,
                guidance_scale=guidance,
                output_type="pt",
                generator=torch.Generator().manual_seed(start),
            ).images
        )
    return (torch.cat(drawn).clamp(0, 1) * 255).round().to(torch.uint8)


def train(
    out: Path, plans: Plans | None = None, device: str | None = None, count: int = PICTURES
) -> Path:
    """Make `miniature-sd` and both judges; the same call after a stop goes on where it was.

    Args:
        out: where to; `miniature-sd/`, `judges/` and `checkpoints/` are made in it.
        plans: length of each stage.
        device: `cpu` or `cuda`; None for a GPU if there is one.
        count: pictures to train on.

    Returns:
        The folder of the pipeline.
    """
    check_writable(out)
    plans = plans or Plans()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    data = pictures(count, seed=0)
    pipe = train_pipeline(out, data, plans, device).to("cpu")
    early = [
        out / "checkpoints" / f"denoiser-weights-{step}.safetensors" for step in plans.denoiser.keep
    ]
    captions = data.captions[:EARLY_PICTURES]
    poor = torch.cat([draw_early(pipe, early, captions), draw_hasty(pipe, captions)])
    lessons = data.mixed(unknown(count // 2, seed=1), seed=2)
    apart = pictures(min(count, 2000), seed=3).mixed(unknown(min(count, 1000), seed=4), seed=5)
    vae = pipe.vae.to(memory_format=torch.channels_last)
    for variant in get_args(Variant):
        plan = getattr(plans, variant)
        net = judges.train(lessons, vae, poor, out / "checkpoints", variant, plan, device)
        judges.balance(net, apart)
        save_judge(net, out / "judges" / f"{variant}.safetensors")
    save(pipe, out / "miniature-sd")
    return out / "miniature-sd"


def train_pipeline(
    out: Path, data: Pictures, plans: Plans, device: str = "cpu"
) -> StableDiffusionPipeline:
    """Train the text pair, the autoencoder and the denoiser, in that order; all three resume."""
    work = out / "checkpoints"
    torch.manual_seed(0)
    tokenizer = text.train_tokenizer(data.captions, work / "tokenizer")
    clip = text.train(data, tokenizer, work, plans.text, device)
    encoder = text.text_encoder(clip)
    text.save(clip, tokenizer, out / "clip")
    torch.manual_seed(0)
    vae = autoencoder.train(data, work, plans.autoencoder, device)
    latents = autoencoder.encode(vae, data)
    states = text.encode(encoder, tokenizer, data.captions)
    empty = text.encode(encoder, tokenizer, [""])
    torch.manual_seed(0)
    unet = denoiser.train(
        latents, vae.config.scaling_factor, states, empty, work, plans.denoiser, device
    )
    return assemble(vae, encoder, tokenizer, unet)
