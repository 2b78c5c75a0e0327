from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from expunge.judge.base import unknown_concept
from expunge.judge.miniature import MiniatureJudge
from expunge.judge.networks import Variant, Verdict, build, save
from expunge.miniature import broken, judges
from expunge.miniature.autoencoder import build as build_vae
from expunge.miniature.data import MASK_LABELS, OBJECT_LABELS, Pictures, pictures
from expunge.run.plan import Plan

VARIANTS: tuple[Variant, ...] = ("conv", "patch")
NO_PICTURES = torch.empty((0, 3, 64, 64), dtype=torch.uint8)


@pytest.fixture(scope="module")
def data() -> Pictures:
    return pictures(40, seed=3)


@pytest.fixture(scope="module")
def images(data: Pictures) -> list[Image.Image]:
    return [Image.fromarray(array.permute(1, 2, 0).numpy()) for array in data.pixels]


def untrained(variant: Variant = "conv") -> MiniatureJudge:
    torch.manual_seed(0)
    return MiniatureJudge(variant, build(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_of_every_batch_size(variant: Variant, images: list[Image.Image]) -> None:
    judge = untrained(variant)
    for some in ([], images[:1], images * 2):
        for scores in (judge.score(some, "cat"), judge.broken(some)):
            assert scores.shape == (len(some),)
            assert ((scores >= 0) & (scores <= 1)).all()
        assert judge.features(some).shape == (len(some), 128)


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_do_not_depend_on_the_batch(variant: Variant, images: list[Image.Image]) -> None:
    judge = untrained(variant)
    together = judge.features(images)
    alone = np.concatenate([judge.features([image]) for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(together, judge.features(images))


def test_pictures_of_any_size_and_mode(images: list[Image.Image]) -> None:
    judge = untrained()
    large = images[0].resize((128, 128), Image.Resampling.NEAREST)
    assert judge.score([large, large.convert("RGBA"), large.convert("L")], "cat").shape == (3,)


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (("cat", "kitten", "A Cat", "the feline"), "objects"),
        (("Ada Lindqvist", "lindqvist"), "person"),
        (("woodcut", "Ivo Brandt", "ivo brandt"), "style"),
        (("hazard", "hazard sign", "danger sign", "a warning triangle"), "sign"),
        (("parking", "a parking sign"), "sign"),
        (("a person", "person", "face"), "person"),
    ],
)
def test_names_of_one_concept(names: tuple[str, ...], head: str, images: list[Image.Image]) -> None:
    judge = untrained()
    assert all(judge.knows(name) for name in names)
    scores = np.stack([judge.score(images[:4], name) for name in names])
    np.testing.assert_array_equal(scores, np.broadcast_to(scores[0], scores.shape))


def test_any_person_is_whatever_is_not_nobody(images: list[Image.Image]) -> None:
    judge = untrained()
    someone = judge.score(images, "person")
    assert (someone >= judge.score(images, "Ada Lindqvist")).all()
    assert (judge.score(images, "sign") >= judge.score(images, "hazard")).all()


def test_unknown_names_get_a_hint(images: list[Image.Image]) -> None:
    judge = untrained()
    assert not judge.knows("kiten")
    with pytest.raises(ValueError, match="did you mean 'kitten'"):
        judge.score(images[:1], "kiten")
    with pytest.raises(ValueError, match=r"e\.g\. "):
        judge.score(images[:1], "quantum chromodynamics")
    assert "3 names" in str(unknown_concept("", "judge", ("a", "b", "c")))


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_judge_is_the_same_judge(
    variant: Variant, images: list[Image.Image], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    network = build(variant)
    for parameter in network.parameters():  # what fp16 can hold
        parameter.data = parameter.data.half().float()
    before = MiniatureJudge(variant, network)
    save(network, tmp_path / f"{variant}.safetensors")
    after = MiniatureJudge.load(variant, tmp_path)
    assert after.hash == before.hash
    assert after.name == f"miniature-{variant}"
    np.testing.assert_array_equal(after.features(images), before.features(images))


def test_damaged_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="miniature train"):
        MiniatureJudge.load("conv", tmp_path)
    save(build("patch"), tmp_path / "conv.safetensors")
    with pytest.raises(ValueError, match="no judge of variant 'conv'"):
        MiniatureJudge.load("conv", tmp_path)
    (tmp_path / "patch.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="no judge of variant 'patch'"):
        MiniatureJudge.load("patch", tmp_path)
    with pytest.raises(ValueError, match="one of conv, patch"):
        build("round")  # type: ignore[arg-type]


def test_judges_differ_in_make() -> None:
    kinds = [{type(module) for module in build(variant).trunk.modules()} for variant in VARIANTS]
    assert torch.nn.Conv2d in kinds[0]
    assert torch.nn.Conv2d not in kinds[1]


@pytest.mark.parametrize("variant", VARIANTS)
def test_network_learns_a_handful(variant: Variant, data: Pictures) -> None:
    torch.manual_seed(2)
    network = build(variant)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    index = torch.arange(8)
    pixels = torch.cat([data.pixels[:8], torch.randint(256, (4, 3, 64, 64), dtype=torch.uint8)])
    masks = judges.shares(torch.cat([data.owners[:8], torch.zeros_like(data.owners[:4])]))
    for _ in range(40):
        verdict = network(pixels.float() / 127.5 - 1)
        loss = judges.judgement_loss(verdict, data.objects[index], data.choices[index], masks)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    few = Pictures(
        pixels[:8], data.captions[:8], data.objects[:8], data.choices[:8], data.owners[:8]
    )
    figures = judges.accuracy(network.eval(), few.pixels, few)
    for head in ("objects", "person", "style", "sign"):
        assert figures[head] == (8, 8)
    assert figures["broken"] == (0, 8)
    assert judges.called_broken(network, pixels[8:]) == (4, 4)


def test_broken_pictures_teach_that_no_object_is_there_and_nothing_else() -> None:
    sizes = (128, 10, 22, 6, 6, 1)
    logits = [torch.zeros(6, n, requires_grad=True) for n in sizes]
    masks = torch.zeros(6, 12, 16, 16, requires_grad=True)
    objects, choices = torch.ones(4, 10), torch.zeros(4, 3, dtype=torch.long)
    where = torch.zeros(6, 12, 16, 16)
    loss = judges.judgement_loss(Verdict(*logits, masks), objects, choices, where)
    torch.autograd.backward(loss)
    gradients = [head.grad for head in logits[1:]]
    assert all(gradient is not None for gradient in gradients)
    flags, person, style, sign, bad = (g for g in gradients if g is not None)
    assert (flags[:4] < 0).all()
    assert (flags[4:] > 0).all()
    for head in (person, style, sign):
        assert head[:4].abs().sum() > 0
        assert head[4:].abs().sum() == 0
    assert (bad[:4] > 0).all()
    assert (bad[4:] < 0).all()
    assert masks.grad is not None
    assert (masks.grad > 0).all()


@pytest.mark.parametrize("make", [broken.noise, broken.texture, broken.jumbled, broken.blended])
def test_broken_pictures_are_no_longer_pictures(make: object, data: Pictures) -> None:
    assert callable(make)
    proper = data.images(torch.arange(8))
    made = make(proper, torch.Generator().manual_seed(0))
    assert made.shape == (4, 3, 64, 64)
    assert made.abs().max() <= 1
    assert ((made - proper[::2]).abs().mean(dim=(1, 2, 3)) > 0.01).all()


def test_augmentation_keeps_what_is_shown(data: Pictures) -> None:
    images = data.images(torch.arange(16))
    changed = judges.augment(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    coarse = torch.stack([F.avg_pool2d(x, 16).flatten() for x in (images, changed)])
    assert torch.corrcoef(coarse)[0, 1] > 0.9


def test_training_resumes_and_shares_round_trips(
    data: Pictures, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "WRECKS", 6)
    torch.manual_seed(4)
    vae = build_vae().eval()
    plan = Plan(steps=2)
    first = judges.train(data, vae, NO_PICTURES, tmp_path, "conv", plan)
    trips = (tmp_path / "judge-round-trips.safetensors").stat().st_mtime_ns
    again = judges.train(data, vae, NO_PICTURES, tmp_path, "conv", plan)
    assert (tmp_path / "judge-round-trips.safetensors").stat().st_mtime_ns == trips
    for one, other in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)


def test_batches_have_labelled_pictures_first(data: Pictures) -> None:
    wrecks = torch.zeros((3, 3, 64, 64), dtype=torch.uint8)
    lessons = judges.Lessons(data, data.pixels[:10], (wrecks,))
    images, index, masks = lessons.batch(torch.Generator().manual_seed(0))
    same, _, _ = lessons.batch(torch.Generator().manual_seed(0))
    assert images.shape == (judges.BATCH, 3, 64, 64)
    assert index.shape == (judges.BATCH - judges.BROKEN,)
    assert torch.equal(images, same)
    assert masks.shape == (judges.BATCH, len(MASK_LABELS), 16, 16)
    assert masks[: len(index)].sum() > 0
    assert masks[len(index) :].sum() == 0
    assert data.objects.shape[1] == len(OBJECT_LABELS)


def test_pictures_and_their_owners_move_together(data: Pictures) -> None:
    owners = data.owners[:12]
    images = (owners.float()[:, None] / 6 - 1).expand(-1, 3, -1, -1)
    moved, whose = judges.shift(images, owners, torch.Generator().manual_seed(1))
    assert (whose != owners).any()
    assert torch.allclose(moved[:, 0], whose.float() / 6 - 1, atol=1e-6)


def test_shares_of_cells_are_what_the_renderer_painted(data: Pictures) -> None:
    shares = judges.shares(data.owners)
    assert shares.shape == (40, len(MASK_LABELS), 16, 16)
    assert ((shares >= 0) & (shares <= 1)).all()
    painted = shares.flatten(2).sum(dim=2) > 0
    assert torch.equal(painted[:, : len(OBJECT_LABELS)], data.objects.bool())


@pytest.mark.parametrize("variant", VARIANTS)
def test_masks_have_a_place_and_styles_have_none(
    variant: Variant, images: list[Image.Image]
) -> None:
    judge = untrained(variant)
    for name in ("cat", "Ada Lindqvist", "person", "hazard", "sign"):
        mask = judge.mask(images[:3], name)
        assert mask.shape == (3, 16, 16)
        assert ((mask >= 0) & (mask <= 1)).all()
    assert judge.mask([], "cat").shape == (0, 16, 16)
    with pytest.raises(ValueError, match="everywhere"):
        judge.mask(images[:1], "woodcut")
    with pytest.raises(ValueError, match="did you mean 'kitten'"):
        judge.mask(images[:1], "kiten")
