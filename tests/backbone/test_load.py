from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import SIDE, TINY
from torch import Tensor, nn

import expunge
from expunge import ESD, UCE
from expunge.adapter import Adapter
from expunge.backbone.base import Backbone
from expunge.backbone.load import Offload, _offload, as_backbone
from expunge.change import LowRank
from expunge.concept import Concept
from expunge.erasure import Erasure
from expunge.formats import export

CAT = Concept("cat", anchor="dog", templates=("a [photo|picture|drawing|view] of a {}",))
CLOSED = UCE(prompts=4, preserved=6, ridge=0.1, tokens="suffix", to_anchor=True)
TUNED = ESD(
    steps=4,
    trajectories=2,
    rank=2,
    lr=1e-2,
    guidance_scale=1.0,
    attention="attention",
    resolution=SIDE,
)


def predict(backbone: Backbone) -> Tensor:
    noise = torch.randn(1, *backbone.latent_shape(SIDE, SIDE), generator=torch.manual_seed(0))
    with torch.no_grad(), backbone.exact():
        told = backbone.encode_prompts(["a photo of a cat"])
        return backbone.predict(noise.to(backbone.dtype), 0.5, told)


def assert_comes_off_again(erasure: Erasure, backbone: Backbone) -> None:
    before = predict(backbone)
    with erasure.applied(backbone):
        assert not torch.equal(predict(backbone), before)
    assert torch.equal(predict(backbone), before)


# --- offloading: on a CPU weights move nowhere, but the same hooks run in the same order


@pytest.mark.parametrize("name", ["sd", "flux_dev"])
@pytest.mark.parametrize("kind", ["model", "layers"])
def test_offloaded_models_are_erased_as_others(name: str, kind: Offload) -> None:
    plain, pipe = as_backbone(TINY[name]()), TINY[name]()
    _offload(pipe, kind, torch.device("cpu"))
    backbone = as_backbone(pipe)
    assert backbone.device.type == "cpu"
    assert backbone.content_hash() == plain.content_hash()
    erasure = CLOSED.erase(backbone, [CAT])
    for layer, delta in CLOSED.erase(plain, [CAT]).delta().items():
        assert torch.allclose(erasure.delta()[layer], delta)
    assert_comes_off_again(erasure, backbone)
    assert len(backbone.draw(["a cat"], [0])) == 1


def test_a_model_offloaded_as_a_whole_is_fine_tuned_as_others() -> None:
    plain, pipe = as_backbone(TINY["sd"]()), TINY["sd"]()
    _offload(pipe, "model", torch.device("cpu"))
    erasure = TUNED.erase(pipe, [CAT])
    assert erasure.record["losses"] == TUNED.erase(plain, [CAT]).record["losses"]


def test_there_must_be_somewhere_to_offload_from_main_memory_to() -> None:
    with pytest.raises(ValueError, match="the device is the CPU: leave offload out"):
        expunge.load("miniature-sd", device="cpu", offload="model")


def test_gradient_checkpointing_changes_no_loss() -> None:
    plain, pipe = as_backbone(TINY["sd"]()), TINY["sd"]()
    pipe.unet.enable_gradient_checkpointing()
    losses = TUNED.erase(plain, [CAT]).record["losses"]["cat"]
    assert TUNED.erase(pipe, [CAT]).record["losses"]["cat"] == pytest.approx(losses, abs=2e-6)


# --- quantisation


