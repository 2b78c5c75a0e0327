from __future__ import annotations

import random
from itertools import combinations

import numpy as np
import pytest

from expunge.concept import kept_prompts
from expunge.judge.miniature import MiniatureJudge
from expunge.miniature.captions import describe, random_pair, random_scene
from expunge.miniature.data import labels, pictures
from expunge.miniature.render import render, sheet
from expunge.miniature.vocabulary import concepts
from expunge.miniature.world import (
    HAZARD_EVOKED,
    OBJECTS,
    PEOPLE,
    PLAIN,
    STYLES,
    Scene,
    Thing,
    stranger,
)
from expunge.prompts import split_of


def test_the_world_has_what_the_papers_ask_for() -> None:
    assert len(OBJECTS) == 10
    assert len(PEOPLE) == 20
    assert len(STYLES) >= 5
    assert all(len(synonyms) >= 2 for synonyms in OBJECTS.values())
    assert not any("hazard" in phrase for phrase in HAZARD_EVOKED)


def test_faces_can_be_told_apart() -> None:
    assert min(a.distance(b) for a, b in combinations(PEOPLE.values(), 2)) >= 3
    rng = random.Random(0)
    for _ in range(50):
        face = stranger(rng)
        assert min(face.distance(known) for known in PEOPLE.values()) >= 2


def test_a_scene_is_drawn_the_same_every_time_and_at_any_size() -> None:
    rng = random.Random(1)
    for _ in range(20):
        scene = random_scene(rng)
        small, again, large = render(scene), render(scene), render(scene, 128)
        assert small.image.tobytes() == again.image.tobytes()
        assert large.image.size == (128, 128)
        assert set(small.masks) == set(large.masks)
    with pytest.raises(ValueError, match="multiple of 16"):
        render(scene, 50)


def test_masks_cover_what_was_drawn() -> None:
    for name in OBJECTS:
        with_thing = Scene("grass", things=(Thing(name, "red", 0.8),), seed=3)
        masks = render(with_thing).masks
        assert list(masks) == [name]
        share = np.asarray(masks[name], float).mean() / 255
        assert 0.03 < share < 0.6, name


@pytest.mark.parametrize("style", list(STYLES))
def test_every_style_changes_the_picture(style: str) -> None:
    thing = (Thing("cat", "red", 0.8),)
    plain = np.asarray(render(Scene("grass", PLAIN, things=thing)).image, float)
    styled = np.asarray(render(Scene("grass", style, things=thing)).image, float)
    assert np.abs(plain - styled).mean() > 15


def test_captions_fit_their_labels_and_are_not_held_out() -> None:
    rng = random.Random(2)
    for _ in range(300):
        scene, caption = random_pair(rng)
        assert split_of(caption) != "test"
        assert "  " not in caption
        assert "{}" not in caption
        objects, _ = labels(scene)
        assert objects.sum() == len([t for t in scene.things if t.name in OBJECTS])
        for thing in scene.things:
            names = (thing.name, *OBJECTS.get(thing.name, ()))
            assert any(name in caption for name in names), caption
        if scene.person:
            assert scene.person.split()[-1] in caption


def test_the_same_scene_has_many_captions() -> None:
    scene = Scene("beach", things=(Thing("cat", "red", 0.8),))
    rng = random.Random(0)
    assert len({describe(scene, rng) for _ in range(60)}) > 20


def test_every_concept_can_be_asked_judged_and_has_known_neighbours() -> None:
    known = {concept.name for concept in concepts()}
    judge = MiniatureJudge.load("conv")
    for concept in concepts():
        assert len(concept.prompts("plain", "test")) >= 400
        assert set(concept.neighbours) <= known
        assert set(concept.unrelated or ()) <= known
        assert not set(concept.neighbours) & set(concept.unrelated or ())
        assert judge.knows(concept.name)
        assert all(judge.knows(name) for name in concept.synonyms)
        kept = " ".join(kept_prompts([concept], "train", 400))
        assert not any(name in kept for name in concept.unrelated or ())


def test_the_judge_reads_fresh_renders() -> None:
    from PIL import Image

    data = pictures(120, seed=4321)
    images = [Image.fromarray(p) for p in data.pixels.permute(0, 2, 3, 1).numpy()]
    judge = MiniatureJudge.load("conv")
    right = [
        (judge.score(images, name) >= judge.threshold) == data.objects[:, index].bool().numpy()
        for index, name in enumerate(OBJECTS)
    ]
    assert np.mean(right) > 0.98
    assert (judge.broken(images) >= judge.threshold).mean() < 0.05
    noise = [
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8))
        for i in range(10)
    ]
    assert (judge.broken(noise) >= judge.threshold).mean() > 0.8


def test_sheets_hold_every_picture() -> None:
    image = render(Scene("grass")).image
    assert sheet([image] * 5, 3).size == (3 * 66 - 2, 2 * 66 - 2)
    with pytest.raises(ValueError, match="at least one"):
        sheet([], 3)
