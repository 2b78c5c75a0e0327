"""Checkpoints that belong to what wrote them, and are noticed when they are damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.run.digest import canonical, digest, parse
from expunge.run.files import check_writable, write_atomically

FORMAT = "expunge.checkpoint/1"
_SHOWN = 60
"""Characters of a value in a message."""


@dataclass(frozen=True)
class Workspace:
    """Where a run keeps its checkpoints, and what they have to have in common with it.

    Attributes:
        folder: made when first written to. A run and the same run after a stop name the same one.
        settings: JSON values that determine the result: hyperparameters, concepts, the model.
    """

    folder: Path
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        canonical(self.settings, "settings")

    @property
    def digest(self) -> str:
        """Names the settings."""
        return digest(self.settings, "settings")

    def check(self) -> None:
        """Say before heavy work that nothing can be kept.

        Raises:
            OSError: the folder cannot be made or written, or the disk is full.
        """
        check_writable(self.folder)


@dataclass(frozen=True)
class Kept:
    """What a checkpoint holds.

    Attributes:
        step: steps done.
        early: whether the objective had said that it is done.
        tensors: everything that has to go on where it was.
    """

    step: int
    early: bool
    tensors: dict[str, Tensor]


def write(path: Path, workspace: Workspace, kept: Kept) -> None:
    """Put a checkpoint in place, with a hash of all it says.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in kept.tensors.items()}
    tensors = {key: value.clone() for key, value in tensors.items()}  # none shares memory
    header = {
        "format": FORMAT,
        "step": str(kept.step),
        "early": str(kept.early),
        "settings": canonical(workspace.settings).decode(),
    }
    header["hash"] = _hash(header, tensors)
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=header))


def read(path: Path, workspace: Workspace, steps: int) -> Kept | None:
    """What was kept at a path; None where nothing was.

    Args:
        path: of the checkpoint.
        workspace: of this run.
        steps: most that can have been done.

    Raises:
        ValueError: the file is damaged, or belongs to a run with other settings.
    """
    if not path.exists():
        return None
    try:
        header, tensors = _load(path)
        step, early = int(header["step"]), {"True": True, "False": False}[header["early"]]
        settings = parse(header["settings"])
        whole = header["format"] == FORMAT and header["hash"] == _hash(header, tensors)
    except Exception as error:  # whatever a parser meets in bytes that mean nothing
        raise _damaged(path) from error
    if not whole:
        raise _damaged(path)
    _check_settings(path, settings, json.loads(canonical(workspace.settings)))
    if not 0 < step <= steps:
        raise _damaged(path)
    return Kept(step, early, tensors)


def foreign(path: Path, differences: str) -> ValueError:
    """What to raise where a checkpoint is of another run."""
    return ValueError(
        f"{path} belongs to another run ({differences}); delete it or choose another folder"
    )


def _load(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    with safe_open(path, "pt") as handle:
        return handle.metadata(), {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118


def _hash(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    said = hashlib.sha256(canonical({k: v for k, v in header.items() if k != "hash"}))
    for key in sorted(tensors):
        value = tensors[key]
        said.update(canonical([key, str(value.dtype), list(value.shape)]))
        said.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return said.hexdigest()


def _damaged(path: Path) -> ValueError:
    return ValueError(f"{path} is damaged; delete it and the same command begins anew")


def _check_settings(path: Path, theirs: Any, ours: Any) -> None:
    first, second = dict(_leaves(theirs)), dict(_leaves(ours))
    differ = [key for key in {**first, **second} if first.get(key, "") != second.get(key, "")]
    if differ:
        told = [f"{key} {_short(first, key)} there, {_short(second, key)} here" for key in differ]
        more = f" and {len(told) - 3} more" if len(told) > 3 else ""
        raise foreign(path, "; ".join(told[:3]) + more)


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every value by its path, as JSON."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else key)
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{name}[{index}]")
    else:
        yield name, json.dumps(value, ensure_ascii=False)


def _short(leaves: Mapping[str, str], key: str) -> str:
    text = leaves.get(key, "nothing")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
