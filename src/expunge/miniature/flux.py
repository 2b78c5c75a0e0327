"""Make `miniature-flux` from the parts of `miniature-sd`, and its guidance-distilled variant."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from expunge.backbone.profile import BUNDLED, Sampling
from expunge.miniature import autoencoder, t5, text
from expunge.miniature import transformer as flow
from expunge.miniature.data import Pictures, pictures
from expunge.miniature.train import PICTURES, save
from expunge.run.files import check_writable
from expunge.run.plan import Plan

SAMPLING = Sampling(num_inference_steps=12, guidance_scale=4.0, height=64, width=64, batch_size=25)


@dataclasses.dataclass(frozen=True)
class Plans:
    """How long each stage trains."""

    t5: Plan = t5.PLAN
    transformer: Plan = flow.PLAN
    distillation: Plan = flow.DISTILLATION

    def shortened(self, share: float) -> Plans:
        """The same stages with a share of the steps."""
        return Plans(*(getattr(self, f.name).shortened(share) for f in dataclasses.fields(self)))


@dataclasses.dataclass(frozen=True)
class Parts:
    """What does not change while the transformer trains."""

    vae: AutoencoderKL
    clip: CLIPTextModel
    clip_tokenizer: CLIPTokenizer
    t5: T5EncoderModel
    t5_tokenizer: T5Tokenizer

    @classmethod
    def make(cls, base: Path, captions: list[str], folder: Path, plan: Plan, device: str) -> Parts:
        """The autoencoder and CLIP of `base`, and a T5 trained on the captions."""
        vae = AutoencoderKL.from_pretrained(base / "vae", dtype=torch.float32)
        vae.register_to_config(shift_factor=0.0)  # the pipeline adds it, so None fails
        torch.manual_seed(0)
        tokenizer = t5.train_tokenizer(captions, folder / "t5-tokenizer")
        return cls(
            vae.to(device, memory_format=torch.channels_last).eval(),
            CLIPTextModel.from_pretrained(base / "text_encoder", dtype=torch.float32).to(device),
            CLIPTokenizer.from_pretrained(base / "tokenizer"),
            t5.train(t5.varied(captions), tokenizer, folder, plan, device),
            tokenizer,
        )

    def read(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """T5's token states (n, 32, 128) and CLIP's pooled state (n, 128), float16."""
        states = t5.encode(self.t5, self.t5_tokenizer, t5.varied(captions))
        return states, text.pool(self.clip, self.clip_tokenizer, captions)

    def assemble(self, model: FluxTransformer2DModel) -> FluxPipeline:
        """A FLUX pipeline around a trained transformer."""
        return FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(**flow.SCHEDULE),
            vae=self.vae,
            text_encoder=self.clip,
            tokenizer=self.clip_tokenizer,
            text_encoder_2=self.t5,
            tokenizer_2=self.t5_tokenizer,
            transformer=model,
        )


def train(
    out: Path,
    plans: Plans | None = None,
    device: str | None = None,
    count: int = PICTURES,
    base: Path | None = None,
) -> list[Path]:
    """Make `miniature-flux` and `miniature-flux-dev`; the same call after a stop goes on.

    Args:
        out: where to; both folders and `checkpoints/` are made in it.
        plans: length of each stage.
        device: `cpu` or `cuda`; None for a GPU if there is one.
        count: pictures to train on.
        base: folder whose autoencoder and CLIP are used; None for `miniature-sd` in `out`, or the
            bundled one where there is none.

    Returns:
        The folders of both pipelines.
    """
    check_writable(out)
    plans = plans or Plans()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    own = out / "miniature-sd"
    base = base or (own if own.is_dir() else BUNDLED["miniature-sd"])
    work = out / "checkpoints"
    data = pictures(count, seed=0)
    parts = Parts.make(base, data.captions, work, plans.t5, device)
    scenes = _scenes(parts, data)
    torch.manual_seed(0)
    teacher = flow.train(scenes, work, plans.transformer, device)
    student = flow.distil(teacher, scenes, work, plans.distillation, device)
    folders = [out / "miniature-flux", out / "miniature-flux-dev"]
    for folder, model in zip(folders, (teacher, student), strict=True):
        save(parts.assemble(model).to("cpu"), folder, SAMPLING, "miniature-flux", t5.LENGTH)
    return folders


def _scenes(parts: Parts, data: Pictures) -> flow.Scenes:
    """Everything the transformer trains on, encoded once."""
    mean, deviation = autoencoder.encode(parts.vae, data)
    states, pooled = parts.read(data.captions)
    empty, empty_pooled = parts.read([""])
    return flow.Scenes(
        mean,
        deviation,
        parts.vae.config.scaling_factor,
        states,
        pooled,
        empty,
        empty_pooled,
    )
