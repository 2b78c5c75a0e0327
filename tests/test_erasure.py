from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from expunge import SPEED, TRACE, UCE
from expunge.backbone.base import Backbone
from expunge.change import LowRank
from expunge.closed_form import Kept, Ridge, Rows, gram, on_layers
from expunge.concept import Concept, slug
from expunge.erasure import Erasure
from expunge.formats import export
from expunge.hooks import original
from expunge.text_rows import concept_rows
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
    layer = dict(backbone.denoiser.named_modules())[name.partition("/")[2]]
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(1))
    plain = layer(x)
    with erasure.applied(backbone, 0.0):
        assert torch.equal(layer(x), plain)
        erasure.set_strength(backbone, 0.5)
        half = layer(x) - plain
        erasure.set_strength(backbone, {"cat": 2.0})
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
    assert again.id == erasure.id
    assert again.concepts == erasure.concepts
    for name, delta in again.delta().items():
        assert torch.allclose(delta, erasure.delta()[name], atol=1e-6)
    assert again.requests == erasure.requests
    with erasure.applied(backbone):
        first = _predict(backbone, "a cat")
    with again.applied(backbone):
        assert torch.equal(_predict(backbone, "a cat"), first)


def test_the_folder_is_what_other_tools_expect(run: Path) -> None:
    names = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert names == {
        "README.md",
        "erasure.json",
        "pytorch_lora_weights.safetensors",
        f"adapters/{slug('cat')}.safetensors",
    }
    card = (run / "README.md").read_text()
    assert "| cat | object |" in card


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
        layer = layers[name.partition("/")[2]]
        (adapter,) = layer.active_adapters
        assert torch.allclose(layer.get_delta_weight(adapter).double(), delta, atol=1e-6)


@pytest.mark.parametrize("format_", ["diffusers", "kohya", "merged", "components", "single"])
def test_verify_agrees_with_every_export(
    format_: Any, pipe: Any, erasure: Erasure, tmp_path: Path
) -> None:
    path = export(erasure, tmp_path / format_, format_, pipe)
    assert verify(path, pipe)["agree"]


def test_verify_finds_an_export_that_was_tampered_with(
    pipe: Any, erasure: Erasure, tmp_path: Path
) -> None:
    path = export(erasure, tmp_path, "diffusers")
    with safe_open(path, "pt") as handle:
        header = handle.metadata()
    weaker = {key: value * 0.5 for key, value in load_file(path).items()}
    save_file(weaker, path, metadata=header)
    result = verify(path, pipe)
    assert not result["weights"]["agree"]
    assert not result["predictions"]["agree"]


