"""Kinds of change: what an erasure adds to the output of one layer at strength 1."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Changes = Mapping[str, "Change"]
"""By place: a component of the pipeline, a slash, the layer's clean name in it."""


class Change(nn.Module, ABC):
    """What is added to a layer's output at strength 1.

    Its tensors are parameters, so that any of them can be trained and saved. A `forward` gets the
    layer, its arguments and its output, and returns what is added, shaped like the output.

    Attributes:
        kind: name of this kind in files.
        weight_change: whether it is the same as adding `delta` to the layer's weight. What is not
            can be written neither as a LoRA nor into merged weights.
    """

    kind: ClassVar[str]
    weight_change: ClassVar[bool] = True

    @abstractmethod
    def forward(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor: ...

    @abstractmethod
    def unfit(self, module: nn.Module) -> str | None:
        """Why this cannot change a module, None where it can."""

    @property
    def delta(self) -> Tensor:
        """The change of the layer's weight, fp64, shaped like it.

        Raises:
            ValueError: this kind is no change of a weight.
        """
        raise ValueError(f"a {self.kind} is no change of a weight")

    @property
    def norm(self) -> float:
        """Frobenius norm of `delta`; of all tensors where there is none."""
        return float(self.delta.norm())

    @property
    def finite(self) -> bool:
        """Whether no tensor holds NaN or infinity."""
        return all(bool(torch.isfinite(tensor).all()) for tensor in self.state_dict().values())

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor]) -> Self:
        """What `state_dict` held."""
        return cls(**tensors)


def _parameter(tensor: Tensor) -> nn.Parameter:
    """Layers that share a tensor go on sharing it."""
    if isinstance(tensor, nn.Parameter):
        return tensor
    return nn.Parameter(tensor, requires_grad=False)


def _weight_shape(module: nn.Module) -> tuple[int, ...] | None:
    weight = getattr(module, "weight", None)
    return None if weight is None else tuple(weight.shape)


class LowRank(Change):
    """A change `up @ down` of a linear layer's or a convolution's weight.

    Args:
        down: (rank, in), of a convolution (rank, in, height, width).
        up: (out, rank).
    """

    kind = "low_rank"
    down: nn.Parameter
    up: nn.Parameter

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.down, self.up = _parameter(down), _parameter(up)

    @classmethod
    def fresh(cls, module: nn.Module, rank: int, generator: torch.Generator) -> LowRank:
        """A change of zero that can learn: a random `down` and an empty `up`."""
        out, *inner = _weight_shape(module) or ()
        width = int(torch.tensor(inner).prod())
        down = torch.randn((rank, *inner), generator=generator) / width**0.5
        return cls(down, torch.zeros(out, rank))

    @property
    def rank(self) -> int:
        """Columns of `up`; the change has at most this rank."""
        return self.down.shape[0]

    def forward(
        self,
        module: nn.Module,
        args: tuple[Any, ...],
        output: Tensor,
        strength: Tensor | None = None,
    ) -> Tensor:
        """`strength` of every column, (rank,) or (n, rank); None for 1."""
        x = args[0]
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(module, nn.Conv2d):
            # One padding mode is in use in every denoiser known: zeros.
            hidden = F.conv2d(x, down, None, module.stride, module.padding, module.dilation)
            if strength is not None:
                hidden = hidden * strength.to(x.dtype)[..., :, None, None]
            return F.conv2d(hidden, up[:, :, None, None])
        hidden = F.linear(x, down)
        if strength is not None:
            shape = (len(strength), *(1,) * (hidden.ndim - 2), -1) if strength.ndim > 1 else (-1,)
            hidden = hidden * strength.to(x.dtype).view(shape)
        return F.linear(hidden, up)

    def unfit(self, module: nn.Module) -> str | None:
        here, wanted = _weight_shape(module), (self.up.shape[0], *self.down.shape[1:])
        if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
            return "is a grouped convolution or pads otherwise than with zeros here"
        return None if here == wanted else f"is {here} here and {wanted} in the change"

    @property
    def delta(self) -> Tensor:
        down = self.down.detach().double()
        flat = self.up.detach().double() @ down.flatten(1)
        return flat.view(len(flat), *down.shape[1:])

    @property
    def norm(self) -> float:
        """Frobenius norm of `delta`, without making it."""
        up, down = self.up.detach().double(), self.down.detach().double().flatten(1)
        return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt())

    def compressed(self, tolerance: float = 1e-10, rank: int | None = None) -> LowRank:
        """The same change with fewer columns, fp64.

        Args:
            tolerance: share of the Frobenius norm that may be dropped.
            rank: most columns that are kept, whatever is lost; None for no limit.
        """
        q_up, r_up = torch.linalg.qr(self.up.detach().double())
        q_down, r_down = torch.linalg.qr(self.down.detach().double().flatten(1).T)
        core = LowRank.of(r_up @ r_down.T, tolerance, rank)
        down = (core.down @ q_down.T).view(core.rank, *self.down.shape[1:])
        return LowRank(down, q_up @ core.up)

    @classmethod
    def of(cls, delta: Tensor, tolerance: float = 1e-10, rank: int | None = None) -> LowRank:
        """A dense change of a linear layer or convolution with the fewest columns, fp64.

        Args:
            delta: (out, in), or (out, in, height, width).
            tolerance: share of the Frobenius norm that may be dropped.
            rank: most columns that are kept; None for no limit.
        """
        u, s, vh = torch.linalg.svd(delta.double().flatten(1), full_matrices=False)
        dropped = s.square().flip(0).cumsum(0).flip(0).sqrt()  # norm of all from here on
        kept = max(1, int((dropped > tolerance * dropped[0]).sum()))
        kept = min(kept, rank or kept)
        root = s[:kept].sqrt()
        down = (root[:, None] * vh[:kept]).view(kept, *delta.shape[1:])
        return cls(down, u[:, :kept] * root)

    def padded(self, rank: int) -> LowRank:
        """The same change with zeros up to `rank`."""
        more = rank - self.rank
        down = torch.cat([self.down, self.down.new_zeros(more, *self.down.shape[1:])])
        return LowRank(down, F.pad(self.up, (0, more)))

    @staticmethod
    def stack(parts: Iterable[LowRank]) -> LowRank:
        """The sum of several changes, their columns side by side."""
        each = list(parts)
        if len(each) == 1:
            return each[0]
        with torch.no_grad():
            return LowRank(
                torch.cat([part.down for part in each]), torch.cat([p.up for p in each], dim=1)
            )


