"""The two units every audit is made of: what a model drew, and what a judge said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from expunge.backbone.base import Backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Prompt
from expunge.judge.base import Judge
from expunge.run.store import Store, unit_id


def drawn(
    store: Store,
    backbone: Backbone,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    model: str,
    changes: str | None,
    index: int = 0,
) -> list[str]:
    """Draw one batch, or find it in the store.

    Args:
        store: where pictures go.
        backbone: the model, with its changes applied by the caller.
        prompts: at most one batch.
        sampling: how to draw.
        model: hash of the model's weights.
        changes: hash of what is applied to it, None for nothing.
        index: other numbers give other seeds.

    Returns:
        Paths of the pictures in the store.
    """
    texts, seeds = [p.text for p in prompts], [p.seed(index) for p in prompts]
    spec = {
        "job": "draw",
        "model": model,
        "changes": changes,
        "prompts": texts,
        "seeds": seeds,
        "sampling": asdict(sampling),
        "precision": backbone.precision,
        "dtype": str(backbone.dtype),
    }
    unit = unit_id(spec)
    done = store.get(unit)
    if done is None:
        pictures = backbone.draw(texts, seeds, sampling)
        done = {"spec": spec, "images": [store.put_image(picture) for picture in pictures]}
        store.put(unit, done)
    return list(done["images"])


def judged(
    store: Store, judge: Judge, images: Sequence[str], concept: str
) -> Mapping[str, list[Any]]:
    """Scores for a concept and for being broken, of pictures in the store, or found there."""
    spec = {
        "job": "judge",
        "judge": judge.hash,
        "version": judge.version,
        "concept": concept,
        "images": list(images),
    }
    unit = unit_id(spec)
    done = store.get(unit)
    if done is None:
        pictures = [store.image(name) for name in images]
        scores = judge.score(pictures, concept).astype(float)
        broken = judge.broken(pictures).astype(float)
        done = {"spec": spec, "scores": scores.tolist(), "broken": broken.tolist()}
        store.put(unit, done)
    return done
