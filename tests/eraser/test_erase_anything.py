"""EraseAnything: what it changes, what either level asks for, and how prompts are told."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from eraser.methods import WALKS

import expunge
from expunge.adapter import Adapter
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.concept import Concept
from expunge.eraser.erase_anything import EraseAnything, _Bilevel, contrastive, shuffled
from expunge.eraser.finetune import Student
from expunge.prompts import split_of
from expunge.run.objective import Step

QUICK = EraseAnything(**WALKS | {"trajectories": 2}, words=2)


@pytest.fixture(scope="module")
def flux() -> Any:
    return expunge.load("miniature-flux", device="cpu")


def test_the_texts_queries_and_keys_of_double_blocks_change(flux: Any, cat: Concept) -> None:
    places = QUICK.fresh(as_backbone(flux), cat, torch.Generator())
    ends = {place.rpartition(".")[2] for place in places}
    assert ends == {"add_q_proj", "add_k_proj"}
    assert not any("single" in place for place in places)


def test_other_models_and_checkpointing_are_refused_before_any_work(
    backbone: Backbone, flux: Any, cat: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbone, "predict", None)
    with pytest.raises(ValueError, match=r"joint attention.*\(sd\) has none"):
        QUICK.erase(backbone, [cat])
    flux.transformer.enable_gradient_checkpointing()
    try:
        with pytest.raises(ValueError, match="disable_gradient_checkpointing"):
            QUICK.erase(flux, [cat])
    finally:
        flux.transformer.disable_gradient_checkpointing()
    with pytest.raises(ValueError, match="names 'cat' itself"):
        replace(QUICK, irrelevant=("a big kitten",)).erase(flux, [cat])
    with pytest.raises(ValueError, match="minor"):
        replace(QUICK, irrelevant=("child",)).erase(flux, [Concept("nudity", kind="explicit")])


def test_prompts_change_their_words_order_and_name_and_stay_training_prompts(cat: Concept) -> None:
    told = replace(QUICK, trajectories=60).worded(cat)
    assert all(split_of(text) == "train" and name in text for text, name, _ in told)
    swapped = sum(name != "cat" for _, name, _ in told) / len(told)
    assert 0.3 < swapped < 0.7
    plain = replace(QUICK, trajectories=60, shuffle=0.0, swap=0.0).worded(cat)
    assert [(text, anchor) for text, _, anchor in plain] == cat.training_pairs(60, synonyms=False)
    known = {text for name in cat.names for text, _ in cat.pairs("train", name=name)}
    assert sum(text not in known for text, _, _ in told) > 40
    kept_whole = shuffled("a photo of a fire truck at night", "fire truck", random.Random(0))
    assert "fire truck" in kept_whole
    assert sorted(kept_whole.split()) == sorted(
        ["a", "photo", "of", "a", "fire", "truck", "at", "night"]
    )


def test_the_contrast_falls_toward_irrelevant_words_and_rises_toward_synonyms() -> None:
    alike = torch.tensor([[0.1, 0.9]])
    apart = torch.tensor([[0.9, 0.1]])
    assert contrastive(apart, 1, 0.07) < contrastive(alike, 1, 0.07)
    assert float(contrastive(torch.tensor([[0.5, 0.5]]), 1, 0.07)) == pytest.approx(
        0.6931, abs=1e-3
    )


def test_either_level_moves_what_it_says_and_attention_carries_a_gradient(
    flux: Any, cat: Concept
) -> None:
    backbone, method = as_backbone(flux), replace(QUICK, quiet=1.0, contrast=1.0, batch_size=2)
    changes = method.fresh(backbone, cat, torch.Generator().manual_seed(0))
    for change in changes.values():
        change.requires_grad_(True)
    student = Student(cat, changes)
    parameters = list(student.module.parameters())
    adapter = Adapter(backbone.networks, {"cat": changes})
    try:
        objective = method.objective(backbone, {"cat": student})
        assert isinstance(objective, _Bilevel)
        for number, names in ((0, {"erase", "quiet"}), (1, {"keep", "contrast"})):
            step = Step(number, torch.Generator().manual_seed(0))
            with backbone.exact():
                terms = objective.loss(step, "cat")
                assert isinstance(terms, dict) and set(terms) == names
                for name, term in terms.items():
                    grads = torch.autograd.grad(
                        term, parameters, retain_graph=True, allow_unused=True
                    )
                    assert any(g is not None and g.abs().max() > 0 for g in grads), name
        lesson = objective.lessons["cat"]
        assert list(lesson.alike) == list(cat.names)
        assert set(lesson.irrelevant) == {*cat.neighbours, cat.anchor}
        assert not any(map(cat.mentions, lesson.kept))
    finally:
        adapter.remove(backbone.networks)
