"""An erasure's folder: what it holds, written whole and read with suspicion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge import names
from expunge.change import KINDS, Change
from expunge.concept import Concept, slug
from expunge.erasure import Erasure, Part
from expunge.gate import Gate
from expunge.record import RECORD, occupied, read_record
from expunge.request import Request
from expunge.run.files import check_file, write_atomically, write_text

ADAPTERS = "adapters"


BELONGINGS = (
    RECORD,
    ADAPTERS,
    "log",
    "checkpoints",
    "watermark",
    "merged",
    "components",
    "single",
)
"""Files and folders in an erasure's folder that speak of it; all its `.safetensors` do as well."""


def save(erasure: Erasure, folder: Path, *, force: bool) -> Path:
    """Write an erasure; see `Erasure.save`."""
    from expunge.formats import describe_lora, write_card, write_lora

    prepare(folder, erasure.id, force=force)
    for part in erasure.parts:
        _save_part(folder / ADAPTERS / f"{slug(part.concept.name)}.safetensors", part)
    erasure.record["lora"] = describe_lora(erasure)
    if erasure.record["lora"]["file"]:
        write_lora(erasure, folder)
    write_card(erasure, folder, "lora")
    record = {
        **erasure.record,
        "id": erasure.id,
        "closed_form": {name: request.to_dict() for name, request in erasure.requests.items()},
    }
    # The record comes last: a folder that has one is whole.
    write_text(folder / RECORD, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return folder


def prepare(folder: Path, wanted: str | None, *, force: bool) -> None:
    """Make a folder ready for an erasure: nothing of another one may stay in it.

    Args:
        folder: where the erasure will lie.
        wanted: its id where it is known already.
        force: clear what belongs to another one.

    Raises:
        ValueError: another erasure lies there.
    """
    there = folder / RECORD
    if not there.is_file():
        return
    if wanted is not None and read_record(folder).get("id") == wanted:
        return
    if not force:
        raise occupied(folder)
    clear(folder)


def clear(folder: Path) -> None:
    """Delete what speaks of the erasure in a folder, its record first."""
    (folder / RECORD).unlink(missing_ok=True)
    for name in BELONGINGS:
        shutil.rmtree(folder / name, ignore_errors=True)
    for path in (*folder.glob("*.safetensors"), folder / "README.md", folder / "report.html"):
        path.unlink(missing_ok=True)


def load(folder: Path) -> Erasure:
    """Read an erasure; see `Erasure.load`."""
    record = read_record(folder)
    wanted, requests = record.pop("id", None), record.pop("closed_form", {})
    try:
        concepts = [Concept.from_dict(entry) for entry in record["concepts"]]
        asked = {name: Request.from_dict(entry) for name, entry in requests.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / RECORD} is damaged: {error!r}") from None
    parts = [_load_part(folder / ADAPTERS / f"{slug(c.name)}.safetensors", c) for c in concepts]
    erasure = Erasure(parts, record, asked)
    if erasure.id != wanted:
        raise ValueError(
            f"the adapters in {folder / ADAPTERS} are not those of {RECORD} any more: a file was "
            "changed, swapped or cut; make the erasure again"
        )
    return erasure


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file.

    Raises:
        ValueError: the file is no safetensors, or is cut short.
    """
    check_file(path)
    try:
        with safe_open(path, "pt") as handle:
            header = handle.metadata() or {}
        return load_file(path), header
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from None


def _save_part(path: Path, part: Part) -> None:
    tensors: dict[str, Tensor] = {}
    shared: dict[str, str] = {}
    first: dict[int, str] = {}
    for origin, changes in (("closed", part.closed), ("tuned", part.tuned)):
        for place, change in changes.items():
            for name, tensor in change.state_dict(keep_vars=True).items():
                key = f"{origin}/{change.kind}/{place}/{name}"
                like = first.setdefault(id(tensor), key)
                if like != key:  # layers of one text stream share their `down`
                    shared[key] = like
                    continue
                plain = tensor.detach().cpu().contiguous()
                tensors[key] = plain.float() if plain.is_floating_point() else plain
    header = {"concept": json.dumps(part.concept.to_dict()), "shared": json.dumps(shared)}
    if part.gate is not None:
        header["gate"] = json.dumps(part.gate.record())
    write_atomically(path, lambda target: save_file(tensors, target, metadata=header))


def _load_part(path: Path, concept: Concept) -> Part:
    tensors, header = read_safetensors(path)
    try:
        shared: Mapping[str, str] = json.loads(header.get("shared", "{}"))
        gate = json.loads(header["gate"]) if "gate" in header else None
        # What was shared is one parameter again, so that it is saved once.
        own: dict[str, Tensor] = {
            key: nn.Parameter(t, requires_grad=False) if t.is_floating_point() else t
            for key, t in tensors.items()
        }
        keys = own | {key: own[like] for key, like in shared.items()}
        found: dict[str, dict[str, Change]] = {"closed": {}, "tuned": {}}
        groups: dict[tuple[str, str, str], dict[str, Tensor]] = {}
        for key, tensor in keys.items():
            origin, kind, rest = key.split("/", 2)
            place, _, name = rest.rpartition("/")
            groups.setdefault((origin, kind, place), {})[name] = tensor
        for (origin, kind, place), group in groups.items():
            found[origin][place] = KINDS[kind].of_tensors(group)
        return Part(concept, found["closed"], found["tuned"], _gate_of(gate))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; make the erasure again") from None


def _gate_of(record: Mapping[str, Any] | None) -> Gate | None:
    if record is None:
        return None
    kind: type[Gate] = names.find("gate", str(record["kind"]))
    return kind.of_record(record)
