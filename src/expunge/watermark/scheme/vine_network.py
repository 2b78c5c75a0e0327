"""VINE's encoder and decoder, written afresh from diffusers' and transformers' classes."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import ConvNextConfig, ConvNextModel

BITS = 100


class VINEEncoder(nn.Module):
    """A picture and a message, mixed, then drawn again by SD-Turbo in one step (Fig. 4).

    The autoencoder's decoder gets what its encoder saw at every size, so that details stay.

    Args:
        unet: a `UNet2DConditionModel`.
        vae: an `AutoencoderKL` with four blocks.
        scheduler: a `DDPMScheduler`; the step is from its last timestep to the clean picture.
        prompt_embeds: of the empty prompt, (1, tokens, width).
        bits: of a message.
        side: of the plane the message is spread over; pictures have four times that.
    """

    prompt_embeds: Tensor

    def __init__(
        self,
        unet: Any,
        vae: Any,
        scheduler: Any,
        prompt_embeds: Tensor,
        bits: int = BITS,
        side: int = 64,
    ) -> None:
        super().__init__()
        self.unet, self.vae, self._scheduler, self._side = unet, vae, scheduler, side
        self.message = nn.Sequential(
            nn.Linear(bits, side**2), nn.ReLU(), nn.Linear(side**2, 3 * side**2), nn.ReLU()
        )
        self.mix = nn.Sequential(
            nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 3, 3, padding=1)
        )
        widths = vae.config.block_out_channels
        down = (widths[0], *widths[:-1])[::-1]
        up = (widths[-1], *widths[:0:-1])
        self.skips = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1) for a, b in zip(down, up, strict=True)
        )
        self.register_buffer("prompt_embeds", prompt_embeds, persistent=False)

    @property
    def resolution(self) -> int:
        """Pixels along a side of its pictures."""
        return 4 * self._side

    def forward(self, pixels: Tensor, message: Tensor) -> Tensor:
        """Mark pictures.

        Args:
            pixels: [-1, 1], (n, 3, resolution, resolution).
            message: 0 or 1, (n, bits).

        Returns:
            Marked pictures, [-1, 1], of the same shape.
        """
        plane = self.message(2 * message - 1).view(-1, 3, self._side, self._side)
        plane = F.interpolate(plane, scale_factor=4, mode="nearest")
        latents, seen = self._encode(self.mix(torch.cat([plane, pixels], dim=1)))
        last = self._scheduler.config.num_train_timesteps - 1
        embeds = self.prompt_embeds.expand(len(pixels), -1, -1)
        noise = self.unet(latents, last, encoder_hidden_states=embeds).sample
        # A step to the very end adds no noise: what it gives is the clean picture it predicts.
        step = self._scheduler.step(noise, last, latents, generator=torch.Generator())
        return self._decode(step.pred_original_sample, seen).clamp(-1, 1)

    def _encode(self, pixels: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Latents, and what each block was given."""
        encoder, seen = self.vae.encoder, []
        hidden = encoder.conv_in(pixels)
        for block in encoder.down_blocks:
            seen.append(hidden)
            hidden = block(hidden)
        hidden = encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(hidden)))
        moments = self.vae.quant_conv(encoder.conv_out(hidden))
        return moments.chunk(2, dim=1)[0] * self.vae.config.scaling_factor, seen

    def _decode(self, latents: Tensor, seen: list[Tensor]) -> Tensor:
        decoder = self.vae.decoder
        hidden = self.vae.post_quant_conv(latents / self.vae.config.scaling_factor)
        hidden = decoder.mid_block(decoder.conv_in(hidden))
        for block, skip, before in zip(decoder.up_blocks, self.skips, seen[::-1], strict=True):
            hidden = block(hidden + skip(before))
        return cast("Tensor", decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(hidden))))


class VINEDecoder(nn.Module):
    """A ConvNeXt, its thousand classes, and one unit a bit on top of them.

    Args:
        bits: of a message.
        hidden_sizes: channels of the four stages.
        depths: layers of the four stages.
        classes: of the head below the last.
    """

    def __init__(
        self,
        bits: int = BITS,
        hidden_sizes: tuple[int, ...] = (128, 256, 512, 1024),
        depths: tuple[int, ...] = (3, 3, 27, 3),
        classes: int = 1000,
    ) -> None:
        super().__init__()
        config = ConvNextConfig(
            hidden_sizes=list(hidden_sizes), depths=list(depths), layer_norm_eps=1e-6
        )
        self.body = ConvNextModel(config)
        self.head = nn.Sequential(nn.Linear(hidden_sizes[-1], classes), nn.Linear(classes, bits))

    def forward(self, pixels: Tensor) -> Tensor:
        """Log-odds of every bit, (n, bits), of pictures in [0, 1], (n, 3, height, width)."""
        return cast("Tensor", self.head(self.body(pixels).pooler_output))
