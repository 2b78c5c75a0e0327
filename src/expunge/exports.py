"""Write an erasure for other tools."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Environment, PackageLoader
from safetensors.torch import save_file
from torch import Tensor

from expunge.adapter import LowRank, plain
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.erasure import RECORD, Erasure
from expunge.layouts import kohya_flux, kohya_sd, kohya_sdxl, single_file_tensors
from expunge.run.files import write_atomically

Format = Literal["diffusers", "kohya", "merged", "denoiser", "single"]
WITHOUT_BASE = ("diffusers", "kohya")
"""Formats that hold changes only."""

LORA = "pytorch_lora_weights.safetensors"
KOHYA = "kohya_lora.safetensors"
SINGLE = "model.safetensors"
_KOHYA = ("sd", "sdxl", "flux")
"""Architectures that kohya has names for."""


def _compact(erasure: Erasure) -> dict[str, LowRank]:
    """All concepts at strength 1, every layer with the fewest columns."""
    return {name: change.compressed() for name, change in erasure.changes().items()}


def _header(erasure: Erasure) -> dict[str, str]:
    short = {k: v for k, v in erasure.record.items() if k != "losses"}
    return {"format": "pt", "expunge": json.dumps(short)}


def write_lora(erasure: Erasure, folder: Path) -> Path:
    """Write `pytorch_lora_weights.safetensors`, as plain `pipe.load_lora_weights` reads it."""
    changes = _compact(erasure)
    prefix = erasure.record["denoiser"]
    tensors = {}
    for name, change in changes.items():
        tensors[f"{prefix}.{name}.lora_A.weight"] = change.down.float().contiguous()
        tensors[f"{prefix}.{name}.lora_B.weight"] = change.up.float().contiguous()
    ranks = {name: change.rank for name, change in changes.items()}
    # The only place diffusers reads rank and alpha from; equal, they scale by 1.
    usual = max(ranks.values())
    adapter = {
        f"{prefix}.r": usual,
        f"{prefix}.lora_alpha": usual,
        f"{prefix}.rank_pattern": ranks,
        f"{prefix}.alpha_pattern": ranks,
        f"{prefix}.target_modules": list(changes),
        f"{prefix}.lora_bias": False,
    }
    header = _header(erasure) | {"lora_adapter_metadata": json.dumps(adapter, sort_keys=True)}
    path = folder / LORA
    write_atomically(path, lambda target: save_file(tensors, target, metadata=header))
    return path


def write_kohya(erasure: Erasure, folder: Path) -> Path:
    """Write `kohya_lora.safetensors` with the names that kohya's tools and most front ends read.

    Raises:
        ValueError: kohya has no names for the architecture.
    """
    architecture = str(erasure.record["architecture"])
    if architecture not in _KOHYA:
        raise ValueError(
            f"the format 'kohya' has no names for {architecture}, expected one of "
            f"{', '.join(_KOHYA)}; use the format 'diffusers'"
        )
    changes = _compact(erasure)
    if architecture == "sdxl":
        named = kohya_sdxl(changes, erasure.record["denoiser_config"])
    else:
        named = (kohya_flux if architecture == "flux" else kohya_sd)(changes)
    tensors: dict[str, Tensor] = {}
    for key, change in named.items():
        # Readers scale by alpha / rank, and some get files wrong whose alpha differs by layer.
        tensors[f"{key}.lora_down.weight"] = change.down.float().contiguous()
        tensors[f"{key}.lora_up.weight"] = (change.rank * change.up).float().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    names = ", ".join(concept.name for concept in erasure.concepts)
    header = _header(erasure) | {
        **_kohya_model(erasure),
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "1.0",
        "modelspec.title": f"Without {names}",
    }
    path = folder / KOHYA
    write_atomically(path, lambda target: save_file(tensors, target, metadata=header))
    return path


def _kohya_model(erasure: Erasure) -> dict[str, str]:
    """What front ends look at to tell for which model a file is."""
    module, version, model = "networks.lora", "sd_v1", "stable-diffusion-v1"
    if erasure.record["architecture"] == "flux":
        guided = erasure.record["denoiser_config"]["guidance_embeds"]
        module, version = "networks.lora_flux", "flux1"
        model = "flux-1-dev" if guided else "flux-1-schnell"
    elif erasure.record["architecture"] == "sdxl":
        version, model = "sdxl_base_v1-0", "stable-diffusion-xl-v1-base"
    elif erasure.record["denoiser_config"]["cross_attention_dim"] == 1024:
        version, model = "sd_v2", "stable-diffusion-v2"
    return {
        "ss_network_module": module,
        "ss_base_model_version": version,
        "ss_v2": str(version == "sd_v2"),
        "modelspec.architecture": f"{model}/lora",
    }


@contextlib.contextmanager
def _built_in(erasure: Erasure, backbone: Backbone) -> Iterator[None]:
    """Within this context the model's own weights have the changes built in.

    Only changed weights are copied, so a model larger than half the memory can be merged.
    """
    erasure.check(backbone)
    layers = dict(backbone.denoiser.named_modules())
    for name in erasure.layers:
        if plain(layers[name].weight) is not layers[name].weight:
            raise ValueError(
                "changes cannot be built into a quantised model: load the model in half precision, "
                "or write the format 'diffusers'"
            )
    before = {}
    try:
        for name, change in erasure.changes().items():
            weight = layers[name].weight
            assert isinstance(weight, Tensor)
            before[name] = weight.data
            merged = weight.data.double() + change.delta.to(weight.device)
            weight.data = merged.to(weight.dtype)
        yield
    finally:
        for name, data in before.items():
            weight = layers[name].weight
            assert isinstance(weight, Tensor)
            weight.data = data


def _sign(erasure: Erasure, folder: Path) -> None:
    (folder / "README.md").write_text(model_card(erasure))
    # The record comes last: a folder that has one is whole.
    (folder / RECORD).write_text(json.dumps(erasure.record, indent=1) + "\n")


def write_merged(erasure: Erasure, folder: Path, pipe: Any) -> Path:
    """Write a whole diffusers folder whose weights have the changes built in."""
    backbone = as_backbone(pipe)
    with _built_in(erasure, backbone):
        backbone.pipe.save_pretrained(folder)
    _sign(erasure, folder)
    return folder


def write_denoiser(erasure: Erasure, folder: Path, pipe: Any) -> Path:
    """Write the UNet or transformer alone, in diffusers' form, with the changes built in."""
    backbone = as_backbone(pipe)
    with _built_in(erasure, backbone):
        backbone.denoiser.save_pretrained(folder)  # type: ignore[operator]
    _sign(erasure, folder)
    return folder


