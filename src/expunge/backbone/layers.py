"""Which layers of a denoiser text enters by, and which ones changes may be made to."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from expunge import hooks
from expunge.backbone.conditioning import TextStream
from expunge.backbone.facts import Facts
from expunge.settings import Branch

Part = Literal["q", "k", "v", "out"]
"""Projections of attention."""


class Layers(Facts):
    """A denoiser's layers, by names without what other tools wrap them in."""

    @abstractmethod
    def text_streams(self) -> dict[str, TextStream]:
        """The ways by which text enters the denoiser, by name, `tokens` first.

        What guidance leads away from (`unconditional`) may be no text at all: SDXL's is zeros.
        """

    def prompt_projections(self) -> dict[str, nn.Linear]:
        """Layers that receive the text encoder's output as it is, by clean name in the denoiser."""
        streams = self.text_streams().values()
        return {name: layer for stream in streams for name, layer in stream.layers.items()}

    @abstractmethod
    def _projections(self, layers: Mapping[str, nn.Module]) -> Iterator[tuple[str, Branch, Part]]:
        """Attention's projections among clean names: name, `cross` or `self`, and which it is.

        A layer that text and picture share is in both branches.
        """

    @abstractmethod
    def _in_transformer(self, layers: Mapping[str, nn.Module]) -> Callable[[str], bool]:
        """Whether a layer belongs to the transformer blocks."""

    def select(
        self, branch: Branch = "cross", parts: Sequence[Part] | None = None
    ) -> dict[str, nn.Module]:
        """Layers that changes may be made to, by clean name in the denoiser.

        Args:
            branch: `cross`, `self` or `attention` for projections of attention (on joint attention
                `cross` are the text's own and, where text and picture share them, the shared ones;
                `self` are the picture's own), `transformer` for every linear layer and convolution
                of the transformer blocks, `all` for every one of the denoiser, `not-cross` for
                those of them that `cross` leaves.
            parts: which projections; None for all.

        Raises:
            ValueError: parts are asked of a branch without them, projections are fused, or a layer
                holds its weights in a form nothing can be solved for or added to.
        """
        layers = self._layers()
        found: dict[str, nn.Module]
        if branch in ("transformer", "all", "not-cross"):
            if parts is not None:
                raise ValueError(f"parts must be None with branch {branch!r}, got {parts}")
            inside = self._in_transformer(layers) if branch == "transformer" else lambda _: True
            kinds = nn.Linear | nn.Conv2d
            found = {n: m for n, m in layers.items() if isinstance(m, kinds) and inside(n)}
            if branch == "not-cross":
                cross = {name for name, own, _ in self._projections(layers) if own == "cross"}
                found = {name: layer for name, layer in found.items() if name not in cross}
        else:
            wanted = set(parts) if parts is not None else {"q", "k", "v", "out"}
            found = {
                name: layers[name]
                for name, own, part in self._projections(layers)
                if branch in (own, "attention") and part in wanted
            }
        for name, layer in found.items():
            check_weight(name, layer)
        return found

    def text_projections(self, parts: Sequence[Part] | None = None) -> dict[str, nn.Module]:
        """Projections that text alone has in joint attention, by clean name, in the order of
        blocks; none where there is no joint attention."""
        return {}

    def attention_modules(self, branch: Branch = "cross") -> dict[str, nn.Module]:
        """Whole attention layers with projections of a branch, for what is put behind them."""
        layers, found = self._layers(), {}
        for name, own, _ in self._projections(layers):
            if branch in (own, "attention"):
                attention = name.rpartition(".")[0]
                while not hasattr(layers[attention], "to_q"):
                    attention = attention.rpartition(".")[0]
                found[attention] = layers[attention]
        return found

    def _layers(self) -> dict[str, nn.Module]:
        """All modules of the denoiser by clean name."""
        hooks.refuse_fused(self.denoiser, self.denoiser_name)
        return hooks.layers(self.denoiser)


def check_weight(name: str, layer: nn.Module) -> None:
    """Refuse a layer whose weight is not the matrix it stands for.

    Raises:
        ValueError: it is packed, as in GGUF files or 4-bit layers, or of integers.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    wanted = (layer.out_features, layer.in_features) if isinstance(layer, nn.Linear) else None
    packed = wanted is not None and tuple(weight.shape) != wanted
    if packed or not weight.is_floating_point():
        raise ValueError(
            f"the layer {name} holds its weights as {type(layer).__name__} packs them, which "
            "nothing can be solved for or added to: load the model in bfloat16, or with "
            "expunge.load(…, quantize='int8')"
        )
