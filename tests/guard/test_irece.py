"""IRECE: it finds the concept, leaves neighbours alone, and keeps the level of noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import expunge
from expunge import IRECE, names
from expunge.auditing.cases import Sizes
from expunge.backbone.base import Backbone
from expunge.backbone.profile import Sampling
from expunge.backbone.sampling import Step, steps
from expunge.condition import erased
from expunge.erasure import Erasure
from expunge.guard.base import Once
from expunge.hooks import NotFeltError
from expunge.miniature.render import render
from expunge.miniature.world import Scene, Thing

LEVEL = 0.7


def _scenes(name: str, count: int) -> tuple[Any, np.ndarray]:
    """Rendered pictures of one thing, and where it is on the latents' grid."""
    places, colors = ("grass", "snow", "beach", "night", "room"), ("red", "blue", "green")
    rendered = [
        render(Scene(places[i % 5], things=(Thing(name, colors[i % 3], 0.8),)))
        for i in range(count)
    ]
    masks = [np.asarray(each.masks[name].resize((16, 16))) > 127 for each in rendered]
    return [each.image for each in rendered], np.stack(masks)


def _step(backbone: Backbone, images: Any) -> Step:
    clean = backbone.encode_images(images)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(5))
    before = backbone.add_noise(clean, noise, LEVEL + 0.1)
    return Step(LEVEL + 0.1, LEVEL, before, noise, clean, backbone.add_noise(clean, noise, LEVEL))


def _half_drawn(backbone: Backbone, *names: str) -> Step:
    """The first step of a run by the original that ends at the level or below."""
    concepts = [backbone.profile.vocabulary.resolve(name) for name in names]
    prompts = [p for c in concepts for p in c.prompts("plain", "validation", 2)]
    sampling = Sampling(10, 4.0, 64, 64)
    guidance = backbone.guidance_for(backbone.encode_prompts([p.text for p in prompts]), 4.0)
    noise = backbone.initial_noise([p.seed() for p in prompts], sampling)
    return next(s for s in steps(backbone, noise, guidance, sampling) if s.to <= LEVEL)


def _changed(backbone: Backbone, images: Any, **settings: Any) -> tuple[Tensor, Step]:
    step = images if isinstance(images, Step) else _step(backbone, images)
    acting = IRECE(concepts=["cat"], level=LEVEL, **settings).on(backbone)
    return acting.latents(step), step


def test_what_it_changes_is_where_the_concept_is(backbone: Backbone) -> None:
    images, masks = _scenes("cat", 4)
    latents, step = _changed(backbone, images, presence=None)
    moved = ((latents - step.reached).abs().amax(1) > 0).numpy()
    moved = np.stack([np.kron(m, np.ones((16 // len(m),) * 2)) > 0 for m in moved])
    assert moved[masks].mean() > moved[~masks].mean() + 0.2
    assert 0 < moved.mean() < 0.8


def test_it_acts_on_the_concept_and_leaves_a_neighbour(backbone: Backbone) -> None:
    latents, step = _changed(backbone, _half_drawn(backbone, "cat", "dog"))
    touched = (latents != step.reached).flatten(1).any(1)
    assert touched.tolist() == [True] * 2 + [False] * 2


def test_a_batch_without_the_concept_is_handed_back_as_it_was(backbone: Backbone) -> None:
    latents, step = _changed(backbone, _half_drawn(backbone, "horse"))
    assert latents is step.reached


def test_only_the_plain_form_breaks_the_level_of_noise(backbone: Backbone) -> None:
    images = _scenes("cat", 3)[0]
    spread = {}
    for form in ("level", "plain"):
        latents, step = _changed(backbone, images, presence=None, form=form)
        where = latents != step.reached
        spread[form] = float((latents[where] - step.reached[where]).std())
        if form == "plain":
            noise = torch.randn((1, *latents.shape[1:]), generator=torch.Generator().manual_seed(0))
            assert torch.equal(latents[where], noise.expand_as(latents)[where])
    assert spread["level"] != spread["plain"]


def test_it_asks_the_original_whatever_is_applied(backbone: Backbone, erasure: Erasure) -> None:
    images = _scenes("cat", 2)[0]
    with backbone.exact():
        plain, _ = _changed(backbone, images, presence=None)
        with erasure.applied(backbone):
            under, _ = _changed(backbone, images, presence=None)
    assert torch.equal(plain, under)


def test_its_passes_are_counted(backbone: Backbone) -> None:
    acting: Any = IRECE(concepts=["cat"], level=LEVEL, looks=2, presence=0).on(backbone)
    acting.latents(_step(backbone, _scenes("cat", 1)[0]))
    texts = 1 + 1 + 4 + 1  # the concept, its anchor, four neighbours, none
    assert acting.passes in (1 + 2 * texts, 1 + 2 * texts + 2)


def test_a_run_up_is_left_alone_and_a_late_start_is_not(backbone: Backbone) -> None:
    once = Once(0.6, "some")
    levels = torch.zeros(1)

    def due(level: float, to: float) -> bool:
        return once.due(Step(level, to, levels, levels, levels, levels))

    assert not any([due(0.0, 0.5), due(0.5, 1.0)])
    assert [due(1.0, 0.8), due(0.8, 0.55), due(0.55, 0.3), due(0.3, 0.0)] == [0, 1, 0, 0]
    assert [due(0.5, 0.3), due(0.3, 0.0)] == [1, 0]
    with pytest.raises(NotFeltError, match="more steps"):
        due(1.0, 0.0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"level": 0.0}, "level must be positive"),
        ({"level": 1.0}, "level must be below 1"),
        ({"threshold": 1.5}, "threshold must be below 1"),
        ({"presence": -0.1}, "presence must not be negative"),
        ({"form": "soft"}, "form must be one of"),
        ({"looks": 0}, "looks must be at least 1"),
        ({"away": 0.5}, "away must be at least 1"),
        ({"concepts": "cat"}, "a list of names"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        IRECE(**settings)


def test_it_is_made_by_name() -> None:
    made = names.make("guard", "irece:level=0.6,threshold=0.4,concepts=cat|dog,presence=none")
    assert made == IRECE(level=0.6, threshold=0.4, concepts=("cat", "dog"), presence=None)


def test_without_concepts_it_says_so(pipe: Any) -> None:
    with pytest.raises(ValueError, match="what to look for"):
        IRECE().attach(pipe)


def test_a_guarded_pipeline_is_not_audited(backbone: Backbone, erasure: Erasure) -> None:
    guard = IRECE(concepts=["cat"])
    with guard.attach(backbone), pytest.raises(ValueError, match="guard is attached"):
        erased(erasure).check(backbone)


@pytest.mark.usefixtures("untouched")
def test_an_audit_has_a_condition_with_the_guard(
    pipe: Any, erasure: Erasure, tmp_path: Any
) -> None:
    guard = names.make("guard", "irece:presence=none")
    log = expunge.audit(
        pipe, erasure, guards=[guard], folder=tmp_path, frechet=False,
        sizes=Sizes(target=1, neighbour=1, unrelated=1, attack=1),
        sampling=Sampling(3, 3.0, 64, 64, batch_size=4),
    )  # fmt: skip
    asked = {c.condition for c in log.cells}
    assert asked == {"original", "erased", "erased + irece:presence=none"}
    assert {c.concept for c in log.cells if c.condition == "erased + irece:presence=none"} >= {
        "cat",
        "dog",
    }
