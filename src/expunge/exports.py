"""Write an erasure for other tools, and check that what was written does what the record says."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jinja2 import Environment, PackageLoader
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.adapter import LowRank, add
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.erasure import RECORD, Erasure, read_safetensors, signatures
from expunge.run.files import write_atomically

Format = Literal["diffusers", "kohya", "merged"]
LORA = "pytorch_lora_weights.safetensors"
KOHYA = "kohya_lora.safetensors"
_PREFIX = {"unet": ("unet", "lora_unet_"), "transformer": ("transformer", "lora_transformer_")}


def _uniform(erasure: Erasure) -> tuple[dict[str, LowRank], int]:
    """All concepts at strength 1, every layer at one rank.

    Loaders mis-scale files whose alpha varies, so short layers are padded with zeros.
    """
    total = {n: c.compressed() for n, c in add([p.factors for p in erasure.parts]).items()}
    rank = max(change.rank for change in total.values())
    return {name: change.padded(rank) for name, change in sorted(total.items())}, rank


def _header(erasure: Erasure) -> dict[str, str]:
    short = {k: v for k, v in erasure.record.items() if k != "losses"}
    return {"format": "pt", "expunge": json.dumps(short)}


def _denoiser(erasure: Erasure) -> str:
    return str(erasure.record["denoiser"])


def write_lora(erasure: Erasure, folder: Path) -> Path:
    """Write `pytorch_lora_weights.safetensors`, as plain `pipe.load_lora_weights` reads it."""
    changes, rank = _uniform(erasure)
    prefix = _PREFIX[_denoiser(erasure)][0]
    tensors = {}
    for name, change in changes.items():
        tensors[f"{prefix}.{name}.lora_A.weight"] = change.down.float().contiguous()
        tensors[f"{prefix}.{name}.lora_B.weight"] = change.up.float().contiguous()
    # The only place diffusers reads rank and alpha from.
    adapter = {
        f"{prefix}.r": rank,
        f"{prefix}.lora_alpha": rank,
        f"{prefix}.target_modules": list(changes),
        f"{prefix}.lora_bias": False,
    }
    header = _header(erasure) | {"lora_adapter_metadata": json.dumps(adapter, sort_keys=True)}
    path = folder / LORA
    write_atomically(path, lambda target: save_file(tensors, target, metadata=header))
    return path


def write_kohya(erasure: Erasure, folder: Path) -> Path:
    """Write `kohya_lora.safetensors` with the names that kohya's tools and most front ends read."""
    changes, rank = _uniform(erasure)
    prefix = _PREFIX[_denoiser(erasure)][1]
    tensors: dict[str, Tensor] = {}
    for name, change in changes.items():
        key = prefix + name.replace(".", "_")
        tensors[f"{key}.lora_down.weight"] = change.down.float().contiguous()
        tensors[f"{key}.lora_up.weight"] = change.up.float().contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(rank))
    names = ", ".join(concept.name for concept in erasure.concepts)
    header = _header(erasure) | {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(float(rank)),
        "modelspec.title": f"Without {names}",
        "modelspec.architecture": "stable-diffusion-v1/lora",
    }
    path = folder / KOHYA
    write_atomically(path, lambda target: save_file(tensors, target, metadata=header))
    return path


def write_merged(erasure: Erasure, folder: Path, pipe: Any) -> Path:
    """Write a whole diffusers folder whose weights have the changes built in.

    Args:
        erasure: what to build in.
        folder: where to, written anew.
        pipe: the base model; a copy of its denoiser is changed.
    """
    backbone = as_backbone(pipe)
    erasure.check(backbone)
    denoiser = copy.deepcopy(backbone.denoiser)
    layers = dict(denoiser.named_modules())
    for name, delta in erasure.delta().items():
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        weight.data = (weight.data.double().cpu() + delta).to(weight)
    parts = dict(backbone.pipe.components) | {backbone.denoiser_name: denoiser}
    options = {"requires_safety_checker": False} if parts.get("safety_checker", 0) is None else {}
    merged = type(backbone.pipe)(**parts, **options)
    merged.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(erasure))
    (folder / RECORD).write_text(json.dumps(erasure.record, indent=1) + "\n")
    return folder


