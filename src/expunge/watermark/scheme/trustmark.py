"""TrustMark, through its authors' package."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from expunge.judge.base import weights_hash
from expunge.watermark.scheme.base import Bits, PictureScheme, Reading
from expunge.watermark.scheme.code import Code, Decoded
from expunge.watermark.scheme.missing import optional

ECC = Literal["BCH_SUPER", "BCH_5", "BCH_4", "BCH_3"]
Variant = Literal["Q", "B", "C", "P"]

RAW_BITS = 100
CAPACITY: dict[str, int] = {"BCH_SUPER": 40, "BCH_5": 61, "BCH_4": 68, "BCH_3": 75}
"""Bits of a payload, in the order of the schemas' numbers."""
EXTRA = "trustmark"


@dataclass(frozen=True)
class TrustMarkCode(Code):
    """A payload, its BCH parity and, in the last four bits, the number of the schema.

    A reading is sure where the package detects a mark and finds the schema that was chosen. Of
    20,000 random readings that held for none with BCH_SUPER, 0.1 % with BCH_5, 0.3 % with BCH_4
    and 2 % with BCH_3; the package's detection alone fires four times as often.

    Attributes:
        ecc: the schema: up to 8, 5, 4 or 3 flipped bits are corrected.
    """

    ecc: ECC = "BCH_5"

    @property
    def payload_bits(self) -> int:  # type: ignore[override]
        return CAPACITY[self.ecc]

    @property
    def raw_bits(self) -> int:  # type: ignore[override]
        return RAW_BITS

    @property
    def _schema(self) -> int:
        return list(CAPACITY).index(self.ecc)

    @cached_property
    def _layer(self) -> Any:
        package = _package("trustmark.datalayer")
        return package.DataLayer(RAW_BITS, verbose=False, encoding_mode=self._schema)

    def encode(self, payloads: Bits) -> Bits:
        words = [self._layer.encode_binary([_text(payload)])[0] for payload in payloads]
        return np.array(words, np.bool_).reshape(len(payloads), RAW_BITS)

    def decode(self, bits: Bits) -> Decoded:
        payloads = np.zeros((len(bits), self.payload_bits), np.bool_)
        sure = np.zeros(len(bits), np.bool_)
        for i, (text, detected, schema) in enumerate(self._layer.decode_bitstream(bits, "binary")):
            sure[i] = detected and schema == self._schema
            if schema == self._schema:
                payloads[i] = _bits(text)
        return Decoded(payloads, sure)


@dataclass(frozen=True, kw_only=True)
class TrustMark(PictureScheme):
    """100 raw bits at any resolution, embedded and read by the package as it is.

    Needs `trustmark` and with it torchvision. When it is first used the package fetches its
    weights into its own folder, as pickles that torch reads with `weights_only`. Its network that
    removes marks is never loaded.

    Attributes:
        variant: of the networks: Q (the paper's), B, C (small), or P (quality; marks the central
            square only).
        ecc: schema of the error correction, of 40, 61, 68 or 75 bits.
    """

    name: ClassVar[str] = "trustmark"
    source: ClassVar[str] = "Bui et al., TrustMark, ICCV 2025"

    variant: Variant = "Q"
    ecc: ECC = "BCH_5"

    def __post_init__(self) -> None:
        for field, value, known in (("variant", self.variant, Variant), ("ecc", self.ecc, ECC)):
            if value not in get_args(known):
                raise ValueError(f"{field} must be one of {get_args(known)}, got {value!r}")

    @cached_property
    def code(self) -> Code:
        return TrustMarkCode(self.ecc)

    @cached_property
    def weights_hash(self) -> str:
        package = self._package
        return weights_hash(nn.ModuleList([package.encoder.encoder, package.decoder.decoder]))

    def prepare(self) -> None:
        """Load the package and its weights.

        Raises:
            ValueError: the package is missing, cannot be imported, or got no weights.
        """
        _ = self._package

    @cached_property
    def _package(self) -> Any:
        kind = _package("trustmark").TrustMark
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            # Without error correction, as the raw bits are what is matched; `code` does the rest.
            made = kind(use_ECC=False, verbose=False, model_type=self.variant, loadRemover=False)
        if made.encoder is None or made.decoder is None:
            why = said.getvalue().strip().rpartition("\n")[2]
            raise ValueError(
                f"trustmark found no weights for variant {self.variant}, which it fetches once "
                f"from cai-watermark.adobe.net into its own folder; connect and try again ({why})"
            )
        return made

    def _embed(self, pixels: Tensor, bits: Bits) -> Tensor:
        marked = [
            np.asarray(self._package.encode(picture, _text(message), MODE="binary"))
            for picture, message in zip(_pictures(pixels), bits, strict=True)
        ]
        return torch.from_numpy(np.stack(marked)).permute(0, 3, 1, 2).to(pixels.device)

    def extract(self, pixels: Tensor) -> Reading:
        read = [self._package.decode(picture, MODE="binary")[0] for picture in _pictures(pixels)]
        return Reading(np.array([_bits(text) for text in read]).reshape(len(read), RAW_BITS))


def _package(module: str) -> Any:
    try:
        return optional(module, EXTRA, TrustMark.name)
    except RuntimeError as error:  # what a torchvision that was built for another torch raises
        raise ValueError(
            f"trustmark needs a torchvision that fits torch {torch.__version__}: {error}"
        ) from error


def _pictures(pixels: Tensor) -> list[Image.Image]:
    return [Image.fromarray(each) for each in pixels.permute(0, 2, 3, 1).cpu().numpy()]


def _text(bits: Bits) -> str:
    return "".join("1" if bit else "0" for bit in bits)


def _bits(text: str) -> Bits:
    return np.array([each == "1" for each in text], np.bool_)
