"""Our names held against the rules of every reader, for all layers of real models."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from backbone.architectures import flux_transformer, sd3_transformer, sd15_unet, sdxl_unet
from diffusers import FluxPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils import convert_unet_state_dict_to_peft
from formats.readers import READERS, Model, flux, invokeai, unet
from torch import Tensor, nn

from expunge.change import LowRank
from expunge.layouts import kohya, kohya_deltas

CLIP = (768, 12)
"""Width and layers of the text encoder of SD 1.x, SDXL and FLUX."""
OPEN_CLIP = (1280, 32)

MODELS: dict[str, tuple[Callable[[], nn.Module], Model, dict[str, tuple[int, int]]]] = {
    "sd": (sd15_unet, Model("sd", unet((1, 1, 1, 0), 1), {"text_encoder": 12}),
           {"text_encoder": CLIP}),
    "sdxl": (sdxl_unet, Model("sdxl", unet((0, 2, 10), 10),
                              {"text_encoder": 12, "text_encoder_2": 32}, ("text_encoder_2",)),
             {"text_encoder": CLIP, "text_encoder_2": OPEN_CLIP}),
    "flux": (flux_transformer, Model("flux", flux(), {"text_encoder": 12}, (), "transformer"),
             {"text_encoder": CLIP}),
}  # fmt: skip

LEFT_OUT = {
    ("sd-scripts", "sd"): r"unet/(time_embedding|conv_in|conv_out)",
    ("sd-scripts", "sdxl"): r"unet/(time_embedding|add_embedding|conv_in|conv_out)",
    ("sd-scripts", "flux"): r"transformer/(proj_out|norm_out)",
    ("stable-diffusion.cpp", "sd"): r"unet/time_embedding",
    ("stable-diffusion.cpp", "sdxl"): r"unet/(time_embedding|add_embedding)",
    ("stable-diffusion.cpp", "flux"): r"transformer/(\w+_embed|proj_out|\w*_?embedder)",
    ("InvokeAI", "flux"): r"transformer/(\w+_embed|proj_out|\w*_?embedder)",
}
"""What a reader leaves out of a file with kohya's names, as the documentation says too."""


@cache
def _shapes(name: str) -> dict[str, torch.Size]:
    """Weights of every linear layer and convolution that a LoRA may change, by place."""
    build, model, texts = MODELS[name]
    with torch.device("meta"):
        network = build()
    found = {
        f"{model.component}/{layer}": module.weight.shape
        for layer, module in network.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and layer != "norm_out.linear"
    }
    for encoder, (width, layers) in texts.items():
        for layer in range(layers):
            stem = f"{encoder}/text_model.encoder.layers.{layer}"
            for part in "qkv":
                found[f"{stem}.self_attn.{part}_proj"] = torch.Size((width, width))
            found[f"{stem}.self_attn.out_proj"] = torch.Size((width, width))
            found[f"{stem}.mlp.fc1"] = torch.Size((4 * width, width))
            found[f"{stem}.mlp.fc2"] = torch.Size((width, 4 * width))
    return found


def _changes(name: str) -> dict[str, LowRank]:
    zero = torch.zeros(1)
    return {
        place: LowRank(zero.expand(1, *shape[1:]), zero.expand(shape[0], 1))
        for place, shape in _shapes(name).items()
    }


@cache
def _components(name: str) -> dict[str, Any]:
    with torch.device("meta"):
        network: Any = MODELS[name][0]()
    return {MODELS[name][1].component: dict(network.config)}


@cache
def _keys(name: str) -> dict[str, LowRank]:
    return kohya(_changes(name), name, _components(name))


def _same(model: Model, place: str) -> str:
    """Of layers that are one in the original code, one name."""
    component, _, layer = place.partition("/")
    return f"{component}/{model.denoiser.get(layer, layer)}"


