from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expunge.run.files import check_writable, write_atomically, write_text


def _save(path: Path) -> None:
    save_file({"a": torch.ones(1000)}, path)


@pytest.mark.skipif(os.name == "nt", reason="permissions of another kind")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_files_get_the_permissions_of_the_users_mask(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "text.json", "{}")
        write_atomically(tmp_path / "weights.safetensors", _save)
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == mode


def test_two_threads_may_write_one_file(tmp_path: Path) -> None:
    names: list[str] = []
    together = threading.Barrier(2, timeout=5)

    def write(temporary: Path) -> None:
        names.append(temporary.name)
        together.wait()
        temporary.write_text(temporary.name)
        together.wait()

    target = tmp_path / "same.json"
    threads = [threading.Thread(target=write_atomically, args=(target, write)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 2
    assert target.read_text() in names
    assert list(tmp_path.iterdir()) == [target]


def test_a_full_disk_is_one_sentence_for_weights_too(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16, before[1]))
    try:
        with pytest.raises(OSError, match=r"a\.safetensors cannot be written .*; free space"):
            write_atomically(tmp_path / "a.safetensors", _save)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_way_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "x"):
        with pytest.raises(OSError, match=r"cannot be written .*; free space"):
            write_text(path, "text")


def test_what_killed_runs_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    left: list[Path] = []

    def killed(temporary: Path) -> None:
        left.append(temporary.with_name(temporary.name))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_atomically(tmp_path / "unit.json", killed)
    old = left[0]
    others = [tmp_path / ".mine.partial", tmp_path / "unit.json", tmp_path / f"x{old.name}"]
    for path in (old, *others):
        path.write_text("")
    hour_ago = time.time() - 3700
    for path in (old, *others):
        os.utime(path, (hour_ago, hour_ago))
    fresh = old.with_name(f".y{old.name[1:]}")
    fresh.write_text("")
    check_writable(tmp_path)
    assert not old.exists()
    assert all(path.exists() for path in (fresh, *others))
