"""Strengths that depend on the prompt: near the concept they act, far from it they rest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import SIDE, TINY

from expunge.adapter import Adapter, applied_to
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.change import LowRank
from expunge.concept import Concept
from expunge.eraser.spm import SPM
from expunge.erasure import Erasure, Part
from expunge.prompt_gate import PromptGate

CAT = Concept("cat", anchor="dog", templates=("a [photo|picture|drawing|view] of a {}",))


def _gated(backbone: Backbone, names: list[str]) -> Erasure:
    generator = torch.Generator().manual_seed(0)
    changes = {}
    for name, layer in backbone.select("cross").items():
        change = LowRank.fresh(layer, 1, generator)
        change.up.data.normal_(generator=generator)
        changes[f"{backbone.denoiser_name}/{name}"] = change
    return Erasure([Part(CAT, tuned=changes, gate=PromptGate.of(backbone, names))], {})


@pytest.mark.usefixtures("untouched")
def test_the_gate_opens_for_the_concept_and_half_closes_for_others(backbone: Backbone) -> None:
    erasure = _gated(backbone, ["cat", "kitten"])
    latents = torch.randn(3, *backbone.latent_shape(64, 64))
    prompts = ["a photo of a cat", "a photo of a kitten", "a red car at night"]
    backbone.encode_prompts(prompts)  # read before the gate could see it: it is read again
    with erasure.applied(backbone):
        [adapter] = applied_to(backbone.denoiser).values()
        [gate] = adapter.gates.values()
        backbone.predict(latents, 0.5, backbone.encode_prompts(prompts))
        rows = gate.rows(3)
    assert rows is not None
    assert rows[0] == rows[1] == 1
    assert rows[2] < 0.97


@pytest.mark.usefixtures("untouched")
def test_a_text_that_was_never_read_gets_all_of_it(backbone: Backbone) -> None:
    erasure = _gated(backbone, ["cat"])
    states = backbone.encode_prompts(["a red car"])
    with erasure.applied(backbone):
        [adapter] = applied_to(backbone.denoiser).values()
        [gate] = adapter.gates.values()
        backbone.predict(torch.randn(1, *backbone.latent_shape(64, 64)), 0.5, states)
        assert gate.rows(1) == torch.ones(1)
        assert gate.rows(2) is None


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux_dev"])
def test_a_plain_pipeline_is_gated_too(name: str, tmp_path: Path) -> None:
    pipe = TINY[name]()
    erasure = _gated(as_backbone(pipe), ["cat"])
    seen = []

    def drawn(prompt: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        size = {"height": SIDE, "width": SIDE, "num_inference_steps": 2}
        found = pipe(prompt, generator=generator, output_type="np", **size).images[0]
        for adapter in applied_to(as_backbone(pipe).denoiser).values():
            seen.append(next(gate._now for gate in adapter.gates.values()))  # type: ignore[attr-defined]
        return torch.as_tensor(found)

    before = drawn("a photo of a cat")
    again = Erasure.load(erasure.save(tmp_path / name))
    assert again.id == erasure.id
    with again.applied(pipe):
        assert not torch.equal(drawn("a photo of a cat"), before)
        drawn("zebras and xylophones")
    assert torch.equal(drawn("a photo of a cat"), before)
    assert seen[0].max() == 1
    assert seen[1].min() < 1


def test_its_record_makes_the_same_gate(backbone: Backbone) -> None:
    gate = PromptGate.of(backbone, ["cat", "kitten"])
    again = PromptGate.of_record(json.loads(json.dumps(gate.record())))
    assert again.record() == gate.record()
    tokens, summary = gate.names[1]
    assert float(again.strength(tokens, summary)) == 1


def test_a_pipeline_without_the_encoder_is_refused(pipe: Any, backbone: Backbone) -> None:
    gate = PromptGate("text_encoder_3", [])
    with pytest.raises(ValueError, match="text_encoder_3"):
        gate.watch(backbone.networks)


def test_while_it_is_trained_a_membrane_acts_whole(pipe: Any, cat: Concept) -> None:
    """The gate comes afterwards: no row of the training was scaled."""
    eraser = SPM(steps=2, batch_size=1, trajectories=2)
    erasure = eraser.erase(pipe, [cat])
    assert erasure.gated
    assert all(not adapter for adapter in [applied_to(pipe.unet)])
    assert not SPM(steps=2, trajectories=2, permeable=False).erase(pipe, [cat]).gated


def test_an_adapter_without_gates_knows_no_rows(backbone: Backbone) -> None:
    layer = next(iter(backbone.select("cross").items()))
    change = LowRank.fresh(layer[1], 1, torch.Generator())
    adapter = Adapter(backbone.networks, {"x": {f"unet/{layer[0]}": change}}, name="plain")
    assert adapter.gates == {}
    adapter.remove(backbone.networks)


def test_a_gate_that_cannot_be_watched_leaves_nothing_behind(backbone: Backbone) -> None:
    erasure = _gated(backbone, ["cat"])
    [part] = erasure.parts
    lost = Erasure([Part(CAT, tuned=part.tuned, gate=PromptGate("text_encoder_7", []))], {})
    with pytest.raises(ValueError, match="text_encoder_7"):
        lost.apply(backbone)
    assert not applied_to(backbone.denoiser)
    assert not any(module._forward_hooks for module in backbone.denoiser.modules())
