"""The miniature's FLUX transformer: rectified flow on frozen text and frozen latents."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor

from expunge.backbone.flux import pack, positions
from expunge.judge.base import weights_hash
from expunge.run.checkpoint import Workspace
from expunge.run.fit import fit
from expunge.run.objective import Minimise, Player, Step
from expunge.run.plan import Plan

PLAN = Plan(steps=10_000, warmup=300, decay_from=0.55, ema=0.999)
DISTILLATION = Plan(steps=1000, warmup=50, decay_from=0.4, ema=0.99)
LR, DISTILLATION_LR, WEIGHT_DECAY = 1e-3, 3e-4, 0.01
BATCH = 32
GUIDANCE = (1.0, 6.0)
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


def noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """Levels to train at, (count,): logit-normal, shifted as when drawing (Esser et al. 2024)."""
    uniform = torch.randn(count, generator=generator).sigmoid()
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


@dataclass(frozen=True)
class Scenes:
    """Pictures and captions, encoded once.

    Attributes:
        mean: of every picture's latent, (n, 4, 16, 16), unscaled.
        deviation: its standard deviation, (n, 4, 16, 16).
        scale: the autoencoder's scaling factor.
        states: T5's token states, (n, 32, 128).
        pooled: CLIP's pooled state, (n, 128).
        empty: T5's states of the empty prompt, (1, 32, 128).
        empty_pooled: CLIP's, (1, 128).
    """

    mean: Tensor
    deviation: Tensor
    scale: float
    states: Tensor
    pooled: Tensor
    empty: Tensor
    empty_pooled: Tensor

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Random packed latents (b, 64, 16), noise like them, token and pooled states."""
        index = torch.randint(len(self.mean), (BATCH,), generator=generator)
        spread = torch.randn(self.mean[index].shape, generator=generator)
        clean = pack((self.mean[index] + self.deviation[index] * spread) * self.scale)
        noise = torch.randn(clean.shape, generator=generator)
        return clean, noise, self.states[index].float(), self.pooled[index].float()


def _predict(
    model: FluxTransformer2DModel,
    noisy: Tensor,
    levels: Tensor,
    states: Tensor,
    pooled: Tensor,
    guidance: Tensor | None = None,
) -> Tensor:
    """The velocity, float32, computed in bfloat16."""
    picture = positions(SIDE, SIDE).to(noisy)
    with torch.autocast(noisy.device.type, dtype=torch.bfloat16):
        found: Tensor = model(
            hidden_states=noisy,
            timestep=levels,
            guidance=guidance,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            img_ids=picture,
            txt_ids=torch.zeros(states.shape[1], 3).to(noisy),
        ).sample
    return found.float()


def train(
    scenes: Scenes, folder: Path, plan: Plan = PLAN, device: str = "cpu"
) -> FluxTransformer2DModel:
    """Train on predicting noise minus picture.

    Args:
        scenes: pictures and captions.
        folder: where checkpoints go.
        plan: length and speed.
        device: where to train.

    Returns:
        The running average of the weights.
    """
    model = build().to(device)

    def loss(step: Step) -> Tensor:
        generator = step.generator
        clean, noise, states, pooled = scenes.batch(generator)
        levels = noise_levels(BATCH, generator)
        at = levels[:, None, None]
        blank = torch.rand(BATCH, generator=generator) < EMPTY_SHARE
        states = torch.where(blank[:, None, None], scenes.empty.float(), states)
        pooled = torch.where(blank[:, None], scenes.empty_pooled.float(), pooled)
        noisy = ((1 - at) * clean + at * noise).to(device)
        predicted = _predict(model, noisy, levels.to(device), states.to(device), pooled.to(device))
        return (predicted - (noise - clean).to(device)).square().mean()

    player = {"transformer": Player(model, LR, weight_decay=WEIGHT_DECAY)}
    workspace = Workspace(folder, {"pictures": len(scenes.mean)})
    trained = fit("transformer", player, Minimise(loss), plan, workspace, seed=5)
    return trained.modules["transformer"].eval()


def student_of(teacher: FluxTransformer2DModel) -> FluxTransformer2DModel:
    """A transformer that takes guidance as an input and begins by ignoring it."""
    torch.manual_seed(1)
    student = build(guidance_embeds=True)
    missing, _ = student.load_state_dict(teacher.state_dict(), strict=False)
    assert all("guidance_embedder" in name for name in missing)
    last = student.time_text_embed.guidance_embedder.linear_2
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    return student


def distil(
    teacher: FluxTransformer2DModel,
    scenes: Scenes,
    folder: Path,
    plan: Plan = DISTILLATION,
    device: str = "cpu",
) -> FluxTransformer2DModel:
    """Teach a transformer that takes guidance as an input what guidance makes of the teacher.

    It predicts v(∅) + g (v(c) − v(∅)) in one pass (Meng et al. 2023), g drawn from 1 to 6.

    Args:
        teacher: a trained transformer without guidance as an input.
        scenes: pictures and captions.
        folder: where checkpoints go.
        plan: length and speed.
        device: where to train.

    Returns:
        The running average of the student's weights.
    """
    student = student_of(teacher).to(device)
    low, high = GUIDANCE

    def loss(step: Step) -> Tensor:
        generator = step.generator
        clean, noise, states, pooled = (part.to(device) for part in scenes.batch(generator))
        levels = noise_levels(BATCH, generator).to(device)
        scale = (low + (high - low) * torch.rand(BATCH, generator=generator)).to(device)
        at = levels[:, None, None]
        noisy = (1 - at) * clean + at * noise
        with torch.no_grad():
            toward = _predict(teacher, noisy, levels, states, pooled)
            nothing = scenes.empty.float().to(device).expand_as(states)
            without = scenes.empty_pooled.float().to(device).expand_as(pooled)
            away = _predict(teacher, noisy, levels, nothing, without)
        wanted = away + scale[:, None, None] * (toward - away)
        predicted = _predict(student, noisy, levels, states, pooled, scale)
        return (predicted - wanted).square().mean()

    player = {"student": Player(student, DISTILLATION_LR, weight_decay=WEIGHT_DECAY)}
    settings = {"pictures": len(scenes.mean), "teacher": weights_hash(teacher)}
    workspace = Workspace(folder, settings)
    trained = fit("distillation", player, Minimise(loss), plan, workspace, seed=6)
    return trained.modules["student"].eval()
