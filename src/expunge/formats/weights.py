"""Files that hold whole networks, with the changes built into their weights."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from expunge import hooks
from expunge.adapter import find_layers, weight_of
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.change import summed
from expunge.erasure import Erasure
from expunge.folder import prepare
from expunge.formats.card import write_card
from expunge.formats.naming import header, implementation, told
from expunge.formats.ranks import refuse_unweighted
from expunge.layouts import single_file_tensors
from expunge.record import RECORD
from expunge.run.files import write_atomically, write_text

SINGLE = "model.safetensors"


def write_merged(erasure: Erasure, folder: Path, pipe: Any) -> Path:
    """Write a whole diffusers folder whose weights have the changes built in."""
    backbone = as_backbone(pipe)
    networks = _built_in(erasure, backbone)
    _begin(erasure, folder)
    with_networks(backbone.pipe, networks).save_pretrained(folder, safe_serialization=True)
    return _sign(erasure, folder, "merged")


def write_components(erasure: Erasure, folder: Path, pipe: Any) -> Path:
    """Write every changed network alone, each in a folder of its own, in its library's form."""
    networks = _built_in(erasure, as_backbone(pipe))
    _begin(erasure, folder)
    for component in erasure.components:
        networks[component].save_pretrained(folder / component, safe_serialization=True)
    return _sign(erasure, folder, "components")


def write_single(erasure: Erasure, folder: Path, pipe: Any) -> Path:
    """Write one file in the layout of the original Stable Diffusion code, changes built in.

    It loads with `from_single_file(file, config=…)`, config being the base model's.

    Raises:
        ValueError: that layout has no names for the architecture.
    """
    backbone = as_backbone(pipe)
    whole = with_networks(backbone.pipe, _built_in(erasure, backbone))
    tensors = {key: value.cpu().contiguous() for key, value in single_file_tensors(whole).items()}
    meta = header(erasure, implementation(backbone.architecture, original=True), None)
    path = folder / SINGLE
    write_atomically(path, lambda target: save_file(tensors, target, metadata=meta))
    write_card(erasure, folder, "single")
    return path


def _begin(erasure: Erasure, folder: Path) -> None:
    """Nothing of another erasure may stay there, and no record until all is written."""
    prepare(folder, erasure.id, force=False)
    (folder / RECORD).unlink(missing_ok=True)


def _sign(erasure: Erasure, folder: Path, format_: str) -> Path:
    for path in (*folder.glob("*.json"), *folder.glob("*/config.json")):
        _forget_path(path)
    write_card(erasure, folder, format_)
    # The record comes last: a folder that has one is whole.
    record = {**told(erasure), "format": format_}
    write_text(folder / RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return folder


def _forget_path(path: Path) -> None:
    """Take the folder a model was loaded from out of its configuration."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if data.pop("_name_or_path", None) is not None:
        write_text(path, json.dumps(data, indent=2) + "\n")


def with_networks(pipe: Any, networks: dict[str, Any]) -> Any:
    """The pipeline with other networks; the one that was given stays as it is."""
    other = copy.copy(pipe)
    for component, network in networks.items():
        setattr(other, component, network)
    return other


def _built_in(erasure: Erasure, backbone: Backbone) -> dict[str, Any]:
    """Changed networks and the denoiser, bare and with the changes in their weights.

    Only changed weights are copied, so a model larger than half the memory can be merged. What
    other tools wrapped around a layer (a user's LoRA, compiled code) is left out.

    Raises:
        ValueError: no change of weights stands for the erasure, it is of another model, or the
            model holds weights that nothing can be built into.
    """
    refuse_unweighted(erasure, "weights")
    erasure.check(backbone)
    found = find_layers(backbone.networks, erasure.layers)
    for place, module in found.items():
        _check_weight(place, module)
    merged = {
        place: weight_of(found[place]) + summed(changes).delta.cpu()
        for place, changes in erasure.by_place().items()
    }
    names = sorted({backbone.denoiser_name, *erasure.components})
    return {name: bare(backbone.networks[name], name, merged) for name in names}


def _check_weight(place: str, module: nn.Module) -> None:
    weight = module.weight
    assert isinstance(weight, Tensor)
    if type(weight) not in (Tensor, nn.Parameter) or not weight.is_floating_point():
        raise ValueError(
            f"changes cannot be built into a quantised model ({place}): load the model in half "
            "precision, or write the format 'lora'"
        )


def bare(network: nn.Module, component: str, merged: Mapping[str, Tensor]) -> Any:
    """A network of the same class without what other tools wrapped around its layers.

    Args:
        network: left as it is; the two share all weights that are not changed.
        component: its name in the pipeline.
        merged: changed weights, by place; they take the type of those they replace.

    Raises:
        ValueError: its weights have no values here.
    """
    state = {}
    for key, value in network.state_dict().items():
        parts = [part for part in key.split(".") if part not in hooks.WRAPPERS]
        if any(part.startswith("lora_") for part in parts):
            continue  # the user's own, which belongs to no weight
        if value.is_meta:
            raise ValueError(
                f"weights of the {component} lie on the meta device, without values; load the "
                "model with weights in memory (offload='layers' keeps them there)"
            )
        name = ".".join(parts)
        place = f"{component}/{name.removesuffix('.weight')}"
        changed = name.endswith(".weight") and place in merged
        state[name] = _cast(merged[place], value, place) if changed else value
    inner: Any = hooks.unwrapped(network)
    with torch.device("meta"):
        made = _empty(inner)
    made.load_state_dict(state, strict=True, assign=True)
    _fill_buffers(made, inner)
    return made.eval()


def _cast(weight: Tensor, like: Tensor, place: str) -> Tensor:
    found = weight.to(like.dtype)
    if not bool(torch.isfinite(found).all()):
        raise ValueError(
            f"the changed weight of {place} does not fit into {like.dtype}: load the model in "
            "float32 or bfloat16"
        )
    return found


def _fill_buffers(made: nn.Module, source: nn.Module) -> None:
    """Buffers that are kept in no file have no values on the meta device."""
    there = hooks.layers(source)
    for name, module in made.named_modules():
        for key, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[key] = there[name]._buffers[key]


def _empty(network: Any) -> Any:
    if isinstance(network, ModelMixin):
        config = {k: v for k, v in network.config.items() if k != "_name_or_path"}
        return type(network).from_config(config)
    return type(network)(network.config)
