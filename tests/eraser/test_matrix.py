"""Every eraser runs, changes the right things, is saved and exported. New methods: a row."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import TINY

import expunge
from expunge.adapter import Adapter, LowRank
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import PROFILE
from expunge.concept import Concept
from expunge.eraser import ESD, TRACE, UCE
from expunge.eraser.base import Eraser
from expunge.eraser.finetune import FineTuner, Points
from expunge.erasure import Erasure
from expunge.formats import export
from expunge.prompts import split_of
from expunge.run.fit import DivergedError
from expunge.verification import verify

TUNING: dict[str, Any] = {"steps": 3, "trajectories": 3, "batch_size": 2, "rank": 2, "lr": 1e-3}

ERASERS: dict[str, Eraser] = {
    "uce": UCE(preserved=6),
    "uce, prompts": UCE(prompts=4, preserved=6, tokens="suffix", to_anchor=True, synonyms=True),
    "esd": ESD(**TUNING),
    "esd, kept": ESD(**TUNING | {"preserve": 1.0}, attention="self"),
    "trace": TRACE(**TUNING, prompts=4, preserved=6, synonyms=True),
    "trace, phase 1": TRACE(tune=False, prompts=4, preserved=6),
    "trace, phase 1, bare": TRACE(tune=False, ridge=0.0, preserved=0, prompts=1, tokens="concept"),
    "trace, phase 1, collapse": TRACE(tune=False, variant="collapse", prompts=2, preserved=6),
    "trace, phase 2": TRACE(**TUNING, refine=False),
    "trace, phase 2, reversed": TRACE(**TUNING, refine=False, target="reversed", from_level=0.6),
}


@pytest.fixture(params=list(ERASERS))
def eraser(request: pytest.FixtureRequest) -> Eraser:
    return ERASERS[request.param]


@pytest.mark.usefixtures("untouched")
def test_every_eraser_works_from_end_to_end(
    eraser: Eraser, pipe: Any, backbone: Backbone, cat: Concept, tmp_path: Path
) -> None:
    erasure = eraser.erase(pipe, [cat], folder=tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    record = erasure.record
    assert record["eraser"] == type(eraser).__name__
    assert type(eraser)(**record["hyperparameters"]) == eraser
    editable = {*backbone.select("attention"), *backbone.prompt_projections()}
    assert set(erasure.layers) <= editable
    assert max(record["fingerprint"]["layers"].values()) > 0
    assert record["fingerprint"]["predictions"][0]["shift"] > 0

    again = Erasure.load(erasure.save(tmp_path / "run"))
    assert again.weights_hash() == erasure.weights_hash()
    assert verify(export(again, tmp_path / "run"), pipe)["agree"]


@pytest.fixture(scope="module", params=list(TINY))
def architecture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any]:
    """A pipeline of a real architecture, loaded from a folder as a user's would be."""
    folder = tmp_path_factory.mktemp(request.param)
    TINY[request.param]().save_pretrained(folder)
    return request.param, expunge.load(folder, device="cpu")


FORMATS = ("diffusers", "kohya", "components", "merged", "single")
LACKING = {
    **{(name, "kohya"): "has no names for sd3" for name in ("sd3", "sd35")},
    **{
        (name, "single"): "a single file holds a Stable Diffusion"
        for name in ("sd3", "sd35", "flux_dev", "flux_schnell")
    },
}
"""What an architecture cannot be written as, and the words that say so."""


@pytest.mark.parametrize("name", ["uce, prompts", "esd, kept", "trace"])
def test_every_eraser_works_on_every_architecture(
    name: str, architecture: tuple[str, Any], tmp_path: Path
) -> None:
    family, pipe = architecture
    backbone = as_backbone(pipe)
    cat = Concept("cat", anchor="dog", templates=("a [photo|picture|drawing|view] of a {}",))
    eraser = ERASERS[name]
    if isinstance(eraser, FineTuner):  # small pictures
        eraser = dataclasses.replace(eraser, trajectories=2, resolution=64)
    before = backbone.content_hash()
    erasure = eraser.erase(backbone, [cat])
    assert erasure.record["fingerprint"]["predictions"][0]["shift"] > 0
    if name != "esd, kept":
        assert set(backbone.prompt_projections()) <= set(erasure.layers)
    again = Erasure.load(erasure.save(tmp_path / "run"))
    for kind in FORMATS:
        lacking = LACKING.get((family, kind))
        if lacking:
            with pytest.raises(ValueError, match=lacking):
                export(again, tmp_path / kind, kind, pipe)
            continue
        report = verify(export(again, tmp_path / kind, kind, pipe), pipe)
        assert report["agree"], (kind, report)
    assert backbone.content_hash() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_exports_of_a_model_with_a_profile_are_verified(dtype: torch.dtype, tmp_path: Path) -> None:
    """Its size and T5 length differ from the pipeline's own, and half precision rounds."""
    folder = tmp_path / "model"
    TINY["flux_dev"]().save_pretrained(folder)
    sampling = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 64, "width": 64}
    profile = {"sampling": sampling, "concepts": [], "max_sequence_length": 32}
    (folder / PROFILE).write_text(json.dumps(profile))
    pipe = expunge.load(folder, device="cpu", dtype=dtype)
    cat = Concept("cat", anchor="dog", templates=("a [photo|picture|drawing|view] of a {}",))
    erasure = dataclasses.replace(ERASERS["trace"], trajectories=2).erase(pipe, [cat])  # type: ignore[call-arg]
    assert erasure.record["dtype"] == str(dtype).removeprefix("torch.")
    for kind in ("diffusers", "kohya", "components", "merged"):
        report = verify(export(erasure, tmp_path / kind, kind, pipe), pipe)
        assert report["agree"], (kind, report)


