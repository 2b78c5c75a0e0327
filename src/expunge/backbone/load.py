"""Find the pipeline behind a name, and the backbone for a pipeline."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Literal, get_args

import diffusers
import torch
from diffusers import DiffusionPipeline
from torch import nn

from expunge.backbone.base import Backbone
from expunge.backbone.facts import CONFIG_OF_FILE
from expunge.backbone.flux import FluxBackbone
from expunge.backbone.profile import BUNDLED
from expunge.backbone.sd3 import SD3Backbone
from expunge.backbone.source import check_source
from expunge.backbone.unet import SDXLBackbone, UNetBackbone

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

Offload = Literal["model", "layers"]
"""What moves to the GPU when it is needed and back afterwards: one network, or one layer."""

Quantize = Literal["int8"]


def load(
    source: str | Path,
    *,
    config: str | Path | None = None,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    offload: Offload | None = None,
    quantize: Quantize | None = None,
) -> Any:
    """Load a plain diffusers pipeline.

    Args:
        source: a bundled model's name (`miniature-sd`), a diffusers folder, a hub id such as
            `stable-diffusion-v1-5/stable-diffusion-v1-5`, or a single `.safetensors` file.
        config: for a single file, where its configuration comes from: a bundled model's name, a
            folder or a hub id.
        dtype: precision of the weights; None for bfloat16 on a GPU, and float32 on a CPU and for
            bundled models.
        device: where to put it; None for a GPU if there is one.
        offload: keep weights in main memory and bring them to the GPU only while they compute:
            network by network (`model`), or layer by layer (`layers`: the least memory and the
            least speed; enough to solve closed forms and to draw, not to fine-tune).
        quantize: hold the denoiser's linear layers in 8 bits, one scale a row. What is erased is
            then the quantised model. Needs `dtype=torch.bfloat16` and `expunge[quantize]`.

    Raises:
        ValueError: nothing is found there, weights are pickles, the device is not there, there is
            no GPU to offload to, or quantisation is asked of another dtype or without its library.
    """
    target = _device(device)
    if dtype is None:
        small = target.type == "cpu" or str(source) in BUNDLED
        dtype = torch.float32 if small else torch.bfloat16
    _check(target, dtype, offload, quantize)
    check_source(source, config)
    path = BUNDLED.get(str(source), Path(source))
    if path.is_file():
        pipe = _load_file(path, config, dtype)
    elif (path / "model_index.json").is_file():
        pipe = DiffusionPipeline.from_pretrained(
            path, dtype=dtype, use_safetensors=True, variant=_variant(path)
        )
    else:
        pipe = _load_hub(str(source), dtype)
    if hasattr(pipe, "unet"):
        pipe.unet.to(memory_format=torch.channels_last)  # up to five times faster on a CPU
    if str(source) in BUNDLED:
        pipe.register_to_config(_name_or_path=str(source))
    pipe.set_progress_bar_config(disable=True)
    if quantize:
        _quantize(pipe.unet if hasattr(pipe, "unet") else pipe.transformer)
    if offload:
        _offload(pipe, offload, target)
        return pipe
    return pipe.to(target)


def _device(wanted: str | torch.device | None) -> torch.device:
    """The device a user names, or the best there is.

    Raises:
        ValueError: it is not there.
    """
    gpu = torch.cuda.is_available()
    if wanted is None:
        return torch.device("cuda" if gpu else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ValueError(f"device must be such as 'cpu' or 'cuda', got {wanted!r}") from None
    there = {"cpu": True, "cuda": gpu, "mps": torch.backends.mps.is_available()}
    beyond = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    if beyond or not there.get(device.type, True):
        raise ValueError(
            f"device {str(wanted)!r} is not there: this torch finds "
            f"{', '.join(name for name, found in there.items() if found)}; leave device out"
        )
    return device


def _variant(folder: Path) -> str | None:
    """Which variant of its weights a folder holds, None for the plain ones.

    Raises:
        ValueError: it holds pickles alone.
    """
    denoiser = next((folder / n for n in ("unet", "transformer") if (folder / n).is_dir()), folder)
    names = [file.name for file in denoiser.glob("diffusion_pytorch_model*.safetensors")]
    if any(re.fullmatch(r"diffusion_pytorch_model(-\d+-of-\d+)?\.safetensors", n) for n in names):
        return None
    found = sorted({match[1] for n in names if (match := re.search(r"_model\.(\w+)[-.]", n))})
    if found:
        return "fp16" if "fp16" in found else found[0]
    if any(denoiser.glob("*.bin")):
        raise ValueError(
            f"{folder} holds its weights only as pickles (.bin), which can run code: convert them "
            "where that does no harm (pipe.save_pretrained writes safetensors), or find a copy "
            "with safetensors"
        )
    return None


def _check(
    target: torch.device, dtype: torch.dtype, offload: Offload | None, quantize: Quantize | None
) -> None:
    """Refuse what cannot be done before anything is read."""
    for name, value, known in (("offload", offload, Offload), ("quantize", quantize, Quantize)):
        if value is not None and value not in get_args(known):
            raise ValueError(f"{name} must be one of {get_args(known)} or None, got {value!r}")
    if offload and target.type == "cpu":
        raise ValueError(
            f"offload={offload!r} brings weights to a GPU while they compute, and the device is "
            "the CPU: leave offload out, or name a GPU"
        )
    if quantize and dtype != torch.bfloat16:
        raise ValueError(
            f"quantize={quantize!r} computes in bfloat16, got dtype={dtype}; "
            "say dtype=torch.bfloat16"
        )


def _offload(pipe: Any, kind: Offload, device: torch.device) -> None:
    if kind == "model":
        pipe.enable_model_cpu_offload(device=device)
        return
    # Sequential offloading would leave layers without weights to solve for and to hash.
    pipe.enable_group_offload(
        onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level"
    )


def _quantize(denoiser: nn.Module) -> None:
    """Turn linear layers' weights into 8-bit ones, in place."""
    try:
        quanto = importlib.import_module("optimum.quanto")
    except ImportError:
        raise ValueError(
            "quantize='int8' needs optimum-quanto: pip install 'expunge[quantize]'"
        ) from None
    chosen = [
        name
        for name, layer in denoiser.named_modules()
        # The CPU's kernel reads 16 columns at once, beyond the end of other layers' memory.
        if isinstance(layer, nn.Linear) and layer.in_features % 16 == 0
    ]
    quanto.quantize(denoiser, weights=quanto.qint8, include=chosen)
    quanto.freeze(denoiser)


def _load_file(path: Path, config: str | Path | None, dtype: torch.dtype) -> Any:
    folder = str(BUNDLED.get(str(config), config))
    try:
        kind = _pipeline_class(folder)
        pipe = kind.from_single_file(str(path), config=folder, dtype=dtype)
        pipe.register_to_config(_name_or_path=str(path))
        vars(pipe)[CONFIG_OF_FILE] = str(config)
        return pipe
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} does not load with config {config}: {reason}") from error


def _pipeline_class(config: str) -> Any:
    """The class a diffusers folder or hub id names."""
    index = DiffusionPipeline.load_config(config)
    return getattr(diffusers, index["_class_name"])


def _load_hub(source: str, dtype: torch.dtype) -> Any:
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
