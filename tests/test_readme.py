"""The README's commands do what it says."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from expunge.cli import run

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def _python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo ran, once, small."""
    folder = tmp_path_factory.mktemp("readme")
    before = Path.cwd()
    os.chdir(folder)
    try:
        assert run(["demo", "--out", "runs/cat", "--prompts", "6", "--steps", "4"]) == 0
    finally:
        os.chdir(before)
    return folder


def test_the_demo_ends_with_a_report(folder: Path) -> None:
    page = (folder / "runs/cat/report.html").read_text()
    for name in ("cat", "dog", "car"):
        assert name in page
    assert "data:image/png;base64," in page


def test_every_command_of_the_table_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = re.findall(r"^\| \w+ \| `(expunge [^`]+)` \|", README, re.MULTILINE)
    assert len(commands) == 9
    monkeypatch.chdir(folder)
    small = {
        "erase": ["--method", "uce", "--out", "runs/other"],
        "audit": ["--prompts", "6", "--neighbours", "3", "--unrelated", "2"],
        "draw": ["--seeds", "2"],
        "bench": ["--methods", "uce", "--concepts", "cat", "--prompts", "1", "--steps", "2"],
        "watermark": ["--count", "4", "--unmarked", "20", "--edits", "none", "vae"],
    }
    for command in commands:
        verb, *rest = shlex.split(command)[1:]
        assert run([verb, *rest, *small.get(verb, [])]) == 0, command
    assert (folder / "grid.png").exists()


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(_python_blocks()[0], "README.md", "exec"), {})
    assert (tmp_path / "runs/cat/pytorch_lora_weights.safetensors").exists()


def test_the_second_example_names_things_that_exist() -> None:
    import expunge

    for name in re.findall(r"expunge\.(\w+)", README):
        assert hasattr(expunge, name), name


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target
