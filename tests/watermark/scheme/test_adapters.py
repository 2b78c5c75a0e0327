"""Schemes of others: their codes, their files, and what is said where a package is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from watermark.scheme.published import (
    PublishedDecoder,
    PublishedEncoder,
    published,
    tiny_sd_turbo,
)
from watermark.scheme.stamps import stegastamp

from expunge.watermark.scheme.base import PictureScheme
from expunge.watermark.scheme.code import BCH, Bits
from expunge.watermark.scheme.stegastamp import StegaStamp
from expunge.watermark.scheme.trustmark import CAPACITY, TrustMark, TrustMarkCode
from expunge.watermark.scheme.vine import VINE
from expunge.watermark.scheme.vine_network import VINEDecoder, VINEEncoder
from expunge.watermark.scheme.vine_weights import DECODER_NAMES, ENCODER_NAMES, fill, load_encoder

WORD = 56 + 35
"""Bits of StegaStamp's payload and parity; the other nine are always 0."""


def flipped(bits: Bits, places: list[int]) -> Bits:
    out = bits.copy()
    out[:, places] ^= True
    return out


def pictures(count: int, height: int, width: int) -> torch.Tensor:
    """Smooth and not too bright or dark, so that nothing is cut off."""
    drawn = np.random.default_rng(3).uniform(90, 160, (count, 3, 5, 5))
    large = torch.nn.functional.interpolate(
        torch.from_numpy(drawn), (height, width), mode="bicubic"
    )
    return large.clamp(0, 255).round().to(torch.uint8)


# --- BCH


@given(
    payload=st.binary(min_size=7, max_size=7),
    places=st.sets(st.integers(0, WORD - 1), max_size=12),
    ignored=st.sets(st.integers(WORD, 99)),
)
def test_up_to_t_flips_are_corrected_and_more_never_pass_for_the_payload(
    payload: bytes, places: set[int], ignored: set[int]
) -> None:
    code = BCH()
    bits = np.unpackbits(np.frombuffer(payload, np.uint8)).astype(np.bool_)[None]
    decoded = code.decode(flipped(code.encode(bits), [*places, *ignored]))
    right = bool(decoded.sure[0] and (decoded.payloads == bits).all())
    assert right == (len(places) <= code.t)


def test_almost_no_random_reading_is_sure() -> None:
    readings = np.random.default_rng(0).random((20_000, 100)) < 0.5
    # Within 5 flips of a word of the code lie 0.14 % of all; the library alone accepts 0.6 %.
    assert 0.0005 < BCH().decode(readings).sure.mean() < 0.0025


def test_the_layout_is_stegastamps() -> None:
    payload = np.unpackbits(np.frombuffer(b"Stega!!", np.uint8)).astype(np.bool_)[None]
    word = BCH().encode(payload)
    assert word.shape == (1, 100) and not word[:, WORD:].any()
    # Parity as TrustMark's own port of the same code computes it.
    assert np.packbits(word[0, :96]).tobytes() == b"Stega!!" + bytes.fromhex("88a9fb4e40")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"payload_bits": 55}, "multiple of 8"),
        ({"payload_bits": 104}, "at most 92 bits"),
        ({"raw_bits": 95}, "at least 96"),
    ],
)
def test_a_code_that_cannot_be_is_refused(settings: dict[str, int], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BCH(**settings)


# --- missing packages


@pytest.mark.parametrize(
    ("package", "use"),
    [
        ("bchlib", lambda: BCH().encode(np.zeros((1, 56), np.bool_))),
        ("onnxruntime", lambda: StegaStamp(encoder="a.onnx", decoder="a.onnx").prepare()),
        ("trustmark", lambda: TrustMark().prepare()),
        ("trustmark.datalayer", lambda: TrustMarkCode().encode(np.zeros((1, 61), np.bool_))),
    ],
)
def test_a_missing_package_is_named_with_its_remedy(
    package: str, use: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"'{package.split('.')[0]}.*pip install 'expunge\["):
        use()


def test_a_torchvision_of_another_torch_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = "operator torchvision::nms does not exist"
    (tmp_path / "trustmark.py").write_text(f"raise RuntimeError({says!r})")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "trustmark", raising=False)
    with pytest.raises(ValueError, match=rf"torchvision that fits torch .*{says}"):
        TrustMark().prepare()


# --- StegaStamp


@pytest.fixture
def exports(tmp_path: Path) -> dict[str, StegaStamp]:
    """The ways in which files were seen to be exported."""
    both = stegastamp(
        tmp_path / "both.onnx",
        ["image", "secret"],
        ["stegastamp", "residual", "decoded"],
        last=True,
    )
    change = stegastamp(tmp_path / "change.onnx", ["secret", "image"], ["residual"])
    logits = stegastamp(tmp_path / "logits.onnx", ["image"], ["logits"])
    single = {"last": True, "batch": 1}
    marked = stegastamp(tmp_path / "marked.onnx", ["image", "secret"], ["stegastamp"], **single)
    rounded = stegastamp(tmp_path / "rounded.onnx", ["image"], ["decoded"], **single)
    return {
        "waves": StegaStamp(encoder=both, decoder=both),
        "torch": StegaStamp(encoder=change, decoder=logits),
        "single": StegaStamp(encoder=marked, decoder=rounded),
    }


