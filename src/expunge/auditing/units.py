"""The two units every audit is made of: what a model drew, and what a judge said of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from expunge.backbone.base import Backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Prompt
from expunge.judge.base import Judge
from expunge.run.store import Record, Store


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

    def work() -> Record:
        pictures = backbone.draw(texts, seeds, sampling)
        return {"images": [store.put_image(picture) for picture in pictures]}

    return list(store.once(spec, work)["images"])


def judged(store: Store, judge: Judge, images: Sequence[str], concept: str) -> Record:
    """Scores for a concept and for being broken, of pictures in the store, or found there."""
    spec = {
        "job": "judge",
        "judge": judge.hash,
        "version": judge.version,
        "concept": concept,
        "images": list(images),
    }

    def work() -> Record:
        pictures = [store.image(name) for name in images]
        scores = judge.score(pictures, concept).astype(float)
        broken = judge.broken(pictures).astype(float)
        return {"scores": scores.tolist(), "broken": broken.tolist()}

    return store.once(spec, work)
