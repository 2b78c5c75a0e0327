"""LoRA files: what plain diffusers makes of them is what the erasure does, or they are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from formats.made import dense, erasure, low_rank, places, predictions, shift
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from expunge.backbone.load import as_backbone
from expunge.change import Bottleneck, LowRank
from expunge.erasure import Erasure
from expunge.formats import export, lost_at
from expunge.formats.naming import CUT
from expunge.prompt_gate import PromptGate

DENOISERS = ("unet", "transformer")
ENCODERS = ("text_encoder", "text_encoder_2")
DENOISER_LAYERS = ("attn2.to_k", "attn2.to_v", "attn1.to_out.0", "conv1", "conv_shortcut", "conv",
                   "time_emb_proj", "linear_1", "proj_in", "net.2", "add_k_proj", "attn.to_q",
                   "context_embedder", "proj_out", "norm1.linear")  # fmt: skip


def _clip(places_: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Without T5, which no LoRA file reaches."""
    return {place: module for place, module in places_.items() if ".block." not in place}


def _layers(pipe: Any, text: tuple[str, ...] = ("q_proj", "mlp.fc2")) -> dict[str, nn.Module]:
    return places(pipe, DENOISERS, DENOISER_LAYERS) | _clip(places(pipe, ENCODERS, text))


def _uneven(module: nn.Module, generator: torch.Generator) -> LowRank:
    """Another rank for most layers."""
    return low_rank(module, generator, 1 + int(torch.randint(3, (), generator=generator)))


def _read(name: str, path: Path) -> Any:
    """Another pipeline of that kind, with a file loaded by diffusers alone."""
    pipe = TINY[name]()
    folder = path if path.is_dir() else path.parent
    pipe.load_lora_weights(folder, weight_name=None if path.is_dir() else path.name)
    return pipe


def _added(pipe: Any) -> int:
    """Layers to which diffusers adds something."""
    networks = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    layers = [m for network in networks for m in network.modules() if isinstance(m, LoraLayer)]
    return sum(bool(layer.get_delta_weight(layer.active_adapters[0]).any()) for layer in layers)


@pytest.mark.parametrize("name", TINY)
def test_what_erase_writes_loads_in_plain_diffusers(name: str, tmp_path: Path) -> None:
    """Denoiser and text encoders, linear layers and convolutions, ranks of all sizes."""
    pipe = TINY[name]()
    layers = _layers(pipe)
    made = erasure(pipe, layers, _uneven)
    plain = predictions(TINY[name]())
    with made.applied(pipe):
        wanted = predictions(pipe)
    assert shift(wanted, plain) > 1e-3
    read = _read(name, made.save(tmp_path))
    assert _added(read) == len(layers)
    assert shift(predictions(read), wanted) < 1e-5


@pytest.mark.parametrize("format_", ["diffusers", "kohya"])
@pytest.mark.parametrize(
    "text", [("q_proj",), ("fc1",), ("fc2",), ("v_proj", "fc1"), ("out_proj",)]
)
@pytest.mark.parametrize("name", ["sd", "sdxl", "flux_dev"])
def test_no_text_encoder_is_half_read(
    name: str, text: tuple[str, ...], format_: Any, tmp_path: Path
) -> None:
    """Diffusers drops layers of an encoder whose output projections are not in the file."""
    pipe = TINY[name]()
    made = erasure(pipe, _clip(places(pipe, ENCODERS, text)))
    read = _read(name, export(made, tmp_path, format_))
    assert _added(read) == len(made.layers)
    with made.applied(pipe):
        wanted = predictions(pipe)
    assert shift(wanted, predictions(TINY[name]())) > 1e-4
    assert shift(predictions(read), wanted) < 1e-5


@pytest.mark.parametrize("name", ["sd", "flux_dev"])
def test_attentions_of_text_encoders_are_whole(name: str, tmp_path: Path) -> None:
    """A1111 changes OpenCLIP's attention only where queries, keys, values and output are there."""
    pipe = TINY[name]()
    made = erasure(pipe, places(pipe, ("text_encoder",), ("layers.1.self_attn.k_proj",)))
    keys = load_file(export(made, tmp_path, "kohya"))
    stem = "lora_te_" if name == "sd" else "lora_te1_"
    for part in "qkv":
        key = f"{stem}text_model_encoder_layers_1_self_attn_{part}_proj.lora_up.weight"
        assert bool(keys[key].any()) == (part == "k")
    assert f"{stem}text_model_encoder_layers_1_self_attn_out_proj.alpha" in keys
    assert not any("layers_0" in key for key in keys)