@pytest.mark.parametrize("name", MODELS)
def test_the_readers_tables_hold_every_layer(name: str) -> None:
    model = MODELS[name][1]
    here = {p.partition("/")[2] for p in _shapes(name) if p.startswith(model.component)}
    assert here <= set(model.denoiser)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_finds_every_layer(reader: str, name: str) -> None:
    """But for those that the documentation says it leaves out, and each the one that is meant."""
    if (reader, name) == ("A1111", "flux"):
        pytest.skip("A1111 draws no FLUX")
    model = MODELS[name][1]
    read = {stem: READERS[reader](stem, model) for stem in _keys(name)}
    found = {_same(model, place) for place in read.values() if place}
    wanted = {_same(model, place) for place in _shapes(name)}
    pattern = LEFT_OUT.get((reader, name))
    expected = {_same(model, place) for place in _shapes(name)
                if pattern and re.match(pattern, place)}  # fmt: skip
    assert wanted - found == expected
    assert len(found) == sum(place is not None for place in read.values()), "none is found twice"


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_each_key_means_the_layer_it_was_written_for(name: str) -> None:
    model = MODELS[name][1]
    for place, change in _changes(name).items():
        if not place.startswith("unet/"):
            continue
        [stem] = kohya({place: change}, name, _components(name))
        for reader in ("ComfyUI", "A1111", "InvokeAI"):
            assert READERS[reader](stem, model) == place, reader


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_diffusers_own_loader_finds_every_layer(name: str) -> None:
    """Its real code, on the names of real models."""
    kinds = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
    state: dict[str, Tensor] = {}
    for stem in _keys(name):
        if stem.startswith("lora_unet_"):
            state |= {f"{stem}.lora_{side}.weight": torch.zeros(1, 1) for side in ("down", "up")}
            state[f"{stem}.alpha"] = torch.tensor(1.0)
    with torch.device("meta"):
        config: Any = MODELS[name][0]().config  # type: ignore[union-attr]
    options = {"unet_config": config} if name == "sdxl" else {}
    found, _ = kinds[name].lora_state_dict(state, **options)
    bare = convert_unet_state_dict_to_peft({k.removeprefix("unet."): v for k, v in found.items()})
    names = {key.split(".lora_")[0].replace(".processor", "") for key in bare}
    assert {f"unet/{each}" for each in names} == {
        place for place in _shapes(name) if place.startswith("unet/")
    }


def test_whole_differences_have_the_shapes_of_the_original_layers() -> None:
    """ComfyUI and A1111 add them as they are."""
    shapes = {p: s for p, s in _shapes("flux").items() if ".0." in p or "embedder" in p}
    deltas = {place: torch.zeros(1).expand(shape) for place, shape in shapes.items()}
    named = kohya_deltas(deltas, "flux", _components("flux"))
    model = MODELS["flux"][1]
    assert all(READERS["ComfyUI"](stem, model) for stem in named)
    rows: dict[str, int] = {}
    for place, shape in shapes.items():
        key = _same(model, place)
        rows[key] = rows.get(key, 0) + shape[0]
    assert {_same(model, READERS["ComfyUI"](stem, model) or ""): len(delta)
            for stem, delta in named.items()} == rows  # fmt: skip


def test_flux_layers_under_diffusers_names_are_known_by_those_who_read_them() -> None:
    model = MODELS["flux"][1]
    for place in _shapes("flux"):
        if place.startswith("transformer/"):
            stem = place.replace("/", ".", 1)
            assert READERS["ComfyUI"](stem, model) == place
            assert READERS["stable-diffusion.cpp"](stem, model) == place
            assert invokeai(stem, model) is None


_SD3 = (
    r"transformer/(context_embedder|proj_out|norm_out\.linear|pos_embed\.proj"
    r"|time_text_embed\.(timestep|text)_embedder\.linear_[12]"
    r"|transformer_blocks\.\d+\.(norm1|norm1_context)\.linear"
    r"|transformer_blocks\.\d+\.(attn|attn2)\.(to_[qkv]|to_out\.0)"
    r"|transformer_blocks\.\d+\.attn\.(add_[qkv]_proj|to_add_out)"
    r"|transformer_blocks\.\d+\.(ff|ff_context)\.net\.(0\.proj|2))"
)
"""Layers of Stable Diffusion 3 that ComfyUI knows by diffusers' names, queries and all."""


def test_layers_of_stable_diffusion_3_are_known_under_diffusers_names() -> None:
    with torch.device("meta"):
        network = sd3_transformer()
    linear = [n for n, m in network.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert len(linear) > 300
    assert all(re.fullmatch(_SD3, f"transformer/{name}") for name in linear)


def test_diffusers_reads_no_text_layer_of_flux_under_kohyas_names() -> None:
    """Why the default file of FLUX has diffusers' names: four keys lose their prefix."""
    places = ("transformer/context_embedder",
              "transformer/time_text_embed.text_embedder.linear_1")  # fmt: skip
    more = "transformer/transformer_blocks.0.attn.to_out.0"
    changes = {place: _changes("flux")[place] for place in (*places, more)}
    state: dict[str, Tensor] = {}
    for stem, change in kohya(changes, "flux", _components("flux")).items():
        state[f"{stem}.lora_down.weight"] = change.down.detach()
        state[f"{stem}.lora_up.weight"] = change.up.detach()
    found = FluxPipeline.lora_state_dict(state)
    assert sum(key.startswith("transformer.") for key in found) == 2
    assert sum(not key.startswith("transformer.") for key in found) == 4
