"""One model has one hash; its casts share a sketch, and nothing else does."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from diffusers import EulerDiscreteScheduler

import expunge
from expunge import hooks
from expunge.backbone import identity
from expunge.backbone.identity import SAME_WEIGHTS, sketch_distance
from expunge.backbone.load import as_backbone

CASTS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
FINE_TUNED = 1e-3
"""Relative change of the weights."""


def model(dtype: torch.dtype = torch.float32) -> Any:
    """Full float32 weights, unlike the bundled models', which were rounded to float16."""
    pipe = TINY["sd"]()
    pipe.unet.to(dtype)
    return pipe


def tuned(pipe: Any, size: float) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in pipe.unet.parameters():
            noise = torch.randn(weight.shape, generator=generator)
            change = noise * size * weight.float().norm() / max(float(noise.norm()), 1e-9)
            weight.copy_(weight.float() + change)
    return pipe


@pytest.mark.parametrize("first", CASTS)
@pytest.mark.parametrize("second", CASTS)
def test_casts_of_one_model_share_a_sketch_and_a_fine_tune_does_not(
    first: str, second: str
) -> None:
    here, there = as_backbone(model(CASTS[first])), as_backbone(model(CASTS[second]))
    made = json.loads(json.dumps(here.sketch()))
    same = sketch_distance(made, there.sketch())
    pipe = tuned(model(), FINE_TUNED)
    pipe.unet.to(CASTS[second])
    other = as_backbone(pipe)
    assert same < SAME_WEIGHTS < sketch_distance(made, other.sketch())
    there.check_sketch(made, "the first")
    with pytest.raises(ValueError, match="of the first and of StableDiffusionPipeline differ"):
        other.check_sketch(made, "the first")


def test_sketches_of_some_layers_are_those_layers() -> None:
    backbone = as_backbone(model())
    layers = hooks.layers(backbone.pipe.text_encoder)
    query = next(name for name in layers if name.endswith("q_proj"))
    places = [*(f"unet/{name}" for name in backbone.select("cross")), f"text_encoder/{query}"]
    found = backbone.sketch(places)
    assert all(list(part) == sorted(places) for part in found.values())
    assert all(len(values) == 32 for values in found["float32"].values())
    whole = backbone.sketch()["float32"]
    assert all(found["float32"][place] == whole[place] for place in places[:-1])
    modules = [f"unet/{name}" for name in backbone.attention_modules("cross")]
    assert backbone.sketch(modules)["float32"].keys() == set(places[:-1])
    with pytest.raises(ValueError, match="no layer 'unet/nowhere'"):
        backbone.sketch(["unet/nowhere"])


def test_a_sketch_is_of_the_weights_under_a_lora() -> None:
    peft = pytest.importorskip("peft")
    backbone = as_backbone(model())
    places = [f"unet/{name}" for name in backbone.select("cross")]
    before, before_hash = backbone.sketch(places), backbone.content_hash()
    config = peft.LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False)
    peft.inject_adapter_in_model(config, backbone.pipe.unet, "users")
    assert set(backbone.select("cross")) == {place.removeprefix("unet/") for place in places}
    assert backbone.sketch(places) == before
    assert backbone.content_hash() != before_hash


@pytest.mark.parametrize("part", ["unet", "text_encoder", "vae"])
def test_every_network_is_in_the_hash(part: str) -> None:
    backbone, again = as_backbone(model()), as_backbone(model())
    assert backbone.content_hash() == again.content_hash()
    weight = next(getattr(backbone.pipe, part).parameters())
    with torch.no_grad():
        weight.view(-1)[0].add_(1e-3)
    assert backbone.content_hash() != again.content_hash()


def test_the_hash_is_computed_once_for_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, counted = as_backbone(model()), []
    compute = identity._bytes
    monkeypatch.setattr(identity, "_bytes", lambda v: (counted.append(1), compute(v))[1])
    first = backbone.content_hash()
    done = len(counted)
    assert backbone.content_hash() == first and len(counted) == done > 0
    backbone.pipe.unet.half()
    assert backbone.content_hash() != first and len(counted) == 2 * done


def test_the_identity_names_what_determines_a_picture() -> None:
    backbone = as_backbone(model())
    before = json.dumps(backbone.identity())
    assert json.dumps(as_backbone(model()).identity()) == before
    config = backbone.pipe.scheduler.config
    backbone.pipe.scheduler = EulerDiscreteScheduler.from_config(config, beta_end=0.02)
    assert json.dumps(backbone.identity()) != before
    assert backbone.identity()["scheduler"] == "EulerDiscreteScheduler"


def test_a_pipeline_in_memory_is_named_by_its_class() -> None:
    assert as_backbone(model()).name == "StableDiffusionPipeline"
    assert as_backbone(expunge.load("miniature-sd", device="cpu")).name == "miniature-sd"


def test_the_device_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = model()
    backbone, asked = as_backbone(pipe), []
    where = type(pipe)._execution_device.fget
    monkeypatch.setattr(
        type(pipe), "_execution_device", property(lambda p: (asked.append(1), where(p))[1])
    )
    for _ in range(3):
        assert backbone.device.type == "cpu"
    assert not asked
    pipe.unet.to("meta")
    assert backbone.device is not None and asked, "moved since"