def test_what_is_trained_stays_in_float32(pipe: Any, cat: Concept) -> None:
    """Predictions run in bfloat16; an optimiser of bfloat16 averages would forget nothing."""
    backbone = as_backbone(pipe)
    layers = backbone.select("cross")
    change = {n: LowRank(torch.zeros(1, x.in_features), torch.zeros(x.out_features, 1))
              for n, x in layers.items()}  # fmt: skip
    adapter = Adapter(backbone.denoiser, {"cat": change}, trainable=True)
    backbone.precision = "bfloat16"
    latents = torch.randn(1, *backbone.latent_shape(64, 64))
    backbone.predict(latents, 0.5, backbone.encode_prompts(["a cat"])).sum().backward()
    adapter.remove()
    parameters = list(adapter.module.parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert any(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters)


@pytest.mark.usefixtures("untouched")
def test_the_same_seed_makes_the_same_erasure(eraser: Eraser, pipe: Any, cat: Concept) -> None:
    first, second = (eraser.erase(pipe, [cat]).delta() for _ in range(2))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", ["uce", "esd", "trace"])
def test_several_concepts_have_an_adapter_each(name: str, pipe: Any) -> None:
    erasure = expunge.erase(pipe, ["cat", "Ada Lindqvist"], ERASERS[name])
    assert [part.concept.name for part in erasure.parts] == ["cat", "Ada Lindqvist"]
    norms = [sum(float(c.delta.norm()) for c in part.factors.values()) for part in erasure.parts]
    assert min(norms) > 0


@pytest.mark.parametrize("tokens", ["last", "concept", "end"])
def test_the_bare_refinement_meets_its_target(tokens: Any, backbone: Backbone) -> None:
    """TRACE, Theorem 3.1: with one embedding and η = 1, W′e_w = W e_u exactly."""
    from expunge.eraser.tokens import source_and_guide

    cat = Concept("cat", anchor="ball", templates=("a [photo|picture|drawing|view] of a {}",))
    eraser = TRACE(tune=False, ridge=0.0, preserved=0, prompts=1, tokens=tokens)
    erasure = eraser.erase(backbone, [cat])
    sources, guides = source_and_guide(backbone, cat.pairs("train", 1), tokens)["tokens"]
    assert len(sources) == 1
    layers = backbone.prompt_projections()
    for name, delta in erasure.delta().items():
        w = layers[name].weight.detach().double()
        reached = sources.double() @ (w + delta).T
        assert torch.allclose(reached, guides.double() @ w.T, atol=1e-5)


def test_tokens_are_aligned_by_what_prompts_share(backbone: Backbone) -> None:
    from expunge.eraser.tokens import source_and_guide

    text, other = "a photo of Ada Lindqvist smiling", "a photo of a person smiling"
    states = backbone.encode_prompts([text, other]).prompt_embeds
    run, replaced = backbone.tokens([text])[0], backbone.tokens([other])[0]
    end = run.ids[0].tolist().index(run.end)
    sources, guides = source_and_guide(backbone, [(text, other)], "last")["tokens"]
    last = end - 2
    assert torch.equal(sources[0], states[0, last])
    other_end = replaced.ids[0].tolist().index(replaced.end)
    assert torch.equal(guides[0], states[1, other_end - 2])
    sources, _ = source_and_guide(backbone, [(text, other)], "suffix")["tokens"]
    assert torch.equal(sources[-1], states[0, -1])
    with pytest.raises(ValueError, match="are the same"):
        source_and_guide(backbone, [(text, text)], "concept")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TRACE(steps=0), "steps must be at least 1"),
        (lambda: TRACE(lr=-1.0), "lr must be positive"),
        (lambda: TRACE(switch=1.5), "switch must lie between"),
        (lambda: TRACE(refine=False, tune=False), "both off"),
        (lambda: UCE(ridge=0.0), "ridge must be positive"),
        (lambda: ESD(preserve=-1.0), "preserve must not be negative"),
    ],
)
def test_bad_hyperparameters_are_refused_on_construction(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_prompt_the_encoder_cuts_is_refused(pipe: Any) -> None:
    endless = Concept("cat", templates=("a [big|small] " + "very " * 100 + "{}",))
    with pytest.raises(ValueError, match=r"has \d+ tokens; the text encoder reads 77"):
        UCE().erase(pipe, [endless])


def test_a_concept_without_prompts_is_refused_before_any_work(pipe: Any) -> None:
    outside = next(f"z{i} {{}}" for i in range(99) if split_of(f"z{i} cat") != "train")
    lonely, eraser = Concept("cat", templates=(outside,)), UCE()
    with pytest.raises(ValueError, match="no training prompt"):
        eraser.erase(pipe, [lonely])
    with pytest.raises(ValueError, match="at least one concept"):
        eraser.erase(pipe, [])


@pytest.mark.usefixtures("untouched")
def test_a_nan_stops_the_run_with_step_and_advice(
    pipe: Any, cat: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = ESD.points

    def poisoned(self: FineTuner, backbone: Backbone, concept: Concept) -> Points:
        found = points(self, backbone, concept)  # type: ignore[arg-type]
        return Points(found.latents, found.levels, found.prompts, found.targets * float("nan"))

    monkeypatch.setattr(ESD, "points", poisoned)
    with pytest.raises(DivergedError, match=r"step 0.*learning rate below"):
        ERASERS["esd"].erase(pipe, [cat])
