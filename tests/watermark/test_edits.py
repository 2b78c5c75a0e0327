"""Every edit, on the bundled model and on a tiny one of every real architecture."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from backbone.architectures import TINY
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.measure.quality import psnr
from expunge.watermark import names, pictures
from expunge.watermark.edit.base import Distortion, Subject, to_float
from expunge.watermark.edit.distortions import JPEG, Crop, Noise, Rotation, Scaling
from expunge.watermark.edit.inpainting import Inpainting
from expunge.watermark.edit.redraw import noise_for
from expunge.watermark.edit.regeneration import Regeneration
from expunge.watermark.edit.vae import VAE
from expunge.watermark.scheme.base import seeds_for
from expunge.watermark.scheme.invisible import DwtDctSvd
from expunge.watermark.scheme.learned import Learned

DISTORTIONS = [
    *("none", "jpeg:70", "crop:0.1", "noise", "rotation:4", "scaling:0.5", "blur:1"),
    *("sharpening", "brightness:1.2", "contrast:0.8", "jpeg:50+crop:0.1"),
]
DIFFUSION = [
    *("vae", "regeneration:0.2", "regeneration:0.2,prompt=caption,times=2", "img2img:0.3"),
    *("inversion:0.3", "inpainting:0.2", "guided:0.2", "guided:0.2,gradient_steps=2,last_levels=2"),
    "vae+jpeg:50",
]
FEW = ",num_inference_steps=6"


@functools.cache
def _pixels(size: int = 64, count: int = 3) -> Tensor:
    return torch.stack([host.load() for host in pictures.world(count, size)])


def _subject(backbone: Backbone | None = None, size: int = 64, **more: Any) -> Subject:
    pixels = _pixels(size)
    return Subject(pixels, [1, 2, 3], ["a photo of a cat"] * 3, backbone, **more)


@pytest.mark.parametrize("text", DISTORTIONS)
def test_distortions_keep_shape_and_repeat(text: str) -> None:
    edit = names.edit(text)
    first, again = edit(_subject()), edit(_subject())
    assert first.dtype == torch.uint8 and first.shape == (3, 3, 64, 64)
    assert torch.equal(first, again)
    assert torch.equal(first, _pixels()) == (text == "none")


@pytest.mark.parametrize("text", [text for text in DISTORTIONS if "+" not in text])
def test_distortions_pass_a_gradient(text: str) -> None:
    edit = names.edit(text)
    assert isinstance(edit, Distortion)
    pixels = to_float(_pixels()).requires_grad_()
    edit.distort(pixels, [1, 2, 3]).square().sum().backward()
    assert pixels.grad is not None and pixels.grad.abs().sum() > 0


@pytest.mark.parametrize("text", DIFFUSION)
def test_the_bundled_model_edits(text: str, backbone: Backbone, untouched: Any) -> None:
    edit = names.edit(text if "+" in text or text == "vae" else text + FEW)
    subject = _subject(backbone, scheme=Learned())
    edit.check(subject.scheme, backbone)  # type: ignore[arg-type]
    first = edit(subject)
    assert first.dtype == torch.uint8 and first.shape == (3, 3, 64, 64)
    assert torch.equal(first, edit(subject))
    assert psnr(first, subject.pixels).min() > 12, "still the same pictures"


@pytest.mark.parametrize("name", list(TINY))
@pytest.mark.parametrize("text", DIFFUSION)
def test_every_architecture_edits(name: str, text: str) -> None:
    edit = names.edit(text if "+" in text or text == "vae" else text + FEW)
    backbone = as_backbone(TINY[name]())
    if name == "flux_schnell" and text.startswith("img2img"):
        backbone.profile = type(backbone.profile)(
            type(backbone.profile.sampling)(4, 1.0, 64, 64, 2)
        )
    edited = edit(_subject(backbone, scheme=Learned()))
    assert edited.shape == (3, 3, 64, 64) and edited.dtype == torch.uint8


def test_sizes_a_model_cannot_take_are_padded_and_cut(backbone: Backbone) -> None:
    pixels = _pixels(80)[..., :70, :74]
    edited = VAE()(Subject(pixels, [1, 2, 3], [""] * 3, backbone))
    assert edited.shape == pixels.shape
    assert psnr(edited, pixels).min() > 20


def test_level_nought_is_the_autoencoder_alone(backbone: Backbone) -> None:
    subject = _subject(backbone)
    assert torch.equal(Regeneration(0.0)(subject), VAE()(subject))


def test_more_noise_changes_more(backbone: Backbone) -> None:
    subject = _subject(backbone)
    kept = [
        psnr(Regeneration(level, num_inference_steps=10)(subject), subject.pixels).mean()
        for level in (0.0, 0.3, 0.9)
    ]
    assert kept[0] > kept[1] > kept[2]


def test_inpainting_blends_at_every_level(backbone: Backbone) -> None:
    """What surrounds the hole steers what is drawn in it."""
    subject = _subject(backbone)
    edit = Inpainting(0.25, num_inference_steps=10)
    other = dataclasses.replace(subject, pixels=torch.full_like(subject.pixels, 30))
    hole = edit.holes(subject).expand(-1, 3, -1, -1)
    bright = dataclasses.replace(subject, pixels=torch.full_like(subject.pixels, 230))
    dark_fill, bright_fill = edit(other)[hole].float(), edit(bright)[hole].float()
    assert bright_fill.mean() > dark_fill.mean() + 20


def test_edits_draw_noise_of_their_own(backbone: Backbone) -> None:
    """Neither the noise a picture was drawn from nor that of the link before."""
    grey = torch.full((3, 3, 64, 64), 128, dtype=torch.uint8)
    subject = Subject(grey, [1, 2, 3], [""] * 3)
    twice = (names.edit("noise:0.05+noise:0.05")(subject).float() - 128).std() / 255
    assert float(twice) == pytest.approx(0.05 * 2**0.5, rel=0.03)
    seeds = seeds_for("edit", [5])
    drawn = backbone.initial_noise([5], backbone.profile.sampling)
    assert not torch.allclose(noise_for(drawn, seeds), drawn)


def test_chains_are_what_their_links_are() -> None:
    assert names.edit("guided+jpeg").white_box and names.edit("guided+jpeg").redraws
    assert names.edit("jpeg+vae").redraws and not names.edit("jpeg+vae").white_box
    assert not names.edit("jpeg+crop").redraws
    assert names.edit("jpeg+img2img").reads_captions


def test_inpainting_leaves_the_rest_alone(backbone: Backbone) -> None:
    subject = _subject(backbone)
    edit = Inpainting(0.25, num_inference_steps=4)
    hole = edit.holes(subject).expand(-1, 3, -1, -1)
    edited = edit(subject)
    assert torch.equal(edited[~hole], subject.pixels[~hole])
    assert not torch.equal(edited[hole], subject.pixels[hole])
    assert float(hole.float().mean()) == pytest.approx(0.25, abs=0.02)


def test_guided_removal_sits_at_chance_and_not_below(backbone: Backbone) -> None:
    """The null message is as far from a random payload as from any: half of the bits agree."""
    scheme = Learned(psnr=32.0)
    pixels = torch.stack([host.load() for host in pictures.world(24)])
    payloads = scheme.payloads(list(range(24)))
    marked = scheme.embed(pixels, payloads)
    subject = Subject(marked, list(range(24)), [""] * 24, backbone, scheme)
    edited = names.edit("guided:0,gradient_steps=20,weight=2")(subject)
    read = scheme.extract(edited).bits
    before = scheme.extract(VAE()(subject)).bits
    assert read.mean() < before.mean(), "toward zeros"
    assert abs(float((read == payloads).mean()) - 0.5) < 0.12


def test_guided_removal_needs_a_decoder_to_follow(backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="dwtdctsvd has no differentiable one"):
        names.edit("guided").check(DwtDctSvd(), backbone)


def test_diffusion_needs_a_model() -> None:
    with pytest.raises(ValueError, match="--model"):
        names.edit("jpeg+vae").check(Learned(), None)


@given(st.floats(0, 0.5), st.integers(0, 2**31))
def test_a_crop_shows_part_of_the_picture(level: float, seed: int) -> None:
    """On a ramp, every value shown lies in the ramp, and the spread shrinks by the share cut."""
    ramp = torch.linspace(0.1, 0.9, 64).expand(1, 3, 64, 64)
    shown = Crop(level).distort(ramp, [seed])
    assert shown.min() > 0.09 and shown.max() < 0.91
    assert float(shown.max() - shown.min()) == pytest.approx(0.8 * (1 - level), abs=0.02)


def test_noise_has_its_deviation() -> None:
    grey = torch.full((4, 3, 64, 64), 0.5)
    noisy = Noise(10 / 255).distort(grey, [1, 2, 3, 4])
    assert float((noisy - grey).std()) == pytest.approx(10 / 255, rel=0.02)


def test_turning_back_is_almost_the_identity() -> None:
    smooth = Scaling(0.2).distort(to_float(_pixels()), [0, 0, 0])
    there = Rotation(7.0).distort(smooth, [0, 0, 0])
    back = Rotation(-7.0).distort(there, [0, 0, 0])
    middle = (..., slice(16, 48), slice(16, 48))
    assert float((back - smooth)[middle].abs().mean()) < 0.01 < float((there - smooth).abs().mean())


def test_jpeg_is_pillows(tmp_path: Any) -> None:
    from PIL import Image

    picture = Image.fromarray(_pixels()[0].permute(1, 2, 0).numpy())
    picture.save(tmp_path / "x.jpg", quality=50)
    wanted = np.asarray(Image.open(tmp_path / "x.jpg"))
    assert np.array_equal(JPEG(50)(_subject())[0].permute(1, 2, 0).numpy(), wanted)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("jpg", "did you mean 'jpeg'"),
        ("jpeg:0", "quality from 1 to 95"),
        ("jpeg:many", "must be a whole number"),
        ("crop:1", "crop's level"),
        ("regeneration:1.5", "noise level from 0 to 1"),
        ("regeneration:prompt=poem", "must be one of empty, caption"),
        ("regeneration:steps=3", "no setting 'steps'"),
        ("vae:3", "wants setting=value, got '3'; it has none"),
        ("inpainting:1", "share between 0 and 1"),
        ("guided:gradient_steps=0", "gradient_steps must be at least 1"),
    ],
)
def test_bad_edits_get_one_sentence(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        names.edit(text)
    assert "\n" not in str(caught.value)


def test_labels_tell_edits_apart() -> None:
    texts = ["regeneration:0.3", "regeneration:0.3,prompt=caption", "jpeg:50+crop:0.1"]
    labels = [names.edit(text).label for text in texts]
    assert labels == ["regeneration", "regeneration:prompt=caption", "jpeg:50+crop:0.1"]
