"""Layers of text encoders under the names that other tools read, whole where those need it whole.

Two readers leave out what is not whole, without a word. Diffusers 0.42 tells an encoder's layout
from its output projections, and drops what it then cannot place. A1111 holds OpenCLIP's queries,
keys and values in one module, and changes it only where a file has all three and the output. So an
attention is written with all four of its layers, those without a change as zeros.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

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


def whole_attentions(changes: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """The same changes, with zeros where readers need an attention whole.

    Args:
        changes: of one CLIP text encoder, by its own names for layers.
    """
    if not changes:
        return {}
    layers = sorted({_layer(name) for name in changes if ".self_attn." in name})
    layers = layers or [_layer(min(changes))]
    width = _width(changes)
    like = next(iter(changes.values())).down
    zeros = LowRank(like.new_zeros(1, width), like.new_zeros(width, 1))
    filled = {f"{layer}.self_attn.{part}": zeros for layer in layers for part in _ATTENTION}
    return filled | dict(changes)


def _layer(name: str) -> str:
    match = _LAYER.fullmatch(name)
    assert match is not None
    return match["layer"]


def _width(changes: Mapping[str, LowRank]) -> int:
    """What the encoder's states hold: in and out of attention, in of fc1 and out of fc2."""
    name, change = next(iter(changes.items()))
    return change.up.shape[0] if name.endswith("fc2") else change.down.shape[1]
