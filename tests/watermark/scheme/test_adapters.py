"""Schemes of others: their codes, their files, and what is said where a package is missing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from watermark.scheme.stamps import pictures, stegastamp

from expunge.watermark.scheme.code import BCH, Bits
from expunge.watermark.scheme.stegastamp import StegaStamp
from expunge.watermark.scheme.trustmark import CAPACITY, TrustMark, TrustMarkCode

WORD = 56 + 35
"""Bits of StegaStamp's payload and parity; the other nine are always 0."""


def flipped(bits: Bits, places: list[int]) -> Bits:
    out = bits.copy()
    out[:, places] ^= True
    return out


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
    chance = stegastamp(tmp_path / "chance.onnx", ["image"], ["chance"], **single)
    return {
        "waves": StegaStamp(encoder=both, decoder=both),
        "torch": StegaStamp(encoder=change, decoder=logits),
        "single": StegaStamp(encoder=marked, decoder=chance),
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


def test_an_encoder_that_gives_the_change_is_asked_for_it(exports: dict[str, StegaStamp]) -> None:
    """The marked picture it gives as well has lost what was cut off."""
    white = torch.full((1, 3, 300, 300), 255, dtype=torch.uint8)
    payloads = exports["waves"].payloads([1])
    marked = exports["waves"].embed(white, payloads)
    assert torch.equal(marked, exports["torch"].embed(white, payloads))


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


def test_trustmarks_settings_are_of_its_lists() -> None:
    with pytest.raises(ValueError, match="variant must be one of"):
        TrustMark(variant="R")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ecc must be one of"):
        TrustMark(ecc="BCH_6")  # type: ignore[arg-type]
