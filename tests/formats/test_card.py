"""Cards, headers and the lines that put an erasure to use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from formats.made import dense, erasure, loaded, places, predictions, shift
from huggingface_hub import ModelCard
from safetensors import safe_open

from expunge.backbone.load import as_backbone
from expunge.concept import Concept
from expunge.erasure import Erasure, Part
from expunge.fingerprint import describe, hub_id
from expunge.formats import export, how_to_apply, model_card


@pytest.fixture
def made() -> Erasure:
    pipe = TINY["sd"]()
    return erasure(pipe, places(pipe, ("unet",), ("attn2.to_k",)))


def _named(made: Erasure, concept: Concept, **record: Any) -> Erasure:
    [part] = made.parts
    return Erasure([Part(concept, part.closed, part.tuned)], made.record | record)


def _rows(card: str) -> list[str]:
    return [line for line in card.splitlines() if line.startswith("|")]


@pytest.mark.parametrize("format_", ["lora", "merged", "full"])
def test_cards_are_read_by_the_hubs_own_parser(format_: str, made: Erasure) -> None:
    made.record["hub"] = made.record["model"] = "someone/a-model"
    card = ModelCard(model_card(made, format_))
    data = card.data.to_dict()
    assert data["pipeline_tag"] == "text-to-image"
    assert data["base_model"] == "someone/a-model"
    assert data["base_model_relation"] == ("finetune" if format_ == "merged" else "adapter")
    assert "license" not in data, "what is not known is left out"
    assert ("lora" in data["tags"]) == (format_ != "merged")
    assert ("load_lora_weights" in card.text) == (format_ == "lora")


@pytest.mark.parametrize("model", ["/home/someone/model", "model.safetensors", "StableDiffusion"])
def test_a_base_model_is_named_only_by_its_hub_id(model: str, made: Erasure) -> None:
    card = model_card(_named(made, made.concepts[0], model=model))
    assert "base_model" not in ModelCard(card).data.to_dict()
    assert "/home" not in card


def test_a_folder_that_looks_like_a_hub_id_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("runs/model") == "runs/model"
    (tmp_path / "runs" / "model").mkdir(parents=True)
    assert hub_id("runs/model") is None
    assert hub_id("miniature-sd") is None


def test_names_break_neither_table_nor_header(made: Erasure) -> None:
    wild = Concept("a|b # [c](http://d) *e*", anchor="x\\|y", synonyms=("<b>", "s|t", "![f](g)"))
    card = model_card(_named(made, wild, hub="o/n: #x", model="o/n"))
    assert ModelCard(card).data.to_dict()["base_model"] == "o/n: #x"
    [row] = [row for row in _rows(card) if "a\\|b" in row]
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 5
    assert "<b>" not in card and "[c](" not in card.replace("\\[c\\](", "")
    assert card.count("\n# ") == 1


def test_the_card_states_rank_and_loss(made: Erasure) -> None:
    card = model_card(made)
    assert "rank: at most 2 a layer" in card
    assert [row.split("|")[1].strip() for row in _rows(card)[-4:]] == ["4", "8", "16", "32"]


@pytest.mark.parametrize("name", TINY)
def test_headers_hold_what_modelspec_requires(name: str, tmp_path: Path) -> None:
    pipe = TINY[name]()
    made = erasure(pipe, places(pipe, ("unet", "transformer"), ("attn2.to_k", "attn.to_k")))
    family = {"sd": "stable-diffusion-v1", "sd2": "stable-diffusion-v1",
              "sd3": "stable-diffusion-3", "sd35": "stable-diffusion-3",
              "sdxl": "stable-diffusion-xl-v1-base",
              "flux_dev": "flux-1-dev", "flux_schnell": "flux-1-schnell"}[name]  # fmt: skip
    formats = ["lora", "diffusers"] + ["single", "kohya"] * (name in ("sd", "sd2", "sdxl"))
    for format_ in formats:
        path = export(made, tmp_path / format_, format_, pipe)  # type: ignore[arg-type]
        with safe_open(path, "pt") as file:
            meta = file.metadata()
        assert meta["modelspec.sai_model_spec"] == "1.0.0"
        whole = format_ == "single"
        assert meta["modelspec.architecture"] == (family if whole else f"{family}/lora")
        assert {"modelspec.implementation", "modelspec.title"} <= meta.keys()
        side = 1024 if name.startswith("flux") else 64
        assert meta["modelspec.resolution"] == f"{side}x{side}"
        assert json.loads(meta["expunge"])["id"] == made.id


@pytest.mark.parametrize(("prediction", "family"), [("v_prediction", "768-v"), ("epsilon", "512")])
def test_the_two_kinds_of_stable_diffusion_2(
    prediction: str, family: str, made: Erasure, tmp_path: Path
) -> None:
    config = made.record["components"]["unet"] | {"cross_attention_dim": 1024}
    other = _named(made, made.concepts[0], components={"unet": config}, prediction=prediction)
    with safe_open(export(other, tmp_path, "kohya"), "pt") as file:
        meta = file.metadata()
    assert meta["modelspec.architecture"] == f"stable-diffusion-v2-{family}/lora"
    assert meta["ss_base_model_version"] == "sd_v2"


# --- three lines


@pytest.mark.parametrize("kind", ["low rank", "dense"])
def test_three_lines_apply_it_in_a_program_of_ones_own(kind: str, tmp_path: Path) -> None:
    pipe = loaded(TINY["sd"], tmp_path / "base")
    layers = places(pipe, ("unet", "text_encoder"), ("attn2.to_k", "q_proj"))
    made = erasure(pipe, layers, dense) if kind == "dense" else erasure(pipe, layers)
    lines = how_to_apply(made, made.save(tmp_path / 'a "run"'))
    assert len(lines.splitlines()) == 3
    assert ("expunge" in lines) == (kind == "dense")
    space: dict[str, Any] = {}
    exec(lines, space)
    with made.applied(pipe):
        wanted = predictions(pipe)
    assert shift(wanted, predictions(pipe)) > 1e-4
    assert shift(predictions(space["pipe"]), wanted) < 1e-5


def test_three_lines_on_the_bundled_model(pipe: Any, tmp_path: Path) -> None:
    made = erasure(pipe, places(pipe, ("unet",), ("attn2.to_v",)))
    lines = how_to_apply(made, made.save(tmp_path))
    assert lines.splitlines()[1] == "pipe = expunge.load('miniature-sd')"
    space: dict[str, Any] = {}
    exec(lines, space)
    with made.applied(pipe), torch.no_grad():
        wanted = predictions(pipe)
    assert shift(predictions(space["pipe"].to("cpu")), wanted) < 1e-5


def test_a_described_erasure_says_where_its_model_came_from(made: Erasure) -> None:
    again = describe(as_backbone(TINY["sd"]()), made)
    assert again.record["hub"] is None
