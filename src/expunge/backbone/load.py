"""Find the pipeline behind a name, and the backbone for a pipeline."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from expunge.backbone.base import Backbone
from expunge.backbone.flow import FluxBackbone, SD3Backbone
from expunge.backbone.profile import BUNDLED
from expunge.backbone.unet import SDXLBackbone, UNetBackbone

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_BACKBONES: dict[str, type[Backbone]] = {
    "StableDiffusionPipeline": UNetBackbone,
    "StableDiffusionImg2ImgPipeline": UNetBackbone,
    "StableDiffusionInpaintPipeline": UNetBackbone,
    "StableDiffusionXLPipeline": SDXLBackbone,
    "StableDiffusionXLImg2ImgPipeline": SDXLBackbone,
    "StableDiffusionXLInpaintPipeline": SDXLBackbone,
    "FluxPipeline": FluxBackbone,
    "FluxImg2ImgPipeline": FluxBackbone,
    "FluxInpaintPipeline": FluxBackbone,
    "StableDiffusion3Pipeline": SD3Backbone,
    "StableDiffusion3Img2ImgPipeline": SD3Backbone,
    "StableDiffusion3InpaintPipeline": SD3Backbone,
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
        kind = _pipeline_class(str(config))
        return kind.from_single_file(str(path), config=str(config), dtype=dtype)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} does not load with config {config}: {reason}") from error


def _pipeline_class(config: str) -> Any:
    """The class a diffusers folder or hub id names."""
    index = DiffusionPipeline.load_config(config)
    return getattr(diffusers, index["_class_name"])


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
    for ancestor in type(pipe).__mro__:
        if ancestor.__name__ in _BACKBONES:
            return _BACKBONES[ancestor.__name__](pipe)
    raise ValueError(
        f"no backbone for {type(pipe).__name__}: {_capabilities(pipe)}; "
        f"expected one of {', '.join(_BACKBONES)}"
    )


def _capabilities(pipe: Any) -> str:
    """Which of the things a backbone needs a pipeline has, and which it lacks."""
    denoiser = next((getattr(pipe, n) for n in ("unet", "transformer") if hasattr(pipe, n)), None)
    inside = [name for name, _ in denoiser.named_modules()] if denoiser is not None else []
    layers = {name.rpartition(".")[2] for name in inside}
    scheduler = getattr(pipe, "scheduler", None)
    cross = any(name.endswith("attn2.to_k") for name in inside)
    has = {
        "a denoiser (unet or transformer)": isinstance(denoiser, nn.Module),
        "layers that read text (attn2.to_k, or context_embedder)": cross
        or "context_embedder" in layers,
        "attention projections (to_q, to_k, to_v)": {"to_q", "to_k", "to_v"} <= layers,
        "a text encoder": getattr(pipe, "text_encoder", None) is not None,
        "an autoencoder (vae)": getattr(pipe, "vae", None) is not None,
        "a scheduler of ε, v or flow prediction": scheduler is not None
        and (
            scheduler.config.get("prediction_type") in ("epsilon", "v_prediction")
            or "flow" in type(scheduler).__name__.lower()
        ),
    }
    found = [name for name, there in has.items() if there]
    missing = [name for name, there in has.items() if not there]
    return (
        f"it has {', '.join(found) or 'nothing that is needed'}, "
        f"and lacks {', '.join(missing) or 'only a backbone class that knows how they fit'}"
    )