def _random(rows: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(rows, 128, generator=generator, dtype=torch.float64)


def test_the_closed_form_is_exact(backbone: Backbone) -> None:
    """Factors against UCE's dense equation, to what float32 can say."""
    generator = torch.Generator().manual_seed(0)
    c, g, r = (_random(rows, generator) for rows in (9, 9, 300))
    ridge = 0.5
    edits = Ridge(ridge).solve({"cat": Rows(c, g)}, Kept(gram(r), r[:0], r[:0]))
    layers = backbone.prompt_projections()
    changes = on_layers(edits, layers)["cat"]
    downs = {id(change.down) for change in changes.values()}
    assert len(downs) == 1, "one tensor for all layers of the stream"
    for name, change in changes.items():
        w = layers[name].weight.detach().double()
        system = ridge * torch.eye(128, dtype=torch.float64) + c.T @ c + r.T @ r
        dense = (ridge * w + w @ g.T @ c + w @ r.T @ r) @ torch.linalg.inv(system) - w
        assert change.rank == 9
        assert (change.delta - dense).norm() <= 1e-6 * dense.norm()


@pytest.mark.parametrize("rows", [60, 500])
def test_many_embeddings_are_compressed_to_a_stated_error(backbone: Backbone, rows: int) -> None:
    """Sixty of width 128 as factors, five hundred as one matrix: the same formula."""
    generator = torch.Generator().manual_seed(0)
    # Embeddings of one name lie close to each other, as a text encoder's do.
    c = _random(4, generator).repeat(rows // 4, 1) + 1e-10 * _random(rows, generator)
    g = _random(rows, generator)
    [edit] = Ridge(0.5).solve({"cat": Rows(c, g)}, None).values()
    system = 0.5 * torch.eye(128, dtype=torch.float64) + c.T @ c
    wanted = (g - c).T @ c @ torch.linalg.inv(system)
    assert (edit.core @ edit.down - wanted).norm() <= 2e-6 * wanted.norm()
    assert len(edit.down) < 60


def test_the_dual_basis_holds_with_any_subset_switched_off(backbone: Backbone) -> None:
    generator = torch.Generator().manual_seed(0)
    c1, c2, g1, g2 = (_random(3, generator) for _ in range(4))
    name, layer = next(iter(backbone.prompt_projections().items()))
    edits = Ridge(0.0).solve({"one": Rows(c1, g1), "two": Rows(c2, g2)}, None)
    changes = on_layers(edits, {name: layer})
    w = layer.weight.detach().double()
    one = w + changes["one"][name].delta
    assert torch.allclose(c1 @ one.T, g1 @ w.T, atol=1e-4)
    assert torch.allclose(c2 @ one.T, c2 @ w.T, atol=1e-4)


def test_merging_solves_jointly(backbone: Backbone, tmp_path: Path) -> None:
    """Also what was saved: only texts are kept, and they are enough."""
    concepts = [backbone.profile.vocabulary.resolve(name) for name in ("cat", "dog")]
    eraser = UCE(prompts=4, preserved=20, tokens="suffix", to_anchor=True, ridge=0.1)
    alone = [eraser.erase(backbone, [concept]) for concept in concepts]
    alone = [Erasure.load(e.save(tmp_path / e.concepts[0].name)) for e in alone]
    merged, joint = Erasure.merge(alone, backbone), eraser.erase(backbone, concepts)
    assert [c.name for c in merged.concepts] == ["cat", "dog"]
    for part, other in zip(merged.parts, joint.parts, strict=True):
        for place, change in part.closed.items():
            wanted = other.closed[place].delta
            assert (change.delta - wanted).norm() <= 1e-5 * wanted.norm()
    again = Erasure.load(merged.save(tmp_path / "merged"))
    assert verify(tmp_path / "merged" / "pytorch_lora_weights.safetensors", backbone)["agree"]
    assert set(again.requests) == {"cat", "dog"}
    with pytest.raises(ValueError, match="twice"):
        Erasure.merge([joint, joint], backbone)
    with pytest.raises(ValueError, match="at least one"):
        Erasure.merge([], backbone)


def test_a_merge_holds_what_each_held(backbone: Backbone) -> None:
    """One holds nothing, one names, one states: one solve of all three, in any order."""
    resolve = backbone.profile.vocabulary.resolve
    settings: dict[str, Any] = {"prompts": 2, "to_anchor": True}
    alone = [
        UCE(**settings).erase(backbone, [resolve("cat")]),
        UCE(**settings, preserved=6, hold="names").erase(backbone, [resolve("car")]),
        UCE(**settings, preserved=6).erase(backbone, [resolve("ship")]),
    ]
    merged, turned = Erasure.merge(alone, backbone), Erasure.merge(alone[::-1], backbone)
    summed = [alone[0].delta(), alone[1].delta(), alone[2].delta()]
    for place, delta in merged.delta().items():
        assert torch.allclose(delta, turned.delta()[place], atol=1e-6)
        assert not torch.allclose(delta, sum(each[place] for each in summed), atol=1e-4)


def test_kinds_of_solver_in_one_merge_are_told(backbone: Backbone) -> None:
    resolve = backbone.profile.vocabulary.resolve
    first = UCE(prompts=2, to_anchor=True).erase(backbone, [resolve("cat")])
    second = SPEED(prompts=2, hold="names", preserved=4).erase(backbone, [resolve("car")])
    with pytest.warns(UserWarning, match="null_space and ridge.*solved apart"):
        Erasure.merge([first, second], backbone)


def test_each_keeps_its_own_strength_in_a_merge(backbone: Backbone) -> None:
    """Before, merging with one of half the strength halved both."""
    resolve = backbone.profile.vocabulary.resolve
    settings: dict[str, Any] = {"tune": False, "prompts": 4, "preserved": 10}
    whole = TRACE(**settings).erase(backbone, [resolve("cat")])
    half = TRACE(**settings, strength=0.5).erase(backbone, [resolve("car")])
    full = TRACE(**settings).erase(backbone, [resolve("car")])
    mixed, both = Erasure.merge([whole, half], backbone), Erasure.merge([whole, full], backbone)
    for place in mixed.parts[0].closed:
        ratios = [
            mixed.parts[i].closed[place].norm / both.parts[i].closed[place].norm for i in (0, 1)
        ]
        assert ratios == pytest.approx([1.0, 0.5], rel=1e-4)


def test_what_is_kept_never_names_what_goes(backbone: Backbone) -> None:
    """Kept prompts of the dog show cats: kept, the cat would stay."""
    from expunge.text_edit import kept_texts

    concepts = [backbone.profile.vocabulary.resolve(name) for name in ("cat", "dog")]
    eraser = UCE(prompts=4, preserved=40, to_anchor=True)
    requests = [eraser.request(concept) for concept in concepts]
    assert any(concepts[0].mentions(text) for text in requests[1].kept)
    texts = kept_texts(requests, concepts)
    assert texts
    assert not any(concept.mentions(text) for text in texts for concept in concepts)
    both = set(requests[0].kept) & set(requests[1].kept) & set(texts)
    [once] = {weight for text, weight in texts.items() if text not in both}
    assert all(texts[text] == pytest.approx(2 * once) for text in both)


def test_a_prompt_that_names_another_that_goes_is_no_lesson(backbone: Backbone) -> None:
    """Its guide would hold the other: "a cat in the style of anyone"."""
    from expunge.text_edit import agreeing

    concepts = [backbone.profile.vocabulary.resolve(name) for name in ("cat", "Ivo Brandt")]
    eraser = UCE(prompts=20, tokens="suffix", to_anchor=True)
    asked = {concept.name: eraser.request(concept) for concept in concepts}
    cat, style = agreeing(asked, concepts).values()
    assert cat == asked["cat"]
    assert 0 < len(style.pairs) < len(asked["Ivo Brandt"].pairs)
    assert not any(concepts[0].mentions(text) for text, _ in style.pairs)
    assert style.erase_weight * len(style.pairs) == pytest.approx(len(asked["Ivo Brandt"].pairs))
    black = Concept("black cat")
    both = {"black cat": eraser.request(black), "cat": asked["cat"]}
    assert agreeing(both, [black, concepts[0]])["black cat"] == both["black cat"]


def test_a_joint_solve_learns_from_lessons_that_agree(backbone: Backbone) -> None:
    from expunge.text_edit import agreeing, solve

    concepts = [backbone.profile.vocabulary.resolve(name) for name in ("cat", "Ivo Brandt")]
    joint = UCE(prompts=20, to_anchor=True).erase(backbone, concepts)
    agreed = agreeing(joint.requests, concepts)
    assert agreed != joint.requests
    for name, changes in solve(backbone, agreed, concepts).items():
        [part] = [part for part in joint.parts if part.concept.name == name]
        for place, change in changes.items():
            assert torch.allclose(change.delta, part.closed[place].delta, atol=1e-6)


def test_names_and_padding_count_as_much_as_they_are_told_to(backbone: Backbone) -> None:
    """Padding on both sides of the solve: of what goes and of what stays."""
    from expunge.text_rows import kept_states

    told, cat = {"prompts": 2, "tokens": "suffix", "to_anchor": True}, Concept("cat", anchor="ball")
    whole = UCE(**told).request(cat)  # type: ignore[arg-type]
    light = UCE(**told, padding_weight=0.25, name_weight=4.0).request(cat)  # type: ignore[arg-type]
    rows = concept_rows(backbone, {"whole": whole, "light": light})
    [run] = backbone.tokens([text for text, _ in whole.pairs])
    behind = sum(len(ids) - 1 - ids.tolist().index(run.end) for ids in run.ids)
    full, less = rows["whole"]["tokens"], rows["light"]["tokens"]
    ratios = less.sources.norm(dim=1) / full.sources.norm(dim=1)
    assert int((ratios < 0.75).sum()) == behind
    assert int((ratios > 1.5).sum()) == len(whole.pairs)
    assert sorted({round(float(ratio), 3) for ratio in ratios}) == [0.5, 1.0, 2.0]
    texts = {"a red ball on the grass": 3.0}
    grams = [
        kept_states(backbone, texts, "states", padding, rows=False)["tokens"].gram
        for padding in (0.0, 0.25, 1.0)
    ]
    assert torch.allclose(grams[1], grams[0] + 0.25 * (grams[2] - grams[0]))


def test_several_concepts_go_as_far_as_each_alone(backbone: Backbone) -> None:
    """Balance does not depend on their number: together each embedding still meets its guide."""
    resolve = backbone.profile.vocabulary.resolve
    concepts = [resolve(name) for name in ("cat", "dog", "car", "bicycle")]
    eraser = UCE(prompts=6, preserved=60, tokens="concept", to_anchor=True, ridge=0.1)
    layers = backbone.prompt_projections()

    def gap(erasure: Erasure, name: str) -> float:
        """Mean distance from the guides, as a share of where the original stands."""
        rows = concept_rows(backbone, {name: erasure.requests[name]})[name]["tokens"]
        c, g, shares = rows.sources.double(), rows.guides.double(), []
        for place, delta in erasure.delta().items():
            w = layers[place.partition("/")[2]].weight.detach().double()
            wanted = g @ w.T
            before = (c @ w.T - wanted).norm()
            shares.append(float((c @ (w + delta).T - wanted).norm() / before))
        return sum(shares) / len(shares)

    joint = eraser.erase(backbone, concepts)
    for concept in concepts:
        alone = gap(eraser.erase(backbone, [concept]), concept.name)
        assert gap(joint, concept.name) <= alone + 0.1


@pytest.mark.parametrize(
    ("text", "other", "names", "tokens", "pairs"),
    [
        ("a photo of a red cat", "a photo of a cat", ["red cat"], "concept",
         [("red", "cat"), ("cat", "cat")]),
        ("red cat and red cat", "ball and ball", ["red cat"], "concept",
         [("red", "ball"), ("cat", "ball"), ("red", "ball"), ("cat", "ball")]),
        ("a photo of Ada Lindqvist smiling", "a photo of a person smiling", ["Ada Lindqvist"],
         "last", [("lindqvist", "person")]),
        ("a cat and a car", "a dog and a car", ["cat"], "suffix",
         [("cat", "dog"), ("and", "and"), ("a", "a"), ("car", "car")]),
    ],
)  # fmt: skip
def test_tokens_are_aligned_by_matching(
    backbone: Backbone, text: str, other: str, names: list[str], tokens: Any, pairs: list[Any]
) -> None:
    from expunge.request import Request
    from expunge.text_rows import Reading

    request = Request(((text, other),), tuple(names), (), Ridge(), tokens=tokens)
    [run], [replaced] = backbone.tokens([text]), backbone.tokens([other])
    tokenizer = backbone.pipe.tokenizer
    ends = run.ids[0].tolist().index(run.end)

    def word(ids: torch.Tensor, place: int) -> str:
        return str(tokenizer.decode([int(ids[0, place])])).strip().lower()

    found = [
        (word(run.ids, place), word(replaced.ids, guide))
        for place, guide, _ in Reading(backbone, [request]).aligned(request)[0]
        if place < ends
    ]
    assert sorted(found) == sorted(pairs)


def test_an_empty_guide_is_the_state_that_begins_every_text(backbone: Backbone) -> None:
    """As the published code has it; before, it was the end of text."""
    [request] = (
        UCE().erase(backbone, [backbone.profile.vocabulary.resolve("cat")]).requests.values()
    )
    rows = concept_rows(backbone, {"cat": request})["cat"]["tokens"]
    states = backbone.encode_prompts(["cat"]).prompt_embeds[0]
    assert torch.allclose(rows.guides[0], states[0].float(), atol=1e-5)
    assert torch.allclose(rows.sources[0], states[1].float(), atol=1e-5)


def test_a_tampered_or_swapped_adapter_is_refused(run: Path, tmp_path: Path) -> None:
    for name, change in (("doubled", 2.0), ("zeroed", 0.0), ("not a number", float("nan"))):
        folder = shutil.copytree(run, tmp_path / name)
        [path] = (folder / "adapters").iterdir()
        with safe_open(path, "pt") as handle:
            header = handle.metadata()
        tensors = {k: v * change if k.endswith("/up") else v for k, v in load_file(path).items()}
        save_file(tensors, path, metadata=header)
        with pytest.raises(ValueError, match=r"not those of|NaN"):
            Erasure.load(folder)


def test_a_folder_holds_one_erasure(
    backbone: Backbone, erasure: Erasure, run: Path, tmp_path: Path
) -> None:
    other = UCE().erase(backbone, [backbone.profile.vocabulary.resolve("car")])
    (run / "log").mkdir()
    (run / "log" / "audit.json").write_text("{}")
    (run / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="another erasure"):
        other.save(run)
    assert Erasure.load(run).id == erasure.id
    other.save(run, force=True)
    assert Erasure.load(run).id == other.id
    assert not (run / "log").exists()
    assert (run / "notes.txt").read_text() == "mine"
    assert len(list((run / "adapters").iterdir())) == 1
    other.save(run)


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
    wrong_name = Erasure([Part(Concept("cat"), {"unet/mid.nowhere": change})], {})
    for wrong in (wrong_shape, wrong_name):
        with pytest.raises(ValueError, match="another architecture"):
            wrong.apply(backbone)
    sketch = {
        dtype: {layer: [2 * value for value in values] for layer, values in layers.items()}
        for dtype, layers in erasure.record["sketch"].items()
    }
    with pytest.raises(ValueError, match="other weights"):
        Erasure(erasure.parts, {**erasure.record, "sketch": sketch}).apply(backbone)


def _truncate(run: Path) -> Path:
    path = next((run / "adapters").iterdir())
    path.write_bytes(path.read_bytes()[:100])
    return path


def test_damaged_and_foreign_folders_get_one_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no erasure in"):
        Erasure.load(tmp_path / "nothing")
    newer = shutil.copytree(run, tmp_path / "newer")
    record = json.loads((newer / "erasure.json").read_text()) | {"schema": "expunge.erasure/9"}
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
