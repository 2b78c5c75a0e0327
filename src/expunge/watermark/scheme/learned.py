"""Our own learned scheme: always there, offline, and differentiable."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.watermark.edit.base import to_float, to_uint8
from expunge.watermark.learned.network import Decoder, Encoder, add_mark, seen
from expunge.watermark.scheme.base import Bits, DifferentiableScheme, Reading
from expunge.watermark.scheme.code import Code, Plain

WEIGHTS = files("expunge.watermark.learned") / "weights"
AT_ONCE = 64
"""Pictures a network sees at once."""


@dataclass(frozen=True, kw_only=True)
class Learned(DifferentiableScheme):
    """An encoder and a decoder trained against distortions, on the bundled world.

    Both see the picture reduced (or enlarged) to 64 x 64; the change the encoder finds is enlarged
    to the picture's own size, so that every picture of at least 64 pixels a side can be marked.

    Attributes:
        psnr: dB between picture and marked picture, before rounding and cutting off.
        weights: a file that `expunge watermark train` wrote; empty for the bundled one.
    """

    name: ClassVar[str] = "learned"
    source: ClassVar[str] = "this project; the idea is Zhu et al., HiDDeN, ECCV 2018"
    minimum_size: ClassVar[int] = 64
    bundled: ClassVar[str] = "learned.safetensors"

    psnr: float = 35.5
    weights: str = ""

    def __post_init__(self) -> None:
        if not 10 <= self.psnr <= 60:
            raise ValueError(f"psnr must lie between 10 and 60 dB, got {self.psnr:g}")

    @property
    def _file(self) -> Path:
        return Path(self.weights or str(WEIGHTS / self.bundled))

    @cached_property
    def _bits(self) -> int:
        path = self._file
        if not path.is_file():
            raise ValueError(f"no weights at {path}; expunge watermark train --out makes some")
        try:
            with safe_open(path, "pt") as handle:
                header = handle.metadata() or {}
            bits, variant = int(header["bits"]), header["variant"]
        except (SafetensorError, KeyError, ValueError):
            raise _no_mark(path) from None
        if variant != self.name:
            raise ValueError(f"{path} holds a {variant}, not a {self.name}; name it {variant}")
        return bits

    @cached_property
    def networks(self) -> nn.ModuleDict:
        """`encoder` and `decoder`, in float32."""
        nets = nn.ModuleDict({"encoder": Encoder(self._bits), "decoder": Decoder(self._bits)})
        try:
            nets.load_state_dict({k: v.float() for k, v in load_file(self._file).items()})
        except (RuntimeError, SafetensorError):
            raise _no_mark(self._file) from None
        nets.requires_grad_(False).eval()
        return nets

    @cached_property
    def weights_hash(self) -> str:
        return hashlib.sha256(self._file.read_bytes()).hexdigest()

    def prepare(self) -> None:
        _ = self.networks

    @property
    def code(self) -> Code:
        return Plain(self._bits)

    @torch.no_grad()
    def _embed(self, pixels: Tensor, bits: Bits) -> Tensor:
        message = torch.from_numpy(bits).float() * 2 - 1
        marked = []
        for part, told in zip(
            torch.split(pixels, AT_ONCE), torch.split(message, AT_ONCE), strict=True
        ):
            hosts = to_float(part)
            change = self._network("encoder", hosts.device)(_channels_last(seen(hosts)), told)
            marked.append(to_uint8(add_mark(hosts, change, self.psnr)))
        return torch.cat(marked)

    @torch.no_grad()
    def extract(self, pixels: Tensor) -> Reading:
        logits = [self.logits(to_float(part)) for part in torch.split(pixels, AT_ONCE)]
        return Reading((torch.cat(logits) > 0).cpu().numpy())

    def logits(self, pixels: Tensor) -> Tensor:
        decoder = self._network("decoder", pixels.device)
        found: Tensor = decoder(_channels_last(seen(pixels)))
        return found

    def _network(self, name: str, device: torch.device) -> nn.Module:
        """One network where the pictures are: guided removal decodes on the model's device."""
        network: nn.Module = self.networks[name]
        if next(network.parameters()).device != device:
            network.to(device)
        return network


@dataclass(frozen=True, kw_only=True)
class LearnedVAE(Learned):
    """The same, with round trips through the autoencoder of `miniature-sd` in its training loop."""

    name: ClassVar[str] = "learned-vae"
    bundled: ClassVar[str] = "learned-vae.safetensors"


def _no_mark(path: Path) -> ValueError:
    return ValueError(f"{path} holds no learned watermark; make one with expunge watermark train")


def _channels_last(pixels: Tensor) -> Tensor:
    return pixels.contiguous(memory_format=torch.channels_last)
