"""Layers of text encoders under the names that other tools read, whole where those need it whole.

Two readers leave out what is not whole, without a word. Diffusers 0.42 tells an encoder's layout
from its output projections, and drops what it then cannot place. A1111 holds OpenCLIP's queries,
keys and values in one module, and changes it only where a file has all three and the output. So an
attention is written with all four of its layers, those without a change as zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from expunge.change import LowRank

_ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
_LAYER = re.compile(r"(?P<layer>.*encoder\.layers\.\d+)\.(self_attn\.\w+_proj|mlp\.fc[12])")
_READ: dict[str, tuple[str, ...]] = {
    "sd": ("text_encoder",),
    "sdxl": ("text_encoder", "text_encoder_2"),
    "sd3": ("text_encoder", "text_encoder_2"),
    "flux": ("text_encoder",),
}
"""Encoders that readers of a LoRA look for, by architecture."""


def text_name(layer: str) -> str:
    """A CLIP layer's name with `text_model.`, which only some of transformers' classes have."""
    bare = layer.removeprefix("text_model.")
    return bare if bare == "text_projection" else f"text_model.{bare}"


def refuse_unread(places: Iterable[str], architecture: str) -> None:
    """Refuse changes of a text encoder that no LoRA file can carry.

    Raises:
        ValueError: names one.
    """
    for place in places:
        component, _, layer = place.partition("/")
        if not component.startswith("text_encoder"):
            continue
        if component not in _READ.get(architecture, ()) or _LAYER.fullmatch(layer) is None:
            raise ValueError(
                f"no reader of LoRA files takes a change of {place} on {architecture}: it would be "
                "left out without a word; write the format 'merged' or 'components' instead"
            )


def gaps(names: Iterable[str]) -> list[str]:
    """Layers of one CLIP text encoder that have no change, and readers need beside those that do.

    Args:
        names: of the changed layers, by the encoder's own names.
    """
    present = set(names)
    layers = sorted({_layer(name) for name in present if ".self_attn." in name})
    layers = layers or [_layer(min(present))]
    wanted = [f"{layer}.self_attn.{part}" for layer in layers for part in _ATTENTION]
    return [name for name in wanted if name not in present]


def whole_attentions(changes: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The same changes of one CLIP text encoder, with zeros in its `gaps`."""
    name, change = next(iter(changes.items()))
    width = _width(name, (change.up.shape[0], change.down.shape[1]))
    zeros = LowRank(change.down.new_zeros(1, width), change.down.new_zeros(width, 1))
    return dict.fromkeys(gaps(changes), zeros) | dict(changes)


def whole_deltas(deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same whole changes of one CLIP text encoder, with zeros in its `gaps`."""
    name, delta = next(iter(deltas.items()))
    width = _width(name, (delta.shape[0], delta.shape[1]))
    return dict.fromkeys(gaps(deltas), delta.new_zeros(width, width)) | dict(deltas)


def _width(name: str, shape: tuple[int, int]) -> int:
    """What an encoder's states hold: in and out of attention, in of fc1 and out of fc2."""
    return shape[0] if name.endswith("fc2") else shape[1]


def _layer(name: str) -> str:
    match = _LAYER.fullmatch(name)
    assert match is not None
    return match["layer"]
