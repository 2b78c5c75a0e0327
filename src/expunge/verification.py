"""Check that what was written for other tools does what its record says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.erasure import refuse_applied
from expunge.fingerprint import projections, signatures
from expunge.folder import ADAPTERS, read_safetensors
from expunge.formats import DEFAULT
from expunge.formats.naming import CUT, HEADER
from expunge.formats.reading import NotReadError, difference, read, refuse_unread, weights_of
from expunge.record import RECORD, read_json

__all__ = ["NotReadError", "recorded", "verify"]


@dataclass(frozen=True)
class Claim:
    """What an export says it does.

    Attributes:
        record: of the erasure, as far as an export carries it.
        norms: of every layer's change, by place.
        projections: of every layer's change, by place.
        predictions: signatures; None where a smaller rank makes them others.
    """

    record: Mapping[str, Any]
    norms: Mapping[str, float]
    projections: Mapping[str, Sequence[float]]
    predictions: Sequence[Mapping[str, Any]] | None


def recorded(path: Path) -> dict[str, Any]:
    """The record an export carries.

    Where the erasure lies beside or above it, what its own record knows of the base model is added.

    Raises:
        ValueError: it carries none, or is damaged.
    """
    if path.is_dir():
        file = path / RECORD
        if not file.is_file():
            raise ValueError(
                f"{path} carries no record of Expunge ({RECORD} is missing): it is no export, or "
                "was not written to its end"
            )
        record = read_json(file)
    else:
        _, header = read_safetensors(path)
        record = _from_header(path, header, HEADER)
    for folder in (path.parent, path.parent.parent):
        own = read_json(folder / RECORD) if (folder / RECORD).is_file() else {}
        if own.get("id") == record.get("id") and own.get("id"):
            return record | {key: own[key] for key in ("model", "config") if key in own}
    return record


def verify(path: str | Path, base: Any, tolerance: float | None = None) -> dict[str, Any]:
    """Load an export through plain diffusers and hold it against its record.

    Args:
        path: a LoRA file, a checkpoint file, the folder of a model or of its networks, or an
            erasure's own folder for the LoRA in it.
        base: the base model, left as it was found.
        tolerance: largest relative difference that still agrees; None for 0.001 in float32 and 0.02
            in half precision, which cannot say the changes more exactly.

    Returns:
        `weights`, `others` (all that should be the base model's) and `predictions`, each with
        `agree` and `worst` (largest relative difference); `agree`, true where all do; `reader`,
        which library read the export. `predictions` is None where they are not
        recorded: for a LoRA of a smaller rank, and for an erasure made beside a user's own LoRA.

    Raises:
        ValueError: the export carries no record, was made for another model, does not load, or
            holds NaN or infinity.
        NotReadError: diffusers reads nothing of it; says who does.
    """
    path = Path(path)
    if (path / ADAPTERS).is_dir():
        path = _lora_of(path)
    claim = claimed(path)
    before = as_backbone(base)
    refuse_applied(before, "verify an export against it")
    if tolerance is None:
        tolerance = 1e-3 if before.dtype == torch.float32 else 2e-2
    components = sorted({place.partition("/")[0] for place in claim.norms})
    after = as_backbone(read(path, before, components, claim.record).to(before.device))
    after.profile = before.profile  # read from memory, it does not know its folder
    found = dict(_changes(after, before, claim.norms))
    left_out = [p for p, norm in claim.norms.items() if norm and not (p in found and found[p].norm)]
    if left_out and path.is_file() and (len(left_out) == len(found) or _is_kohya_flux(path, claim)):
        refuse_unread(path, claim.record)
    report: dict[str, Any] = {
        "path": str(path),
        "concepts": [concept["name"] for concept in claim.record["concepts"]],
        "reader": "diffusers",
        "weights": _judged(_compare_weights(claim, found), tolerance),
        "others": _judged(_others(after, before, claim.norms), tolerance),
        "predictions": None,
    }
    if claim.predictions is not None:
        differences = _compare_predictions(claim, _signatures(after, claim))
        report["predictions"] = _judged(differences, tolerance)
    parts = (report["weights"], report["others"], report["predictions"])
    report["agree"] = all(part["agree"] for part in parts if part is not None)
    return report


def claimed(path: Path) -> Claim:
    """What an export says it does.

    Raises:
        ValueError: it says nothing, or in a wrong shape.
    """
    record = recorded(path)
    header = read_safetensors(path)[1] if path.is_file() else {}
    cut = _from_header(path, header, CUT) if CUT in header else None
    try:
        fingerprint = (cut or record)["fingerprint"]
        norms = {str(place): float(norm) for place, norm in fingerprint["layers"].items()}
        between = {
            str(p): [float(x) for x in each] for p, each in fingerprint["projections"].items()
        }
        # Exports are read without a user's own LoRA, with which predictions were taken.
        partial = bool(cut) or bool(record.get("loras"))
        predictions = None if partial else [dict(entry) for entry in fingerprint["predictions"]]
        for entry in predictions or ():
            torch.tensor(entry["signature"], dtype=torch.float64), str(entry["prompt"])
        [concept["name"] for concept in record["concepts"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"the record in {path} is damaged: {error!r}; export it again") from None
    if not norms:
        raise ValueError(f"the record in {path} names no changed layer; export it again")
    return Claim(record, norms, between, predictions)


def _is_kohya_flux(path: Path, claim: Claim) -> bool:
    keys = read_safetensors(path)[0]
    return claim.record.get("architecture") == "flux" and min(keys).startswith("lora_")


def _from_header(path: Path, header: Mapping[str, str], key: str) -> dict[str, Any]:
    if key not in header:
        raise ValueError(f"{path.name} carries no record of Expunge in its header")
    try:
        found = json.loads(header[key])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"the record in the header of {path} is damaged; export it again")
    return found


def _lora_of(folder: Path) -> Path:
    file = folder / DEFAULT
    if not file.is_file():
        raise ValueError(
            f"{folder} holds an erasure without a LoRA; export it as 'merged' or 'components' and "
            "verify that"
        )
    return file


# --- comparing


@dataclass(frozen=True)
class _Found:
    """What a layer's weight was changed by: norm, projections, and how far rounding blurs them."""

    norm: float
    projections: Sequence[float]
    blur: float


def _changes(
    after: Backbone, before: Backbone, places: Iterable[str]
) -> Iterator[tuple[str, _Found]]:
    """The change of every layer; nothing where the export has no such layer."""
    here, there = weights_of(after), weights_of(before)
    for place in places:
        if f"{place}.weight" not in there:
            raise ValueError(f"made for another model: {before.name} has no layer {place}")
        weight = here.get(f"{place}.weight")
        delta = None if weight is None else difference(weight, there[f"{place}.weight"])
        if weight is not None and delta is not None:
            yield place, _Found(float(delta.norm()), projections(place, delta), weight.rounding())


def _others(after: Backbone, before: Backbone, places: Mapping[str, float]) -> list[float]:
    """Relative difference of every weight that should be the base model's."""
    here, there = weights_of(after), weights_of(before)
    # One checkpoint file holds no safety checker.
    lacking = [name for name in there if name not in here and not name.startswith("safety")]
    found = [math.inf if lacking else 0.0]
    for name, weight in here.items():
        if name.endswith(".weight") and name.removesuffix(".weight") in places:
            continue
        base = there.get(name)
        if base is not None and weight.tensor is base.tensor and weight.layer is base.layer:
            continue  # the very same network
        delta = None if base is None else difference(weight, base)
        if base is None or delta is None:
            return [math.inf]
        found.append(float(delta.norm() / base.tensor.detach().double().norm().clamp(min=1e-12)))
    return found


def _signatures(after: Backbone, claim: Claim) -> list[dict[str, Any]]:
    assert claim.predictions is not None
    prompts = [str(entry["prompt"]) for entry in claim.predictions]
    return signatures(after, prompts[:-1])


def _compare_weights(claim: Claim, found: Mapping[str, _Found]) -> Iterator[float]:
    """Differences of every layer's norm and projections, relative to the norm recorded.

    Weights in half precision say a small change with an error of their own, which is allowed for up
    to half of the change: what is not there at all is never explained by rounding.
    """
    largest = max(claim.norms.values())
    for place, norm in claim.norms.items():
        if norm <= 1e-9 * largest:
            continue
        wanted = [norm, *claim.projections.get(place, [])]
        here = found.get(place, _Found(0.0, [0.0] * (len(wanted) - 1), 0.0))
        allowed = min(5 * here.blur, 0.5 * norm)
        for first, second in zip(wanted, [here.norm, *here.projections], strict=False):
            difference = abs(first - second)
            yield max(0.0, difference - allowed) / norm if math.isfinite(difference) else math.inf


def _compare_predictions(claim: Claim, found: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    """Relative difference of every prediction's signature."""
    assert claim.predictions is not None
    for wanted, got in zip(claim.predictions, found, strict=True):
        first, second = (torch.tensor(each["signature"]).double() for each in (wanted, got))
        yield float((first - second).norm() / first.norm())


def _judged(differences: Iterable[float], tolerance: float) -> dict[str, Any]:
    """The worst of some differences. NaN is the worst: `max` would drop it."""
    each = list(differences)
    worst = max(each) if all(math.isfinite(value) for value in each) else math.inf
    return {"worst": worst, "agree": worst <= tolerance}
