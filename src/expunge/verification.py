"""Check that what was written for other tools does what its record says."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from expunge.adapter import Adapter
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone, load
from expunge.backbone.profile import BUNDLED
from expunge.erasure import RECORD, read_safetensors
from expunge.fingerprint import signatures
from expunge.layouts import is_kohya_flux, read_kohya_flux


def recorded(path: Path) -> dict[str, Any]:
    """The record an export carries.

    Raises:
        ValueError: it carries none, or is damaged.
    """
    if path.is_dir():
        file = path / RECORD
        if not file.is_file():
            raise ValueError(f"{path} carries no record of Expunge ({RECORD} is missing)")
        record: dict[str, Any] = json.loads(file.read_text())
        return record
    _, header = read_safetensors(path)
    if "expunge" not in header:
        raise ValueError(f"{path.name} carries no record of Expunge in its header")
    loaded: dict[str, Any] = json.loads(header["expunge"])
    return loaded


def _weight_change(backbone: Backbone, base: Backbone, names: list[str]) -> dict[str, float]:
    """Norm of what plain diffusers and peft make of the export, layer by layer."""
    here, there = dict(backbone.denoiser.named_modules()), dict(base.denoiser.named_modules())
    found = {}
    for name in names:
        module = here.get(name)
        if isinstance(module, LoraLayer):
            deltas = [module.get_delta_weight(each).double() for each in module.active_adapters]
            found[name] = float(torch.stack(deltas).sum(0).detach().norm())
        elif module is not None:
            weight, before = module.weight, there[name].weight
            assert isinstance(weight, Tensor)
            assert isinstance(before, Tensor)
            found[name] = float((weight.detach().double() - before.detach().double()).norm())
    return found


def verify(path: str | Path, base: Any, tolerance: float | None = None) -> dict[str, Any]:
    """Load an export through plain diffusers and hold it against its record.

    Args:
        path: a LoRA file, a checkpoint file, or the folder of a model or of its denoiser.
        base: the base model, left as it was found.
        tolerance: largest relative difference that still agrees; None for 0.001 in float32 and 0.02
            in half precision, which cannot say the changes more exactly.

    Returns:
        `weights` and `predictions`, each with `agree` and `worst` (largest relative difference),
        `agree`, true when both do, and `reader`: `diffusers`, or for kohya's FLUX files `expunge`,
        because diffusers 0.42 drops their layers that read text.

    Raises:
        ValueError: the export carries no record, was made for another model, or does not load.
    """
    path = Path(path)
    record = recorded(path)
    before = as_backbone(base)
    if tolerance is None:
        tolerance = 1e-3 if before.dtype == torch.float32 else 2e-2
    names = sorted(record["fingerprint"]["layers"])
    prompts = [concept["name"] for concept in record["concepts"]]
    tensors = read_safetensors(path)[0] if path.is_file() else {}
    if is_kohya_flux(tensors):
        weights, predictions = _read_here(tensors, before, record, prompts)
        reader = "expunge"
    else:
        after = as_backbone(_read_by_diffusers(path, tensors, before, record).to(before.device))
        after.profile = before.profile  # read from memory, it does not know its folder
        weights = _compare_weights(record, _weight_change(after, before, names))
        predictions = _compare_predictions(record, signatures(after, prompts))
        reader = "diffusers"
    report: dict[str, Any] = {"path": str(path), "concepts": prompts, "reader": reader}
    for key, worst in (("weights", weights), ("predictions", predictions)):
        report[key] = {"worst": worst, "agree": worst <= tolerance}
    report["agree"] = report["weights"]["agree"] and report["predictions"]["agree"]
    return report


def _read_here(
    tensors: Mapping[str, Tensor], before: Backbone, record: Mapping[str, Any], prompts: list[str]
) -> tuple[float, float]:
    """Compare a kohya file for FLUX without diffusers, which drops its layers that read text."""
    layers = dict(before.denoiser.named_modules())
    outputs = {}
    for name in record["fingerprint"]["layers"]:
        layer = layers.get(name)
        if isinstance(layer, nn.Linear):
            outputs[name] = layer.out_features
    factors = read_kohya_flux(tensors, outputs)
    change = {name: part.norm for name, part in factors.items()}
    adapter = Adapter(before.denoiser, {"export": factors})
    try:
        found = signatures(before, prompts)
    finally:
        adapter.remove()
    return _compare_weights(record, change), _compare_predictions(record, found)


def _read_by_diffusers(
    path: Path, tensors: Mapping[str, Tensor], before: Backbone, record: Mapping[str, Any]
) -> Any:
    """The pipeline plain diffusers makes of an export."""
    parts = dict(before.pipe.components)
    options = {"requires_safety_checker": False} if "safety_checker" in parts else {}
    kind = type(before.pipe)
    if (path / "model_index.json").is_file():
        return kind.from_pretrained(path, dtype=before.dtype)
    if path.is_dir():
        network: Any = type(before.denoiser)
        denoiser = network.from_pretrained(path, dtype=before.dtype)
        return kind(**parts | {before.denoiser_name: denoiser}, **options)
    if not any("lora" in key for key in tensors):
        config = BUNDLED.get(before.name_or_path, before.name_or_path)
        if not config:
            raise ValueError(
                f"{path.name} is a whole checkpoint: its base model must come from a folder or hub "
                "id, got a pipeline built in memory"
            )
        return load(path, config=config, dtype=before.dtype, device=before.device)
    loaded = kind(**parts | {before.denoiser_name: copy.deepcopy(before.denoiser)}, **options)
    try:
        loaded.load_lora_weights(path.parent, weight_name=path.name)
    except (RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"diffusers cannot load {path.name} into {before.name}; it was made for "
            f"{record.get('model')}: {str(error).splitlines()[0]}"
        ) from error
    return loaded


def _compare_weights(record: Mapping[str, Any], change: Mapping[str, float]) -> float:
    """Largest difference of a layer's norm, relative to the largest recorded norm."""
    wanted: dict[str, float] = record["fingerprint"]["layers"]
    largest = max(wanted.values())
    return max(abs(norm - change.get(name, 0.0)) / largest for name, norm in wanted.items())


def _compare_predictions(record: Mapping[str, Any], found: list[dict[str, Any]]) -> float:
    """Largest relative difference of a prediction's signature."""
    worst = 0.0
    for wanted, got in zip(record["fingerprint"]["predictions"], found, strict=True):
        first, second = torch.tensor(wanted["signature"]), torch.tensor(got["signature"])
        worst = max(worst, float((first - second).norm() / first.norm()))
    return worst
