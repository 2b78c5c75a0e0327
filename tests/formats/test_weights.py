"""Whole networks with the changes built in: what they are, what they leave alone, what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from diffusers import DiffusionPipeline
from formats.made import dense, erasure, loaded, low_rank, places, predictions, shift
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from expunge.backbone.load import as_backbone
from expunge.erasure import Erasure
from expunge.formats import export
from expunge.verification import verify

NETWORKS = ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoder_3")
ENDS = ("attn2.to_k", "conv1", "attn.to_q", "context_embedder", "q_proj", "fc1", "SelfAttention.v")


def _states(pipe: Any) -> dict[str, torch.Tensor]:
    networks = as_backbone(pipe).networks
    return {
        f"{component}/{name}": value.clone()
        for component, network in networks.items()
        for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize("name", TINY)
def test_changed_networks_are_written_whole(name: str, tmp_path: Path) -> None:
    """Text encoders too, T5 included; the pipeline that was given stays bit for bit what it was."""
    pipe = loaded(TINY[name], tmp_path / "base")
    made = erasure(pipe, places(pipe, NETWORKS, ENDS), dense)
    assert any(component.startswith("text_encoder") for component in made.components)
    before = _states(pipe)
    with made.applied(pipe):
        wanted = predictions(pipe)
    merged = export(made, tmp_path / "merged", "merged", pipe)
    read = DiffusionPipeline.from_pretrained(merged, use_safetensors=True)
    assert shift(predictions(read), wanted) < 1e-5
    assert shift(wanted, predictions(pipe)) > 1e-4
    parts = export(made, tmp_path / "parts", "components", pipe)
    assert {path.name for path in parts.iterdir() if path.is_dir()} == set(made.components)
    for path in (merged, parts):
        report = verify(path, pipe)
        assert report["agree"] and report["predictions"]["worst"] < 1e-5, report
    after = _states(pipe)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not any("expunge" in str(hook) for m in _modules(pipe) for hook in m._forward_hooks)


def _modules(pipe: Any) -> list[nn.Module]:
    return [m for network in as_backbone(pipe).networks.values() for m in network.modules()]


@pytest.mark.parametrize("name", ["sd", "sd2", "sdxl"])
def test_one_checkpoint_file_holds_the_text_encoders_changes(name: str, tmp_path: Path) -> None:
    pipe = loaded(TINY[name], tmp_path / "base")
    made = erasure(pipe, places(pipe, NETWORKS, ENDS))
    report = verify(export(made, tmp_path / "single", "single", pipe), pipe)
    assert report["agree"], report


def test_nothing_written_names_this_machine(tmp_path: Path) -> None:
    """No path and no command line in cards, records, configurations and headers."""
    pipe = loaded(TINY["sd"], tmp_path / "base")
    made = erasure(pipe, places(pipe, ("unet", "text_encoder"), ENDS))
    assert made.record["model"] == str(tmp_path / "base")
    for format_ in ("lora", "diffusers", "kohya", "full", "merged", "components", "single"):
        path = export(made, tmp_path / format_, format_, pipe)  # type: ignore[arg-type]
        texts = [
            p.read_text() for p in (tmp_path / format_).rglob("*") if p.suffix in (".json", ".md")
        ]
        assert len(texts) >= 1, "a card beside every export"
        if path.is_file():
            with safe_open(path, "pt") as file:
                texts.append(json.dumps(file.metadata()))
        for text in texts:
            assert str(tmp_path) not in text and "/home/x" not in text, text[:2000]


def test_compiled_networks_keep_their_names(tmp_path: Path) -> None:
    pipe = loaded(TINY["sd"], tmp_path / "base")
    made = erasure(pipe, places(pipe, ("unet", "text_encoder"), ENDS))
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    pipe.text_encoder.compile(backend="eager")
    merged = export(made, tmp_path / "merged", "merged", pipe)
    keys = load_file(merged / "unet" / "diffusion_pytorch_model.safetensors")
    assert keys.keys() == dict(TINY["sd"]().unet.state_dict()).keys()
    assert verify(merged, loaded(TINY["sd"], tmp_path / "again"))["agree"]


@pytest.mark.parametrize("active", [True, False])
def test_a_users_lora_stays_out_of_merged_weights(active: bool, tmp_path: Path) -> None:
    pipe = loaded(TINY["sd"], tmp_path / "base")
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    if not active:
        pipe.unet.disable_adapters()
    made = erasure(pipe, places(pipe, ("unet",), ("attn2.to_k", "conv1")))
    merged = export(made, tmp_path / "merged", "merged", pipe)
    keys = load_file(merged / "unet" / "diffusion_pytorch_model.safetensors")
    base = TINY["sd"]().unet.state_dict()
    assert keys.keys() == base.keys()
    changed = {f"unet/{key.removesuffix('.weight')}" for key in keys
               if not torch.equal(keys[key], base[key])}  # fmt: skip
    assert changed == set(made.layers)
    assert verify(merged, pipe)["weights"]["agree"]
    assert verify(export(made, tmp_path / "lora"), pipe)["weights"]["agree"]


def test_layers_that_share_a_weight_part_where_one_is_changed(tmp_path: Path) -> None:
    pipe = loaded(TINY["sd"], tmp_path / "base")
    layers = places(pipe, ("unet",), ("attn2.to_k", "attn2.to_v"))
    first, second = (layers[f"unet/mid_block.attentions.0.transformer_blocks.0.attn2.{part}"]
                     for part in ("to_k", "to_v"))  # fmt: skip
    second.weight = first.weight
    place = "unet/mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    made = erasure(pipe, {place: first})
    merged = export(made, tmp_path / "merged", "merged", pipe)
    report = verify(merged, pipe)
    assert report["agree"], report


def test_a_folder_without_a_record_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = loaded(TINY["sd"], tmp_path / "base")
    made = erasure(pipe, places(pipe, ("unet",), ("attn2.to_k",)))
    merged = export(made, tmp_path / "merged", "merged", pipe)

    def stop(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(type(pipe.vae), "save_pretrained", stop)
    with pytest.raises(KeyboardInterrupt):
        export(made, merged, "merged", pipe)
    with pytest.raises(ValueError, match="not written to its end"):
        verify(merged, pipe)


def test_one_folder_holds_one_erasures_export(tmp_path: Path) -> None:
    pipe = loaded(TINY["sd"], tmp_path / "base")
    layers = places(pipe, ("unet",), ("attn2.to_k",))
    merged = export(erasure(pipe, layers), tmp_path / "merged", "merged", pipe)
    other = erasure(pipe, layers, lambda m, g: low_rank(m, g, 1))
    with pytest.raises(ValueError, match="holds another erasure"):
        export(other, merged, "components", pipe)
    assert verify(merged, pipe)["agree"]
    assert isinstance(other, Erasure)
