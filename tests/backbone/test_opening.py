"""Opening a model: every mistake gets one sentence, and what was opened can be opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from backbone.architectures import TINY
from safetensors.torch import save_file

import expunge
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.memory import memory_advice
from expunge.layouts import single_file_tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tiny")
    TINY["sd"]().save_pretrained(found)
    return found


@pytest.mark.parametrize(
    ("device", "words"),
    [("cuda:99", r"device 'cuda:99' is not there: this torch finds cpu"), ("gpu", "got 'gpu'")],
)
def test_a_device_that_is_not_there_gets_one_sentence(device: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        expunge.load("miniature-sd", device=device)
    assert "\n" not in str(caught.value)


def test_a_folder_of_one_variant_is_opened(folder: Path, tmp_path: Path) -> None:
    TINY["sd"]().save_pretrained(tmp_path, variant="fp16")
    assert not (tmp_path / "unet" / "diffusion_pytorch_model.safetensors").exists()
    opened = as_backbone(expunge.load(tmp_path, device="cpu"))
    assert opened.content_hash() == as_backbone(expunge.load(folder, device="cpu")).content_hash()
    assert opened.source == {"model": str(tmp_path)}


def test_a_folder_of_pickles_is_refused(folder: Path, tmp_path: Path) -> None:
    TINY["sd"]().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(ValueError, match=r"only as pickles .*find a copy with safetensors"):
        expunge.load(tmp_path, device="cpu")


def test_a_single_file_can_be_opened_again(pipe: Any, backbone: Backbone, tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(single_file_tensors(pipe), path)
    with pytest.raises(ValueError, match=r"say config=… .a bundled"):
        expunge.load(path, device="cpu")
    opened = as_backbone(expunge.load(path, config="miniature-sd", device="cpu"))
    assert opened.source == {"model": str(path), "config": "miniature-sd"}
    again = as_backbone(expunge.load(opened.source["model"], config=opened.source["config"]))
    assert again.sketch() == opened.sketch() == backbone.sketch()
    assert opened.name == "mine.safetensors"
    assert opened.profile == backbone.profile


def test_running_out_of_memory_says_what_to_do() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        MemoryError(),
    ):
        with pytest.raises(MemoryError, match="fewer pictures") as caught, memory_advice():
            raise error
        assert "\n" not in str(caught.value) and caught.value.__cause__ is error
    with pytest.raises(RuntimeError, match="shapes"), memory_advice():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
