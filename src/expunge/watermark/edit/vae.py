"""Encode and decode: the control for every edit in a model's latent space."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.watermark.edit.base import Subject
from expunge.watermark.edit.redraw import Redraw


@dataclass(frozen=True)
class VAE(Redraw):
    """The round trip through the model's autoencoder alone.

    A mark that is gone here was not removed by diffusion.
    """

    name: ClassVar[str] = "vae"

    def redraw(self, backbone: Backbone, latents: Tensor, subject: Subject) -> Tensor:
        return latents
