"""`expunge export` and `expunge verify`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from backbone.architectures import TINY
from formats.made import dense, erasure, loaded, low_rank, places

from expunge.cli.main import run


@pytest.fixture
def saved(pipe: Any, tmp_path: Path) -> Path:
    made = erasure(pipe, places(pipe, ("unet",), ("attn2.to_k",)), lambda m, g: low_rank(m, g, 6))
    return made.save(tmp_path / "run")


def test_an_erasure_is_exported_and_verified(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["verify", str(saved), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agree"]
    for format_ in ("kohya", "components"):
        assert run(["export", str(saved), "--format", format_]) == 0
        path = capsys.readouterr().err.strip().splitlines()[-1]
        assert run(["verify", path]) == 0
        assert "all other weights: as recorded" in capsys.readouterr().err


def test_a_smaller_rank_says_what_is_lost(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["export", str(saved), "--rank", "2"]) == 0
    said = capsys.readouterr().err
    assert "lost at rank 2: " in said and "% overall" in said
    path = said.strip().splitlines()[-1]
    assert path.endswith("pytorch_lora_weights_rank2.safetensors")
    assert run(["verify", path]) == 0


def test_whole_weights_name_the_two_ways(
    pipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = erasure(pipe, places(pipe, ("unet",), ("attn2.to_k",)), dense).save(tmp_path / "run")
    assert run(["export", str(saved)]) == 2
    said = capsys.readouterr().err
    assert "--rank 32" in said and "'full'" in said and said.count("\n") == 1
    assert run(["export", str(saved), "--format", "full"]) == 0
    path = capsys.readouterr().err.strip().splitlines()[-1]
    with pytest.raises(SystemExit, match="1"):
        run(["verify", path])
    assert "ComfyUI, Forge and A1111 will" in capsys.readouterr().err


def test_a_file_that_diffusers_drops_exits_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = loaded(TINY["flux_dev"], tmp_path / "base")
    made = erasure(pipe, places(pipe, ("transformer",), ("context_embedder",)))
    saved = made.save(tmp_path / "run")
    assert run(["export", str(saved), "--format", "kohya"]) == 0
    path = capsys.readouterr().err.strip().splitlines()[-1]
    with pytest.raises(SystemExit, match="1"):
        run(["verify", path])
    assert "ComfyUI, Forge and sd-scripts read it" in capsys.readouterr().err
