from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from expunge.exports import export
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from expunge import UCE
from expunge.adapter import LowRank, original
from expunge.backbone.base import Backbone
from expunge.closed_form import Moments, Targets, solve
from expunge.concept import Concept, slug
from expunge.erasure import Erasure
from expunge.formats import export
from expunge.verification import verify


def _predict(backbone: Backbone, prompt: str) -> torch.Tensor:
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), backbone.exact():
        return backbone.predict(latents, 0.5, backbone.encode_prompts([prompt]))


@pytest.mark.usefixtures("untouched")
def test_apply_then_remove_is_the_identity(backbone: Backbone, erasure: Erasure) -> None:
    before = _predict(backbone, "a photo of a cat")
    with erasure.applied(backbone):
        during = _predict(backbone, "a photo of a cat")
        with original():
            assert torch.equal(_predict(backbone, "a photo of a cat"), before)
    assert not torch.allclose(during, before, atol=1e-3)
    assert torch.equal(_predict(backbone, "a photo of a cat"), before)


@pytest.mark.usefixtures("untouched")
def test_strength_is_linear_in_the_changes(backbone: Backbone, erasure: Erasure) -> None:
    name = erasure.layers[0]
    layer = dict(backbone.denoiser.named_modules())[name]
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    plain = layer(x)
    with erasure.applied(backbone, 0.0):
        assert torch.equal(layer(x), plain)
        erasure.dial(backbone, 0.5)
        half = layer(x) - plain
        erasure.dial(backbone, {"cat": 2.0})
        assert torch.allclose(layer(x) - plain, 4 * half, atol=1e-4)
    assert half.abs().max() > 0


@pytest.mark.usefixtures("untouched")
def test_misuse_gets_one_sentence(backbone: Backbone, erasure: Erasure) -> None:
    with pytest.raises(ValueError, match="not applied here"):
        erasure.remove(backbone)
    with erasure.applied(backbone), pytest.raises(ValueError, match="already applied"):
        erasure.apply(backbone)
    with pytest.raises(ValueError, match="no concept"):
        erasure.apply(backbone, {"dog": 1.0})


def test_save_then_load_is_the_identity(erasure: Erasure, run: Path, backbone: Backbone) -> None:
    again = Erasure.load(run)
    assert again.record == json.loads(json.dumps(erasure.record))
    assert again.concepts == erasure.concepts
    for name, delta in again.delta().items():
        assert torch.allclose(delta, erasure.delta()[name], atol=1e-6)
    assert set(again.targets) == {"tokens"}
    with erasure.applied(backbone):
        first = _predict(backbone, "a cat")
    with again.applied(backbone):
        assert torch.equal(_predict(backbone, "a cat"), first)


def test_the_folder_is_what_other_tools_expect(run: Path) -> None:
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "erasure.json",
        "closed_form.safetensors",
        "pytorch_lora_weights.safetensors",
        f"adapters/{slug('cat')}.safetensors",
    }
    card = (run / "README.md").read_text()
    assert "| cat | object |" in card
    assert "base_model: miniature-sd" in card


def _fresh(pipe: Any) -> Any:
    parts = {name: getattr(pipe, name) for name in pipe.components}
    import copy

    parts["unet"] = copy.deepcopy(pipe.unet)
    return type(pipe)(**parts, requires_safety_checker=False)


def _pixels(pipe: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    pictures = pipe(
        ["a photo of a cat", "a red car"],
        num_inference_steps=6,
        generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)],
        output_type="np",
    ).images
    levels: np.ndarray = np.round(pictures * 255)
    return levels


@pytest.mark.usefixtures("untouched")
def test_plain_diffusers_draws_the_same_from_the_export(
    pipe: Any, erasure: Erasure, run: Path
) -> None:
    with erasure.applied(pipe):
        ours = _pixels(pipe)
    other = _fresh(pipe)
    other.load_lora_weights(run)
    assert np.abs(ours - _pixels(other)).max() <= 2
    assert np.abs(ours - _pixels(pipe)).max() > 20


def test_kohya_files_come_back_as_the_same_weights(pipe: Any, erasure: Erasure, run: Path) -> None:
    path = export(Erasure.load(run), run, "kohya")
    header = load_file(path)
    assert all(key.startswith("lora_unet_") for key in header)
    other = _fresh(pipe)
    other.load_lora_weights(run, weight_name=path.name)
    layers = dict(other.unet.named_modules())
    for name, delta in erasure.delta().items():
        (adapter,) = layers[name].active_adapters
        assert torch.allclose(layers[name].get_delta_weight(adapter).double(), delta, atol=1e-6)


@pytest.mark.parametrize("format_", ["diffusers", "kohya", "merged", "components", "single"])
def test_verify_agrees_with_every_export(
    format_: Any, pipe: Any, erasure: Erasure, tmp_path: Path
) -> None:
    path = export(erasure, tmp_path / format_, format_, pipe)
    assert verify(path, pipe)["agree"]


def test_verify_finds_an_export_that_was_tampered_with(
    pipe: Any, erasure: Erasure, tmp_path: Path
) -> None:
    from safetensors import safe_open

    path = export(erasure, tmp_path, "diffusers")
    with safe_open(path, "pt") as handle:
        header = handle.metadata()
    weaker = {key: value * 0.5 for key, value in load_file(path).items()}
    save_file(weaker, path, metadata=header)
    result = verify(path, pipe)
    assert not result["weights"]["agree"]
    assert not result["predictions"]["agree"]


