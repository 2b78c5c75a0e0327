"""Pictures to latents and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from expunge.backbone.facts import Facts


class Pictures(Facts):
    """A pipeline's autoencoder."""

    normed_latents = False
    """Whether the pipeline heeds the mean and deviation an autoencoder states (SDXL's does)."""

    @contextlib.contextmanager
    def _autoencoder(self) -> Iterator[Any]:
        """The autoencoder, in float32 while in use if half precision would overflow it (SDXL's)."""
        vae = self.pipe.vae
        half = vae.dtype == torch.float16 and vae.config.get("force_upcast", False)
        if half:
            vae.to(torch.float32)
        try:
            yield vae
        finally:
            if half:
                vae.to(torch.float16)

    def _scale_and_shift(self, like: Tensor) -> tuple[Tensor | float, Tensor | float]:
        """What takes the denoiser's latents to the autoencoder's: times scale, plus shift."""
        config = self.pipe.vae.config
        mean, deviation = config.get("latents_mean"), config.get("latents_std")
        if self.normed_latents and mean is not None and deviation is not None:
            shift, scale = (
                torch.tensor(values, device=like.device, dtype=like.dtype).view(1, -1, 1, 1)
                for values in (mean, deviation)
            )
            return scale / config.scaling_factor, shift
        return 1 / config.scaling_factor, config.get("shift_factor") or 0.0

    @torch.no_grad()
    def decode(self, latents: Tensor) -> list[Image.Image]:
        """Pictures of clean latents."""
        return to_images(self.decode_pixels(latents))

    def decode_pixels(self, latents: Tensor) -> Tensor:
        """Pixels of clean latents, about [-1, 1], (n, 3, height, width), with a gradient."""
        with self._autoencoder() as vae:
            inside = latents.to(vae.dtype)
            scale, shift = self._scale_and_shift(inside)
            pixels: Tensor = vae.decode(inside * scale + shift, return_dict=False)[0]
            return pixels

    def encode_images(self, images: Sequence[Image.Image]) -> Tensor:
        """Clean latents of pictures of one size (the posterior's mode)."""
        return self.encode_pixels(to_pixels(images))

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Clean latents of pixels in [-1, 1], (n, 3, height, width).

        The posterior's mode; of an autoencoder without one (`AutoencoderTiny`) what it encodes.
        """
        with self._autoencoder() as vae:
            found = vae.encode(pixels.to(self.device, vae.dtype))
            inside = found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latents
            scale, shift = self._scale_and_shift(inside)
            latents: Tensor = ((inside - shift) / scale).to(self.dtype)
            return latents


def to_images(pixels: Tensor) -> list[Image.Image]:
    """Pictures of decoded pixels in [-1, 1], (n, 3, height, width)."""
    array = ((pixels.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(picture) for picture in array.permute(0, 2, 3, 1).cpu().numpy()]


def to_pixels(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as float32 in [-1, 1], (n, 3, height, width)."""
    array = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
