"""What a user types, and what comes back."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import expunge
from expunge import names
from expunge.backbone.base import Backbone
from expunge.cli import errors, run
from expunge.settings import ARCHITECTURES

BUSY = 3
"""Times are told of a free machine; this one may be busy."""


def _fails(capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    assert run(tokens) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("expunge: ")
    assert captured.err.count("\n") == 1
    assert len(captured.err) < 700
    return captured.err


def _alone(*tokens: str) -> tuple[float, str, bool]:
    """Seconds, output and whether torch was loaded, in a process of its own."""
    code = (
        "import sys, expunge.cli; code = expunge.cli.run(sys.argv[1:]); "
        "print(int('torch' in sys.modules))"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", code, *tokens], capture_output=True, text=True, check=True
    )
    *lines, loaded = done.stdout.splitlines()
    return time.monotonic() - start, "\n".join(lines), bool(int(loaded))


def test_help_is_there_within_half_a_second_and_without_torch() -> None:
    seconds, shown, loaded = _alone("--help")
    assert seconds < 0.5 * BUSY
    assert not loaded
    for verb in ("erase", "draw", "audit", "report", "export", "verify", "list", "demo"):
        assert verb in shown


@pytest.mark.parametrize(
    "tokens",
    [
        ("erase", "--help"),
        ("erase", "--method", "trace", "--help"),
        ("audit", "--help"),
        ("list", "erasers"),
        ("list", "--json"),
    ],
)
def test_what_needs_no_model_takes_a_second_and_no_torch(tokens: tuple[str, ...]) -> None:
    seconds, shown, loaded = _alone(*tokens)
    assert seconds < 1 * BUSY
    assert shown and not loaded


VERBS = [
    *("erase", "draw", "audit", "bench", "report", "export", "verify", "list", "cite", "demo"),
    *("miniature train", "miniature show", "miniature check"),
    *("watermark bench", "watermark erased", "watermark train"),
]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*verb.split(), "--help"]) == 0
    assert f"expunge {verb}" in " ".join(capsys.readouterr().out.split())


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.strip() == expunge.__version__


@pytest.mark.parametrize("name", list(names.ERASERS))
def test_every_hyperparameter_is_an_option(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["erase", "--method", name, "--help"]) == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(names.find("eraser", name)):
        assert f"--{field.name.replace('_', '-')}" in shown


LONG = "x" * 100_000
EARLY: list[tuple[list[str], str]] = [
    (["erase"], "say what to erase"),
    (["erase", "cat", "--method", "trase"], "did you mean 'trace'"),
    (["erase", "cat", "--method", LONG], "no eraser"),
    (["erase", "cat", "--stesp", "3"], "--steps"),
    (["erase", "cat", f"--{LONG}", "3"], "Unknown option"),
    (["erase", "cat", "--steps", "0"], "steps must be at least 1"),
    (["erase", "cat", "--steps", "1.5"], "whole number"),
    (["erase", "cat", "--steps", LONG], "whole number"),
    (["erase", "cat", "--resolution", "0"], "resolution must be at least 16"),
    (["erase", "cat", "--lr", "1e308"], "lr must be a finite number"),
    (["erase", "cat", "--lr", "nan"], "lr must be a finite number"),
    (["erase", "cat", "--kind", "objet"], "did you mean 'object'"),
    (["erase", "cat", "--kind", "style"], "is of kind 'object' here"),
    (["erase", "cat", "--model", "minature-sd"], "did you mean 'miniature-sd'"),
    (["erase", "cat", "--model", "model.ckpt"], "pickle"),
    (["erase", "cat", "--model", LONG], "no model at"),
    (["erase", "cat", "--device", "gpu"], "device must be"),
    (["erase", "cat", "--device", "cpu", "--offload", "model"], "leave it out"),
    (["erase", "cat", "--quantize", "int8", "--dtype", "float16"], "bfloat16"),
    (["erase", " ", "--method", "uce"], "must not be empty"),
    (["erase", LONG], "at most 200 characters"),
    (["erase", "a child", "--kind", "explicit"], "must not name minors"),
    (["erase", "cat", "cat"], "twice"),
    (["erase", "cta"], "did you mean 'cat'"),
    (["erase", "cat", "--out", ""], "must name a file or a folder"),
    (["erase", "/abs/cat"], "is a path and no concept"),
    (["erase", "../../cat"], "is a path and no concept"),
    (["erase", ".."], "is a path and no concept"),
    (["erase", "cat", "--anchor", "a \udcff"], "broken Unicode"),
    (["erase", "cat", "dog", "--synonym", "kitten"], "--synonym is for one concept"),
    (["erase", "none.yaml"], "cannot be read"),
    (["erase", "none.csv", "cat"], "one file of concepts"),
    (["erase", "none.csv", "--kind", "style"], "leave --kind"),
    (["audti", "x"], "audit"),
    (["audit", "nowhere"], "no erasure in"),
    (["audit", "nowhere", "--prompts", "-1"], "prompts must be at least 1"),
    (["audit", "nowhere", "--prompts", "2.5"], "whole number"),
    (["audit", "nowhere", "--neighbours", "0"], "neighbours must be at least 1"),
    (["audit", "nowhere", "--strength", "nan"], "strength must be a finite number"),
    (["audit", "nowhere", "--strength", "inf"], "strength must be a finite number"),
    (["audit", "nowhere", "--strength", "1e308"], "strength must be at most 100"),
    (["report", "nowhere"], "no audit in"),
    (["verify", "nowhere.safetensors"], "no such file"),
    (["verify", "x.ckpt"], "pickle"),
    (["draw"], "say what to draw"),
    (["draw", " "], "say what to draw"),
    (["draw", "a cat", "--out", "x.xyz"], "out must end in .png"),
    (["draw", "a cat", "--seeds", "0"], "seeds must be at least 1"),
    (["draw", "a cat", "--guidance", "nan"], "guidance must be a finite number"),
    (["draw", "a cat", "--steps", "0"], "steps must be at least 1"),
    (["draw", "a cat", "--guard", "none-such"], "no guard 'none-such'"),
    (["draw", "a cat", "--erasure", "nowhere"], "no erasure in"),
    (["export", "nowhere", "--format", "kohja"], "kohya"),
    (["export", "nowhere"], "no erasure in"),
    (["export", "nowhere", "--rank", "0"], "rank must be at least 1"),
    (["list", "--model", "foo"], "no model at 'foo'"),
    (["list", "eraser"], "erasers"),
    (["bench", "object"], "did you mean 'objects'"),
    (["bench", "objects", "--methods", "ucee"], "did you mean 'uce'"),
    (["bench", "objects", "--methods", ""], "methods must name at least one"),
    (["bench", "objects", "--methods", "uce", "uce"], "is named twice"),
    (["bench", "objects", "--methods", "uce:ridge=0"], "ridge must be positive"),
    (["bench", "objects", "--concepts", "Mina Sorel"], "is of kind 'style' here, got 'object'"),
    (["bench", "styles", "--concepts", "cat"], "is of kind 'object' here, got 'style'"),
    (["bench", "objects", "--concepts", "cta"], "did you mean 'cat'"),
    (["bench", "objects", "--concepts", "cat", "cat"], "twice"),
    (["bench", "explicit", "--concepts", "a child"], "must not name minors"),
    (["bench", "objects", "--prompts", "0"], "prompts must be at least 1"),
    (["bench", "objects", "--prompts", "1.5"], "whole number"),
    (["bench", "objects", "--steps", "0"], "steps must be at least 1"),
    (["bench", "objects", "--judge", "clap"], "did you mean 'clip'"),
    (["bench", "objects", "--out", ""], "must name a file or a folder"),
    (["bench", "objects", "--model", "minature-sd"], "did you mean 'miniature-sd'"),
    (["cite", "nowhere"], "nothing to cite in nowhere"),
    (["watermark", "bench", "--schemes", "learnt"], "did you mean 'learned'"),
    (["watermark", "bench", "--edits", ""], "edits must name at least one"),
    (["watermark", "bench", "--edits", "none", "jpg:20"], "did you mean 'jpeg'"),
    (["watermark", "bench", "--images", "nowhere"], "no folder nowhere"),
    (["watermark", "bench", "--out", ""], "must name a file or a folder"),
    (["watermark", "bench", "--count", "-1"], "count must be at least 1"),
    (["watermark", "bench", "--count", "1.5"], "whole number"),
    (["watermark", "erased", "nowhere", "--edits", ""], "edits must name at least one"),
    (["watermark", "erased", "nowhere"], "no erasure in"),
]
LATE: list[tuple[list[str], str]] = [
    (["watermark", "bench", "--schemes", "dwtdctsvd"], "at least 256 x 256"),
    (["watermark", "bench", "--edits", "jpeg:0"], "quality from 1 to 95"),
    (["watermark", "train", "--out", "x", "--bits", "257"], "bits must lie"),
]
"""What only the thing itself can tell."""


@pytest.mark.parametrize(("tokens", "words"), [*EARLY, *LATE])
def test_bad_input_gets_one_sentence_and_writes_nothing(
    tokens: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in _fails(capsys, *tokens)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_told_within_a_second_and_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys, json, time, expunge.cli\n"
        "for tokens in json.load(sys.stdin):\n"
        "    start = time.monotonic()\n"
        "    assert expunge.cli.run(tokens) == 2, tokens\n"
        "    if 'torch' in sys.modules: sys.exit(f'torch was loaded: {tokens}')\n"
        "    if time.monotonic() - start > 3: sys.exit(f'slow: {tokens}')\n"
    )
    asked = json.dumps([tokens for tokens, _ in EARLY])
    done = subprocess.run(
        [sys.executable, "-c", code], input=asked, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr.splitlines()[-1]


def test_a_folder_that_cannot_be_written_is_found_out_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    for verb in (["erase", "cat", "--method", "uce"], ["watermark", "bench"]):
        assert "is a file" in _fails(capsys, *verb, "--out", str(tmp_path / "file" / "run"))


# --- errors of machine and files


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "--offload"),
        (MemoryError(), "--offload"),
        (AssertionError("Torch not compiled with CUDA enabled"), "--device cpu"),
        (RecursionError("maximum recursion depth exceeded"), "nested too deeply"),
        (OSError(28, "No space left on device", "x/y"), "no space is left"),
        (PermissionError(13, "Permission denied", "x/y"), "x/y: Permission denied"),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"), "UTF-8"),
        (ValueError("a\nb " + LONG), "a b xxx"),
    ],
)
def test_errors_of_the_machine_are_sentences(
    error: Exception,
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("expunge.cli.listing._things", fail)
    assert words in _fails(capsys, "list")


def test_errors_of_libraries_are_sentences() -> None:
    import torch
    from safetensors import SafetensorError

    for error in (SafetensorError("invalid header"), torch.linalg.LinAlgError("singular")):
        assert errors.sentence(error)


@pytest.mark.parametrize("error", [AttributeError("x"), KeyError("x"), RuntimeError("shapes")])
def test_our_own_faults_stay_tracebacks(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("expunge.cli.listing._things", fail)
    with pytest.raises(type(error)):
        run(["list"])


# --- stops


@pytest.mark.parametrize("kept", [True, False])
def test_a_stop_says_that_it_goes_on_only_where_something_was_kept(
    kept: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        if kept:
            (tmp_path / "out" / "units").mkdir(parents=True)
            (tmp_path / "out" / "units" / "a.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr("expunge.watermark.benchmark.bench", stop)
    sizes = ["--count", "1", "--unmarked", "0", "--schemes", "learned", "--edits", "none"]
    assert run(["watermark", "bench", "--out", str(tmp_path / "out"), *sizes]) == 130
    said = capsys.readouterr().err
    assert ("the same command goes on" in said) == kept
    assert ("nothing was kept" in said) != kept


def test_a_request_to_end_is_told_like_ctrl_c() -> None:
    code = (
        "import os, signal, sys, expunge.cli.listing as listing\n"
        "from expunge.cli import main\n"
        "listing._things = lambda: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.argv = ['expunge', 'list']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 130
    assert "stopped" in done.stderr and "Traceback" not in done.stderr


# --- lists


def test_list_prints_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["erasers"]) == set(names.ERASERS)
    for kind in ("attack", "guard", "judge", "scheme", "edit", "protocol"):
        assert set(found[f"{kind}s"]) == set(names.TABLES[kind])
    assert found["erasers"]["uce"]["kind"] == "closed form"
    assert "Gandikota" in found["erasers"]["uce"]["source"]
    for name, told in found["erasers"].items():
        assert {"name", "kind", "architectures", "needs", "exports", "source"} <= set(told)
        assert told["name"] == name and set(told["architectures"]) <= set(ARCHITECTURES)
    assert found["erasers"]["uce"]["architectures"] == list(ARCHITECTURES)
    assert {"lora", "kohya", "merged"} < set(found["erasers"]["uce"]["exports"])
    assert found["erasers"]["receler"]["exports"] == []
    assert found["concepts"]["cat"]["kind"] == "object"
    assert run(["list", "erasers", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"erasers"}


# --- the whole way


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """UCE on the bundled model, from shell to files."""
    out = tmp_path_factory.mktemp("runs") / "cat"
    before = os.times()
    subprocess.run(
        [sys.executable, "-m", "expunge", "erase", "cat", "--method", "uce", "--out", str(out)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    after = os.times()
    assert after.children_user - before.children_user < 10 * BUSY, "of a processor, not of a clock"
    return out


def test_the_command_line_and_python_make_the_same(run_folder: Path, backbone: Backbone) -> None:
    made = expunge.erase(backbone, "cat", "uce")
    record = json.loads((run_folder / "erasure.json").read_text())
    assert made.id == record["id"]
    assert made.record["preset"] == record["preset"] == "UCE on miniature-sd"
    plainer = expunge.erase(backbone, "cat", expunge.UCE())
    assert plainer.id != made.id and plainer.record["preset"] is None


def test_erase_says_how_to_use_what_it_made(
    run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["erase", "cat", "--method", "uce", "--out", str(run_folder)]) == 0
    said = capsys.readouterr().err
    assert "erased already" in said
    assert "import expunge" in said and f"next: expunge audit {run_folder}" in said


@pytest.mark.parametrize("other", [["dog"], ["cat", "--ridge", "0.3"], ["cat", "--no-preset"]])
def test_another_erasure_is_not_replaced(
    other: list[str], run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run_folder / "erasure.json").read_bytes()
    said = _fails(capsys, "erase", *other, "--method", "uce", "--out", str(run_folder))
    assert "holds another erasure" in said
    assert (run_folder / "erasure.json").read_bytes() == before


def test_force_replaces_all_that_belonged_to_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--method", "uce", "--no-preset", "--out", str(tmp_path / "run")]
    assert run(["erase", "cat", *out]) == 0
    (tmp_path / "run" / "log").mkdir()
    assert run(["erase", "dog", *out, "--force"]) == 0
    record = json.loads((tmp_path / "run" / "erasure.json").read_text())
    assert [concept["name"] for concept in record["concepts"]] == ["dog"]
    assert record["preset"] is None
    assert not (tmp_path / "run" / "log").exists()


def test_a_file_of_concepts_goes_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("gone.yaml").write_text("- cat\n- name: a/b\n  kind: style\n  synonyms: [c]\n")
    assert run(["erase", "gone.yaml", "--method", "uce", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [concept["name"] for concept in found["concepts"]] == ["cat", "a/b"]
    assert found["preset"] == "UCE on miniature-sd"
    assert Path(found["folder"]).parent == Path("runs"), "no name leads out of it"
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["runs"]


def test_the_whole_way(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompts", "4", "--neighbours", "1", "--unrelated", "1"]
    assert run(["audit", str(run_folder), *sizes, "--dry-run", "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["left"] == costs["pictures"] > 8 and costs["minutes"] > 0
    assert not (run_folder / "log").exists()
    assert run(["audit", str(run_folder), *sizes, "--json"]) == 0
    captured = capsys.readouterr()
    log = json.loads(captured.out)
    assert f"{costs['pictures']} pictures" in captured.err
    assert log["target"]["method"] == "UCE"
    assert run(["audit", str(run_folder), *sizes, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left"] == 0
    assert run(["report", str(run_folder)]) == 0
    assert (run_folder / "report.html").exists()
    assert run(["export", str(run_folder), "--format", "kohya"]) == 0
    capsys.readouterr()
    assert run(["verify", str(run_folder / "kohya_lora.safetensors"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["agree"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (["--judge", "clap"], "did you mean 'clip'"),
        (["--attacks", "plain"], "is always done"),
        (["--attacks", "plian"], "did you mean 'plain'"),
        (["--guard", "none-such"], "no guard"),
        (["--store", ""], "must name a file or a folder"),
        (["--model", "minature-sd"], "did you mean"),
    ],
)
def test_wrong_options_of_an_audit(
    option: list[str], words: str, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in _fails(capsys, "audit", str(run_folder), *option)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_draw_writes_a_grid(
    ending: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = tmp_path / "new" / f"grid.{ending}"
    few = ["--seeds", "2", "--steps", "2", "--guidance", "2"]
    words = " ".join(["very"] * 90)
    assert (
        run(["draw", f"{words} cat", "--erasure", str(run_folder), *few, "--out", str(grid)]) == 0
    )
    assert grid.stat().st_size > 0
    assert "reads the first 77" in capsys.readouterr().err


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


def test_tables_of_the_bench_fit_into_eighty_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    small = ["--count", "4", "--unmarked", "0", "--edits", "none", "regeneration:0.1"]
    assert run(["watermark", "bench", *small, "--out", str(tmp_path / "bench")]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for word in ("learned", "learned-vae", "regeneration 0.1", "bits", "detected", "dB"):
        assert word in shown


# --- Python


@pytest.mark.parametrize(
    ("eraser", "words"),
    [
        (expunge.UCE, r"make it: expunge.UCE\(\)"),
        ("ucee", "did you mean 'uce'"),
        ("uce:ridge=x", "must be a number"),
        (3, "eraser must be a name"),
    ],
)
def test_an_eraser_that_is_none_gets_one_sentence(eraser: Any, words: str, pipe: Any) -> None:
    with pytest.raises(ValueError, match=words):
        expunge.erase(pipe, "cat", eraser)


@pytest.mark.parametrize("concepts", [3, [3], {"cat": 1}])
def test_concepts_that_are_none_get_one_sentence(concepts: Any, pipe: Any) -> None:
    with pytest.raises(ValueError, match="concepts must be a name"):
        expunge.erase(pipe, concepts, "uce")


def test_only_public_names_are_shown() -> None:
    for name in dir(expunge):
        assert name == "__version__" or not name.startswith("_")
        assert getattr(expunge, name) is not None
    assert {"UCE", "TRACE", "Sizes", "Sampling", "erase", "audit", "load"} <= set(dir(expunge))
    with pytest.raises(AttributeError):
        expunge.nothing  # noqa: B018
