"""Erased Stable Diffusion (Gandikota et al., 2023): train against the concept's own guidance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expunge.concept import Concept
from expunge.eraser.base import Result, check_names, check_texts
from expunge.eraser.matching import Matcher
from expunge.lazy import torch
from expunge.settings import Branch, Form, check_choice

if TYPE_CHECKING:
    from expunge.backbone.base import Backbone
    from expunge.change import Changes
    from expunge.eraser.points import Points


@dataclass(frozen=True, kw_only=True)
class ESD(Matcher):
    """Predict, for the concept, what the original predicts away from it.

    L = ‖ε_θ(x_t, c) − (ε₀(∅) − η[ε₀(c) − ε₀(∅)])‖² (ESD, eq. 7), with x_t on the original's own
    sampling runs with prompt c. ESD-x is `attention="cross"`, ESD-u `attention="not-cross"`; in
    the paper both train whole weights (`form="dense"`, lr 1e-5), by default this trains changes of
    `rank`. Newer published code writes the same target as ε₀(c) − s[ε₀(c) − ε₀(∅)], s = η + 1.

    With `erase_from` the concept goes from one surrounding alone, such as the hat from a cowboy: s
    takes the name's place in every prompt, x_t lies on the way to pictures of s, and the target is
    ε₀(s) − (1 + η)[ε₀(c) − ε₀(∅)] with the bare name as c, as in newer published code. Asked for by
    name, the concept is still drawn, and an audit of its name says so: give the surrounding as a
    pattern of `Concept.implied`, and the audit asks for that.

    Attributes:
        negative_guidance: η, how far past the empty prompt the target lies.
        form: `low-rank` changes of `rank`, or `dense` ones of every weight, which cost four times
            the layers' own memory in training.
        erase_from: the surrounding, in the words that take the name's place; None to erase the
            concept wherever it is asked for. Every concept of a run is erased from it.
    """

    batch_size: int = 1
    attention: Branch = "cross"
    preserve: float = 0.0
    negative_guidance: float = 1.0
    form: Form = "low-rank"
    erase_from: str | None = None

    def __post_init__(self) -> None:
        from expunge.concept_checks import check_name

        super().__post_init__()
        check_choice(self, form=Form)
        if self.erase_from is not None:
            check_name("erase_from", self.erase_from)

    def check(self, backbone: Backbone) -> None:
        super().check(backbone)
        if self.erase_from is not None:
            check_names(backbone, [self.erase_from])

    def _run(self, backbone: Backbone, concepts: Sequence[Concept], folder: Path | None) -> Result:
        if self.erase_from is not None:
            for concept in concepts:
                check_texts(backbone, self._around(concept))
        return super()._run(backbone, concepts, folder)

    def fresh(self, backbone: Backbone, concept: Concept, generator: torch.Generator) -> Changes:
        if self.form == "low-rank":
            return super().fresh(backbone, concept, generator)
        from expunge.change import Dense

        start, layers = f"{backbone.denoiser_name}/", backbone.select(self.attention)
        return {start + name: Dense.fresh(layer) for name, layer in layers.items()}

    def points(self, backbone: Backbone, concept: Concept) -> Points:
        from expunge.eraser.points import Points, predictions, walk

        inside = self.erase_from is not None
        asked = [text for text, _ in self.training_pairs(concept, self.trajectories)]
        prompts = self._around(concept) if inside else asked
        seen = walk(backbone, prompts, self.sampling(backbone), seed=self.seed * 1000)
        told = seen.told(prompts)
        around = predictions(backbone, seen.latents, seen.levels, told)
        empty = predictions(backbone, seen.latents, seen.levels, None)
        toward = around
        if inside:
            names = [concept.name] * len(told)
            toward = predictions(backbone, seen.latents, seen.levels, names)
        targets = around - (1 + self.negative_guidance) * (toward - empty)
        return Points(seen.latents, seen.levels, told, targets)

    def others(self, concept: Concept, gone: Sequence[Concept], limit: int) -> list[str]:
        """With a surrounding, the concept outside of it stays too, and the surrounding does not."""
        found = super().others(concept, gone, limit)
        if self.erase_from is None:
            return found
        from expunge.mentions import Mentions

        own = [text for text, _ in self.training_pairs(concept, limit // 2)]
        around = Mentions([self.erase_from])
        free = [text for text in (*own, *found[:-1]) if not around(text)]
        return [*free[: limit - 1], ""]

    def _around(self, concept: Concept) -> list[str]:
        """Prompts of the surrounding, which may not ask for what the concept's own may not."""
        assert self.erase_from is not None
        found = concept.texts(self.erase_from, "train", self.trajectories)
        if not found:
            raise ValueError(
                f"the templates of {concept.name!r} give no training prompt with "
                f"{self.erase_from!r}; give it templates with more alternatives"
            )
        return found
