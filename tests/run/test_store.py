from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from expunge.run.digest import digest
from expunge.run.store import Store, StoreError

leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.text()
    | st.floats(allow_nan=False).filter(np.isfinite)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
records = st.dictionaries(st.text(), values, max_size=5)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "log")


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow past 16 bytes: the operating system itself refuses the write."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        yield
    finally:  # before the test ends: pytest's own output may go to a file
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(8, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def files(store: Store) -> list[str]:
    return sorted(
        str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if path.is_file()
    )


SPEC = {"job": "a"}
UNIT = digest(SPEC)


@settings(deadline=None, max_examples=30)  # every example waits for the disk twice
@given(records)
def test_what_is_put_is_got(record: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store, unit = Store(Path(folder)), digest(record)
        assert store.get(unit) is None
        store.put(record, record)
        assert store.put(record, record) == record
        assert store.get(unit) == record
        assert files(store) == [f"units/{unit}.json"]


@given(records)
def test_a_digest_ignores_the_order_of_keys(spec: dict[str, Any]) -> None:
    unit = digest(spec)
    assert unit == digest(dict(reversed(spec.items())))
    assert len(unit) == 32
    assert set(unit) <= set("0123456789abcdef")


@given(records, records)
def test_different_specs_have_different_digests(one: dict[str, Any], two: dict[str, Any]) -> None:
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (digest(one) == digest(two)) == same


def test_a_digest_is_what_it_always_was() -> None:
    canonical = b'{"prompts":["a photo of a caf\\u00e9"],"seed":7,"strength":1.0}'
    spec = {"strength": np.float32(1), "seed": np.int64(7), "prompts": ("a photo of a café",)}
    assert digest(spec) == hashlib.sha256(canonical).hexdigest()[:32]


def test_a_digest_is_that_of_what_is_read_again() -> None:
    spec = {1: "a", 10: "b", 2: ("c",)}
    assert digest(spec) == digest(json.loads(json.dumps(spec)))


def test_what_nests_too_deep_has_no_digest() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError, match="spec must hold only"):
        digest(deep, "spec")


def test_once_is_once(store: Store) -> None:
    calls: list[int] = []

    def work() -> dict[str, Any]:
        calls.append(1)
        return {"image": store.put_image(picture(0))}

    first = store.once(SPEC, work)
    assert store.once(SPEC, work) == first == store.get(UNIT)
    assert calls == [1]


@pytest.mark.parametrize("harm", ["deleted", "cut", "empty"])
def test_a_unit_whose_picture_is_gone_or_damaged_is_done_again(store: Store, harm: str) -> None:
    def work() -> dict[str, Any]:
        return {"rows": [["text", store.put_image(picture(0))]]}

    name = store.once(SPEC, work)["rows"][0][1]
    file = store.folder / name
    whole = file.read_bytes()
    if harm == "deleted":
        file.unlink()
    else:
        file.write_bytes(whole[:-20] if harm == "cut" else b"")
    assert store.get(UNIT) is None
    assert not store.intact([name])
    store.once(SPEC, work)
    assert file.read_bytes() == whole
    assert store.intact([name])


def test_numbers_are_plain(store: Store) -> None:
    numbers = {"score": np.float32(0.25), "k": np.int64(3), "broken": np.bool_(True)}
    assert store.put(SPEC, numbers) == {"score": 0.25, "k": 3, "broken": True}
    text = (store.folder / "units" / f"{UNIT}.json").read_text()
    assert json.loads(text)["record"] == {"score": 0.25, "k": 3, "broken": True}
    assert json.loads(text)["spec"] == SPEC


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, np.zeros(2), Path("x")])
def test_what_json_cannot_express(store: Store, value: object) -> None:
    with pytest.raises(ValueError, match="record must hold only"):
        store.put(SPEC, {"value": value})
    with pytest.raises(ValueError, match="spec must hold only"):
        store.put({"value": value}, {})
    assert store.get(UNIT) is None