def export(
    erasure: Erasure, folder: str | Path, format: Format = "diffusers", pipe: Any = None
) -> Path:
    """Write an erasure in another tool's format.

    Args:
        erasure: what to write.
        folder: where to.
        format: `diffusers` or `kohya` for a LoRA file, `merged` for a whole model.
        pipe: the base model, needed for `merged`.

    Returns:
        The file, or for `merged` the folder.
    """
    folder = Path(folder)
    if format == "merged":
        if pipe is None:
            raise ValueError("the format 'merged' needs the base model, got no pipe")
        return write_merged(erasure, folder, pipe)
    return (write_lora if format == "diffusers" else write_kohya)(erasure, folder)


def model_card(erasure: Erasure) -> str:
    """A model card that lists what is erased and how it was made."""
    environment = Environment(
        loader=PackageLoader("expunge", "."), trim_blocks=True, lstrip_blocks=True, autoescape=False
    )
    template = environment.get_template("model_card.md.jinja")
    return template.render(record=erasure.record, concepts=erasure.concepts, layers=erasure.layers)


# --- verify


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
    read_safetensors(path)
    with safe_open(path, "pt") as handle:
        header = handle.metadata() or {}
    if "expunge" not in header:
        raise ValueError(f"{path.name} carries no record of Expunge in its header")
    loaded: dict[str, Any] = json.loads(header["expunge"])
    return loaded


def _weight_change(backbone: Backbone, base: Backbone, names: list[str]) -> dict[str, Tensor]:
    """What plain diffusers and peft make of the export, layer by layer, fp64."""
    here, there = dict(backbone.denoiser.named_modules()), dict(base.denoiser.named_modules())
    found = {}
    for name in names:
        module = here.get(name)
        if isinstance(module, LoraLayer):
            found[name] = sum(
                module.get_delta_weight(adapter).detach().double().cpu()
                for adapter in module.active_adapters
            )
        elif module is not None:
            weight, before = module.weight, there[name].weight
            assert isinstance(weight, Tensor)
            assert isinstance(before, Tensor)
            found[name] = weight.detach().double().cpu() - before.detach().double().cpu()
    return found


def verify(path: str | Path, base: Any, tolerance: float = 1e-3) -> dict[str, Any]:
    """Load an export through plain diffusers and hold it against its record.

    Args:
        path: a LoRA file or a merged folder.
        base: the base model, left as it was found.
        tolerance: largest relative difference that still agrees.

    Returns:
        `weights` and `predictions`, each with `agree` and `worst` (largest relative difference),
        and `agree`, true when both do.

    Raises:
        ValueError: the export carries no record, was made for another model, or does not load.
    """
    path = Path(path)
    record = recorded(path)
    before = as_backbone(base)
    names = sorted(record["fingerprint"]["layers"])
    if path.is_dir():
        loaded = type(before.pipe).from_pretrained(path, dtype=before.dtype)
    else:
        parts = dict(before.pipe.components)
        parts[before.denoiser_name] = copy.deepcopy(before.denoiser)
        options = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        loaded = type(before.pipe)(**parts, **options)
        try:
            loaded.load_lora_weights(path.parent, weight_name=path.name)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(
                f"diffusers cannot load {path.name} into {before.name}; it was made for "
                f"{record.get('model')}: {str(error).splitlines()[0]}"
            ) from error
    after = as_backbone(loaded.to(before.device))
    weights = _compare_weights(record, _weight_change(after, before, names))
    prompts = [concept["name"] for concept in record["concepts"]]
    predictions = _compare_predictions(record, signatures(after, prompts))
    report: dict[str, Any] = {"path": str(path), "concepts": prompts}
    for key, worst in (("weights", weights), ("predictions", predictions)):
        report[key] = {"worst": worst, "agree": worst <= tolerance}
    report["agree"] = report["weights"]["agree"] and report["predictions"]["agree"]
    return report


def _compare_weights(record: Mapping[str, Any], change: Mapping[str, Tensor]) -> float:
    """Largest difference of a layer's norm, relative to the largest recorded norm."""
    wanted: dict[str, float] = record["fingerprint"]["layers"]
    largest = max(wanted.values())
    return max(
        abs(norm - (float(change[name].norm()) if name in change else 0.0)) / largest
        for name, norm in wanted.items()
    )


def _compare_predictions(record: Mapping[str, Any], found: list[dict[str, Any]]) -> float:
    """Largest relative difference of a prediction's signature."""
    worst = 0.0
    for wanted, got in zip(record["fingerprint"]["predictions"], found, strict=True):
        first, second = torch.tensor(wanted["signature"]), torch.tensor(got["signature"])
        worst = max(worst, float((first - second).norm() / first.norm()))
    return worst
