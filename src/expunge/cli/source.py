"""Which model a command works on, and how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from expunge.settings import shown

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.backbone.profile import Profile

USUAL = "miniature-sd"
"""The model where none is named: it comes with the package."""

_DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d{1,3})?")


@Parameter(name="*", group="Model")
@dataclass(frozen=True)
class Source:
    """A model and how it is loaded."""

    model: Annotated[
        str | None,
        Parameter(
            help="Bundled name, diffusers folder, hub id or .safetensors; by default that of the "
            f"run, or {USUAL}."
        ),
    ] = None
    config: Annotated[
        str | None, Parameter(help="Folder or hub id that a single file's configuration is from.")
    ] = None
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        Parameter(help="Of the weights; by default bfloat16 on a GPU, float32 on a CPU."),
    ] = None
    device: Annotated[
        str | None, Parameter(help="cpu, cuda, cuda:1 or mps; a GPU if there is one.")
    ] = None
    offload: Annotated[
        Literal["model", "layers"] | None,
        Parameter(help="Bring a network, or a layer, to the GPU only while it computes."),
    ] = None
    quantize: Annotated[
        Literal["int8"] | None, Parameter(help="Hold the denoiser in 8 bits; needs bfloat16.")
    ] = None

    def named(self, record: Mapping[str, Any] | None = None) -> tuple[str, str | None]:
        """The model and where its configuration is from: as asked for, or as a record says.

        Raises:
            ValueError: the record names no model that could be loaded.
        """
        if self.model is not None:
            return self.model, self.config
        if record is None:
            return USUAL, self.config
        model, config = record.get("model"), self.config or record.get("config")
        if not isinstance(model, str) or not model:
            raise ValueError(
                "the record names no model, since it was made of one in memory; say --model"
            )
        return model, config

    def profile(self, record: Mapping[str, Any] | None = None) -> Profile:
        """What is known of the model by its name, without torch; checks all options.

        Raises:
            ValueError: the name cannot be a model's, or an option makes no sense.
        """
        from expunge.backbone.source import profile_of

        self.check()
        return profile_of(*self.named(record))

    def check(self) -> None:
        """Refuse options that make no sense, whatever the model.

        Raises:
            ValueError: says which.
        """
        if self.device is not None and not _DEVICE.fullmatch(self.device):
            raise ValueError(f"device must be cpu, cuda, cuda:N or mps, got {shown(self.device)}")
        if self.device == "cpu" and self.offload:
            raise ValueError("offload brings weights to a GPU, and the device is cpu: leave it out")
        if self.quantize and self.dtype not in (None, "bfloat16"):
            raise ValueError(f"quantize computes in bfloat16, got dtype {self.dtype}")

    def load(self, record: Mapping[str, Any] | None = None) -> Backbone:
        """The model's backbone, loaded without progress bars."""
        import diffusers.utils.logging as diffusers_logging
        import torch
        import transformers.utils.logging as transformers_logging

        from expunge.backbone.load import as_backbone, load

        diffusers_logging.disable_progress_bar()
        transformers_logging.disable_progress_bar()
        model, config = self.named(record)
        dtype = self.dtype or ("bfloat16" if self.quantize else None)
        return as_backbone(
            load(
                model,
                config=config,
                dtype=None if dtype is None else getattr(torch, dtype),
                device=self.device,
                offload=self.offload,
                quantize=self.quantize,
            )
        )


USUAL_SOURCE = Source()
"""Nothing said: a command's own choice."""
