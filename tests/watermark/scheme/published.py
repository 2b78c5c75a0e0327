"""VINE as it is published, tiny and random: the names of its weights, and what they compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.backbone.profile import BUNDLED


class _Inner(nn.Module):
    """A module that holds others by name."""

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)


class PublishedEncoder(nn.Module):
    """VINE's encoder as its file names it: the autoencoder stands there under three names.

    Its skip connections are hooks on diffusers' own forward pass, so that it shares no line with
    ours; like the authors' it takes one picture at a time.
    """

    def __init__(self, base: Path, bits: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.sec_encoder: Any = _Inner(
            secret_dense1=_Inner(linear=nn.Linear(bits, side**2)),
            secret_dense2=_Inner(linear=nn.Linear(side**2, 3 * side**2)),
            conv1=_Inner(conv=nn.Conv2d(6, 6, 3, padding=1)),
            conv2=_Inner(conv=nn.Conv2d(6, 3, 3, padding=1)),
        )
        self.unet: Any = UNet2DConditionModel.from_pretrained(base / "unet")
        self.vae_a2b: Any = AutoencoderKL.from_pretrained(base / "vae")
        a, b, c, d = self.vae_a2b.config.block_out_channels
        for i, (before, after) in enumerate(((c, d), (b, d), (a, c), (a, b)), start=1):
            skip = nn.Conv2d(before, after, 3, padding=1)
            self.vae_a2b.decoder.add_module(f"skip_conv_{i}", skip)
        self.vae_enc, self.vae_dec = _Inner(vae=self.vae_a2b), _Inner(vae=self.vae_a2b)
        self.scheduler = DDPMScheduler.from_pretrained(base / "scheduler")
        self.scheduler.set_timesteps(1)
        self._hook()

    def _hook(self) -> None:
        seen: list[Tensor] = []
        encoder, decoder = self.vae_a2b.encoder, self.vae_a2b.decoder
        for block in encoder.down_blocks:
            block.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for i, block in enumerate(decoder.up_blocks, start=1):
            skip = getattr(decoder, f"skip_conv_{i}")
            block.register_forward_pre_hook(
                lambda _, args, skip=skip: (args[0] + skip(seen.pop()), *args[1:])
            )

    def forward(self, pixels: Tensor, message: Tensor, prompt_embeds: Tensor) -> Tensor:
        secret = self.sec_encoder
        plane = secret.secret_dense1.linear(2 * (message - 0.5)).relu()
        plane = secret.secret_dense2.linear(plane).relu().reshape(-1, 3, self.side, self.side)
        plane = plane.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
        mixed = secret.conv1.conv(torch.cat([plane, pixels], dim=1)).relu()
        scale = self.vae_a2b.config.scaling_factor
        latents = self.vae_a2b.encode(secret.conv2.conv(mixed)).latent_dist.mode() * scale
        noise = self.unet(latents, 999, prompt_embeds).sample
        clean = self.scheduler.step(noise, 999, latents).prev_sample
        found: Tensor = self.vae_a2b.decode(clean / scale).sample.clamp(-1, 1)
        return found


class _Norm(nn.LayerNorm):
    """Over channels, of pictures with channels first."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _Swap(nn.Module):
    def __init__(self, *order: int) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layer_scale = nn.Parameter(torch.rand(width, 1, 1))
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 7, padding=3, groups=width),
            _Swap(0, 2, 3, 1),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            _Swap(0, 3, 1, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.layer_scale * self.block(x)
        return found


class PublishedDecoder(nn.Module):
    """VINE's decoder as its file names it, which is torchvision's ConvNeXt with a longer head."""

    def __init__(
        self, bits: int, widths: tuple[int, ...], depths: tuple[int, ...], classes: int
    ) -> None:
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, widths[0], 4, stride=4), _Norm(widths[0], eps=1e-6))
        features: list[nn.Module] = [stem]
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            features.append(nn.Sequential(*(_Layer(width) for _ in range(depth))))
            if i < 3:
                reduce = nn.Conv2d(width, widths[i + 1], 2, stride=2)
                features.append(nn.Sequential(_Norm(width, eps=1e-6), reduce))
        head = nn.Sequential(
            _Norm(widths[-1], eps=1e-6),
            nn.Flatten(1),
            nn.Linear(widths[-1], classes),
            nn.Linear(classes, bits),
        )
        self.convnext: Any = _Inner(features=nn.Sequential(*features), classifier=head)

    def forward(self, pixels: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(self.convnext.features(pixels), 1)
        found: Tensor = self.convnext.classifier(pooled)
        return found


def tiny_sd_turbo(folder: Path) -> Path:
    """A folder as SD-Turbo's, with the bundled model's text encoder."""
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=128,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        block_out_channels=(4, 8, 12, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).save_pretrained(folder / "vae")
    for part in ("tokenizer", "text_encoder"):
        shutil.copytree(BUNDLED["miniature-sd"] / part, folder / part)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(
        json.dumps(
            {
                "_class_name": "EulerDiscreteScheduler",
                "beta_start": 0.00085,
                "beta_end": 0.012,
                "beta_schedule": "scaled_linear",
                "clip_sample": False,
                "num_train_timesteps": 1000,
                "prediction_type": "epsilon",
                "steps_offset": 1,
                "timestep_spacing": "trailing",
            }
        )
    )
    return folder


def published(network: nn.Module, path: Path) -> Path:
    """Save as the hub's mixin does: weights with several names stand there once."""
    save_model(network, str(path))
    return path
