"""Exports read by the libraries they are for, and the weights that come out of it."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from expunge import hooks
from expunge.backbone.base import Backbone
from expunge.backbone.load import load
from expunge.backbone.profile import BUNDLED
from expunge.folder import read_safetensors
from expunge.formats.weights import bare, with_networks

READ_FULL = {"sd": "ComfyUI, Forge and A1111", "sdxl": "ComfyUI, Forge and A1111",
             "flux": "ComfyUI and Forge"}  # fmt: skip
"""Who reads whole differences, by architecture; ComfyUI everywhere."""
FLUX = (
    "diffusers drops what lies outside the blocks from a FLUX file with kohya's names; ComfyUI, "
    "Forge and sd-scripts read it, and for diffusers there is the format 'lora'"
)


class NotReadError(ValueError):
    """An export that diffusers does not read, so that nothing can be said of it here."""


def read(path: Path, before: Backbone, components: Sequence[str], record: Mapping[str, Any]) -> Any:
    """The pipeline that plain diffusers makes of an export.

    Args:
        path: a file or folder.
        before: the base model, left as it is.
        components: networks that the export changes.
        record: what it says of itself.

    Raises:
        ValueError: it does not load, or holds NaN or infinity.
        NotReadError: it is for other readers.
    """
    missing = sorted(set(components) - set(before.networks))
    if missing:
        raise ValueError(f"made for another model: {before.name} has no {', '.join(missing)}")
    if path.is_dir():
        found = _read_folder(path, before, components)
        _refuse_broken(path, _tensors(found))
        return found
    tensors, _ = read_safetensors(path)
    _refuse_broken(path, tensors.items())
    if any(key.endswith(".diff") for key in tensors):
        who = READ_FULL.get(str(record.get("architecture")), "ComfyUI")
        raise NotReadError(
            f"{path.name} was not checked: diffusers reads no whole differences, {who} will"
        )
    if not any("lora" in key for key in tensors):
        return _read_single(path, before)
    return _read_lora(path, before, components, record)


def refuse_unread(path: Path, record: Mapping[str, Any]) -> NoReturn:
    """Say that diffusers read nothing of a file, and who will.

    Raises:
        NotReadError: always.
    """
    flux = record.get("architecture") == "flux"
    why = FLUX if flux else "diffusers finds no changed layer in it"
    raise NotReadError(f"{path.name} was not checked: {why}")


def _read_folder(path: Path, before: Backbone, components: Sequence[str]) -> Any:
    options: Any = {"dtype": before.dtype, "use_safetensors": True}
    try:
        if (path / "model_index.json").is_file():
            return type(before.pipe).from_pretrained(path, **options)
        networks = {}
        for component in components:
            kind: Any = type(hooks.unwrapped(before.networks[component]))
            networks[component] = kind.from_pretrained(path / component, **options).eval()
        return with_networks(before.pipe, networks)
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not load as safetensors: {_first_line(error)}") from error


def _read_single(path: Path, before: Backbone) -> Any:
    model = before.name_or_path
    config = before.source.get("config") or BUNDLED.get(model, model)
    if not config:
        raise ValueError(
            f"{path.name} is a whole checkpoint: its base model must come from a folder or hub id, "
            "got a pipeline built in memory"
        )
    return load(path, config=config, dtype=before.dtype, device=before.device)


def _read_lora(
    path: Path, before: Backbone, components: Sequence[str], record: Mapping[str, Any]
) -> Any:
    names = {*components, before.denoiser_name}
    loaded = with_networks(
        before.pipe, {name: _copy(before.networks[name], name) for name in names}
    )
    try:
        loaded.load_lora_weights(path.parent, weight_name=path.name, use_safetensors=True)
    except AssertionError:  # how it says that FLUX's layers have other sizes
        refuse_unread(path, record)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"diffusers cannot load {path.name} into {before.name}; it was made for "
            f"{record.get('model')}: {_first_line(error)}"
        ) from error
    return loaded


def _copy(network: nn.Module, component: str) -> Any:
    """Without a user's own LoRA, which would be switched off by another."""
    if any(isinstance(module, LoraLayer) for module in network.modules()):
        return bare(network, component, {})
    return copy.deepcopy(hooks.unwrapped(network))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _tensors(pipe: Any) -> Iterator[tuple[str, Tensor]]:
    for component, network in pipe.components.items():
        if isinstance(network, nn.Module):
            for name, tensor in network.named_parameters():
                yield f"{component}/{name}", tensor


def _refuse_broken(path: Path, tensors: Iterable[tuple[str, Tensor]]) -> None:
    for name, tensor in tensors:
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ValueError(
                f"{path} holds NaN or infinity in {name}: it is no model; export again"
            )


@dataclass(frozen=True)
class Weight:
    """A parameter, and peft's wrapper around its layer, where there is one."""

    tensor: Tensor
    layer: LoraLayer | None

    def added(self) -> Tensor | None:
        """What peft adds to it, fp64 on the CPU."""
        if self.layer is None:
            return None
        active = [name for name in self.layer.active_adapters if name in self.layer.lora_A]
        deltas = [self.layer.get_delta_weight(name).detach().cpu().double() for name in active]
        return torch.stack(deltas).sum(0) if deltas else None

    def rounding(self) -> float:
        """Norm that rounding to the weight's own type may add to a change built into it."""
        if self.layer is not None:
            return 0.0
        step = torch.finfo(self.tensor.dtype).eps if self.tensor.is_floating_point() else 0.0
        return float(self.tensor.detach().double().norm()) * step / 12**0.5


def weights_of(backbone: Backbone) -> dict[str, Weight]:
    """Every parameter of a pipeline's networks by its place, under clean names."""
    found: dict[str, Weight] = {}
    for component, network in backbone.networks.items():
        for name, module in network.named_modules():
            parts = [part for part in name.split(".") if part not in hooks.WRAPPERS]
            if any(part.startswith("lora_") for part in parts):
                continue
            layer = module if isinstance(module, LoraLayer) else None
            for key, tensor in hooks.unwrapped(module)._parameters.items():
                place = "/".join((component, ".".join([*parts, key])))
                if tensor is not None and place not in found:  # a wrapper comes before its layer
                    found[place] = Weight(tensor, layer if key == "weight" else None)
    return found


def difference(after: Weight, before: Weight) -> Tensor | None:
    """What a weight was changed by, fp64 on the CPU; None for another shape."""
    if after.tensor.shape != before.tensor.shape:
        return None
    delta = after.tensor.detach().cpu().double() - before.tensor.detach().cpu().double()
    added = after.added()
    return delta if added is None else delta + added
