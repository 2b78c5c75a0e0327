"""StegaStamp, with ONNX files that the user brings."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from expunge.watermark.edit.base import to_float, to_uint8
from expunge.watermark.scheme.base import Bits, PictureScheme, Reading
from expunge.watermark.scheme.code import BCH, Code
from expunge.watermark.scheme.stegastamp_network import StegaStampNetwork, resized


@dataclass(frozen=True, kw_only=True)
class StegaStamp(PictureScheme):
    """100 raw bits in a picture of 400 x 400 pixels; 56 bits behind a BCH code.

    A picture of another size is brought to 400 x 400, whatever its proportions; what the encoder
    adds there is brought to the picture's own size and added to it. The decoder sees every picture
    at 400 x 400.

    No weights come with Expunge. The files read pictures in [0, 1], channels first or last. The
    encoder takes a picture and 100 bits and gives the marked picture, the change, or both; the
    decoder takes a picture and gives 100 bits, probabilities or logits. One file may be both, as
    `decoders/stega_stamp.onnx` of https://github.com/umd-huang-lab/WAVES is. Names do not matter.

    Attributes:
        encoder: path of an ONNX file.
        decoder: path of an ONNX file, perhaps the same.
    """

    name: ClassVar[str] = "stegastamp"
    source: ClassVar[str] = "Tancik et al., StegaStamp, CVPR 2020"

    encoder: str
    decoder: str

    @property
    def label(self) -> str:
        return self.name  # paths of files say nothing to a reader

    @property
    def code(self) -> Code:
        return BCH()

    @cached_property
    def weights_hash(self) -> str:
        paths = [Path(self.encoder), Path(self.decoder)]
        return ":".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)

    @cached_property
    def _networks(self) -> tuple[StegaStampNetwork, StegaStampNetwork]:
        encoder = StegaStampNetwork(self.encoder, self.raw_bits)
        same = self.encoder == self.decoder
        return encoder, encoder if same else StegaStampNetwork(self.decoder, self.raw_bits)

    def prepare(self) -> None:
        """Open both files and see that one hides and the other reads.

        Raises:
            ValueError: onnxruntime or bchlib is missing, or a file is missing or does not fit.
        """
        encoder, decoder = self._networks
        _ = encoder.marks, decoder.reads, self.code.encode(self.payloads([0]))

    def _embed(self, pixels: Tensor, bits: Bits) -> Tensor:
        hosts = to_float(pixels)
        change = self._networks[0].change(hosts, bits).to(hosts.device)
        return to_uint8(hosts + resized(change, tuple(hosts.shape[-2:])))

    def extract(self, pixels: Tensor) -> Reading:
        return Reading(self._networks[1].bits_in(to_float(pixels)))