def write_single(erasure: Erasure, folder: Path, pipe: Any) -> Path:
    """Write one file in the layout of the original Stable Diffusion code, changes built in.

    It loads with `from_single_file(file, config=…)`, config being the base model's.

    Raises:
        ValueError: that layout has no names for the architecture.
    """
    backbone = as_backbone(pipe)
    with _built_in(erasure, backbone):
        tensors = {k: v.cpu().contiguous() for k, v in single_file_tensors(backbone.pipe).items()}
        header = _header(erasure) | {"expunge.config": backbone.name_or_path}
        path = folder / SINGLE
        write_atomically(path, lambda target: save_file(tensors, target, metadata=header))
    return path


def export(
    erasure: Erasure, folder: str | Path, format: Format = "diffusers", pipe: Any = None
) -> Path:
    """Write an erasure in another tool's format.

    Args:
        erasure: what to write.
        folder: where to.
        format: `diffusers` or `kohya` for a LoRA file, `merged` for a whole model, `denoiser` for
            its UNet or transformer alone, `single` for one checkpoint file (Stable Diffusion 1.x,
            2.x and XL).
        pipe: the base model, needed for all but the LoRA files.

    Returns:
        The file, or for `merged` and `denoiser` the folder.

    Raises:
        ValueError: the format needs the base model, or has no names for the architecture.
    """
    folder = Path(folder)
    if format in WITHOUT_BASE:
        return (write_lora if format == "diffusers" else write_kohya)(erasure, folder)
    if pipe is None:
        raise ValueError(f"the format {format!r} needs the base model, got no pipe")
    write = {"merged": write_merged, "denoiser": write_denoiser, "single": write_single}[format]
    return write(erasure, folder, pipe)


def model_card(erasure: Erasure) -> str:
    """A model card that lists what is erased and how it was made."""
    environment = Environment(
        loader=PackageLoader("expunge", "."), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    template = environment.get_template("model_card.md.jinja")
    return template.render(record=erasure.record, concepts=erasure.concepts, layers=erasure.layers)
