"""An erasure that is applied acts, or it is an error: on whatever a pipeline has been through."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import SIDE, TINY
from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline
from peft import LoraConfig

import expunge
from expunge import UCE, hooks
from expunge.adapter import Adapter, applied_to
from expunge.backbone.load import as_backbone
from expunge.change import Bottleneck, Dense, LowRank
from expunge.concept import Concept
from expunge.erasure import Erasure
from expunge.hooks import NotFeltError

CAT = Concept("cat", anchor="dog", templates=("a [photo|picture|drawing|view] of a {}",))
ERASER = UCE(prompts=3, tokens="suffix", to_anchor=True, ridge=0.1)
NAMES = ["sd", "sdxl", "flux_dev", "sd3"]


def _drawn(pipe: Any, prompt: str = "a photo of a cat", **options: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    size = {"height": SIDE, "width": SIDE, "num_inference_steps": 2, **options}
    found = pipe(prompt, generator=generator, output_type="np", **size).images[0]
    return torch.as_tensor(found)


def _shift(pipe: Any, erasure: Erasure) -> float:
    before = _drawn(pipe)
    with erasure.applied(pipe):
        return float((_drawn(pipe) - before).abs().max())


@pytest.fixture(params=NAMES)
def tiny(request: pytest.FixtureRequest) -> Any:
    return TINY[request.param]()


@pytest.fixture
def sd() -> Any:
    return TINY["sd"]()


def test_fused_projections_are_refused_with_what_to_do(tiny: Any) -> None:
    erasure = ERASER.erase(tiny, [CAT])
    if not hasattr(tiny, "fuse_qkv_projections"):
        return
    tiny.fuse_qkv_projections()
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        erasure.apply(tiny)
    with pytest.raises(ValueError, match="unfuse_qkv_projections"):
        ERASER.erase(tiny, [CAT])
    tiny.unfuse_qkv_projections()
    assert _shift(tiny, erasure) > 0


def test_fusing_after_applying_is_noticed_at_the_next_picture(sd: Any) -> None:
    erasure = ERASER.erase(sd, [CAT])
    erasure.apply(sd)
    _drawn(sd)
    sd.fuse_qkv_projections()
    with pytest.raises(NotFeltError, match="did not run"):
        _drawn(sd)


@pytest.mark.parametrize("how", ["unet.compile", "torch.compile", "compile_repeated_blocks"])
def test_a_model_compiled_before_is_compiled_again_with_the_erasure(sd: Any, how: str) -> None:
    erasure = ERASER.erase(sd, [CAT])
    plain, wanted = _drawn(sd), None
    with erasure.applied(sd):
        wanted = _drawn(sd)
    if how == "unet.compile":
        sd.unet.compile(backend="eager")
    elif how == "torch.compile":
        sd.unet = torch.compile(sd.unet, backend="eager")
    else:
        sd.unet.compile_repeated_blocks(backend="eager")
    assert torch.allclose(_drawn(sd), plain, atol=1e-5)
    erasure.apply(sd)
    assert torch.allclose(_drawn(sd), wanted, atol=1e-5)
    erasure.set_strength(sd, 0.0)
    assert torch.allclose(_drawn(sd), plain, atol=1e-5)
    erasure.set_strength(sd, 1.0)
    with hooks.original():
        assert torch.allclose(_drawn(sd), plain, atol=1e-5)
    erasure.remove(sd)
    assert torch.allclose(_drawn(sd), plain, atol=1e-5)


def test_compiling_after_applying_keeps_the_erasure_and_removing_ends_it(sd: Any) -> None:
    erasure = ERASER.erase(sd, [CAT])
    plain = _drawn(sd)
    erasure.apply(sd)
    wanted = _drawn(sd)
    sd.unet.compile(backend="eager")
    assert torch.allclose(_drawn(sd), wanted, atol=1e-5)
    erasure.remove(sd)
    assert torch.allclose(_drawn(sd), plain, atol=1e-5)


def test_an_erasure_made_on_a_compiled_model_has_clean_names(sd: Any, tmp_path: Path) -> None:
    sd.unet = torch.compile(sd.unet, backend="eager")
    erasure = ERASER.erase(sd, [CAT])
    assert not any("_orig_mod" in place for place in erasure.layers)
    sd.unet = sd.unet._orig_mod
    assert _shift(sd, Erasure.load(erasure.save(tmp_path))) > 0


def test_a_loaded_lora_stays_and_its_base_layers_are_edited(sd: Any) -> None:
    bare = ERASER.erase(sd, [CAT])
    config = LoraConfig(
        r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False
    )
    sd.unet.add_adapter(config, "own")
    with_lora = _drawn(sd)
    erasure = ERASER.erase(sd, [CAT])
    assert erasure.layers == bare.layers
    assert erasure.record["loras"]
    assert _shift(sd, erasure) > 0
    assert torch.equal(_drawn(sd), with_lora)
    with pytest.raises(ValueError, match="LoRA"):
        bare.apply(sd)
    sd.unet.disable_adapters()
    with pytest.raises(ValueError, match="LoRA"):
        erasure.apply(sd)
    assert _shift(sd, bare) > 0


def test_the_same_erasure_is_never_applied_twice(sd: Any, tmp_path: Path) -> None:
    erasure = ERASER.erase(sd, [CAT])
    folder = erasure.save(tmp_path)
    erasure.apply(sd)
    again = Erasure.load(folder)
    with pytest.raises(ValueError, match="already applied"):
        again.apply(sd)
    copied = copy.deepcopy(sd)
    with pytest.raises(ValueError, match="already applied"):
        again.apply(copied)
    erased = _drawn(sd)
    assert torch.equal(_drawn(copied), erased)
    again.remove(copied)  # of the copy alone
    assert not torch.equal(_drawn(copied), erased)
    assert torch.equal(_drawn(sd), erased)
    again.set_strength(sd, 0.0)
    assert torch.equal(_drawn(sd), _drawn(copied))
    again.remove(sd)
    assert not any(module._forward_hooks for module in sd.unet.modules())
    assert "step" not in sd.scheduler.__dict__


def test_erasing_from_an_erased_model_is_refused(sd: Any) -> None:
    erasure = ERASER.erase(sd, [CAT])
    erasure.apply(sd)
    with pytest.raises(ValueError, match="remove it before"):
        ERASER.erase(sd, [Concept("dog", anchor="cat")])


def test_a_pipeline_that_shares_the_network_is_erased_too(sd: Any) -> None:
    erasure = ERASER.erase(sd, [CAT])
    other = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    picture = torch.zeros(1, 3, SIDE, SIDE)

    def redraw() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        found = other(
            "a photo of a cat", image=picture, generator=generator, output_type="np",
            num_inference_steps=4, strength=0.8,
        )  # fmt: skip
        return torch.as_tensor(found.images[0])

    before = redraw()
    with erasure.applied(sd):
        assert not torch.equal(redraw(), before)
    assert torch.equal(redraw(), before)


def test_a_scheduler_that_was_swapped_meanwhile_is_left_as_it_was(sd: Any) -> None:
    erasure, before = ERASER.erase(sd, [CAT]), sd.scheduler
    erasure.apply(sd)
    sd.scheduler = DDIMScheduler.from_config(sd.scheduler.config)
    erasure.remove(sd)
    assert "step" not in before.__dict__
    assert "step" not in sd.scheduler.__dict__


def test_another_scheduler_changes_nothing_of_it(sd: Any) -> None:
    erasure = ERASER.erase(sd, [CAT])
    sd.scheduler = DDIMScheduler.from_config(sd.scheduler.config)
    assert _shift(sd, erasure) > 0


def test_the_check_follows_to_another_scheduler(sd: Any) -> None:
    """Swapping the scheduler is the most usual thing to do to a pipeline."""
    erasure, first = ERASER.erase(sd, [CAT]), sd.scheduler
    with erasure.applied(sd):
        sd.scheduler = second = DDIMScheduler.from_config(sd.scheduler.config)
        _drawn(sd)
        assert "step" not in first.__dict__
        sd.fuse_qkv_projections()
        with pytest.raises(NotFeltError, match="did not run"):
            _drawn(sd)
    assert "step" not in second.__dict__


def test_gradient_checkpointing_and_offloading_keep_it(sd: Any) -> None:
    erasure = ERASER.erase(sd, [CAT])
    wanted = _shift(sd, erasure)
    sd.unet.enable_gradient_checkpointing()
    assert _shift(sd, erasure) == pytest.approx(wanted)
    cpu = torch.device("cpu")
    sd.unet.enable_group_offload(cpu, cpu, offload_type="leaf_level")
    assert _shift(sd, erasure) == pytest.approx(wanted)


def test_layerwise_casting_keeps_changes_in_the_computing_type(sd: Any) -> None:
    erasure = ERASER.erase(sd, [CAT])
    wanted = _shift(sd, erasure)
    sd.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    erasure.record.pop("sketch")  # the weights are other ones now
    assert _shift(sd, erasure) > wanted / 4
    with erasure.applied(sd):
        [adapter] = applied_to(sd.unet).values()
        kept = {p.dtype for hook in adapter._hooks.values() for p in hook.parameters()}
    assert kept == {torch.float32}


def test_weights_without_values_are_refused(sd: Any) -> None:
    with torch.device("meta"):
        empty = type(sd.unet).from_config(sd.unet.config)
    sd.unet = empty
    with pytest.raises((ValueError, NotImplementedError), match="meta"):
        ERASER.erase(sd, [CAT])


@pytest.mark.parametrize("kind", ["convolution", "bottleneck", "text encoder"])
def test_changes_of_every_kind_act_and_come_off(sd: Any, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    networks = as_backbone(sd).networks
    if kind == "convolution":
        place, layer = "unet/conv_in", sd.unet.conv_in
        change: Any = LowRank.fresh(layer, 2, generator)
        change.up.data.normal_(generator=generator)
    elif kind == "bottleneck":
        names = [n for n, _ in sd.unet.named_modules() if n.endswith("attn2")]
        place = f"unet/{names[0]}"
        width = dict(sd.unet.named_modules())[names[0]].to_out[0].out_features
        change = Bottleneck.fresh(width, 4, generator)
        change.up.data.normal_(generator=generator)
    else:
        layers = hooks.layers(sd.text_encoder)
        name = next(n for n in layers if n.endswith("q_proj"))
        place = f"text_encoder/{name}"
        change = Dense(torch.randn(layers[name].weight.shape, generator=generator))
    before = _drawn(sd)
    adapter = Adapter(networks, {"cat": {place: change}}, name="test")
    changed = _drawn(sd)
    assert not torch.equal(changed, before)
    adapter.set_strength({"cat": 0.0})
    assert torch.equal(_drawn(sd), before)
    adapter.remove(networks)
    assert torch.equal(_drawn(sd), before)


def test_ready_made_embeddings_go_around_a_changed_text_encoder(sd: Any) -> None:
    layers = hooks.layers(sd.text_encoder)
    name = next(n for n in layers if n.endswith("q_proj"))
    change = Dense(torch.randn(layers[name].weight.shape))
    from expunge.erasure import Part

    erasure = Erasure([Part(CAT, tuned={f"text_encoder/{name}": change})], {})
    states, negative = sd.encode_prompt("a photo of a cat", torch.device("cpu"), 1, True)
    erasure.apply(sd)
    _drawn(sd)
    with pytest.raises(NotFeltError, match="text_encoder"):
        _drawn(sd, None, prompt_embeds=states, negative_prompt_embeds=negative)  # type: ignore[arg-type]


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 1e308, "1"])
def test_a_strength_that_is_no_number_is_refused(sd: Any, strength: Any) -> None:
    erasure = ERASER.erase(sd, [CAT])
    with pytest.raises(ValueError, match="strength must be a number"):
        erasure.apply(sd, strength)
    assert not any(module._forward_hooks for module in sd.unet.modules())


def test_a_change_with_nan_is_no_erasure() -> None:
    from expunge.erasure import Part

    bad = LowRank(torch.full((1, 4), float("nan")), torch.ones(4, 1))
    with pytest.raises(ValueError, match="NaN"):
        Erasure([Part(CAT, closed={"unet/x": bad})], {})


def test_an_erasure_of_a_component_the_pipeline_lacks_is_refused(sd: Any) -> None:
    from expunge.erasure import Part

    erasure = Erasure([Part(CAT, tuned={"text_encoder_7/x": Dense(torch.ones(2, 2))})], {})
    with pytest.raises(ValueError, match="text_encoder_7"):
        erasure.apply(sd)


def test_the_default_of_expunge_is_public() -> None:
    assert expunge.UCE() == UCE()