@pytest.fixture(scope="module", params=["sd", "flux_dev"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp(request.param)
    TINY[request.param]().save_pretrained(found)
    return found


@pytest.fixture(scope="module")
def quantised(folder: Path) -> Backbone:
    pytest.importorskip("optimum.quanto")
    pipe = expunge.load(folder, device="cpu", dtype=torch.bfloat16, quantize="int8")
    return as_backbone(pipe)


@pytest.fixture(scope="module")
def rounded(folder: Path, quantised: Backbone) -> Backbone:
    """An ordinary model of the weights that the 8 bits stand for."""
    pipe = expunge.load(folder, device="cpu", dtype=torch.bfloat16)
    layers = dict(as_backbone(pipe).denoiser.named_modules())
    for name, layer in in_8_bits(quantised).items():
        layers[name].weight.data = layer.weight.dequantize()
    return as_backbone(pipe)


def linear(backbone: Backbone) -> dict[str, Any]:
    found = backbone.denoiser.named_modules()
    return {name: layer for name, layer in found if isinstance(layer, nn.Linear)}


def same(first: Tensor, second: Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def in_8_bits(backbone: Backbone) -> dict[str, Any]:
    return {n: layer for n, layer in linear(backbone).items() if hasattr(layer.weight, "_data")}


def test_quantised_layers_hold_8_bits_and_stay_near(folder: Path, quantised: Backbone) -> None:
    exact = linear(as_backbone(expunge.load(folder, device="cpu", dtype=torch.bfloat16)))
    chosen = in_8_bits(quantised)
    assert set(chosen) == {n for n, layer in exact.items() if layer.in_features % 16 == 0}
    for name, layer in chosen.items():
        assert layer.weight._data.dtype == torch.int8
        weight = exact[name].weight
        error = (layer.weight.dequantize() - weight).abs().amax(1)
        assert (error <= weight.abs().amax(1) / 64).all()  # a step, rounded to bfloat16


def test_a_quantised_model_is_known_as_about_the_same(
    folder: Path, quantised: Backbone, rounded: Backbone
) -> None:
    exact = as_backbone(expunge.load(folder, device="cpu"))
    places = [f"{exact.denoiser_name}/{name}" for name in exact.select("attention")]
    quantised.check_sketch(rounded.sketch(places), "what it stands for")
    with pytest.warns(UserWarning, match="is quantised: its weights differ from those of mine"):
        quantised.check_sketch(exact.sketch(places), "mine")
    assert quantised.content_hash() != rounded.content_hash()


def test_a_quantised_model_is_solved_as_what_it_stands_for(
    quantised: Backbone, rounded: Backbone
) -> None:
    erasure = CLOSED.erase(quantised, [CAT])
    for name, delta in CLOSED.erase(rounded, [CAT]).delta().items():
        assert torch.allclose(erasure.delta()[name], delta)
    assert_comes_off_again(erasure, quantised)


def test_a_quantised_model_is_fine_tuned(quantised: Backbone) -> None:
    before = quantised.content_hash()
    erasure = TUNED.erase(quantised, [CAT])
    losses = erasure.record["losses"]["cat"]
    assert losses[-1] < losses[0]
    assert_comes_off_again(erasure, quantised)
    assert quantised.content_hash() == before


def test_training_keeps_no_weight_in_more_than_8_bits(quantised: Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    own = quantised.select("attention").items()
    change = {
        f"{quantised.denoiser_name}/{name}": LowRank.fresh(layer, 1, generator).requires_grad_()
        for name, layer in own
    }
    weights = [layer.weight for layer in in_8_bits(quantised).values()]
    unpacked = [form.detach().float() for w in weights for form in (w.dequantize(), w._data)]
    assert unpacked
    kept: list[Tensor] = []
    quantised.denoiser.requires_grad_(False)
    adapter = Adapter(quantised.networks, {"cat": change})
    noise = torch.randn(1, *quantised.latent_shape(SIDE, SIDE)).to(quantised.dtype)
    told = quantised.encode_prompts(["a photo of a cat"])
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        loss = quantised.predict(noise, 0.5, told).square().sum()
    torch.autograd.backward(loss)
    adapter.remove(quantised.networks)
    trained = [parameter for each in change.values() for parameter in each.parameters()]
    assert trained
    assert all(parameter.grad is not None for parameter in trained)
    plain = [t.float() for t in kept if type(t) is Tensor and t.ndim == 2]
    assert not [t for t in (*plain, *(t.T for t in plain)) if any(same(t, w) for w in unpacked)]


def test_quantisation_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"say dtype=torch\.bfloat16"):
        expunge.load("miniature-sd", device="cpu", quantize="int8")
    monkeypatch.setitem(sys.modules, "optimum.quanto", None)
    with pytest.raises(ValueError, match=r"pip install 'expunge\[quantize\]'"):
        expunge.load("miniature-sd", device="cpu", dtype=torch.bfloat16, quantize="int8")


@pytest.mark.parametrize(("name", "value"), [("offload", "disk"), ("quantize", "nf4")])
def test_unknown_ways_to_save_memory_are_refused(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be one of .*, got {value!r}"):
        expunge.load("miniature-sd", device="cpu", **{name: value})  # type: ignore[arg-type]


def test_a_quantised_model_is_not_merged(quantised: Backbone, tmp_path: Path) -> None:
    erasure = CLOSED.erase(quantised, [CAT])
    with pytest.raises(ValueError, match="cannot be built into a quantised model"):
        export(erasure, tmp_path, "components", quantised)
