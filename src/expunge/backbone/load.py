"""Find the pipeline behind a name, and the backbone for a pipeline."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline

from expunge.backbone.base import BUNDLED, Backbone
from expunge.backbone.unet import UNetBackbone

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_BACKBONES: dict[str, type[Backbone]] = {
    "StableDiffusionPipeline": UNetBackbone,
    "StableDiffusionImg2ImgPipeline": UNetBackbone,
    "StableDiffusionInpaintPipeline": UNetBackbone,
}


def load(
    source: str | Path,
    *,
    config: str | Path | None = None,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device | None = None,
) -> Any:
    """Load a plain diffusers pipeline.

    Args:
        source: a bundled model's name (`miniature-sd`), a diffusers folder, a hub id such as
            `stable-diffusion-v1-5/stable-diffusion-v1-5`, or a single `.safetensors` file.
        config: for a single file, the folder or hub id its configuration comes from.
        dtype: precision of the weights.
        device: where to put it; None for a GPU if there is one.

    Raises:
        ValueError: nothing is found there, or the file is a pickle.
    """
    path = BUNDLED.get(str(source), Path(source))
    if path.suffix in _PICKLES:
        raise ValueError(f"{path.name} is a pickle, which can run code; only safetensors are read")
    if path.is_file():
        pipe = _load_file(path, config, dtype)
    elif (path / "model_index.json").is_file():
        pipe = DiffusionPipeline.from_pretrained(path, dtype=dtype, use_safetensors=True)
    else:
        pipe = _load_hub(str(source), dtype)
    if hasattr(pipe, "unet"):
        pipe.unet.to(memory_format=torch.channels_last)  # up to five times faster on a CPU
    if str(source) in BUNDLED:
        pipe.register_to_config(_name_or_path=str(source))
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _load_file(path: Path, config: str | Path | None, dtype: torch.dtype) -> Any:
    if path.suffix != ".safetensors":
        raise ValueError(f"a single-file model must be .safetensors, got {path.name}")
    if config is None:
        raise ValueError(
            f"{path.name} is a single file: say config=… (a diffusers folder or hub id)"
        )
    try:
        return StableDiffusionPipeline.from_single_file(str(path), config=str(config), dtype=dtype)
    except Exception as error:
        raise ValueError(
            f"{path} with config {config} is no Stable Diffusion checkpoint: {error}"
        ) from error


def _load_hub(source: str, dtype: torch.dtype) -> Any:
    if source in BUNDLED:
        raise ValueError(f"the weights of {source} are missing from this installation")
    near = difflib.get_close_matches(source, BUNDLED, 1, 0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if source.count("/") != 1 or Path(source).exists() or source.startswith((".", "/")):
        raise ValueError(
            f"no model at {source!r}: expected {', '.join(BUNDLED)}, a diffusers folder, "
            f"a hub id (owner/name) or a .safetensors file{hint}"
        )
    try:
        return DiffusionPipeline.from_pretrained(source, dtype=dtype, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"cannot load {source!r} from the hub: {reason}") from error


def as_backbone(pipe: Any) -> Backbone:
    """The backbone of a pipeline, or the backbone itself.

    Raises:
        ValueError: no backbone knows this class of pipeline.
    """
    if isinstance(pipe, Backbone):
        return pipe
    kind = _BACKBONES.get(type(pipe).__name__)
    if kind is None:
        raise ValueError(
            f"no backbone for {type(pipe).__name__}; expected one of {', '.join(_BACKBONES)}"
        )
    return kind(pipe)