def test_convolutions_are_written_as_kohya_has_them(tmp_path: Path) -> None:
    pipe = TINY["sd"]()
    made = erasure(pipe, places(pipe, ("unet",), ("down_blocks.0.resnets.0.conv1",)))
    tensors = load_file(made.save(tmp_path) / "pytorch_lora_weights.safetensors")
    key = "lora_unet_down_blocks_0_resnets_0_conv1"
    down, up = (tensors[f"{key}.lora_{side}.weight"] for side in ("down", "up"))
    assert down.shape == (2, 8, 3, 3)
    assert up.shape == (8, 2, 1, 1)
    [delta] = made.delta().values()
    scaled = up[:, :, 0, 0].double() @ down.double().flatten(1) * tensors[f"{key}.alpha"] / 2
    assert torch.allclose(scaled.view_as(delta), delta, atol=1e-6)


def test_a_short_name_means_no_other_layer(tmp_path: Path) -> None:
    """Peft reads `proj_out` as every layer whose name ends so, each with a rank of its own."""
    pipe = TINY["flux_dev"]()
    layers = places(pipe, ("transformer",), ("proj_out",))
    assert len(layers) == 3
    ranks = iter((3, 1, 2))
    made = erasure(pipe, layers, lambda m, g: low_rank(m, g, next(ranks)))
    read = _read("flux_dev", made.save(tmp_path))
    assert _added(read) == 3
    with made.applied(pipe):
        assert shift(predictions(read), predictions(pipe)) < 1e-5