def _whole(**changes: Any) -> bytes:
    record = changes.get("record", {"score": 0.5})
    said = digest([{"score": 0.5}, {}])
    kept = {"spec": SPEC, "made_from": {}, "record": record, "digest": said, **changes}
    return json.dumps(kept).encode()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"k": 3, "n"',
        b"\xff\xfe",
        b"[1, 2]",
        b"7",
        b"[" * 100_000,
        _whole(spec={"job": "b"}),
        _whole(record={"score": 0.25}),
        _whole(record={"score": float("nan")}),
        _whole(record={"score": 0.5, "more": 1}),
        _whole(made_from={"a": "b"}),
        _whole(record=7, digest=digest([7, {}])),
        _whole().replace(b"0.5", b"1e999"),
        _whole(digest=None),
    ],
)
def test_damaged_record(store: Store, content: bytes) -> None:
    store.put(SPEC, {"score": 0.5})
    (store.folder / "units" / f"{UNIT}.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"units/\w+\.json is damaged .* delete it"):
        store.get(UNIT)


def test_the_file_in_the_test_of_damage_is_good(store: Store) -> None:
    store.check_writable()
    (store.folder / "units" / f"{UNIT}.json").write_bytes(_whole())
    assert store.get(UNIT) == {"score": 0.5}


def test_a_unit_made_from_other_records_is_not_done(store: Store) -> None:
    store.put(SPEC, {"score": 0.5}, {"x": "1"})
    assert store.get(UNIT) == store.get(UNIT, {"x": "1"}) == {"score": 0.5}
    assert store.get(UNIT, {"x": "2"}) is None
    assert store.get(UNIT, {}) is None


def test_a_unit_under_another_name_is_damaged(store: Store) -> None:
    store.put(SPEC, {"score": 0.5})
    other = digest({"job": "b"})
    path = store.folder / "units" / f"{UNIT}.json"
    path.rename(path.with_name(f"{other}.json"))
    with pytest.raises(StoreError, match="does not match its name"):
        store.get(other)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_images_are_named_by_content(store: Store, mode: str) -> None:
    image = picture(0, mode)
    name = store.put_image(image)
    file = store.folder / name
    assert name == f"images/{hashlib.sha256(file.read_bytes()).hexdigest()[:32]}.png"
    assert store.image(name).mode == mode
    assert np.array_equal(np.asarray(store.image(name)), np.asarray(image))


def test_an_image_is_written_once(store: Store) -> None:
    name = store.put_image(picture(0))
    written = (store.folder / name).stat()
    assert store.put_image(picture(0)) == name
    assert (store.folder / name).stat() == written
    assert store.put_image(picture(1)) != name
    assert len(files(store)) == 2


def test_damaged_or_missing_image(store: Store) -> None:
    name = store.put_image(picture(0))
    file = store.folder / name
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(StoreError, match="is damaged"):
        store.image(name)
    file.unlink()
    with pytest.raises(StoreError, match="cannot be read"):
        store.image(name)


@pytest.mark.parametrize("path", ["../../etc/passwd", "images/x.png", "/etc/passwd", ""])
def test_only_images_of_the_store_are_read(store: Store, path: str) -> None:
    with pytest.raises(StoreError, match="is no image of a store"):
        store.image(path)


def test_check_writable_leaves_nothing_behind(store: Store) -> None:
    store.check_writable()
    store.check_writable()
    assert files(store) == []


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "log"):
        with pytest.raises(StoreError, match="cannot be written"):
            Store(folder).check_writable()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        Store(tmp_path).check_writable()


def test_full_disk(store: Store) -> None:
    with full_disk():
        with pytest.raises(StoreError, match="free space"):
            store.check_writable()
        with pytest.raises(StoreError, match="free space"):
            store.put(SPEC, {"text": "longer than what still fits"})
        with pytest.raises(StoreError, match="free space"):
            store.put_image(picture(0))
    assert files(store) == []
    assert store.get(UNIT) is None


def test_a_failed_write_keeps_what_was_there(store: Store) -> None:
    store.put(SPEC, {"k": 1})
    with full_disk(), pytest.raises(StoreError, match="cannot be written"):
        store.put(SPEC, {"k": 1, "text": "longer than what still fits"})
    assert store.get(UNIT) == {"k": 1}
