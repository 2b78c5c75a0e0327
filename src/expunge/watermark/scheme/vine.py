"""VINE: a watermark that a one-step diffusion model draws into the picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from expunge.judge.base import weights_hash
from expunge.watermark.edit.base import to_float, to_uint8
from expunge.watermark.scheme.base import Bits, DifferentiableScheme, Reading
from expunge.watermark.scheme.code import Code, Plain
from expunge.watermark.scheme.vine_network import BITS, VINEDecoder, VINEEncoder
from expunge.watermark.scheme.vine_weights import load_decoder, load_encoder, published

Variant = Literal["B", "R"]

SIDE = 256
"""Pixels along a side of what the decoder sees."""


@dataclass(frozen=True, kw_only=True)
class VINE(DifferentiableScheme):
    """100 bits without error correction, drawn by a fine-tuned SD-Turbo at 256 x 256.

    A picture of another size is brought to 256 x 256, whatever its proportions (the authors cut a
    square, and round to bytes); what the encoder changes there is brought to the picture's own size
    and added to it.

    The encoder has about a billion weights and works on one picture at a time. Weights come from
    the hub (`Shilin-LU/VINE-R-Enc`, 4 GB, and so on, and SD-Turbo's text encoder).

    Attributes:
        variant: B, the base, or R, fine-tuned to withstand editing.
    """

    name: ClassVar[str] = "vine"
    source: ClassVar[str] = "Lu et al., Robust Watermarking Using Generative Priors, ICLR 2025"
    terms: ClassVar[str] = (
        "the weights are NTUITIVE's, for non-commercial use only; those of SD-Turbo's text encoder "
        "come under Stability AI's licence"
    )

    variant: Variant = "R"

    def __post_init__(self) -> None:
        if self.variant not in get_args(Variant):
            raise ValueError(f"variant must be one of {get_args(Variant)}, got {self.variant!r}")

    @property
    def code(self) -> Code:
        return Plain(BITS)

    @cached_property
    def weights_hash(self) -> str:
        return weights_hash(nn.ModuleList([self._encoder, self._decoder]))

    @cached_property
    def _encoder(self) -> VINEEncoder:
        try:
            return load_encoder(published(f"Shilin-LU/VINE-{self.variant}-Enc"))
        except OSError as error:
            raise self._missing("Enc", error) from error

    @cached_property
    def _decoder(self) -> VINEDecoder:
        try:
            return load_decoder(published(f"Shilin-LU/VINE-{self.variant}-Dec"))
        except OSError as error:
            raise self._missing("Dec", error) from error

    def _missing(self, part: str, error: OSError) -> ValueError:
        first = str(error).strip().partition("\n")[0]
        return ValueError(
            f"the hub did not give vine's weights, Shilin-LU/VINE-{self.variant}-{part} and "
            f"stabilityai/sd-turbo; connect once, or log in, and try again ({first})"
        )

    def prepare(self) -> None:
        """Load both networks.

        Raises:
            ValueError: the hub cannot be reached, or its files are not what they were.
        """
        _ = self._encoder, self._decoder

    @torch.no_grad()
    def _embed(self, pixels: Tensor, bits: Bits) -> Tensor:
        encoder = self._encoder.to(pixels.device)
        messages = torch.from_numpy(bits).float().to(pixels.device)
        marked = []
        hosts = torch.split(to_float(pixels), 1)
        for host, message in zip(hosts, torch.split(messages, 1), strict=True):
            small = _square(host, encoder.resolution) * 2 - 1
            change = (encoder(small, message) - small) / 2
            size = tuple(host.shape[-2:])
            change = F.interpolate(change, size, mode="bicubic", antialias=True)
            marked.append(to_uint8(host + change))
        return torch.cat(marked)

    @torch.no_grad()
    def extract(self, pixels: Tensor) -> Reading:
        read = [self.logits(host) > 0 for host in torch.split(to_float(pixels), 1)]
        return Reading(torch.cat(read).cpu().numpy())

    def logits(self, pixels: Tensor) -> Tensor:
        found: Tensor = self._decoder.to(pixels.device)(_square(pixels, SIDE))
        return found


def _square(pixels: Tensor, side: int) -> Tensor:
    """Pictures in [0, 1] at the networks' size."""
    return F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
