"""Least-squares edits of the layers that read text, solved once in fp64 for all of them.

Every edit here asks that a projection W send source embeddings c where it now sends guides g, and
that preserved embeddings r stay:

    min  Σ ‖W* c − W g‖² + Σ ‖W* r − W r‖² + λ ‖W* − W‖²

so that W* − W = W · [Σ (g − c) cᵀ] · [λI + Σ c cᵀ + Σ r rᵀ]⁻¹. The two brackets do not depend on W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from expunge.adapter import LowRank, plain


@dataclass(frozen=True)
class Moments:
    """What a least-squares solve needs to know of one concept's embeddings.

    Attributes:
        cross: Σ (g − c) cᵀ, fp64, (width, width).
        gram: Σ c cᵀ, fp64, (width, width).
    """

    cross: Tensor
    gram: Tensor

    @classmethod
    def of(cls, sources: Tensor, guides: Tensor, weight: float = 1.0) -> Moments:
        """Moments of n source embeddings and their guides, both (n, width)."""
        c, g = sources.double().cpu(), guides.double().cpu()
        return cls(weight * (g - c).T @ c, weight * c.T @ c)


@dataclass(frozen=True)
class Targets:
    """Everything a joint solve needs, and all that has to be stored to solve again.

    Attributes:
        moments: by concept name.
        preserved: Σ r rᵀ, fp64, (width, width).
        ridge: λ; 0 takes the pseudo-inverse.
        strength: η, the share of the edit that is made.
    """

    moments: Mapping[str, Moments]
    preserved: Tensor
    ridge: float
    strength: float = 1.0

    @property
    def system(self) -> Tensor:
        """λI + Σ c cᵀ + Σ r rᵀ, fp64, (width, width)."""
        eye = torch.eye(len(self.preserved), dtype=torch.float64)
        grams = [moments.gram for moments in self.moments.values()]
        return self.ridge * eye + self.preserved + torch.stack(grams).sum(0)

    @property
    def condition_number(self) -> float:
        """Of the system. Beyond about 1e10 the edit amplifies noise."""
        values = torch.linalg.eigvalsh(self.system)
        return float(values[-1] / values[0].clamp(min=torch.finfo(values.dtype).tiny))

    @staticmethod
    def join(targets: Sequence[Targets]) -> Targets:
        """The targets of several erasures as one system, with the largest ridge."""
        moments = {name: m for target in targets for name, m in target.moments.items()}
        preserved = torch.stack([target.preserved for target in targets]).sum(0)
        ridge = max(target.ridge for target in targets)
        return Targets(moments, preserved, ridge, min(target.strength for target in targets))

    def to_tensors(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and header for a safetensors file."""
        tensors = {"preserved": self.preserved.contiguous()}
        for name, moments in self.moments.items():
            tensors[f"cross.{name}"] = moments.cross.contiguous()
            tensors[f"gram.{name}"] = moments.gram.contiguous()
        return tensors, {"ridge": repr(self.ridge), "strength": repr(self.strength)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Targets:
        """What `to_tensors` wrote."""
        names = [key.removeprefix("cross.") for key in tensors if key.startswith("cross.")]
        moments = {n: Moments(tensors[f"cross.{n}"], tensors[f"gram.{n}"]) for n in names}
        return cls(moments, tensors["preserved"], float(header["ridge"]), float(header["strength"]))


def solve(layers: Mapping[str, nn.Linear], targets: Targets) -> dict[str, dict[str, LowRank]]:
    """The joint edit as one exact low-rank change per concept and layer, fp64.

    The changes are the terms of the joint solution in the dual basis: with any subset switched off,
    the concepts that are on are sent to their guides and the others stay.

    Args:
        layers: by name; all read embeddings of the same width.
        targets: what goes where.

    Returns:
        Concept name -> layer name -> change.
    """
    system = targets.system
    if targets.ridge == 0:
        inverse = torch.linalg.pinv(system, hermitian=True)
    else:
        factors = torch.linalg.lu_factor(system)
    found = {}
    for concept, moments in targets.moments.items():
        if targets.ridge == 0:
            right = moments.cross @ inverse
        else:
            right = torch.linalg.lu_solve(*factors, moments.cross.T).T
        shared = LowRank.of(right * targets.strength)
        found[concept] = {
            name: LowRank(shared.down, plain(layer.weight.detach()).double().cpu() @ shared.up)
            for name, layer in layers.items()
        }
    return found
