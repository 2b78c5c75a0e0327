"""The artefact: what an eraser makes, and what a user applies, dials, removes, merges and saves."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from expunge.adapter import Adapter, Factors, LowRank, add, check_layer
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.closed_form import Targets, solve
from expunge.concept import Concept
from expunge.run.files import write_atomically, write_text

SCHEMA = "expunge.erasure/1"
RECORD = "erasure.json"
ADAPTERS = "adapters"
TARGETS = "closed_form.safetensors"


def slug(name: str) -> str:
    """A name fit for files and adapters: `[a-z0-9-]` and a short hash."""
    plain = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:6]}".lstrip("-")


@dataclass(frozen=True)
class Part:
    """What erases one concept.

    Attributes:
        concept: what goes.
        closed: exact low-rank changes from a closed form, if any.
        tuned: changes that were trained, if any.
    """

    concept: Concept
    closed: Factors = field(default_factory=dict)
    tuned: Factors = field(default_factory=dict)

    @property
    def factors(self) -> dict[str, LowRank]:
        """Everything this part adds to the model."""
        return add([self.closed, self.tuned])


class Erasure:
    """Concepts erased from one model, as low-rank changes that leave its weights alone.

    Attributes:
        parts: one a concept, in the order they were asked for.
        record: how it was made: schema, eraser, hyperparameters, base model, seeds, losses.
        targets: what a closed form solved, by text stream, kept so that `merge` can solve again.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        record: Mapping[str, Any],
        targets: Mapping[str, Targets] | None = None,
    ) -> None:
        if not parts:
            raise ValueError("an erasure needs at least one concept, got none")
        names = [part.concept.name for part in parts]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"a concept can be erased once, got {sorted(twice)} twice")
        self.parts, self.targets = tuple(parts), dict(targets or {})
        self.record = {
            **record,
            "schema": SCHEMA,
            "concepts": [part.concept.to_dict() for part in parts],
        }
        self._applied: weakref.WeakKeyDictionary[nn.Module, Adapter] = weakref.WeakKeyDictionary()

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What is erased."""
        return tuple(part.concept for part in self.parts)

    @property
    def layers(self) -> list[str]:
        """Names of the changed layers."""
        return sorted({name for part in self.parts for name in part.factors})

    def changes(self) -> dict[str, LowRank]:
        """The low-rank change of every layer at strength 1, fp64."""
        total = add([part.factors for part in self.parts])
        return {n: LowRank(c.down.double(), c.up.double()) for n, c in sorted(total.items())}

    def delta(self) -> dict[str, Tensor]:
        """The dense change of every layer at strength 1, fp64: as large as the layers are."""
        return {name: change.delta for name, change in self.changes().items()}

    # --- on a pipeline

    def apply(self, pipe: Any, strength: float | Mapping[str, float] = 1.0) -> None:
        """Hook the changes into a pipeline, which draws without the concepts until `remove`.

        Args:
            pipe: a diffusers pipeline or a backbone.
            strength: 0 is off, 1 as made; one number, or one for each concept's name.

        Raises:
            ValueError: the erasure is already applied to this pipeline, was made for another
                architecture or for other weights, or has no such concept.
        """
        backbone = as_backbone(pipe)
        if backbone.denoiser in self._applied:
            raise ValueError("this erasure is already applied here; dial or remove it instead")
        self.check(backbone)
        strengths = self._strengths(strength)
        slices = {part.concept.name: part.factors for part in self.parts}
        adapter = Adapter(backbone.denoiser, slices)
        adapter.dial(strengths)
        self._applied[backbone.denoiser] = adapter

    def dial(self, pipe: Any, strength: float | Mapping[str, float]) -> None:
        """Change the strength of what is applied.

        Raises:
            ValueError: the erasure is not applied here, or has no such concept.
        """
        self._adapter(pipe).dial(self._strengths(strength))

    def remove(self, pipe: Any) -> None:
        """Take the changes off again; the model is bit for bit what it was.

        Raises:
            ValueError: the erasure is not applied here.
        """
        self._adapter(pipe).remove()
        del self._applied[as_backbone(pipe).denoiser]

    @contextlib.contextmanager
    def applied(self, pipe: Any, strength: float | Mapping[str, float] = 1.0) -> Iterator[None]:
        """Apply within a `with` block."""
        self.apply(pipe, strength)
        try:
            yield
        finally:
            self.remove(pipe)

    def _adapter(self, pipe: Any) -> Adapter:
        try:
            return self._applied[as_backbone(pipe).denoiser]
        except KeyError:
            raise ValueError("this erasure is not applied here; call apply first") from None

    def _strengths(self, strength: float | Mapping[str, float]) -> dict[str, float]:
        names = [concept.name for concept in self.concepts]
        if not isinstance(strength, Mapping):
            return dict.fromkeys(names, float(strength))
        unknown = sorted(set(strength) - set(names))
        if unknown:
            raise ValueError(f"this erasure has no concept {unknown}; it has {names}")
        return {name: float(value) for name, value in strength.items()}

    def check(self, backbone: Backbone) -> None:
        """Refuse a model this erasure was not made for.

        Raises:
            ValueError: another architecture, or other weights in the changed layers.
        """
        layers = dict(backbone.denoiser.named_modules())
        for part in self.parts:
            for name, change in part.factors.items():
                check_layer(layers, name, change)
        here, made = backbone.content_hash(), self.record.get("model_hash")
        if made and here != made:
            raise ValueError(
                f"made for other weights: the changed layers hash to {here[:12]} here and to "
                f"{made[:12]} in {self.record.get('model', 'the base model')}"
            )

    def weights_hash(self, strength: float | Mapping[str, float] = 1.0) -> str:
        """SHA-256 of the changes and of the strength they are applied with."""
        digest = hashlib.sha256(json.dumps(self._strengths(strength), sort_keys=True).encode())
        for part in self.parts:
            for name, change in sorted(part.factors.items()):
                digest.update(f"{part.concept.name} {name}".encode())
                for tensor in (change.down, change.up):
                    digest.update(tensor.float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    # --- several at once

    @staticmethod
    def merge(erasures: Sequence[Erasure], pipe: Any) -> Erasure:
        """One erasure of all their concepts.

        Closed forms are solved again, jointly, on the base model: sums of separate solves miss
        their targets. Trained changes stand side by side.

        Raises:
            ValueError: a concept occurs twice, or one was made for another model.
        """
        backbone = as_backbone(pipe)
        for erasure in erasures:
            erasure.check(backbone)
        parts = [part for erasure in erasures for part in erasure.parts]
        joint = {
            stream: Targets.join([e.targets[stream] for e in erasures if stream in e.targets])
            for stream in backbone.text_streams()
            if any(stream in erasure.targets for erasure in erasures)
        }
        if joint:
            closed = solve_streams(backbone, joint)
            parts = [
                dataclasses.replace(part, closed=closed.get(part.concept.name, {}))
                for part in parts
            ]
        first = erasures[0].record
        record: dict[str, Any] = {
            "eraser": "merge",
            "hyperparameters": {},
            "merged": [erasure.record for erasure in erasures],
            "model": first.get("model"),
            "architecture": backbone.architecture,
            "denoiser": backbone.denoiser_name,
            "denoiser_config": backbone.denoiser_config,
            "model_hash": backbone.content_hash(),
            "versions": first.get("versions"),
        }
        return Erasure(parts, record, joint)

    # --- on disk

    def save(self, folder: str | Path) -> Path:
        """Write the record, every concept's adapter, a LoRA of all of them, and a model card.

        Raises:
            OSError: the folder cannot be written.
        """
        from expunge.exports import model_card, write_lora

        folder = Path(folder)
        for part in self.parts:
            _save_part(folder / ADAPTERS / f"{slug(part.concept.name)}.safetensors", part)
        if self.targets:
            _save_targets(folder / TARGETS, self.targets)
        write_lora(self, folder)
        write_text(folder / "README.md", model_card(self))
        # The record comes last: a folder that has one is whole.
        write_text(folder / RECORD, json.dumps(self.record, indent=1) + "\n")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> Erasure:
        """Read what `save` wrote.

        Raises:
            ValueError: no erasure is there, it is from a newer schema, or a file is damaged.
        """
        folder = Path(folder)
        record = _read_record(folder)
        parts = []
        for entry in record["concepts"]:
            concept = Concept.from_dict(entry)
            parts.append(
                _load_part(folder / ADAPTERS / f"{slug(concept.name)}.safetensors", concept)
            )
        path = folder / TARGETS
        if not path.exists():
            return cls(parts, record)
        return cls(parts, record, _load_targets(path))


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(
            f"no erasure in {folder}: {RECORD} is missing; make one with expunge erase"
        )
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except json.JSONDecodeError:
        raise ValueError(f"{path} is damaged: not valid JSON; make the erasure again") from None
    schema = str(record.get("schema"))
    if schema != SCHEMA:
        raise ValueError(
            f"{path} has schema {schema!r}, this Expunge reads {SCHEMA!r}; "
            "upgrade Expunge, or make the erasure again"
        )
    return record


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a file.

    Raises:
        ValueError: the file is no safetensors, or is cut short.
    """
    if path.suffix in {".ckpt", ".pt", ".pth", ".bin", ".pkl"}:
        raise ValueError(f"{path.name} is a pickle, which can run code; only safetensors are read")
    if not path.is_file():
        raise ValueError(f"no such file: {path}")
    try:
        with safe_open(path, "pt") as handle:
            header = handle.metadata() or {}
        return load_file(path), header
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error})") from None