@pytest.mark.parametrize("export", ["waves", "torch", "single"])
@pytest.mark.parametrize("size", [(400, 400), (300, 512)])
def test_what_is_embedded_is_extracted(
    exports: dict[str, StegaStamp], export: str, size: tuple[int, int]
) -> None:
    scheme = exports[export]
    scheme.prepare()
    hosts, payloads = pictures(2, *size), scheme.payloads([1, 2])
    marked = scheme.embed(hosts, payloads)
    assert marked.shape == hosts.shape and marked.dtype == torch.uint8
    reading = scheme.extract(marked)
    decoded = scheme.code.decode(reading.bits)
    assert decoded.sure.all() and (decoded.payloads == payloads).all()
    assert scheme.detect(reading, payloads).all()
    assert not scheme.detect(scheme.extract(hosts), payloads).any()


def test_exports_of_the_same_network_agree(exports: dict[str, StegaStamp]) -> None:
    hosts = pictures(1, 400, 400)
    payloads = BCH().decode(np.zeros((1, 100), np.bool_)).payloads
    marked = [scheme.embed(hosts, payloads).int() for scheme in exports.values()]
    assert (marked[0] != hosts).any()
    assert all((each - marked[0]).abs().max() <= 1 for each in marked)


def test_files_are_part_of_what_determines_the_scheme(exports: dict[str, StegaStamp]) -> None:
    hashes = {scheme.spec["weights"] for scheme in exports.values()}
    assert len(hashes) == 3 and all(len(each) == 129 for each in hashes)


@pytest.mark.parametrize(
    ("swap", "says"),
    [
        ({"encoder": "logits.onnx"}, "should hide 100 bits.*image.*logits"),
        ({"decoder": "change.onnx"}, "should read 100 bits.*residual"),
        ({"decoder": "none.onnx"}, "none.onnx is none"),
        ({"decoder": "broken.onnx"}, "onnxruntime cannot read"),
        ({"encoder": "four.onnx"}, "should take one picture.*image .4,"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    exports: dict[str, StegaStamp], tmp_path: Path, swap: dict[str, str], says: str
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no graph")
    stegastamp(tmp_path / "four.onnx", ["image", "secret"], ["residual"], batch=4)
    torch_pair = exports["torch"]
    paths = {"encoder": torch_pair.encoder, "decoder": torch_pair.decoder}
    paths |= {part: str(tmp_path / name) for part, name in swap.items()}
    with pytest.raises(ValueError, match=says):
        StegaStamp(**paths).prepare()


# --- TrustMark


@pytest.mark.parametrize("ecc", list(CAPACITY))
def test_trustmarks_code_corrects_and_knows_its_schema(ecc: Any) -> None:
    pytest.importorskip("trustmark", exc_type=ImportError)
    rng, code = np.random.default_rng(0), TrustMarkCode(ecc)
    payloads = rng.random((20, code.payload_bits)) < 0.5
    words = code.encode(payloads)
    assert words.shape == (20, 100)
    for count in range({"BCH_SUPER": 8, "BCH_5": 5, "BCH_4": 4, "BCH_3": 3}[ecc] + 1):
        decoded = code.decode(flipped(words, rng.choice(96, count, replace=False).tolist()))
        assert decoded.sure.all() and (decoded.payloads == payloads).all()
    assert not code.decode(flipped(words, [98])).sure.any()
    assert code.decode(rng.random((2000, 100)) < 0.5).sure.mean() < 0.04


def test_trustmark_without_weights_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    package = pytest.importorskip("trustmark.trustmark", exc_type=ImportError)

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network here")

    monkeypatch.setattr(package.TrustMark, "check_and_download", refuse)
    with pytest.raises(ValueError, match=r"no weights for variant Q.*no network here"):
        TrustMark().prepare()


# --- VINE


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


def test_settings_outside_their_lists_are_refused() -> None:
    for make in (lambda: VINE(variant="Q"), lambda: TrustMark(ecc="BCH_6")):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be one of"):
            make()


def test_bits_of_the_wrong_number_are_refused(vine: VINE, exports: dict[str, StegaStamp]) -> None:
    schemes: list[PictureScheme] = [vine, exports["torch"]]
    for scheme in schemes:
        with pytest.raises(ValueError, match=f"takes {scheme.payload_bits} bits for each of 2"):
            scheme.embed(pictures(2, 64, 64), np.zeros((1, 3), np.bool_))
