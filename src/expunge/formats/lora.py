"""Files that hold changes only: LoRAs under diffusers' and kohya's names, and whole differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from expunge.change import LowRank, summed
from expunge.erasure import Erasure
from expunge.fingerprint import of_changes
from expunge.formats.naming import CUT, header, implementation, kohya_header
from expunge.formats.ranks import (
    Loss,
    columns,
    loss,
    refuse_dense,
    refuse_unweighted,
    spectra,
    stated,
)
from expunge.layouts import (
    by_component,
    kohya,
    kohya_deltas,
    refuse_unread,
    text_name,
    whole_attentions,
)
from expunge.run.files import write_atomically

DEFAULT = "pytorch_lora_weights.safetensors"
"""What plain `pipe.load_lora_weights(folder)` looks for first."""
DIFFUSERS = "diffusers_lora.safetensors"
KOHYA = "kohya_lora.safetensors"
FULL = "full_differences.safetensors"


def write_lora(erasure: Erasure, folder: Path, rank: int | None = None) -> Path:
    """Write the LoRA that reaches most: kohya's names on SD and SDXL, diffusers' elsewhere.

    Args:
        erasure: what to write.
        folder: where to.
        rank: most columns of a layer; None for all.

    Raises:
        ValueError: no LoRA can say what the erasure does.
    """
    write = _write_kohya if erasure.record["architecture"] in ("sd", "sdxl") else _write_diffusers
    return write(erasure, folder / _named(DEFAULT, rank), rank)


def write_diffusers(erasure: Erasure, folder: Path, rank: int | None = None) -> Path:
    """Write a LoRA under diffusers' names; see `write_lora`."""
    return _write_diffusers(erasure, folder / _named(DIFFUSERS, rank), rank)


def write_kohya(erasure: Erasure, folder: Path, rank: int | None = None) -> Path:
    """Write a LoRA under kohya's names; see `write_lora`."""
    return _write_kohya(erasure, folder / _named(KOHYA, rank), rank)


def write_full(erasure: Erasure, folder: Path) -> Path:
    """Write whole differences of weights, which ComfyUI, Forge and A1111 add like a LoRA.

    Raises:
        ValueError: the erasure is no change of weights, or a layer has no name there.
    """
    refuse_unweighted(erasure, "whole differences")
    deltas = {place: summed(each).delta for place, each in sorted(erasure.by_place().items())}
    record = erasure.record
    architecture = record["architecture"]
    if architecture == "sd3":
        refuse_unread(deltas, architecture)
        named = {f"{_dotted(place)}.diff": delta for place, delta in deltas.items()}
    else:
        found = kohya_deltas(deltas, architecture, record["components"])
        named = {f"{name}.diff": delta for name, delta in found.items()}
    meta = header(erasure, implementation(architecture, original=False), "lora")
    return _save(folder / FULL, named, meta)


def describe_lora(erasure: Erasure) -> dict[str, Any]:
    """For the record: rank, and what is lost at smaller ones; or why there is no LoRA."""
    try:
        refuse_unweighted(erasure, "a LoRA")
        refuse_dense(erasure)
        refuse_unread(erasure.layers, erasure.record["architecture"])
    except ValueError as error:
        return {"file": None, "why": str(error)}
    return {"file": DEFAULT, **stated(spectra(erasure))}


def lost_at(erasure: Erasure, rank: int) -> Loss:
    """What a LoRA of a rank leaves out."""
    return loss(spectra(erasure), rank)


def _changes(erasure: Erasure, rank: int | None) -> tuple[dict[str, LowRank], Loss | None]:
    """What a LoRA holds, and what was lost for the sake of a rank."""
    refuse_unweighted(erasure, "a LoRA")
    refuse_unread(erasure.layers, erasure.record["architecture"])
    if rank is None:
        refuse_dense(erasure)
        return columns(erasure), None
    return columns(erasure, rank), lost_at(erasure, rank)


def _named(name: str, rank: int | None) -> str:
    if rank is None:
        return name
    stem, _, suffix = name.partition(".")
    return f"{stem}_rank{rank}.{suffix}"


def _write_kohya(erasure: Erasure, path: Path, rank: int | None) -> Path:
    changes, lost = _changes(erasure, rank)
    record = erasure.record
    tensors: dict[str, Tensor] = {}
    for key, change in kohya(changes, record["architecture"], record["components"]).items():
        # Readers scale by alpha / rank, and some get files wrong whose alpha differs by layer.
        up = (change.rank * change.up).detach()
        tensors[f"{key}.lora_down.weight"] = change.down.detach()
        tensors[f"{key}.lora_up.weight"] = up if change.down.ndim == 2 else up[:, :, None, None]
        tensors[f"{key}.alpha"] = torch.tensor(1.0)
    original = record["architecture"] != "sd"
    meta = header(erasure, implementation(record["architecture"], original), "lora")
    return _save(path, tensors, meta | kohya_header(record) | _cut(changes, rank, lost))


def _write_diffusers(erasure: Erasure, path: Path, rank: int | None) -> Path:
    changes, lost = _changes(erasure, rank)
    tensors: dict[str, Tensor] = {}
    adapter: dict[str, Any] = {}
    for component, own in by_component(changes).items():
        whole = whole_attentions(own) if component.startswith("text_encoder") else own
        adapter |= {f"{component}.{key}": value for key, value in _peft(whole).items()}
        for name, change in whole.items():
            key, up = _dotted(f"{component}/{name}"), change.up.detach()
            tensors[f"{key}.lora_A.weight"] = change.down.detach()
            tensors[f"{key}.lora_B.weight"] = up if change.down.ndim == 2 else up[:, :, None, None]
    meta = header(erasure, "diffusers", "lora") | _cut(changes, rank, lost)
    meta["lora_adapter_metadata"] = json.dumps(adapter, sort_keys=True)
    return _save(path, tensors, meta)


def _dotted(place: str) -> str:
    """A place as diffusers names it in files."""
    component, _, name = place.partition("/")
    return f"{component}.{text_name(name) if component.startswith('text_encoder') else name}"


def _peft(changes: Mapping[str, LowRank]) -> dict[str, Any]:
    """The only place that diffusers reads rank and alpha from; equal, they scale by 1.

    Without `^`, a pattern of peft also means every layer whose name ends so.
    """
    ranks = {f"^{name}": change.rank for name, change in changes.items()}
    usual = max(ranks.values())
    return {
        "r": usual,
        "lora_alpha": usual,
        "rank_pattern": ranks,
        "alpha_pattern": ranks,
        "target_modules": list(changes),
        "lora_bias": False,
    }


def _cut(changes: Mapping[str, LowRank], rank: int | None, lost: Loss | None) -> dict[str, str]:
    """In the header of a LoRA with fewer columns: what was lost, and what it does instead."""
    if rank is None or lost is None:
        return {}
    fingerprint = of_changes({place: [change] for place, change in changes.items()})
    cut = {"rank": rank, "loss": lost.record(), "fingerprint": fingerprint}
    return {CUT: json.dumps(cut, allow_nan=False)}


def _save(path: Path, tensors: Mapping[str, Tensor], meta: dict[str, str]) -> Path:
    plain = {key: tensor.float().contiguous() for key, tensor in tensors.items()}
    # Tensors that share their memory are refused by the format.
    own = {key: tensor.clone() for key, tensor in plain.items()}
    write_atomically(path, lambda target: save_file(own, target, metadata=meta))
    return path
