"""What every eraser's row has to show, and the opposites that must not pass."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from eraser.methods import ERASERS, FLUX_ALONE, ONE_A_METHOD, WALKS

import expunge
from expunge import names
from expunge.adapter import applied_to
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import PROFILE
from expunge.concept import Concept
from expunge.eraser.ant import ANT
from expunge.eraser.base import Eraser
from expunge.eraser.esd import ESD
from expunge.eraser.finetune import FineTuner
from expunge.eraser.points import Points, predictions, walk
from expunge.eraser.trace import TRACE
from expunge.eraser.uce import UCE
from expunge.erasure import Erasure
from expunge.formats import export
from expunge.formats.ranks import low_rank
from expunge.hooks import original
from expunge.prompts import split_of
from expunge.request import Request
from expunge.run.fit import DivergedError
from expunge.settings import ARCHITECTURES
from expunge.text_rows import concept_rows
from expunge.verification import verify

SMALL = Concept("cat", anchor="dog", templates=("a [photo|picture|drawing|view] of a {}",))


@pytest.fixture(params=list(ERASERS))
def row(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@functools.cache
def _flux() -> Any:
    return expunge.load("miniature-flux", device="cpu")


def home(row: str, pipe: Any) -> tuple[Any, Backbone]:
    """The bundled model that a row's method works on."""
    own = _flux() if row in FLUX_ALONE else pipe
    return own, as_backbone(own)


def test_every_method_has_a_row() -> None:
    rows = {type(eraser) for eraser in ERASERS.values()}
    assert {names.find("eraser", name) for name in names.ERASERS} == rows
    assert {type(ERASERS[name]) for name in ONE_A_METHOD} == rows


