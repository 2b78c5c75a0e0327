"""What a file says of itself: for readers that ask what it is for, and for `verify`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.backbone.profile import BUNDLED
from expunge.erasure import Erasure
from expunge.record import SCHEMA

HEADER = "expunge"
"""Key of a file's header under which the record lies, as JSON."""
CUT = "expunge.cut"
"""Key under which a LoRA of a smaller rank says what was lost, and what it does instead."""
_TOLD = ("eraser", "hyperparameters", "concepts", "architecture", "denoiser", "prediction", "dtype",
         "loras", "versions", "fingerprint")  # fmt: skip
"""Parts of a record that others may read: none holds a path or a command line."""


def told(erasure: Erasure) -> dict[str, Any]:
    """The part of a record that goes into headers and beside exports."""
    record = erasure.record
    return {
        **{key: record[key] for key in _TOLD if key in record},
        "schema": SCHEMA,
        "id": erasure.id,
        "model": model_name(record),
    }


def model_name(record: Mapping[str, Any]) -> str:
    """What a model may be called in public: of a path, its last part."""
    model = str(record.get("model") or "")
    if record.get("hub") or model in BUNDLED:
        return model
    return Path(model).stem if model.endswith(".safetensors") else Path(model).name


def title(erasure: Erasure) -> str:
    """What a file is called by programs that list it."""
    names = ", ".join(concept.name for concept in erasure.concepts)
    return f"{model_name(erasure.record)} without {names}"


def header(erasure: Erasure, implementation: str, adapter: str | None) -> dict[str, str]:
    """A file's metadata: its record, and the keys that the modelspec standard requires.

    Args:
        erasure: what the file holds.
        implementation: whose names it uses.
        adapter: `lora`, or None for a whole model.
    """
    architecture = _family(erasure.record)
    side = _resolution(erasure.record)
    return {
        "format": "pt",
        HEADER: json.dumps(told(erasure), allow_nan=False),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/{adapter}" if adapter else architecture,
        "modelspec.implementation": implementation,
        "modelspec.title": title(erasure),
        "modelspec.resolution": f"{side}x{side}",
    }


def implementation(architecture: str, original: bool) -> str:
    """Whose names a file uses: the original code's, or diffusers'."""
    if not original:
        return "diffusers"
    flux, stability = "black-forest-labs/flux", "Stability-AI/generative-models"
    return f"https://github.com/{flux if architecture == 'flux' else stability}"


def kohya_header(record: Mapping[str, Any]) -> dict[str, str]:
    """What front ends look at to tell for which model a LoRA is."""
    module, version = "networks.lora", "sd_v1"
    if record["architecture"] == "flux":
        module, version = "networks.lora_flux", "flux1"
    elif record["architecture"] == "sdxl":
        version = "sdxl_base_v1-0"
    elif _second(record):
        version = "sd_v2"
    return {
        "ss_network_module": module,
        "ss_base_model_version": version,
        "ss_v2": str(version == "sd_v2"),
        "ss_network_dim": "Dynamic",
        "ss_network_alpha": "1.0",
    }


def _denoiser(record: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = record["components"][record["denoiser"]]
    return found


def _second(record: Mapping[str, Any]) -> bool:
    """Whether it is Stable Diffusion 2, by the width of what its text encoder puts out."""
    return bool(_denoiser(record).get("cross_attention_dim") == 1024)


def _family(record: Mapping[str, Any]) -> str:
    architecture = record["architecture"]
    if architecture == "sdxl":
        return "stable-diffusion-xl-v1-base"
    if architecture == "sd3":
        return "stable-diffusion-3"
    if architecture == "flux":
        return "flux-1-dev" if _denoiser(record).get("guidance_embeds") else "flux-1-schnell"
    if not _second(record):
        return "stable-diffusion-v1"
    v = record.get("prediction") == "v_prediction"
    return f"stable-diffusion-v2-{'768-v' if v else '512'}"


def _resolution(record: Mapping[str, Any]) -> int:
    """Pixels along a side: every known autoencoder makes eight of a latent."""
    if record["architecture"] == "flux":
        return 1024
    return 8 * int(_denoiser(record).get("sample_size") or 64)
