"""IRECE (M-ErasureBench, 2025): find the concept in a half-drawn picture and put noise there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from expunge.concept import Concept
from expunge.guard.base import Acting, Guard, Once
from expunge.lazy import torch
from expunge.prompts import fill
from expunge.settings import check_choice, check_counts, check_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from expunge.backbone.base import Backbone
    from expunge.backbone.conditioning import Conditioning
    from expunge.backbone.sampling import Step

Form = Literal["level", "plain"]


@dataclass(frozen=True, kw_only=True)
class IRECE(Guard):
    """Once in a run, noise where the original model sees the concept.

    After the first step that ends at `level` or below, the original (every change silent) is told
    the concept and shown the same latents. Its attention to the concept's words, the mean over
    layers and heads, scaled to [0, 1] in each picture and cut at `threshold`, is a mask M. Latents
    go on as (1 − M) x + M x′. Costs one pass of the original for each text of each concept: its
    name, its anchor and its neighbours, as one batch.

    Attributes:
        concepts: names or concepts to look for; none for those of the erasure that is guarded.
        level: noise level at which it acts. Too early it breaks the picture's layout, too late the
            picture itself.
        threshold: τ of the mask; the paper has 0.4.
        presence: a picture without the concept is left alone: at its most attended places, the
            concept must get at least so many times the attention that the anchor and the neighbours
            get, told in its place. 0 always acts, as the paper does; then a mask is found in every
            picture, since each has its own scale.
        form: what M is filled with. `level`: x′ is the anchor's clean prediction with noise of the
            level that is reached. `plain`: x′ is noise alone, as in the paper.
        seed: of the noise, which is the same in every picture.
    """

    name: ClassVar[str] = "irece"
    concepts: Sequence[str | Concept] = ()
    level: float = 0.6
    threshold: float = 0.5
    presence: float = 1.0
    form: Form = "level"
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, "level", "threshold", above=0)
        for name in ("level", "threshold"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name):g}")
        check_numbers(self, "presence", least=0)
        check_choice(self, form=Form)
        check_counts(self, "seed")
        if isinstance(self.concepts, str):
            raise ValueError(f"concepts must be a list of names, got {self.concepts!r} alone")

    def against(self, concepts: Sequence[Concept]) -> Self:
        return self if self.concepts else replace(self, concepts=tuple(concepts))

    def check(self, backbone: Backbone) -> None:
        from expunge import hooks
        from expunge.backbone.attention import AttentionMaps

        if not self.concepts:
            raise ValueError(
                "the guard irece needs to know what to look for: give it concepts "
                "(irece:concepts=cat|dog), or an erasure to guard"
            )
        hooks.refuse_fused(backbone.denoiser, backbone.denoiser_name)
        AttentionMaps(backbone.denoiser)
        for concept in self._resolved(backbone):
            if backbone.unreadable(concept.name):
                raise ValueError(f"no text encoder of this model can read {concept.name!r}")

    def on(self, backbone: Backbone) -> Acting:
        self.check(backbone)
        return _Irece(self, backbone, self._resolved(backbone))

    def _resolved(self, backbone: Backbone) -> list[Concept]:
        known = backbone.profile.vocabulary
        return [c if isinstance(c, Concept) else known.resolve(c) for c in self.concepts]

    def record(self) -> dict[str, Any]:
        named = [c.to_dict() if isinstance(c, Concept) else c for c in self.concepts]
        return {**super().record(), "concepts": named}


class _Sought:
    """One concept, its rivals, and what the original reads of each.

    Attributes:
        texts: the concept's, the anchor's, the neighbours'.
        told: what they say to the original.
        places: which token states are the names', (texts, tokens).
    """

    def __init__(self, backbone: Backbone, concept: Concept) -> None:
        from expunge import hooks
        from expunge.backbone.attention import token_places

        names = list(dict.fromkeys((concept.name, concept.anchor, *concept.neighbours)))
        self.texts = [fill("a {}", name) for name in names]
        with hooks.original(), torch.no_grad():
            self.told: Conditioning = backbone.encode_prompts(self.texts)
            own = [token_places(backbone, [t], n) for t, n in zip(self.texts, names, strict=True)]
        self.places = torch.cat(own)


class _Irece(Acting):
    """IRECE at work on one model."""

    def __init__(self, guard: IRECE, backbone: Backbone, concepts: Sequence[Concept]) -> None:
        self.guard, self.backbone = guard, backbone
        self.once = Once(guard.level, guard.name)
        self.sought = [_Sought(backbone, concept) for concept in concepts]

    def latents(self, step: Step) -> Tensor:
        latents = step.reached
        if not self.once.due(step):
            return latents
        for index, sought in enumerate(self.sought):
            mask, clean = self._look(latents, step.to, sought)
            if mask.any():
                instead = self._instead(clean, step.to, index)
                latents = torch.where(mask[:, None], instead.to(latents), latents)
        return latents

    def _look(self, latents: Tensor, level: float, sought: _Sought) -> tuple[Tensor, Tensor]:
        """Where the concept is, bool (n, height, width), and the anchor's clean latents."""
        from expunge import hooks
        from expunge.backbone.attention import AttentionMaps, combine
        from expunge.backbone.conditioning import Conditioning

        count, texts = len(latents), len(sought.texts)
        told = Conditioning.cat([sought.told[i : i + 1].repeat(count) for i in range(texts)])
        shown = torch.cat([latents.detach()] * texts)
        places = sought.places.repeat_interleave(count, 0).to(latents.device)
        with torch.no_grad(), hooks.original(), AttentionMaps(self.backbone.denoiser) as maps:
            predicted = self.backbone.predict(shown, level, told)
            seen = combine(maps.layers, places, *latents.shape[-2:]).view(
                texts, count, *latents.shape[-2:]
            )
            clean = self.backbone.clean(shown, predicted, level)
        return self._mask(seen), clean[count : 2 * count]

    def _mask(self, seen: Tensor) -> Tensor:
        """From attention to the concept and its rivals, (texts, n, height, width)."""
        own = seen[0]
        low, high = own.amin((1, 2), keepdim=True), own.amax((1, 2), keepdim=True)
        mask = (own - low) / (high - low).clamp_min(1e-12) >= self.guard.threshold
        here = (seen * mask).sum((2, 3)) / mask.sum((1, 2))
        present = here[0] >= self.guard.presence * here[1:].amax(0)
        return mask & present[:, None, None]

    def _instead(self, clean: Tensor, level: float, index: int) -> Tensor:
        """What is put where the concept is."""
        generator = torch.Generator().manual_seed(self.guard.seed + index)
        noise = torch.randn((1, *clean.shape[1:]), generator=generator).to(clean)
        noise = noise.expand_as(clean)
        return noise if self.guard.form == "plain" else self.backbone.add_noise(clean, noise, level)