@pytest.mark.usefixtures("untouched")
def test_the_users_own_lora_stays(pipe: Any, erasure: Erasure) -> None:
    other = _fresh(pipe)
    other.unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), "users"
    )
    before = {name: value.clone() for name, value in other.unet.state_dict().items()}
    with erasure.applied(other):
        changed = _pixels(other)
    after = other.unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert other.unet.active_adapters() == ["users"]
    assert np.abs(changed - _pixels(other)).max() > 2


def test_the_closed_form_is_exact(backbone: Backbone) -> None:
    """Factors against UCE's dense equation, fp64, to 1e-8 of its norm."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> torch.Tensor:
        return torch.randn(rows, 128, generator=generator, dtype=torch.float64)

    c, g, r, ridge = draw(9), draw(9), draw(300), 0.5
    targets = Targets({"cat": Moments.of(c, g)}, r.T @ r, ridge)
    layers = backbone.prompt_projections()
    for name, change in solve(layers, targets)["cat"].items():
        w = layers[name].weight.detach().double()
        system = ridge * torch.eye(128, dtype=torch.float64) + c.T @ c + r.T @ r
        dense = (ridge * w + w @ g.T @ c + w @ r.T @ r) @ torch.linalg.inv(system) - w
        assert change.rank <= 9
        assert (change.delta - dense).norm() <= 1e-8 * dense.norm()


def test_the_dual_basis_holds_with_any_subset_switched_off(backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    c1, c2, g1, g2 = (
        torch.randn(3, 128, generator=generator, dtype=torch.float64) for _ in range(4)
    )
    zero = torch.zeros(128, 128, dtype=torch.float64)
    targets = Targets({"one": Moments.of(c1, g1), "two": Moments.of(c2, g2)}, zero, 0.0)
    name, layer = next(iter(backbone.prompt_projections().items()))
    changes = solve({name: layer}, targets)
    w = layer.weight.detach().double()
    one = w + changes["one"][name].delta
    assert torch.allclose(c1 @ one.T, g1 @ w.T, atol=1e-8)
    assert torch.allclose(c2 @ one.T, c2 @ w.T, atol=1e-8)


def test_merging_solves_jointly(backbone: Backbone) -> None:
    names = ("cat", "dog")
    concepts = [backbone.profile.vocabulary.resolve(name) for name in names]
    bare = [
        dataclasses.replace(c, neighbours=(), preserve=("a tree [here|there]",)) for c in concepts
    ]
    eraser = UCE(prompts=4, preserved=4, to_anchor=True)
    alone = [eraser.erase(backbone, [concept]) for concept in bare]
    merged, joint = Erasure.merge(alone, backbone), eraser.erase(backbone, bare)
    assert [c.name for c in merged.concepts] == list(names)
    preserved = torch.stack([each.targets["tokens"].preserved for each in alone]).sum(0)
    system = dataclasses.replace(joint.targets["tokens"], preserved=preserved)
    wanted = solve(backbone.prompt_projections(), system)
    for part in merged.parts:
        for name, change in part.closed.items():
            assert torch.allclose(change.delta, wanted[part.concept.name][name].delta, atol=1e-8)
    with pytest.raises(ValueError, match="twice"):
        Erasure.merge([joint, joint], backbone)


def test_compression_keeps_the_change() -> None:
    generator = torch.Generator().manual_seed(0)
    thin = LowRank(
        torch.randn(3, 20, generator=generator, dtype=torch.float64),
        torch.randn(30, 3, generator=generator, dtype=torch.float64),
    )
    wide = LowRank.stack([thin, thin, thin])
    assert wide.compressed().rank == 3
    assert torch.allclose(wide.compressed().delta, 3 * thin.delta, atol=1e-12)
    assert torch.allclose(thin.padded(8).delta, thin.delta)
    nothing = LowRank(torch.zeros(2, 20), torch.zeros(30, 2)).compressed()
    assert nothing.rank == 1


def test_another_architecture_is_refused(erasure: Erasure, backbone: Backbone) -> None:
    from expunge.erasure import Part

    change = LowRank(torch.ones(1, 320), torch.ones(320, 1))
    layer = erasure.layers[0]
    wrong_shape = Erasure([Part(Concept("cat"), {layer: change})], {})
    wrong_name = Erasure([Part(Concept("cat"), {"mid.nowhere": change})], {})
    for wrong in (wrong_shape, wrong_name):
        with pytest.raises(ValueError, match="another architecture"):
            wrong.apply(backbone)
    record = {**erasure.record, "model_hash": "0" * 64}
    with pytest.raises(ValueError, match="other weights"):
        Erasure(erasure.parts, record).apply(backbone)


def _truncate(run: Path) -> Path:
    path = next((run / "adapters").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    return path


def test_damaged_and_foreign_folders_get_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no erasure in"):
        Erasure.load(tmp_path / "nothing")
    newer = shutil.copytree(run, tmp_path / "newer")
    record = json.loads((newer / "erasure.json").read_text()) | {"schema": "expunge.erasure/2"}
    (newer / "erasure.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="upgrade Expunge"):
        Erasure.load(newer)
    (newer / "erasure.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Erasure.load(newer)
    _truncate(run)
    with pytest.raises(ValueError, match="damaged or no safetensors"):
        Erasure.load(run)


def test_pickles_are_refused_by_name(tmp_path: Path, pipe: Any) -> None:
    import expunge

    with pytest.raises(ValueError, match="is a pickle"):
        expunge.load(tmp_path / "model.ckpt")
    with pytest.raises(ValueError, match="is a pickle"):
        verify(tmp_path / "lora.bin", pipe)
