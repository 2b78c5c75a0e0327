"""IRECE (M-ErasureBench, 2025): find the concept in a half-drawn picture and put noise there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from expunge.concept import Concept
from expunge.guard.base import Acting, Guard, Once
from expunge.lazy import torch
from expunge.minors import refuse_minors
from expunge.prompts import expand, fill
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

    After the first step that ends at `level` or below, two questions go to the original (every
    change silent). Is the concept there? The clean picture that lies in the latents is noised
    again, and the concept's text must explain it better than its anchor's, its neighbours' and no
    text at all: attention cannot say, since it finds its word somewhere in every picture. Where is
    it? Attention to the concept's words in the latents, the mean over layers and heads, scaled to
    [0, 1] in each picture and cut at `threshold`, is a mask M; latents go on as (1 − M) x + M x′.

    Costs for each concept a pass of the original, `looks` for each of its texts and for none, and
    two more where it is there.

    Attributes:
        concepts: names or concepts to look for; none for those of the erasure that is guarded.
        level: noise level at which it acts. Too early it breaks the picture's layout, too late the
            picture itself.
        threshold: τ of the mask; the paper has 0.4.
        presence: by what share the concept's error must lie below the least of the others' for a
            picture to be touched. None (`none`) touches every picture, as the paper does, and
            destroys neighbours.
        looks: how many noises that is asked with; with one it hangs on the noise.
        form: what M is filled with. `level`: x′ is the anchor's clean prediction with noise of the
            level that is reached. `plain`: x′ is noise alone, as in the paper.
        away: how far the anchor's prediction is led away from the concept's; 1 for not at all,
            where half of the concept stays, since the latents still show it.
        seed: of the noise, which is the same in every picture.
    """

    name: ClassVar[str] = "irece"
    concepts: Sequence[str | Concept] = ()
    level: float = 0.6
    threshold: float = 0.5
    presence: float | None = 0.05
    looks: int = 4
    form: Form = "level"
    away: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, "level", "threshold", above=0)
        for name in ("level", "threshold"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name):g}")
        if self.presence is not None:
            check_numbers(self, "presence", least=0, most=1)
        check_numbers(self, "away", least=1, most=30)
        check_choice(self, form=Form)
        check_counts(self, "seed")
        check_counts(self, "looks", least=1)
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
    """One concept, and what the original reads of it and of what it must be told from.

    Attributes:
        told: what the concept's text, the anchor's, the neighbours' and none say, one row each.
        places: which token states are the concept's, (1, tokens).
    """

    def __init__(self, backbone: Backbone, concept: Concept) -> None:
        from expunge import hooks
        from expunge.backbone.attention import token_places
        from expunge.backbone.conditioning import Conditioning

        texts = _texts(concept)
        with hooks.original(), torch.no_grad():
            told = [backbone.encode_prompts(texts), backbone.unconditional()]
            self.told = Conditioning.cat(told)
            self.places = token_places(backbone, texts[:1], concept.name)


def _texts(concept: Concept) -> list[str]:
    """The concept's shortest prompt, and the same with its anchor and with each neighbour."""
    templates = [template for pattern in concept.templates for template in expand(pattern)]
    template = min(templates, key=lambda each: len(fill(each, concept.name)))
    names = dict.fromkeys((concept.name, concept.anchor, *concept.neighbours))
    texts = [fill(template, name) for name in names]
    refuse_minors(concept.kind, texts)
    return texts


class _Irece(Acting):
    """IRECE at work on one model.

    Attributes:
        passes: of the original, beside those of drawing, so far.
    """

    def __init__(self, guard: IRECE, backbone: Backbone, concepts: Sequence[Concept]) -> None:
        self.guard, self.backbone = guard, backbone
        self.once = Once(guard.level, guard.name)
        self.passes = 0
        self.sought = [_Sought(backbone, concept) for concept in concepts]

    def latents(self, step: Step) -> Tensor:
        latents = step.reached
        if not self.once.due(step):
            return latents
        for index, sought in enumerate(self.sought):
            there = self._present(latents.detach(), step.to, sought)
            if there.any():
                latents = latents.clone() if latents is step.reached else latents
                latents[there] = self._without(latents[there], step.to, sought, index)
        return latents

    def _present(self, latents: Tensor, level: float, sought: _Sought) -> Tensor:
        """Whether the concept is in each picture, bool (n,)."""
        if self.guard.presence is None:
            return torch.ones(len(latents), dtype=torch.bool, device=latents.device)
        clean = self.backbone.clean(latents, self._ask(latents, level, sought.told[-1:]), level)
        looks = range(len(self.sought), len(self.sought) + self.guard.looks)
        errors = torch.stack([self._errors(clean, self._noise(clean, i), sought) for i in looks])
        own, *others = errors.mean(0)
        present: Tensor = own < (1 - self.guard.presence) * torch.stack(others).amin(0)
        return present

    def _errors(self, clean: Tensor, noise: Tensor, sought: _Sought) -> Tensor:
        """How badly each text explains pictures under noise, (texts, n)."""
        higher = (1 + self.guard.level) / 2  # where a text still decides what is drawn
        noisy = self.backbone.add_noise(clean, noise, higher)
        errors = []
        for row in range(len(sought.told)):
            predicted = self._ask(noisy, higher, sought.told[row : row + 1])
            found = self.backbone.noise(noisy, predicted, higher)
            errors.append((found - noise).float().square().mean((1, 2, 3)))
        return torch.stack(errors)

    def _without(self, latents: Tensor, level: float, sought: _Sought, index: int) -> Tensor:
        """Latents with something else where the original sees the concept."""
        from expunge.backbone.attention import AttentionMaps, combine

        shown, size = latents.detach(), latents.shape[-2:]
        with AttentionMaps(self.backbone.denoiser) as maps:
            concept = self._ask(shown, level, sought.told[:1])
        places = sought.places.expand(len(shown), -1).to(shown.device)
        mask = self._mask(combine(maps.layers, places, *size))
        instead = self._noise(shown, index)
        if self.guard.form == "level":
            anchor = self._ask(shown, level, sought.told[1:2])
            away = concept + self.guard.away * (anchor - concept)
            clean = self.backbone.clean(shown, away, level)
            instead = self.backbone.add_noise(clean, instead, level)
        return torch.where(mask[:, None], instead, latents)

    def _ask(self, latents: Tensor, level: float, told: Conditioning) -> Tensor:
        """What the original predicts for all latents with one text."""
        from expunge import hooks

        self.passes += 1
        with torch.no_grad(), hooks.original():
            return self.backbone.predict(latents, level, told.repeat(len(latents)))

    def _mask(self, seen: Tensor) -> Tensor:
        """Where attention is high for its picture, bool (n, height, width)."""
        low, high = seen.amin((1, 2), keepdim=True), seen.amax((1, 2), keepdim=True)
        return (seen - low) / (high - low).clamp_min(1e-12) >= self.guard.threshold

    def _noise(self, like: Tensor, index: int) -> Tensor:
        """Noise that is the same for every picture, whatever the batch."""
        generator = torch.Generator().manual_seed(self.guard.seed + index)
        noise: Tensor = torch.randn((1, *like.shape[1:]), generator=generator)
        return noise.to(like).expand_as(like)
