"""The artefact: what an eraser makes, and what a user applies, removes, merges and saves."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from expunge.adapter import Adapter, applied_to, check_layer, find_layers, find_weights
from expunge.backbone.base import Backbone
from expunge.backbone.identity import SAME_WEIGHTS, sketch, sketch_distance
from expunge.backbone.load import as_backbone
from expunge.change import Change, Changes, together
from expunge.concept import Concept
from expunge.felt import StepCheck
from expunge.gate import Gate
from expunge.record import SCHEMA
from expunge.request import Request
from expunge.settings import MOST_STRENGTH
from expunge.text_edit import solve


@dataclass(frozen=True)
class Part:
    """What erases one concept.

    Attributes:
        concept: what goes.
        closed: exact changes from a closed form, if any.
        tuned: changes that were trained, if any.
        gate: what their strength depends on, None for nothing.
    """

    concept: Concept
    closed: Changes = field(default_factory=dict)
    tuned: Changes = field(default_factory=dict)
    gate: Gate | None = None

    def by_place(self) -> dict[str, list[Change]]:
        """Everything this part adds to the model."""
        return together([self.closed, self.tuned])


class Erasure:
    """Concepts erased from one model, as changes that leave its weights alone.

    Attributes:
        parts: one a concept, in the order they were asked for.
        record: how it was made: schema, eraser, hyperparameters, base model, seeds, losses.
        requests: what a closed form was asked for, by concept, so that `merge` can solve again.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        record: Mapping[str, Any],
        requests: Mapping[str, Request] | None = None,
    ) -> None:
        if not parts:
            raise ValueError("an erasure needs at least one concept, got none")
        names = [part.concept.name for part in parts]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"a concept can be erased once, got {sorted(twice)} twice")
        self.parts, self.requests = tuple(parts), dict(requests or {})
        for place, changes in self.by_place().items():
            if not all(change.finite for change in changes):
                raise ValueError(f"the change of {place} holds NaN or infinity: it erases nothing")
        self.record = {
            **record,
            "schema": SCHEMA,
            "concepts": [part.concept.to_dict() for part in parts],
        }

    def __repr__(self) -> str:
        eraser, model = self.record.get("eraser"), self.record.get("model")
        names = ", ".join(concept.name for concept in self.concepts[:5])
        more = f" and {len(self.parts) - 5} more" if len(self.parts) > 5 else ""
        return f"<Erasure of {names}{more} from {model} by {eraser}: {len(self.layers)} layers>"

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """What is erased."""
        return tuple(part.concept for part in self.parts)

    def by_place(self) -> dict[str, list[Change]]:
        """Every change by place: a component of the pipeline, a slash, a layer."""
        return together([c for part in self.parts for c in (part.closed, part.tuned)])

    @property
    def layers(self) -> list[str]:
        """Places of the changed layers."""
        return sorted(self.by_place())

    @property
    def components(self) -> list[str]:
        """Components of the pipeline that are changed."""
        return sorted({place.partition("/")[0] for place in self.by_place()})

    @property
    def gated(self) -> bool:
        """Whether the strength of some concept depends on the prompt."""
        return any(part.gate is not None for part in self.parts)

    def delta(self) -> dict[str, Tensor]:
        """The dense change of every layer's weight at strength 1, fp64: as large as the layers.

        Raises:
            ValueError: a change is none of a weight.
        """
        return {
            place: _sum([change.delta for change in changes])
            for place, changes in sorted(self.by_place().items())
        }

    # --- on a pipeline

    def apply(self, pipe: Any, strength: float | Mapping[str, float] = 1.0) -> None:
        """Hook the changes into a pipeline, which draws without the concepts until `remove`.

        At the first step of every run, all changed layers must have run.

        Args:
            pipe: a diffusers pipeline or a backbone.
            strength: 0 is off, 1 as made; one number, or one for each concept's name.

        Raises:
            ValueError: the erasure is already applied to this pipeline, was made for another
                architecture or for other weights, has no such concept, or its layers cannot be
                reached (fused projections); a strength that is no finite number.
        """
        backbone = as_backbone(pipe)
        strengths = self._strengths(strength)
        self.check(backbone)
        slices, gates = {}, {}
        for part in self.parts:
            for kind, changes in (("closed", part.closed), ("tuned", part.tuned)):
                if changes:
                    slices[f"{kind} {part.concept.name}"] = changes
                    if part.gate is not None:
                        gates[f"{kind} {part.concept.name}"] = part.gate
        networks = backbone.networks
        adapter = Adapter(networks, slices, name=self.id, gates=gates, dtype=backbone.dtype)
        adapter.set_strength(_by_slice(adapter, strengths))
        adapter.at_end.append(StepCheck(backbone, self.components, self.id).stop)

    def set_strength(self, pipe: Any, strength: float | Mapping[str, float]) -> None:
        """Change the strength of what is applied.

        Raises:
            ValueError: the erasure is not applied here, has no such concept, or a strength is no
                finite number.
        """
        strengths = self._strengths(strength)
        adapter = self._adapter(as_backbone(pipe))
        adapter.set_strength(_by_slice(adapter, strengths))

    def remove(self, pipe: Any) -> None:
        """Take the changes off again; the model is bit for bit what it was.

        Raises:
            ValueError: the erasure is not applied here.
        """
        backbone = as_backbone(pipe)
        self._adapter(backbone).remove(backbone.networks)

    @contextlib.contextmanager
    def applied(self, pipe: Any, strength: float | Mapping[str, float] = 1.0) -> Iterator[None]:
        """Apply within a `with` block."""
        self.apply(pipe, strength)
        try:
            yield
        finally:
            self.remove(pipe)

    def _adapter(self, backbone: Backbone) -> Adapter:
        for component in self.components:
            found = applied_to(backbone.networks[component]).get(self.id)
            if found is not None:
                return found
        raise ValueError("this erasure is not applied here; call apply first")

    def _strengths(self, strength: float | Mapping[str, float]) -> dict[str, float]:
        names = [concept.name for concept in self.concepts]
        given = strength if isinstance(strength, Mapping) else dict.fromkeys(names, strength)
        unknown = sorted(set(given) - set(names))
        if unknown:
            raise ValueError(f"this erasure has no concept {unknown}; it has {names}")
        for name, value in given.items():
            if not (isinstance(value, (int, float)) and abs(value) <= MOST_STRENGTH):
                raise ValueError(
                    f"strength must be a number between -{MOST_STRENGTH:g} and {MOST_STRENGTH:g}, "
                    f"got {value!r} for {name}"
                )
        return {name: float(value) for name, value in given.items()}

    def check(self, pipe: Any) -> None:
        """Refuse a model this erasure was not made for.

        Args:
            pipe: a diffusers pipeline or a backbone.

        Raises:
            ValueError: another architecture, other weights in the changed layers, or a LoRA that
                was loaded when it was made is not.
        """
        backbone, by_place = as_backbone(pipe), self.by_place()
        for place, module in find_layers(backbone.networks, by_place).items():
            for change in by_place[place]:
                check_layer(place, module, change)
        self._check_weights(backbone)
        wanted, here = self.record.get("loras", []), backbone.loras
        if sorted(wanted) != sorted(here):
            raise ValueError(
                f"made with the LoRAs {wanted or 'none'} loaded, and {here or 'none'} are active "
                "here; load or disable them first"
            )

    def _check_weights(self, backbone: Backbone) -> None:
        made = self.record.get("sketch")
        if not made:
            return
        distance = sketch_distance(made, sketch(find_weights(backbone.networks, self.layers)))
        if distance > SAME_WEIGHTS:
            raise ValueError(
                f"made for other weights: the changed layers of {backbone.name} differ by "
                f"{distance:.1e} from those of {self.record.get('model', 'the base model')}, and "
                f"casts of one model by at most {SAME_WEIGHTS:.0e}"
            )

    @cached_property
    def id(self) -> str:
        """SHA-256 of all changes, by which hooks, folders and units know this erasure."""
        digest = hashlib.sha256()
        for part in self.parts:
            for kind, changes in (("closed", part.closed), ("tuned", part.tuned)):
                for place, change in sorted(changes.items()):
                    digest.update(f"{part.concept.name} {kind} {place} {change.kind}".encode())
                    for name, tensor in sorted(change.state_dict().items()):
                        raw = tensor.detach().float().cpu().contiguous().numpy().tobytes()
                        digest.update(name.encode() + raw)
            if part.gate is not None:
                digest.update(json.dumps(part.gate.record(), sort_keys=True).encode())
        return digest.hexdigest()

    def spec(self, strength: float | Mapping[str, float] = 1.0) -> dict[str, Any]:
        """What names this erasure at a strength, for units of work."""
        return {"erasure": self.id, "strength": self._strengths(strength)}

    # --- several at once

    @staticmethod
    def merge(erasures: Sequence[Erasure], pipe: Any) -> Erasure:
        """One erasure of all their concepts.

        Closed forms are solved again from their texts, jointly, on the base model: sums of separate
        solves miss their targets. Each keeps its own strength. Trained changes stand side by side.

        Raises:
            ValueError: a concept occurs twice, or one was made for another model.
        """
        from expunge.fingerprint import describe

        backbone = as_backbone(pipe)
        if not erasures:
            raise ValueError("merge needs at least one erasure, got none")
        for erasure in erasures:
            erasure.check(backbone)
        parts = [part for erasure in erasures for part in erasure.parts]
        requests = {name: r for erasure in erasures for name, r in erasure.requests.items()}
        if requests:
            closed = solve(backbone, requests, [part.concept for part in parts])
            parts = [
                dataclasses.replace(part, closed=closed.get(part.concept.name, part.closed))
                for part in parts
            ]
        record = {"eraser": "merge", "hyperparameters": {}, "merged": [e.record for e in erasures]}
        return describe(backbone, Erasure(parts, record, requests))

    # --- on disk

    def save(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write the record, every concept's adapter, a LoRA of all of them, and a model card.

        Args:
            folder: where to.
            force: clear what belongs to another erasure there.

        Raises:
            ValueError: the folder holds another erasure, and `force` is off.
            OSError: the folder cannot be written.
        """
        from expunge.folder import save

        return save(self, Path(folder), force=force)

    @classmethod
    def load(cls, folder: str | Path) -> Erasure:
        """Read what `save` wrote.

        Raises:
            ValueError: no erasure is there, it is from a newer schema, or a file is damaged or was
                changed since.
        """
        from expunge.folder import load

        return load(Path(folder))


def _sum(tensors: Sequence[Tensor]) -> Tensor:
    total = tensors[0]
    for tensor in tensors[1:]:
        total = total + tensor
    return total


def _by_slice(adapter: Adapter, strengths: Mapping[str, float]) -> dict[str, float]:
    """Strengths of an adapter's slices, from those of concepts."""
    return {
        name: strengths[concept]
        for name in adapter.strengths
        if (concept := name.partition(" ")[2]) in strengths
    }


def applied_erasures(backbone: Backbone) -> list[str]:
    """Ids of the erasures that are applied to a model at this moment."""
    found = {name for network in backbone.networks.values() for name in applied_to(network)}
    return sorted(found)


def refuse_applied(backbone: Backbone, what: str) -> None:
    """Refuse to start something on a model that carries an erasure.

    Raises:
        ValueError: one is applied.
    """
    if applied_erasures(backbone):
        raise ValueError(f"an erasure is applied to this model; remove it before you {what}")
