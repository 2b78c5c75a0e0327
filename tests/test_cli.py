"""What a user types, and what comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expunge.cli import METHODS, run


def _fails(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    assert run(tokens) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("expunge: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_is_there_within_a_second_and_without_torch() -> None:
    code = "import sys, expunge.cli; expunge.cli.run(['--help']); print('torch' in sys.modules)"
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert time.monotonic() - start < 3, "1 s on a free machine; this one may be busy"
    assert done.stdout.splitlines()[-1] == "False"
    for verb in ("erase", "draw", "audit", "report", "export", "verify", "list", "demo"):
        assert verb in done.stdout


@pytest.mark.parametrize(
    "verb",
    [
        *("erase", "draw", "audit", "report", "export", "verify", "list", "demo"),
        *("miniature train", "miniature show", "miniature check"),
        *("watermark bench", "watermark erased", "watermark train"),
    ],
)
def test_every_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb.split(), "--help"]) == 0
    assert f"expunge {verb}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", list(METHODS))
def test_every_hyperparameter_is_an_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from expunge.cli import eraser_class

    assert run(["erase", "--method", name, "--help"]) == 0
    shown = capsys.readouterr().out
    for field in eraser_class(name).__dataclass_fields__:
        assert f"--{field.replace('_', '-')}" in shown


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["erase"], "say what to erase"),
        (["erase", "cat", "--method", "trase"], "did you mean 'trace'"),
        (["erase", "cat", "--stesp", "3"], "--steps"),
        (["erase", "cat", "--steps", "0"], "steps must be at least 1"),
        (["erase", "cat", "--kind", "objet"], "did you mean 'object'"),
        (["erase", "cat", "--model", "minature-sd"], "did you mean 'miniature-sd'"),
        (["erase", " ", "--method", "uce"], "must not be empty"),
        (["erase", "a child", "--kind", "explicit"], "must not name minors"),
        (["audti", "x"], "audit"),
        (["audit", "nowhere"], "no erasure in"),
        (["report", "nowhere"], "no audit in"),
        (["verify", "nowhere.safetensors"], "no such file"),
        (["verify", "x.ckpt"], "pickle"),
        (["draw"], "say what to draw"),
        (["export", "nowhere", "--format", "kohja"], "kohya"),
        (["watermark", "bench", "--schemes", "learnt"], "did you mean 'learned'"),
        (["watermark", "bench", "--schemes", "dwtdctsvd"], "at least 256 x 256"),
        (["watermark", "bench", "--edits", "jpeg:0"], "quality from 1 to 95"),
        (["watermark", "bench", "--images", "nowhere"], "no folder nowhere"),
        (["watermark", "bench", "--count", "-1"], "count must be at least 1"),
        (["watermark", "erased", "nowhere"], "no erasure in"),
        (["watermark", "train", "--out", "x", "--bits", "0"], "bits must lie"),
    ],
)
def test_bad_input_gets_one_sentence(
    tokens: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in _fails(capsys, *tokens)
    assert not list(tmp_path.iterdir())


def test_a_read_only_folder_is_found_out_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    out = str(tmp_path / "file" / "run")
    assert "cannot be written" in _fails(capsys, "erase", "cat", "--method", "uce", "--out", out)


def test_the_bench_prints_one_json_object(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    small = ["--count", "8", "--unmarked", "50", "--json"]
    assert run(["watermark", "bench", "--edits", "none,jpeg:30", "vae", "guided:0", *small]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == "expunge.watermark/1"
    assert [cell["edit"] for cell in found["cells"]] == ["none", "jpeg", "vae", "guided"] * 2
    for cell in found["cells"]:
        assert cell["n"] == 8
        assert 0 <= cell["ci"][0] <= cell["bit_accuracy"] <= cell["ci"][1] <= 1
        assert {"payload_rate", "detection_rate", "psnr", "level"} <= set(cell)
    assert {"code", "text"} <= set(found["flags"][0])
    assert run(["report", "runs/watermark"]) == 0
    assert (tmp_path / "runs/watermark/report.html").exists()


def test_list_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["methods"]) == {"uce", "esd", "trace"}
    assert found["concepts"]["cat"] == "object"


def test_ctrl_c_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, run_folder: Path
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("expunge.auditing.audit", stop)
    assert run(["audit", str(run_folder)]) == 130
    assert "the same command" in capsys.readouterr().err


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UCE on the bundled model, from shell to files."""
    out = tmp_path_factory.mktemp("runs") / "cat"
    start = time.monotonic()
    subprocess.run(
        [sys.executable, "-m", "expunge", "erase", "cat", "--method", "uce", "--out", str(out)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert time.monotonic() - start < 30, "10 s on a free machine; this one may be busy"
    return out


def test_the_whole_way(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompts", "4", "--neighbours", "1", "--unrelated", "1"]
    assert run(["audit", str(run_folder), *sizes, "--json"]) == 0
    log = json.loads(capsys.readouterr().out)
    assert log["schema"] == "expunge.audit/2"
    assert log["target"]["method"] == "UCE"
    assert run(["report", str(run_folder)]) == 0
    assert (run_folder / "report.html").exists()
    assert run(["export", str(run_folder), "--format", "kohya"]) == 0
    capsys.readouterr()
    assert run(["verify", str(run_folder / "kohya_lora.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agree"]
    grid = run_folder / "grid.png"
    erased = ["--erasure", str(run_folder), "--seeds", "2", "--out", str(grid)]
    assert run(["draw", "a photo of a cat", *erased]) == 0
    assert grid.exists()
