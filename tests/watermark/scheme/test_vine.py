"""VINE's networks against what was published, tiny and random."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from safetensors.torch import save_file
from watermark.scheme.published import (
    PublishedDecoder,
    PublishedEncoder,
    published,
    tiny_sd_turbo,
)
from watermark.scheme.stamps import pictures

from expunge.watermark.scheme.vine import VINE
from expunge.watermark.scheme.vine_network import VINEDecoder, VINEEncoder
from expunge.watermark.scheme.vine_weights import DECODER_NAMES, ENCODER_NAMES, fill, load_encoder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return tiny_sd_turbo(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def encoders(base: Path) -> tuple[PublishedEncoder, VINEEncoder]:
    """One that was published, and ours with its weights."""
    torch.manual_seed(1)
    theirs = PublishedEncoder(base, bits=100, side=16).eval()
    file = published(theirs, base / "encoder.safetensors")
    return theirs, load_encoder(file, base, side=16)


@pytest.fixture(scope="module")
def decoders(base: Path) -> tuple[PublishedDecoder, VINEDecoder]:
    sizes = ((8, 12, 16, 20), (1, 1, 2, 1), 24)
    theirs, ours = PublishedDecoder(100, *sizes).eval(), VINEDecoder(100, *sizes)
    fill(ours, DECODER_NAMES, published(theirs, base / "decoder.safetensors"))
    return theirs, ours


@pytest.fixture
def vine(encoders: Any, decoders: Any) -> VINE:
    """The scheme with tiny networks in the place of those it would fetch."""
    scheme = VINE()
    vars(scheme).update(_encoder=encoders[1], _decoder=decoders[1])
    return scheme


@torch.no_grad()
def test_the_encoder_computes_what_was_published(encoders: Any) -> None:
    theirs, ours = encoders
    pixels = pictures(2, 64, 64) / 127.5 - 1
    message = torch.from_numpy(VINE().payloads([1, 2])).float()
    each = zip(pixels.split(1), message.split(1), strict=True)
    expected = torch.cat([theirs(*one, ours.prompt_embeds) for one in each])
    torch.testing.assert_close(ours(pixels, message), expected, atol=1e-4, rtol=0)
    assert (expected.abs() < 1).float().mean() > 0.9
    assert (ours(pixels, 1 - message) - expected).abs().mean() > 1e-3


def test_the_encoder_is_asked_for_nothing(encoders: Any, pipe: Any) -> None:
    empty = pipe.encode_prompt("", "cpu", 1, False)[0]
    torch.testing.assert_close(encoders[1].prompt_embeds, empty)


@torch.no_grad()
def test_the_decoder_computes_what_was_published(decoders: Any) -> None:
    theirs, ours = decoders
    pixels = pictures(2, 64, 64) / 255
    torch.testing.assert_close(ours(pixels), theirs(pixels), atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", ["lacking", "more"])
def test_weights_that_do_not_fit_are_refused(change: str, decoders: Any, base: Path) -> None:
    state = decoders[0].state_dict()
    if change == "lacking":
        del state["convnext.classifier.3.bias"]
    else:
        state["mystery"] = torch.zeros(1)
    save_file(state, base / "other.safetensors")
    says = {"lacking": r"1 weights .* head\.1\.bias", "more": r"1 weights .* mystery"}[change]
    with pytest.raises(ValueError, match="no VINEDecoder: " + says):
        fill(decoders[1], DECODER_NAMES, base / "other.safetensors")


def test_other_files_are_refused(encoders: Any, decoders: Any, base: Path) -> None:
    with pytest.raises(ValueError, match="no VINEEncoder"):
        fill(encoders[1], ENCODER_NAMES, base / "decoder.safetensors")
    (base / "pickle.safetensors").write_bytes(b"\x80\x04" * 20)
    with pytest.raises(ValueError, match="is not a safetensors file"):
        fill(decoders[1], DECODER_NAMES, base / "pickle.safetensors")


def test_full_size_networks_have_the_published_shapes() -> None:
    """The skip connections and the message's layers, from `vine/src` of Shilin-LU/VINE."""
    with torch.device("meta"):
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        encoder = VINEEncoder(torch.nn.Identity(), vae, DDPMScheduler(), torch.zeros(1, 77, 1024))
        decoder = VINEDecoder()
    skips = [tuple(skip.weight.shape[:2]) for skip in encoder.skips]
    assert skips == [(512, 512), (512, 256), (512, 128), (256, 128)]
    assert [tuple(p.shape) for p in encoder.message.parameters() if p.ndim == 2] == [
        (4096, 100),
        (12288, 4096),
    ]
    # torchvision's convnext_base has 88,591,464 weights, and the last layer 100,100.
    assert sum(p.numel() for p in decoder.parameters()) == 88_591_464 + 100_100
    assert encoder.resolution == 256


def test_vine_adds_what_the_encoder_changes(vine: VINE) -> None:
    hosts, payloads = pictures(2, 64, 64), vine.payloads([1, 2])
    marked = vine.embed(hosts, payloads)
    message = torch.from_numpy(payloads).float()
    with torch.no_grad():
        drawn = (vine._encoder(hosts / 127.5 - 1, message) + 1) * 127.5
    assert (marked - drawn.clamp(0, 255)).abs().max() <= 0.51
    large = vine.embed(pictures(1, 96, 200), payloads[:1])
    assert large.shape == (1, 3, 96, 200) and (large != pictures(1, 96, 200)).any()


def test_vines_logits_follow_the_picture_and_are_what_is_extracted(vine: VINE) -> None:
    hosts = pictures(2, 70, 90)
    pixels = (hosts / 255).requires_grad_()
    logits = vine.logits(pixels)
    logits.sum().backward()
    assert logits.shape == (2, 100)
    assert pixels.grad is not None and pixels.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert ((logits > 0).numpy() == vine.extract(hosts).bits).all()
    assert all(weight.grad is None for weight in vine._decoder.parameters())


def test_vine_without_a_hub_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", "/nowhere")
    with pytest.raises(ValueError, match="did not give vine's weights, Shilin-LU/VINE-B-Enc"):
        VINE(variant="B").prepare()


def test_a_variant_that_was_not_published_is_refused() -> None:
    with pytest.raises(ValueError, match="variant must be one of"):
        VINE(variant="Q")  # type: ignore[arg-type]
