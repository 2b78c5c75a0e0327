"""Attention maps: where in the picture each text token is read, recorded by forward hooks."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, cast

import torch
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from expunge import hooks
from expunge.backbone.base import Backbone
from expunge.backbone.conditioning import Tokens
from expunge.mentions import occurrences

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of every position, text first, (text_tokens + picture_places, head_dim)."""

_PROJECTIONS = ("to_q", "to_k", "add_k_proj")


class AttentionMaps:
    """Within this context, how much each place of the picture attends to each text token.

        with AttentionMaps(pipe.transformer) as maps:
            pipe.transformer(...)
        maps.layers["transformer_blocks.0.attn"]  # (n, heads, picture_places, text_tokens)

    Knows UNets with cross-attention (text keys alone: rows sum to 1) and joint-attention
    transformers (text among all keys: rows sum to what text gets), FLUX's single blocks included.
    The denoiser, its processors and its output stay as they are. The maps are float32 and carry a
    graph unless under `no_grad`. Enter after adapters are attached, or their change is not seen.
    With gradient checkpointing, run backward inside the context: blocks are computed again then,
    and have to find the same hooks.

    A full map takes n · heads · places · keys floats in passing (2 GB a layer for one FLUX picture
    of 1024 pixels), so choose layers with `only`.

    Args:
        denoiser: a UNet2DConditionModel, FluxTransformer2DModel or SD3Transformer2DModel.
        only: from an attention layer's name in the denoiser to whether it is recorded.

    Attributes:
        layers: by attention layer, of the latest forward pass.

    Raises:
        ValueError: no layer is left to record; within the context, a forward pass with an attention
            mask or with fused projections.
    """

    def __init__(self, denoiser: nn.Module, *, only: Callable[[str], bool] | None = None) -> None:
        self.layers: dict[str, Tensor] = {}
        self._denoiser = denoiser
        self._attentions = {
            name: module
            for name, module in hooks.layers(denoiser).items()
            if _reads_text(module) and (only is None or only(name))
        }
        if not self._attentions:
            why = "has no attention to text" if only is None else "has none that `only` keeps"
            raise ValueError(
                f"denoiser must have layers to record, {type(denoiser).__name__} {why}"
            )
        self._hooks: list[RemovableHandle] = []
        self._projected: dict[str, dict[str, Tensor]] = {}
        self._text_tokens = 0

    def __enter__(self) -> AttentionMaps:
        start = self._denoiser.register_forward_pre_hook(self._start, with_kwargs=True)
        self._hooks.append(start)
        for name, attention in self._attentions.items():
            for projection in _PROJECTIONS:
                layer = getattr(attention, projection, None)
                if layer is not None:  # peft's wrapper, where there is one: it is what is used
                    keep = partial(self._keep, name, projection)
                    self._hooks.append(layer.register_forward_hook(keep))
            record = partial(self._record, name)
            self._hooks.append(attention.register_forward_hook(record, with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        self._projected = {}

    def _start(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # FLUX's single blocks see one sequence; only the call says where its text ends.
        given = inspect.signature(denoiser.forward).bind(*args, **kwargs).arguments
        self._text_tokens = given["encoder_hidden_states"].shape[1]
        self.layers, self._projected = {}, {}

    def _keep(self, name: str, projection: str, _: nn.Module, __: Any, output: Tensor) -> None:
        self._projected.setdefault(name, {})[projection] = output

    def _record(
        self, name: str, attention: nn.Module, _: Any, kwargs: dict[str, Any], __: Any
    ) -> None:
        projected = self._projected.pop(name, {})
        if not {"to_q", "to_k"} <= projected.keys():
            raise ValueError(
                f"projections of {name} must be apart to be recorded, got fused ones; call "
                f"unfuse_qkv_projections() on the denoiser first"
            )
        if kwargs.get("attention_mask") is not None:
            raise ValueError(
                f"attention_mask must be None while maps are recorded, got one in {name}"
            )
        rotary = kwargs.get("image_rotary_emb")
        probabilities = _text_attention(attention, projected, self._text_tokens, rotary)
        # Gradient checkpointing computes all of it again in backward: the first one stays.
        self.layers.setdefault(name, probabilities)


def _reads_text(module: nn.Module) -> bool:
    """Whether this is an attention layer with text among its keys."""
    own_projection = getattr(module, "add_k_proj", None) is not None  # FLUX double blocks, SD3
    one_sequence = getattr(module, "pre_only", False)  # FLUX single blocks
    return own_projection or one_sequence or getattr(module, "is_cross_attention", False)


def _text_attention(
    attention: Any, projected: Mapping[str, Tensor], text_tokens: int, rotary: Rotary | None
) -> Tensor:
    """Columns of softmax(q kᵀ / √d) that belong to text, in the picture's rows.

    Text comes first among the keys. Where the layer puts it last (SD3), that changes nothing: only
    rotary embeddings know an order, and theirs is text first.
    """

    def heads(projection: str, norm_name: str) -> Tensor:
        states = projected[projection]
        states = states.view(*states.shape[:2], attention.heads, -1).transpose(1, 2)
        norm: nn.Module | None = getattr(attention, norm_name, None)
        return states if norm is None else cast("Tensor", norm(states))

    queries, keys = heads("to_q", "norm_q"), heads("to_k", "norm_k")
    if attention.pre_only:
        queries = queries[:, :, text_tokens:]
    if "add_k_proj" in projected:
        keys = torch.cat([heads("add_k_proj", "norm_added_k"), keys], dim=2)
    if rotary is not None:
        cos, sin = rotary
        queries = apply_rotary_emb(queries, (cos[text_tokens:], sin[text_tokens:]))
        keys = apply_rotary_emb(keys, rotary)
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.float() @ keys.float().mT / math.sqrt(queries.shape[-1])
        # A view would keep the picture's columns in memory.
        return logits.softmax(dim=-1)[..., :text_tokens].clone()


def combine(layers: Mapping[str, Tensor], places: Tensor, height: int, width: int) -> Tensor:
    """One map for each picture: attention to the chosen tokens, mean over heads and layers.

    Every layer's grid is that of the latents, halved (rounding up) as often as its number of
    places says, and is resized to the latents' bilinearly.

    Args:
        layers: `AttentionMaps.layers`, (n, heads, picture_places, text_tokens) each.
        places: which text tokens count, bool, (n, text_tokens).
        height: rows of the latents.
        width: columns of the latents.

    Returns:
        (n, height, width), each value between 0 and 1.

    Raises:
        ValueError: no layers, `places` of another shape, or a layer with another grid.
    """
    if not layers:
        raise ValueError("layers must hold at least one map, got none; run the denoiser first")
    resized = []
    for name, probabilities in layers.items():
        count, _, pixels, tokens = probabilities.shape
        if places.shape != (count, tokens):
            raise ValueError(
                f"places must be {(count, tokens)} for layer {name}, got {tuple(places.shape)}"
            )
        chosen = places.to(probabilities)
        attention = torch.einsum("nhpt,nt->np", probabilities, chosen) / probabilities.shape[1]
        small = attention.view(count, 1, *grid(pixels, height, width))
        resized.append(F.interpolate(small, (height, width), mode="bilinear"))
    return torch.stack(resized).mean(dim=0).squeeze(1)


def grid(pixels: int, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of a layer with so many places, on latents of `height` by `width`.

    Raises:
        ValueError: halved, the latents' grid never has so many.
    """
    rows, columns = height, width
    while rows * columns > pixels:
        rows, columns = math.ceil(rows / 2), math.ceil(columns / 2)
    if rows * columns != pixels:
        raise ValueError(
            f"height and width must be the latents' own, got {height} and {width}: halved, they "
            f"never make a layer's {pixels} places"
        )
    return rows, columns


def token_places(backbone: Backbone, prompts: Sequence[str], name: str) -> Tensor:
    """Which token states of n prompts belong to a name, bool (n, tokens).

    A name is found in capitals, in the plural, and as all tokens of a textual inversion.

    Raises:
        ValueError: a prompt does not hold the name.
    """
    runs, own = backbone.tokens(prompts), backbone.tokens([name])
    found = torch.cat([_find(run, alone) for run, alone in zip(runs, own, strict=True)], dim=1)
    for prompt, row in zip(prompts, found, strict=True):
        if not row.any():
            raise ValueError(f"the prompt {prompt!r} does not hold {name!r}")
    width = backbone.encode_prompts(prompts[:1]).prompt_embeds.shape[1]
    return F.pad(found, (0, width - found.shape[1]))  # SD3 without T5 reads zeros there


def _find(run: Tokens, alone: Tokens) -> Tensor:
    """Which tokens stand for a part of a name, bool (n, tokens)."""
    found = torch.zeros_like(run.ids, dtype=torch.bool)
    first, last = run.spans.unbind(-1)
    for row, text in enumerate(run.texts):
        for start, stop in occurrences(text, alone.texts[0]):
            found[row] |= (first[row] < stop) & (last[row] > start) & (last[row] > first[row])
    return found


def attention_to(
    backbone: Backbone,
    latents: Tensor,
    level: Tensor | float,
    prompts: Sequence[str],
    name: str,
    *,
    only: Callable[[str], bool] | None = None,
) -> Tensor:
    """How much every place of the picture attends to a name in its prompt.

    Args:
        backbone: the model, as it stands: with an erasure applied, the erased one.
        latents: noisy latents, (n, channels, height, width).
        level: their noise level.
        prompts: n prompts that hold the name.
        name: the words whose tokens count.
        only: which layers are recorded, by name; None for all.

    Returns:
        (n, height, width) on the latents' grid, the mean over layers and heads; with a graph unless
        gradients are off.

    Raises:
        ValueError: a prompt does not hold the name.
    """
    places = token_places(backbone, prompts, name).to(latents.device)
    with AttentionMaps(backbone.denoiser, only=only) as maps:
        backbone.predict(latents, level, backbone.encode_prompts(prompts))
    return combine(maps.layers, places, *latents.shape[-2:])
