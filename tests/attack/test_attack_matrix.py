"""Properties that every attack has to show, and what is particular to each."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from torch import Tensor

from expunge import hooks, names
from expunge.attack.base import Attack, Case, Sight
from expunge.attack.denoising import Denoising, denoising_loss, encoded
from expunge.attack.plain import Plain
from expunge.attack.textual_inversion import WORD, TextualInversion, with_word
from expunge.attack.vectors import Vectors
from expunge.auditing import jobs
from expunge.auditing.jobs import Draw, Propose, Worker
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Concept
from expunge.condition import Condition, erased, original, random_weights
from expunge.eraser.spm import SPM
from expunge.erasure import Erasure
from expunge.prompts import split_of
from expunge.run.objective import Step
from expunge.run.store import Record, Store

SHORT: dict[str, Any] = {"steps": 2, "references": 2, "batch_size": 2}
ATTACKS: dict[str, Attack] = {
    "textual inversion": TextualInversion(**SHORT, vectors=2),
    "textual inversion, black": TextualInversion(**SHORT, white=False),
}
"""One row for every attack, small enough for a test."""
SMALL = Concept("cat", anchor="dog", templates=("a [photo|picture|drawing] of a [big|small|] {}",))
SAMPLING = Sampling(num_inference_steps=2, guidance_scale=1.0, height=64, width=64, batch_size=2)


def _proposal(
    backbone: Backbone, attack: Attack, seen: Condition, concept: Concept = SMALL
) -> Propose:
    case = Case(concept, tuple(concept.prompts("plain", "test", 2)))
    return Propose(backbone.identity(), seen, attack, case, SAMPLING)


def _proposed(
    backbone: Backbone, attack: Attack, seen: Condition, folder: Path, concept: Concept = SMALL
) -> tuple[Record, dict[str, Tensor]]:
    """The record of an attempt, and its tensors."""
    store = Store(folder)
    with Worker(backbone, store, {}) as worker:
        record = dict(_proposal(backbone, attack, seen, concept).run(worker, {}))
    return record, store.tensors(record["tensors"])


@pytest.fixture(params=list(ATTACKS))
def attack(request: pytest.FixtureRequest) -> Attack:
    return ATTACKS[request.param]


@pytest.fixture(scope="module")
def cat_erased(backbone: Backbone) -> Erasure:
    from expunge import UCE

    cat: Concept = backbone.profile.vocabulary.resolve("cat")
    return UCE(prompts=5, preserved=5, tokens="suffix", to_anchor=True).erase(backbone, [cat])


# --- every attack


def test_every_attack_can_be_made_again_from_its_label(attack: Attack) -> None:
    assert names.make("attack", attack.label) == attack
    assert type(attack)(**{k: v for k, v in attack.record().items() if k != "name"}) == attack
    assert Plain().label == "plain"
    assert attack.text.startswith("with ")
    assert all(isinstance(value, int) for value in attack.budget.values())


@pytest.mark.parametrize("architecture", list(TINY))
def test_every_attack_works_on_every_architecture_and_leaves_it_alone(
    attack: Attack, architecture: str, tmp_path: Path
) -> None:
    pipe = TINY[architecture]()
    backbone = as_backbone(pipe)
    backbone.encode(["a cat"])  # transformers hooks itself to its encoders at their first use
    before = (backbone.content_hash(), _vocabulary(pipe), _flags(backbone), _hooks(backbone))
    proposal, store = _proposal(backbone, attack, original()), Store(tmp_path)
    with Worker(backbone, store, {}) as worker:
        record = proposal.run(worker, {})
        draw = Draw(
            *(proposal.identity, random_weights(), proposal.case.prompts, SAMPLING),
            *(0, proposal.id),
        )
        drawn = draw.run(worker, {proposal.id: record})
    assert len(drawn["images"]) == len(proposal.case.prompts) == 2
    after = (backbone.content_hash(), _vocabulary(pipe), _flags(backbone), _hooks(backbone))
    assert after == before
    assert not any(p.grad is not None for n in backbone.networks.values() for p in n.parameters())
    assert not list((tmp_path / "checkpoints").glob("*"))


def _vocabulary(pipe: Any) -> list[int]:
    return [len(part) for name, part in pipe.components.items() if "tokenizer" in name and part]


def _hooks(backbone: Backbone) -> list[int]:
    modules = [m for n in backbone.networks.values() for m in n.modules()]
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]


def _flags(backbone: Backbone) -> list[bool]:
    return [p.requires_grad for n in backbone.networks.values() for p in n.parameters()]


@pytest.mark.usefixtures("untouched")
def test_references_are_the_original_s_from_training_prompts(
    attack: Attack, backbone: Backbone, cat_erased: Erasure, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """References of the erased model would show no cat, and test prompts would give it away."""
    asked: list[str] = []
    plain = type(backbone).draw

    def spy(self: Any, prompts: Any, *rest: Any) -> Any:
        assert hooks.silent()
        asked.extend(prompts)
        return plain(self, prompts, *rest)

    monkeypatch.setattr(type(backbone), "draw", spy)
    [concept] = cat_erased.concepts
    _proposed(backbone, attack, erased(cat_erased), tmp_path, concept)
    assert len(asked) == 2
    assert {split_of(text) for text in asked} == {"train"}


def test_a_white_box_looks_into_the_model_it_attacks_and_a_black_box_does_not(
    backbone: Backbone, cat_erased: Erasure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [concept] = cat_erased.concepts

    def learned(seen: Condition) -> Tensor:
        _, tensors = _proposed(backbone, ATTACKS["textual inversion"], seen, tmp_path, concept)
        return tensors[f"{WORD}/text_encoder"]

    known = learned(original())
    assert torch.allclose(learned(erased(cat_erased, 0.0)), known, atol=1e-6)
    assert not torch.allclose(learned(erased(cat_erased)), known, atol=1e-4)
    assert not torch.allclose(learned(random_weights()), known, atol=1e-4)


def test_every_attack_works_on_a_gated_erasure(attack: Attack, tmp_path: Path) -> None:
    """Gates read texts, and a learned word is none that they know."""
    backbone = as_backbone(TINY["sd"]())
    tuning: dict[str, Any] = {"steps": 2, "batch_size": 2, "rank": 1, "trajectories": 2}
    gated = SPM(**tuning, resolution=64).erase(backbone, [SMALL])
    assert gated.gated
    record, tensors = _proposed(backbone, attack, erased(gated), tmp_path)
    assert len(record["prompts"]) == 2
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values())


# --- textual inversion


def test_learning_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = as_backbone(TINY["sd"]())
    attack = TextualInversion(**{**SHORT, "steps": 6})
    _, whole = _proposed(backbone, attack, original(), tmp_path / "whole")
    done: list[int] = []
    plain = Denoising.__call__

    def counted(self: Any, step: Step) -> Tensor:
        done.append(step.number)
        if len(done) == 3:
            signal.raise_signal(signal.SIGINT)
        return plain(self, step)

    monkeypatch.setattr(Denoising, "__call__", counted)
    with pytest.raises(KeyboardInterrupt):
        _proposed(backbone, attack, original(), tmp_path / "stopped")
    _, tensors = _proposed(backbone, attack, original(), tmp_path / "stopped")
    assert done == list(range(6))
    assert all(torch.equal(tensors[name], value) for name, value in whole.items())


def test_the_loss_is_the_model_s_own() -> None:
    """Noise on ε-models, v on v-models, a velocity on flows."""
    for architecture in ("sd", "sd2", "flux_dev"):
        backbone = as_backbone(TINY[architecture]())
        shape = (2, *backbone.latent_shape(64, 64))
        clean, noise = (
            torch.randn(shape, generator=torch.Generator().manual_seed(i)) for i in (0, 1)
        )
        levels = torch.tensor([0.2, 0.9], dtype=torch.float64)
        told = backbone.encode(["a cat", "a dog"])
        noisy = backbone.add_noise(clean, noise, levels)
        with torch.no_grad():
            predicted = backbone.predict(noisy, levels, told, 1.0)
            found = denoising_loss(backbone, clean, noise, levels, told)
        unit = torch.ones_like(clean)
        signal = backbone.add_noise(unit, 0 * unit, levels)
        sigma = backbone.add_noise(0 * unit, unit, levels)
        target = {
            "epsilon": noise,
            "v_prediction": signal * noise - sigma * clean,
            "flow": noise - clean,
        }[backbone.prediction]
        assert torch.allclose(found, (predicted - target).square().mean(), rtol=1e-3)


def test_the_loss_on_the_erased_model_falls(backbone: Backbone, cat_erased: Erasure) -> None:
    [concept] = cat_erased.concepts
    attack = TextualInversion(steps=10, references=4, batch_size=4, lr=1.0)
    usual = replace(backbone.profile.sampling, num_inference_steps=6)

    def references(count: int) -> Any:
        return jobs._references(backbone, concept, count, usual)

    texts, latents = encoded(backbone, references(4))
    prompts = [with_word(text, "cat") for text in texts]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(3))
    levels = torch.tensor([0.3, 0.5, 0.7, 0.9], dtype=torch.float64)

    def loss(tokens: Any) -> float:
        with torch.no_grad():
            told = backbone.encode(prompts, {WORD: tokens})
            return float(denoising_loss(backbone, latents, noise, levels, told))

    with erased(cat_erased).on(backbone):
        before = loss(Vectors.start(backbone, concept.anchor, 1).tokens())
        attempt = attack.propose(Sight(backbone, references), _case(concept))
        assert loss(attempt.tokens[WORD]) < 0.95 * before


def _case(concept: Concept) -> Case:
    return Case(concept, tuple(concept.prompts("plain", "test", 2)))


def test_vectors_begin_at_the_anchor_and_all_move(tmp_path: Path) -> None:
    """T5's embeddings are far larger than CLIP's; a rate in the same units moves both."""
    backbone = as_backbone(TINY["flux_dev"]())
    _, tensors = _proposed(backbone, ATTACKS["textual inversion"], original(), tmp_path)
    start = Vectors.start(backbone, SMALL.anchor, 2)
    assert {key.partition("/")[2] for key in tensors} == {"text_encoder", "text_encoder_2"}
    for name, begun in start.begun.items():
        moved = (tensors[f"{WORD}/{name}"] - begun).abs() / start.scale[name]
        assert 0.01 < float(moved.max()) < 1
        assert not torch.equal(moved[0], moved[1])


def test_encoders_without_vectors_read_the_anchor(tmp_path: Path) -> None:
    backbone = as_backbone(TINY["flux_dev"]())
    attack = TextualInversion(**SHORT, encoders=("text_encoder_2",))
    record, tensors = _proposed(backbone, attack, original(), tmp_path)
    assert list(tensors) == [f"{WORD}/text_encoder_2"]
    assert record["texts"] == {f"{WORD}/text_encoder": "dog"}
    with pytest.raises(ValueError, match=r"no text encoder 'text_encoder_9'; .*text_encoder_2"):
        TextualInversion(encoders=("text_encoder_9",)).check(backbone)


@pytest.mark.parametrize(
    ("text", "name", "asked"),
    [
        ("a photo of a cat", "cat", "a photo of a <learned>"),
        ("A Cat, and a category", "cat", "A <learned>, and a category"),
        ("a statue of the moon", "the moon", "a statue of <learned>"),
        ("a photo of a moon", "the moon", "a photo of a <learned>"),
    ],
)
def test_the_word_takes_the_place_of_the_name(text: str, name: str, asked: str) -> None:
    assert with_word(text, name) == asked


def test_a_prompt_without_the_name_is_no_place_for_the_word() -> None:
    with pytest.raises(ValueError, match="does not hold 'cat'"):
        with_word("a photo of a kitten", "cat")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vectors": 0}, "vectors must be at least 1"),
        ({"steps": 1.5}, "steps must be at least 1"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"encoders": ()}, "encoders must name at least one"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TextualInversion(**settings)