class Dense(Change):
    """A change of every weight of a linear layer or convolution, or of those a mask chooses.

    Args:
        weight: shaped like the layer's.
        mask: bool, of the same shape: which weights may change. None for all.
    """

    kind = "dense"
    weight: nn.Parameter
    mask: Tensor | None

    def __init__(self, weight: Tensor, mask: Tensor | None = None) -> None:
        super().__init__()
        self.weight = _parameter(weight)
        self.register_buffer("mask", mask)

    @classmethod
    def fresh(cls, module: nn.Module, mask: Tensor | None = None) -> Dense:
        """A change of zero that can learn."""
        return cls(torch.zeros(_weight_shape(module) or ()), mask)

    def _masked(self) -> Tensor:
        return self.weight if self.mask is None else self.weight * self.mask.to(self.weight.dtype)

    def forward(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = args[0]
        weight = self._masked().to(x.dtype)
        if isinstance(module, nn.Conv2d):
            return F.conv2d(x, weight, None, module.stride, module.padding, module.dilation)
        return F.linear(x, weight)

    def unfit(self, module: nn.Module) -> str | None:
        here, wanted = _weight_shape(module), tuple(self.weight.shape)
        if isinstance(module, nn.Conv2d) and (module.groups != 1 or module.padding_mode != "zeros"):
            return "is a grouped convolution or pads otherwise than with zeros here"
        return None if here == wanted else f"is {here} here and {wanted} in the change"

    @property
    def delta(self) -> Tensor:
        return self._masked().detach().double()


class Bottleneck(Change):
    """Two linear layers behind a module, added to what it puts out (Receler's eraser).

    E(x) = up GELU(down x), with `up` of zeros at first. It reads the module's output, so no change
    of a weight says the same.

    Args:
        down: (hidden, width).
        down_bias: (hidden,).
        up: (width, hidden).
        up_bias: (width,).
    """

    kind = "bottleneck"
    weight_change = False

    def __init__(self, down: Tensor, down_bias: Tensor, up: Tensor, up_bias: Tensor) -> None:
        super().__init__()
        self.down, self.down_bias = _parameter(down), _parameter(down_bias)
        self.up, self.up_bias = _parameter(up), _parameter(up_bias)

    @classmethod
    def fresh(cls, width: int, hidden: int, generator: torch.Generator) -> Bottleneck:
        """A change of zero that can learn."""
        down = torch.randn((hidden, width), generator=generator) / width**0.5
        return cls(down, torch.zeros(hidden), torch.zeros(width, hidden), torch.zeros(width))

    def forward(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        own = (self.down, self.down_bias, self.up, self.up_bias)
        down, down_bias, up, up_bias = (tensor.to(output.dtype) for tensor in own)
        return F.linear(F.gelu(F.linear(output, down, down_bias)), up, up_bias)

    def unfit(self, module: nn.Module) -> str | None:
        width = self.up.shape[0]
        last = next((m for m in reversed(list(module.modules())) if isinstance(m, nn.Linear)), None)
        if last is None or last.out_features == width:
            return None
        return f"puts out {last.out_features} features here and {width} in the change"

    @property
    def norm(self) -> float:
        tensors = [tensor.detach().double().flatten() for tensor in self.state_dict().values()]
        return float(torch.cat(tensors).norm())


KINDS: dict[str, type[Change]] = {kind.kind: kind for kind in (LowRank, Dense, Bottleneck)}
"""Every kind by the name files know it by."""


def together(parts: Iterable[Changes]) -> dict[str, list[Change]]:
    """Several sets of changes by place."""
    found: dict[str, list[Change]] = {}
    for changes in parts:
        for place, change in changes.items():
            found.setdefault(place, []).append(change)
    return found


def summed(changes: Iterable[Change]) -> Change:
    """One change of a weight that stands for several on the same layer.

    Raises:
        ValueError: one of them is no change of a weight.
    """
    each = list(changes)
    if all(isinstance(change, LowRank) for change in each):
        return LowRank.stack([change for change in each if isinstance(change, LowRank)])
    return Dense(torch.stack([change.delta for change in each]).sum(0))
