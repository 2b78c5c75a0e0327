"""Whether two models are the same: exactly, by a hash, or but for a cast, by a sketch."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

DIRECTIONS = 32
"""Projections of a layer in a sketch."""
SAME_WEIGHTS = 8e-4
"""Largest `sketch_distance` of one model's casts; a change of a thousandth lies above."""
QUANTISED = 0.02
"""Largest distance of a model from itself in 8 bits."""
_ROUNDED_TWICE = 1.5e-3
"""Distance of weights rounded to float16 and then to bfloat16 from those rounded to bfloat16 at
once: 6.3 % of Gaussian ones land on the neighbouring value."""
_TYPES = (torch.float32, torch.float16, torch.bfloat16)

Sketch = Mapping[str, Mapping[str, list[float]]]
"""For each type that weights are rounded to, by name: layer -> its projections."""


def weights_key(network: nn.Module) -> Hashable:
    """Something that changes when a network's weights are written to or replaced.

    Cheap: no weight is read. An offloaded network's weights move with every use, so only writing
    to them is seen there.
    """
    moves = hasattr(network, "_hf_hook") or hasattr(network, "_diffusers_hook")
    tensors = (*network.parameters(), *network.buffers())
    places = tuple((0 if moves else _address(t), t._version, t.dtype) for t in tensors)
    return (id(network), places, tuple(_wrapped(network)))


def _address(tensor: Tensor) -> int:
    return tensor.data_ptr() if type(tensor) in (Tensor, nn.Parameter) else id(tensor)


def _wrapped(network: nn.Module) -> Iterator[Hashable]:
    """What decides how peft's adapters act: merged, active, scaled or off."""
    for module in network.modules():
        scaling: Any = getattr(module, "scaling", None)
        if isinstance(scaling, dict) and hasattr(module, "merged_adapters"):
            state: Any = module
            yield (
                tuple(state.merged_adapters),
                tuple(state.active_adapters),
                bool(state.disable_adapters),
                tuple(scaling.items()),
            )


def content_hash(networks: Mapping[str, nn.Module]) -> str:
    """SHA-256 over every network's tensors: names, types, shapes, bytes.

    Raises:
        ValueError: weights are nowhere (on the meta device).
    """
    digest = hashlib.sha256()
    for part, network in sorted(networks.items()):
        digest.update(f"{part} {list(_wrapped(network))}\n".encode())
        for name, value in sorted(network.state_dict().items()):
            if not isinstance(value, Tensor):
                continue
            if value.is_meta:
                raise ValueError(
                    f"the weights of {part} are on no device (sequential offloading), so the model "
                    "has no hash: use enable_model_cpu_offload or enable_group_offload instead"
                )
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> Any:
    flat = value.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy()


@torch.no_grad()
def sketch(layers: Mapping[str, nn.Module]) -> dict[str, dict[str, list[float]]]:
    """A few numbers a layer that stand for its weight, whatever type it is cast to.

    uᵢᵀ W vᵢ with entries of ±1 seeded by the layer's name, in fp64, of the weight as it is and
    rounded to every narrower type: so a float32 model and its casts have a type in common in which
    they agree. Divided by the square root of the number of weights.

    Args:
        layers: with a `weight` each, by name.

    Returns:
        Name of a type -> layer -> 32 projections.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for name, layer in layers.items():
        weight = layer.weight
        assert isinstance(weight, Tensor)
        if hasattr(weight, "dequantize") and type(weight) is not nn.Parameter:
            weight = weight.dequantize()  # quantised: what it stands for
        left, right = _directions(name, weight.flatten(1).shape)
        for dtype in _TYPES[_TYPES.index(weight.dtype) :]:
            rounded = weight.flatten(1).to(dtype).double()
            values = (left.to(rounded) @ rounded * right.to(rounded)).sum(1)
            values = values / math.sqrt(rounded.numel())
            part = found.setdefault(str(dtype).removeprefix("torch."), {})
            part[name] = values.tolist()
    return found


def _directions(name: str, shape: torch.Size) -> tuple[Tensor, Tensor]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    generator = torch.Generator().manual_seed(seed)
    rows, columns = shape
    signs = torch.randint(2, (DIRECTIONS, rows + columns), generator=generator) * 2 - 1
    return signs[:, :rows], signs[:, rows:]


def sketch_distance(first: Sketch, second: Sketch) -> float:
    """How far apart two models are: the relative change of their weights, casts aside.

    Compared in the widest type both have been rounded to; where one was float16 and the other
    bfloat16, what rounding twice explains is taken off.

    Returns:
        Root mean square over layers and projections; infinite where layers differ. Casts of one
        model lie below `SAME_WEIGHTS`.
    """
    names = [str(dtype).removeprefix("torch.") for dtype in _TYPES]
    common = next(name for name in names if name in first and name in second)
    one, other = first[common], second[common]
    if one.keys() != other.keys() or not one:
        return math.inf
    shares = []
    for layer, values in one.items():
        here = torch.tensor(values, dtype=torch.float64)
        there = torch.tensor(other[layer], dtype=torch.float64)
        scale = (here.square().mean() + there.square().mean()) / 2
        shares.append(float((here - there).square().mean() / scale) if scale > 0 else 0.0)
    squared = sum(shares) / len(shares)
    widest = [next(name for name in names if name in each) for each in (first, second)]
    if set(widest) == {"float16", "bfloat16"}:
        spread = math.sqrt(2 / (DIRECTIONS * len(shares)))  # relative, of a mean of squares
        squared -= _ROUNDED_TWICE**2 * (1 + 3 * spread)
    return math.sqrt(squared) if squared > 0 else 0.0