@pytest.mark.usefixtures("untouched")
def test_every_eraser_works_from_end_to_end(
    row: str, pipe: Any, cat: Concept, tmp_path: Path
) -> None:
    eraser, (pipe, backbone) = ERASERS[row], home(row, pipe)
    erasure = eraser.erase(pipe, [cat], folder=tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    record = erasure.record
    assert record["eraser"] == type(eraser).__name__
    assert type(eraser)(**record["hyperparameters"]) == eraser
    assert max(record["fingerprint"]["layers"].values()) > 0
    assert record["fingerprint"]["predictions"][0]["shift"] > 0
    assert json.loads(json.dumps(record, allow_nan=False))["sketch"]

    again = Erasure.load(erasure.save(tmp_path / "run"))
    assert again.id == erasure.id
    with again.applied(pipe):
        [adapter] = applied_to(backbone.denoiser).values()
        assert set(adapter.strengths.values()) == {1.0}
    weights = all(c.weight_change for cs in again.by_place().values() for c in cs)
    assert bool(eraser.exports) == (weights and not again.gated), "as `expunge list` says"
    if weights and not again.gated:
        form = "lora" if low_rank(again) else "components"
        to = tmp_path / ("run" if form == "lora" else form)
        assert verify(export(again, to, form, pipe), pipe)["agree"]
    else:
        with pytest.raises(ValueError, match=r"prompt|weight"):
            export(again, tmp_path / "export")


def _toward(backbone: Backbone, eraser: Eraser, erasure: Erasure, concept: Concept) -> float:
    """How far the prediction for the concept moved along the way the method says: its guide."""
    pairs = concept.pairs("train", 4)
    with original():
        seen = walk(backbone, [text for text, _ in pairs], backbone.profile.sampling, seed=7)
    at = (seen.levels < 0.6) & (seen.levels > 0.2)
    latents, levels = seen.latents[at], seen.levels[at]
    pairs = [pairs[i] for i in seen.owners[at].tolist()]
    away = isinstance(eraser, (ANT, ESD)) or getattr(eraser, "target", "") == "reversed"
    empty = away or not getattr(eraser, "to_anchor", True) or type(eraser).__name__ == "Receler"
    other = None if empty else [anchor for _, anchor in pairs]
    asked = [text for text, _ in pairs]
    with backbone.exact():
        with original():
            before = predictions(backbone, latents, levels, asked)
            guide = predictions(backbone, latents, levels, other)
        with erasure.applied(backbone):
            after = predictions(backbone, latents, levels, asked)
    wanted, moved = (guide - before).flatten(), (after - before).flatten()
    return float(torch.nn.functional.cosine_similarity(wanted, moved, dim=0))


LONGER: dict[str, Any] = {"steps": 16, "batch_size": 4, "lr": 3e-3}


@pytest.mark.parametrize("name", [n for n in ERASERS if not n.startswith("fade")])
def test_every_eraser_moves_the_concept_the_way_it_says(name: str, pipe: Any, cat: Concept) -> None:
    """Trained toward the concept instead of away from it, this is negative."""
    eraser, (pipe, backbone) = ERASERS[name], home(name, pipe)
    if isinstance(eraser, FineTuner) and not name.startswith("trace, phase 1"):
        eraser = dataclasses.replace(eraser, **LONGER)  # type: ignore[arg-type]
    if getattr(eraser, "form", "low-rank") == "dense":  # every weight moves as far as the rate says
        eraser = dataclasses.replace(eraser, lr=3e-4)  # type: ignore[call-arg]
    erasure = eraser.erase(pipe, [cat])
    assert _toward(backbone, eraser, erasure, cat) > 0.05


def test_erasers_read_training_prompts_alone(
    row: str, pipe: Any, cat: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of the audit's split seen in training would make the audit a lie."""
    read: set[str] = set()
    _, backbone = home(row, pipe)
    kept = backbone.encode

    def spy(prompts: Any, *args: Any, **options: Any) -> Any:
        read.update(prompts)
        return kept(prompts, *args, **options)

    fresh = as_backbone(backbone.pipe)  # without a cache of texts
    plain = type(fresh).encode_prompts

    def spied(self: Any, prompts: Any) -> Any:
        read.update(prompts)
        return plain(self, prompts)

    monkeypatch.setattr(type(fresh), "encode_prompts", spied)
    monkeypatch.setattr(fresh, "encode", spy)
    ERASERS[row].erase(fresh, [cat])
    asked = {text.removesuffix(" <adversary>") for text in read} - {*cat.names, "", cat.anchor}
    asked -= {*cat.neighbours}
    anchors = {anchor for text, anchor in cat.pairs("train", None)}
    anchors |= {a for name in cat.synonyms for _, a in cat.pairs("train", None, name)}
    assert {split_of(text) for text in asked - anchors} <= {"train"}


@pytest.fixture(scope="module", params=list(TINY))
def architecture(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Any]:
    """A pipeline of a real architecture, loaded from a folder as a user's would be."""
    folder = tmp_path_factory.mktemp(request.param)
    TINY[request.param]().save_pretrained(folder)
    return request.param, expunge.load(folder, device="cpu")


@pytest.mark.parametrize("name", ONE_A_METHOD)
def test_every_method_works_on_every_architecture(
    name: str, architecture: tuple[str, Any], tmp_path: Path
) -> None:
    _, pipe = architecture
    backbone = as_backbone(pipe)
    eraser = ERASERS[name]
    if isinstance(eraser, FineTuner):  # small pictures
        eraser = dataclasses.replace(eraser, resolution=64, steps=2, trajectories=2)  # type: ignore[call-arg]
    assert backbone.architecture in ARCHITECTURES
    before = backbone.content_hash()
    if backbone.architecture not in eraser.architectures:
        backbone.predict = None  # type: ignore[assignment,method-assign]  # before any work
        with pytest.raises(ValueError, match=r"works on|joint attention"):
            eraser.erase(backbone, [SMALL])
        return
    erasure = eraser.erase(backbone, [SMALL])
    assert erasure.record["fingerprint"]["predictions"][0]["shift"] > 0
    again = Erasure.load(erasure.save(tmp_path / "run"))
    with again.applied(backbone):
        pass
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
    erasure = ERASERS["trace, phase 1"].erase(pipe, [SMALL])
    assert erasure.record["dtype"] == str(dtype).removeprefix("torch.")
    for kind in ("diffusers", "components", "merged"):
        report = verify(export(erasure, tmp_path / kind, kind, pipe), pipe)
        assert report["agree"], (kind, report)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("row", ONE_A_METHOD)
def test_the_same_seed_makes_the_same_erasure(row: str, pipe: Any, cat: Concept) -> None:
    own, _ = home(row, pipe)
    first, second = (ERASERS[row].erase(own, [cat]) for _ in range(2))
    for place, changes in first.by_place().items():
        for one, other in zip(changes, second.by_place()[place], strict=True):
            for name, tensor in one.state_dict().items():
                assert torch.allclose(tensor.float(), other.state_dict()[name].float(), atol=1e-5)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("name", ONE_A_METHOD)
def test_several_concepts_have_changes_each(name: str, pipe: Any) -> None:
    erasure = expunge.erase(home(name, pipe)[0], ["cat", "Ada Lindqvist"], ERASERS[name])
    assert [part.concept.name for part in erasure.parts] == ["cat", "Ada Lindqvist"]
    for part in erasure.parts:
        assert sum(c.norm for changes in part.by_place().values() for c in changes) > 0


@pytest.mark.parametrize("name", ["esd, kept", "trace", "spm", "receler"])
def test_a_batch_of_one_concept_moves_its_own_changes_alone(name: str, pipe: Any) -> None:
    """The first concept's turns of a run of two are a run of one, bit for bit but for the rate."""
    backbone, eraser = as_backbone(pipe), ERASERS[name]
    assert isinstance(eraser, FineTuner)
    eraser = dataclasses.replace(eraser, steps=2)
    result = eraser._run(backbone, [backbone.profile.vocabulary.resolve(n) for n in ("cat", "car")],
                         None)  # fmt: skip
    moves = {key: len(values) for key, values in result.losses.items() if "/" not in key}
    assert moves["cat"] == 1
    assert moves["car"] == 1


@pytest.mark.parametrize("tokens", ["last", "concept", "end"])
def test_the_bare_refinement_meets_its_target(tokens: Any, backbone: Backbone) -> None:
    """TRACE, Theorem 3.1: with one embedding and η = 1, W′e_w = W e_u exactly."""
    ball = dataclasses.replace(SMALL, anchor="ball")
    eraser = TRACE(tune=False, ridge=0.0, preserved=0, prompts=1, tokens=tokens)
    erasure = eraser.erase(backbone, [ball])
    [request] = erasure.requests.values()
    rows = concept_rows(backbone, {"cat": request})["cat"]["tokens"]
    assert len(rows.sources) == 1
    layers = backbone.prompt_projections()
    for place, delta in erasure.delta().items():
        w = layers[place.partition("/")[2]].weight.detach().double()
        reached = rows.sources.double() @ (w + delta).T
        assert torch.allclose(reached, rows.guides.double() @ w.T, atol=1e-5)


def test_trajectories_turn_to_the_anchor_below_the_switch(
    backbone: Backbone, cat: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reversed, the student would learn on pictures of the anchor from above."""
    from expunge.backbone import guidance

    guided: list[tuple[float, str]] = []
    plain = guidance.ClassifierFree.__call__

    def spy(self: Any, model: Any, latents: Any, level: float) -> Any:
        guided.append((level, self.conditioning.texts[0]))
        return plain(self, model, latents, level)

    monkeypatch.setattr(guidance.ClassifierFree, "__call__", spy)
    eraser = TRACE(**WALKS | {"trajectories": 1}, refine=False, preserve=0.0)
    eraser.points(backbone, cat)
    above = [text for level, text in guided if level > eraser.switch]
    below = [text for level, text in guided if level <= eraser.switch]
    assert above and below
    assert all(cat.mentions(text) for text in above)
    assert not any(cat.mentions(text) for text in below)


def test_preserving_holds_other_prompts(pipe: Any, backbone: Backbone, cat: Concept) -> None:
    """With its weight at nothing, other prompts move further."""
    moved = []
    for preserve in (0.0, 20.0):
        settings = {**WALKS, "steps": 20, "lr": 3e-3, "preserve": preserve}
        erasure = ESD(**settings).erase(pipe, [cat])
        texts = [f"a photo of a {name}" for name in cat.neighbours[:4]]
        latents = torch.randn(len(texts), *backbone.latent_shape(64, 64),
                              generator=torch.Generator().manual_seed(1))  # fmt: skip
        levels = torch.full((len(texts),), 0.6, dtype=torch.float64)
        with erasure.applied(backbone):
            after = predictions(backbone, latents, levels, texts)
            with original():
                before = predictions(backbone, latents, levels, texts)
        moved.append(float((after - before).norm()))
    assert moved[1] < 0.8 * moved[0]


def test_high_noise_counts_more_in_what_is_kept() -> None:
    weights = TRACE(high_noise_weight=2.0).keep_weight(torch.tensor([0.0, 0.5, 1.0]))
    assert weights.tolist() == [1.0, 2.0, 3.0]
    flat = TRACE(high_noise_weight=0.0).keep_weight(torch.tensor([0.0, 0.5, 1.0]))
    assert flat.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TRACE(steps=0), "steps must be at least 1"),
        (lambda: TRACE(lr=-1.0), "lr must be positive"),
        (lambda: TRACE(lr=1e308), "lr must be a finite number"),
        (lambda: TRACE(switch=1.5), "switch must lie between"),
        (lambda: TRACE(refine=False, tune=False), "both off"),
        (lambda: UCE(ridge=0.0), "ridge must be positive"),
        (lambda: UCE(erase_weight=-1.0), "erase_weight must be positive"),
        (lambda: UCE(tokens="pirate"), "tokens must be one of"),  # type: ignore[arg-type]
        (lambda: ESD(preserve=-1.0), "preserve must not be negative"),
        (lambda: ESD(batch_size=1.5), "batch_size must be at least 1"),  # type: ignore[arg-type]
    ],
)
def test_bad_hyperparameters_are_refused_on_construction(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_a_prompt_the_encoder_cuts_is_refused(pipe: Any) -> None:
    endless = Concept("cat", templates=("a [big|small] " + "very " * 100 + "{}",))
    with pytest.raises(ValueError, match=r"has \d+ tokens; the text encoder reads 77"):
        UCE().erase(pipe, [endless])


def test_a_name_no_tokenizer_reads_is_refused() -> None:
    """On miniature-flux every unknown word is one token, and all of them would go along."""
    flux = expunge.load("miniature-flux", device="cpu")
    with pytest.raises(ValueError, match="can read"):
        UCE().erase(flux, [Concept("猫", anchor="dog")])


def test_a_concept_without_prompts_is_refused_before_any_work(pipe: Any) -> None:
    outside = next(f"z{i} {{}}" for i in range(99) if split_of(f"z{i} cat") != "train")
    lonely, eraser = Concept("cat", templates=(outside,)), UCE()
    with pytest.raises(ValueError, match="no training prompt"):
        eraser.erase(pipe, [lonely])
    with pytest.raises(ValueError, match="at least one concept"):
        eraser.erase(pipe, [])
    with pytest.raises(ValueError, match="twice"):
        eraser.erase(pipe, [SMALL, SMALL])


@pytest.mark.usefixtures("untouched")
def test_a_nan_stops_the_run_with_step_and_advice(
    pipe: Any, cat: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = ESD.points

    def poisoned(self: Any, backbone: Backbone, concept: Concept) -> Points:
        found = points(self, backbone, concept)
        return Points(found.latents, found.levels, found.prompts, found.targets * float("nan"))

    monkeypatch.setattr(ESD, "points", poisoned)
    with pytest.raises(DivergedError, match=r"step 0.*learning rate below"):
        ERASERS["esd"].erase(pipe, [cat])


def test_a_checkpoint_of_another_concept_is_not_resumed(
    pipe: Any, cat: Concept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.eraser import matching

    plain = matching.Matching.loss

    def stopping(self: Any, step: Any, player: str) -> Any:
        if step.number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, step, player)

    monkeypatch.setattr(matching.Matching, "loss", stopping)
    settings = dataclasses.replace(ERASERS["esd"], steps=5)  # type: ignore[call-arg]
    with pytest.raises(KeyboardInterrupt, match="goes on from step 3"):
        settings.erase(pipe, [cat], folder=tmp_path)
    monkeypatch.setattr(matching.Matching, "loss", plain)
    assert len(settings.erase(pipe, [cat]).record["losses"]["cat"]) == 5
    with pytest.raises(ValueError, match=r"concept|cat|dog"):
        expunge.erase(pipe, "dog", settings, folder=tmp_path)
    resumed = settings.erase(pipe, [cat], folder=tmp_path)
    assert len(resumed.record["losses"]["cat"]) == 5


def test_requests_survive_their_record(cat: Concept) -> None:
    [name] = [n for n in ERASERS if n == "uce, prompts"]
    request = ERASERS[name].request(cat)  # type: ignore[attr-defined]
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    with pytest.raises(ValueError, match="damaged"):
        Request.from_dict({"pairs": 3})
