"""Pictures from folders: what is read, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from expunge.prompts import split_of
from expunge.watermark import pictures


def _noise(mode: str, size: int = 64) -> Image.Image:
    rng = np.random.default_rng(0)
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size, size) if channels == 1 else (size, size, channels)
    return Image.fromarray(rng.integers(0, 256, shape, np.uint8), mode)


def _deep_color(path: Path) -> None:
    """A PNG of 16-bit RGB, which Pillow reads but cannot write."""
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        checked = kind + data
        return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0)
    rows = b"".join(b"\0" + bytes(64 * 6) for _ in range(64))
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def test_a_caption_that_is_no_text_is_named(tmp_path: Path) -> None:
    _noise("RGB").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"a\.txt is no UTF-8"):
        pictures.folder(tmp_path)


def test_a_folder_is_read_in_the_order_of_names(tmp_path: Path) -> None:
    _noise("RGB").save(tmp_path / "b.png")
    _noise("L", 80).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a grey thing\n")
    (tmp_path / "notes.md").write_text("not a picture")
    first, second = pictures.folder(tmp_path)
    assert (first.name, first.size, first.caption) == ("a.png", (80, 80), "a grey thing")
    assert (second.name, second.caption) == ("b.png", "")
    assert torch.equal(
        second.load(), torch.from_numpy(np.asarray(_noise("RGB")).copy()).permute(2, 0, 1)
    )
    assert first.seed != second.seed


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("alpha.png", lambda p: _noise("RGBA").save(p), "alpha channel"),
        ("grey-alpha.png", lambda p: _noise("LA").save(p), "alpha channel"),
        ("cmyk.jpg", lambda p: _noise("CMYK").save(p), "colour space CMYK"),
        (
            "deep.png",
            lambda p: Image.fromarray(np.full((64, 64), 40000, np.uint16)).save(p),
            "more than 8 bits",
        ),
        ("deep-color.png", _deep_color, "more than 8 bits"),
        ("text.png", lambda p: p.write_text("no picture"), "cannot be read"),
        (
            "cut.png",
            lambda p: (_noise("RGB").save(p), p.write_bytes(p.read_bytes()[:5000])),
            "cannot be read",
        ),
    ],
)
def test_what_would_have_to_be_changed_first_is_refused(
    tmp_path: Path, name: str, make: object, words: str
) -> None:
    _noise("RGB").save(tmp_path / "good.png")
    make(tmp_path / name)  # type: ignore[operator]
    with pytest.raises(ValueError, match=words) as caught:
        pictures.folder(tmp_path)
    assert name in str(caught.value)


def test_no_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no picture in"):
        pictures.folder(tmp_path)
    with pytest.raises(ValueError, match="no folder"):
        pictures.folder(tmp_path / "nowhere")


def test_the_world_is_held_out_and_always_the_same() -> None:
    first, again = pictures.world(6), pictures.world(6)
    assert [host.digest for host in first] == [host.digest for host in again]
    assert all(split_of(host.caption) == "test" for host in first)
    assert pictures.world(2, first=4)[0].digest == first[4].digest
    assert pictures.world(1, size=128)[0].size == (128, 128)


def test_batches_hold_pictures_of_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [*pictures.world(5), *pictures.world(3, size=128)]
    monkeypatch.setattr(pictures, "BATCH", 2)
    found = list(pictures.batches(hosts, None))
    assert [len(batch.hosts) for batch in found] == [2, 2, 1, 2, 1]
    assert found[3].load().pixels.shape == (2, 3, 128, 128)
    monkeypatch.setattr(pictures, "PIXELS", 128 * 128)
    assert [len(b.hosts) for b in pictures.batches(hosts, None)] == [2, 2, 1, 1, 1, 1]
