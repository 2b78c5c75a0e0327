"""Low-rank changes to a network's layers, on removable hooks: no weight is copied or changed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_OFF: ContextVar[bool] = ContextVar("adapters_off", default=False)


@contextlib.contextmanager
def original() -> Iterator[None]:
    """Within this context every adapter is silent: the student is its own teacher.

    Run backward outside of it. A graph built inside holds no adapter, so it gives no gradient.
    """
    token = _OFF.set(True)
    try:
        yield
    finally:
        _OFF.reset(token)


@dataclass(frozen=True)
class LowRank:
    """A change of one layer's weight, `up @ down`.

    Attributes:
        down: (rank, in).
        up: (out, rank).
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Columns of `up`; the change has at most this rank."""
        return self.down.shape[0]

    @property
    def norm(self) -> float:
        """Frobenius norm of the dense change, in fp64 and without making it."""
        up, down = self.up.double(), self.down.double()
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())

    @property
    def delta(self) -> Tensor:
        """The dense change, (out, in)."""
        return self.up @ self.down

    def compressed(self, tolerance: float = 1e-10) -> LowRank:
        """The same change with the fewest columns, in fp64.

        Singular values below `tolerance` of the largest are dropped.
        """
        q_up, r_up = torch.linalg.qr(self.up.double())
        q_down, r_down = torch.linalg.qr(self.down.double().T)
        core = LowRank.of(r_up @ r_down.T, tolerance)
        return LowRank(core.down @ q_down.T, q_up @ core.up)

    @classmethod
    def of(cls, delta: Tensor, tolerance: float = 1e-10) -> LowRank:
        """A dense change with the fewest columns, in fp64."""
        u, s, vh = torch.linalg.svd(delta.double(), full_matrices=False)
        rank = max(1, int((s > tolerance * s[0]).sum())) if s.numel() and s[0] > 0 else 1
        root = s[:rank].sqrt()
        return cls(root[:, None] * vh[:rank], u[:, :rank] * root)

    def padded(self, rank: int) -> LowRank:
        """The same change with zeros up to `rank`."""
        more = rank - self.rank
        return LowRank(F.pad(self.down, (0, 0, 0, more)), F.pad(self.up, (0, more)))

    @staticmethod
    def stack(parts: list[LowRank]) -> LowRank:
        """The sum of several changes, their columns side by side."""
        return LowRank(torch.cat([p.down for p in parts]), torch.cat([p.up for p in parts], dim=1))


Factors = Mapping[str, LowRank]
"""Changes by layer name in the denoiser."""


def add(parts: list[Factors]) -> dict[str, LowRank]:
    """The sum of several sets of changes, stacked along the rank."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: LowRank.stack([p[name] for p in parts if name in p]) for name in names}


class _Layer(nn.Module):
    """Adds s · (x downᵀ) upᵀ to a layer's output, with one strength per column.

    What is trained stays in float32, whatever the layer computes in: in bfloat16 the optimiser's
    averages stop decaying and small steps are lost.
    """

    strength: Tensor

    def __init__(self, change: LowRank, like: Tensor, *, trainable: bool) -> None:
        super().__init__()
        dtype = torch.float32 if trainable else like.dtype
        self.down = nn.Parameter(change.down.to(like.device, dtype), requires_grad=trainable)
        self.up = nn.Parameter(change.up.to(like.device, dtype), requires_grad=trainable)
        self.register_buffer("strength", torch.ones(change.rank).to(like.device, dtype))

    def forward(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if _OFF.get():
            return output
        x = args[0]
        if self.down.device != x.device:
            self.to(x.device)  # the pipeline was moved after the erasure was applied
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        return output + F.linear(F.linear(x, down) * self.strength.to(x.dtype), up)


class Adapter:
    """Changes attached to a network, in named slices that can be dialled apart.

    Args:
        network: whose layers are hooked.
        slices: name -> changes. Columns of one layer are stacked in this order.
        trainable: whether the changes take gradients.

    Raises:
        ValueError: the network lacks a layer, or one has another shape.
    """

    def __init__(
        self, network: nn.Module, slices: Mapping[str, Factors], *, trainable: bool = False
    ) -> None:
        self._slices = slices
        layers = dict(network.named_modules())
        for factors in slices.values():
            for name, change in factors.items():
                check_layer(layers, name, change)
        self._layers: dict[str, _Layer] = {}
        for name, change in add(list(slices.values())).items():
            weight = layers[name].weight
            assert isinstance(weight, Tensor)
            self._layers[name] = _Layer(change, weight, trainable=trainable)
        self._hooks = [
            layers[name].register_forward_hook(layer) for name, layer in self._layers.items()
        ]

    @property
    def module(self) -> nn.Module:
        """All parameters, for an optimiser or a checkpoint."""
        return nn.ModuleList(self._layers.values())

    def columns(self, slice_name: str, layer: str) -> slice:
        """Where one slice's columns lie in a layer's stack."""
        start = 0
        for name, factors in self._slices.items():
            rank = factors[layer].rank if layer in factors else 0
            if name == slice_name:
                return slice(start, start + rank)
            start += rank
        raise KeyError(slice_name)

    def dial(self, strength: Mapping[str, float]) -> None:
        """Set the strength of some slices: 0 is off, 1 as made."""
        for name, value in strength.items():
            for layer in self._slices[name]:
                buffer = self._layers[layer].strength
                assert isinstance(buffer, Tensor)
                buffer[self.columns(name, layer)] = value

    def factors(self, slice_name: str) -> dict[str, LowRank]:
        """The present changes of one slice, float32 on the CPU."""
        found = {}
        for name in self._slices[slice_name]:
            layer, columns = self._layers[name], self.columns(slice_name, name)
            down = layer.down.detach()[columns].float().cpu().clone()
            found[name] = LowRank(down, layer.up.detach()[:, columns].float().cpu().clone())
        return found

    def remove(self) -> None:
        """Take the hooks off. Twice does nothing more."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def plain(weight: Tensor) -> Tensor:
    """A layer's weight as an ordinary tensor, computed where it is quantised."""
    if type(weight) in (Tensor, nn.Parameter):
        return weight
    computed: Tensor = weight.dequantize()
    return computed


def check_layer(layers: Mapping[str, nn.Module], name: str, change: LowRank) -> None:
    """Refuse a change made for another architecture."""
    weight = getattr(layers.get(name), "weight", None)
    wanted = (change.up.shape[0], change.down.shape[1])
    if weight is None:
        raise ValueError(f"made for another architecture: this model has no layer {name!r}")
    if tuple(weight.shape) != wanted:
        raise ValueError(
            f"made for another architecture: {name!r} is {tuple(weight.shape)} here and "
            f"{wanted} in the adapter"
        )