@pytest.mark.parametrize(
    ("name", "component", "layer"),
    [
        ("flux_dev", "text_encoder_2", "SelfAttention.q"),
        ("sd3", "text_encoder_3", "SelfAttention.q"),
        ("sdxl", "text_encoder_2", "text_projection"),
    ],
)
def test_what_no_reader_takes_is_refused(
    name: str, component: str, layer: str, tmp_path: Path
) -> None:
    pipe = TINY[name]()
    layers = places(pipe, (component,), (layer,)) | places(pipe, DENOISERS, ("0.attn.to_q", "to_k"))
    made = erasure(pipe, layers)
    for format_ in ("lora", "diffusers", "full"):
        with pytest.raises(ValueError, match=f"no reader of LoRA files takes .*{component}"):
            export(made, tmp_path, format_)  # type: ignore[arg-type]
    made.save(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.safetensors"))
    assert "There is no LoRA here: no reader" in (tmp_path / "run" / "README.md").read_text()


# --- ranks


@pytest.mark.parametrize("kind", [low_rank, dense])
def test_a_smaller_rank_states_what_is_lost(kind: Any, tmp_path: Path) -> None:
    """The stated share is the one that is lost, overall and in the layer that loses most."""
    pipe = TINY["sd"]()
    layers = places(pipe, ("unet",), ("attn2.to_k", "conv1", "net.2"))
    make = kind if kind is dense else lambda m, g: low_rank(m, g, 6)
    made = erasure(pipe, layers, make)
    path = export(made, tmp_path, "diffusers", rank=2)
    with safe_open(path, "pt") as file:
        stated = json.loads(file.metadata()[CUT])["loss"]
    tensors = load_file(path)
    lost, whole, shares = 0.0, 0.0, {}
    for place, delta in made.delta().items():
        key = place.replace("/", ".", 1)
        down, up = (tensors[f"{key}.lora_{side}.weight"].double() for side in "AB")
        assert down.shape[0] == 2
        kept = (up.flatten(1) @ down.flatten(1)).view_as(delta)
        lost += float((kept - delta).norm()) ** 2
        whole += float(delta.norm()) ** 2
        shares[place] = float((kept - delta).norm() / delta.norm())
    assert stated["overall"] == pytest.approx((lost / whole) ** 0.5, rel=1e-5)
    assert stated["worst"] == pytest.approx(max(shares.values()), rel=1e-5)
    assert shares[stated["layer"]] == max(shares.values())
    assert lost_at(made, 2).record() == pytest.approx(stated)
    assert 0 < lost_at(made, 4).overall < lost_at(made, 2).overall


def test_the_record_states_rank_and_loss(tmp_path: Path) -> None:
    pipe = TINY["sd"]()
    layers = places(pipe, ("unet",), ("attn2.to_k", "attn2.to_v"))
    made = erasure(pipe, layers, lambda m, g: low_rank(m, g, 6))
    made.save(tmp_path)
    told = Erasure.load(tmp_path).record["lora"]
    assert told["rank"] == 6
    assert [*told["loss"]] == ["4", "8", "16", "32"]
    assert told["loss"]["4"]["overall"] > 1e-3
    assert told["loss"]["8"]["worst"] < 1e-6


def test_the_same_change_twice_takes_no_more_columns(tmp_path: Path) -> None:
    pipe = TINY["sd"]()
    layers = places(pipe, ("unet",), ("attn2.to_k",))
    made = erasure(pipe, layers)
    [part] = made.parts
    twice = Erasure([type(part)(part.concept, part.tuned, part.tuned)], made.record)
    tensors = load_file(export(twice, tmp_path, "kohya"))
    assert {t.shape[0] for key, t in tensors.items() if "lora_down" in key} == {2}


def test_bad_ranks_are_refused(tmp_path: Path) -> None:
    pipe = TINY["sd"]()
    made = erasure(pipe, places(pipe, ("unet",), ("attn2.to_k",)))
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        export(made, tmp_path, "kohya", rank=0)
    with pytest.raises(ValueError, match="'merged' takes no rank"):
        export(made, tmp_path, "merged", pipe, rank=4)
    with pytest.raises(ValueError, match=r"format must be one of lora, .* got 'koyha'"):
        export(made, tmp_path, "koyha")  # type: ignore[arg-type]


# --- what is no LoRA


def test_whole_weights_are_no_lora_without_a_rank(tmp_path: Path) -> None:
    """The refusal names the two ways, and both work."""
    pipe = TINY["sd"]()
    made = erasure(pipe, places(pipe, ("unet",), ("attn2.to_k", "conv1")), dense)
    with pytest.raises(ValueError, match=r"--rank 32, .* \(format 'full'\)"):
        export(made, tmp_path, "lora")
    assert export(made, tmp_path, "lora", rank=3).name == "pytorch_lora_weights_rank3.safetensors"
    tensors = load_file(export(made, tmp_path, "full"))
    for place, delta in made.delta().items():
        key = f"lora_unet_{place.removeprefix('unet/').replace('.', '_')}.diff"
        assert torch.allclose(tensors[key].double(), delta, atol=1e-6)
    made.save(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_what_is_no_change_of_weights_is_refused_in_one_sentence(tmp_path: Path) -> None:
    pipe = TINY["sd"]()
    layers = places(pipe, ("unet",), ("attn2.to_out.0",))

    def bottleneck(module: nn.Module, generator: torch.Generator) -> Bottleneck:
        made = Bottleneck.fresh(module.out_features, 4, generator)  # type: ignore[arg-type]
        made.up.data.normal_(generator=generator)
        return made

    behind = erasure(pipe, layers, bottleneck)
    gated = erasure(pipe, layers, gate=PromptGate.of(as_backbone(pipe), ["cat"]))
    for made, why in ((behind, "a bottleneck is no change"), (gated, "depends on the prompt")):
        for format_ in ("lora", "diffusers", "kohya", "full", "merged", "components", "single"):
            with pytest.raises(ValueError, match=f"{why}.*apply it with expunge"):
                export(made, tmp_path, format_, pipe)  # type: ignore[arg-type]
        assert not any(tmp_path.glob("*"))
    behind.save(tmp_path / "run")
    assert not list((tmp_path / "run").glob("*.safetensors"))
    card = (tmp_path / "run" / "README.md").read_text()
    assert "There is no LoRA here" in card and "load_lora_weights" not in card


# --- whole differences of FLUX


def test_whole_differences_of_flux_lie_one_under_another(tmp_path: Path) -> None:
    """Its queries, keys and values are one layer elsewhere; what has no change there is zero."""
    pipe = TINY["flux_dev"]()
    layers = places(pipe, ("transformer",), ("blocks.0.attn.to_k", "context_embedder"))
    made = erasure(pipe, layers)
    tensors = load_file(export(made, tmp_path, "full"))
    deltas = made.delta()
    whole = tensors["lora_unet_single_blocks_0_linear1.diff"].double()
    wanted = deltas["transformer/single_transformer_blocks.0.attn.to_k"]
    width = wanted.shape[0]
    assert whole.shape == (7 * width, width)
    assert torch.allclose(whole[width : 2 * width], wanted, atol=1e-6)
    assert not whole[:width].any() and not whole[2 * width :].any()
    assert tensors["lora_unet_double_blocks_0_img_attn_qkv.diff"].shape == (3 * width, width)
    assert "lora_unet_txt_in.diff" in tensors