def _save_part(path: Path, part: Part) -> None:
    tensors = {}
    for kind, factors in (("closed", part.closed), ("tuned", part.tuned)):
        for name, change in factors.items():
            tensors[f"{kind}.{name}.down"] = change.down.float().contiguous()
            tensors[f"{kind}.{name}.up"] = change.up.float().contiguous()
    header = {"concept": json.dumps(part.concept.to_dict())}
    write_atomically(path, lambda target: save_file(tensors, target, metadata=header))


def _load_part(path: Path, concept: Concept) -> Part:
    tensors, _ = read_safetensors(path)
    found: dict[str, dict[str, LowRank]] = {"closed": {}, "tuned": {}}
    for key, down in tensors.items():
        if key.endswith(".down"):
            kind, name = key.removesuffix(".down").split(".", 1)
            found[kind][name] = LowRank(down, tensors[key.removesuffix("down") + "up"])
    return Part(concept, found["closed"], found["tuned"])


def _save_targets(path: Path, targets: Mapping[str, Targets]) -> None:
    tensors: dict[str, Tensor] = {}
    headers: dict[str, dict[str, str]] = {}
    for stream, target in targets.items():
        own, headers[stream] = target.to_tensors()
        tensors |= {f"{stream}/{key}": value for key, value in own.items()}
    header = {"streams": json.dumps(headers)}
    write_atomically(path, lambda target: save_file(tensors, target, metadata=header))


def _load_targets(path: Path) -> dict[str, Targets]:
    tensors, header = read_safetensors(path)
    found = {}
    for stream, own in json.loads(header["streams"]).items():
        start = f"{stream}/"
        part = {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
        found[stream] = Targets.from_tensors(part, own)
    return found


def solve_streams(
    backbone: Backbone, targets: Mapping[str, Targets]
) -> dict[str, dict[str, LowRank]]:
    """Solve the closed form of every text stream.

    Returns:
        Concept name -> layer name -> change.
    """
    streams = backbone.text_streams()
    found: dict[str, dict[str, LowRank]] = {}
    for stream, target in targets.items():
        for concept, changes in solve(streams[stream].layers, target).items():
            found.setdefault(concept, {}).update(changes)
    return found
