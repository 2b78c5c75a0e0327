"""What all judges share: what shown means, records, names, captions of CLIP."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from expunge.backbone.base import Backbone
from expunge.judge.base import Features, Images, Judge
from expunge.judge.choose import default_judge, from_record, judge, second_judge
from expunge.judge.clip import CLIPJudge, filled
from expunge.judge.miniature import WEIGHTS, MiniatureJudge
from expunge.judge.networks import build, save
from expunge.miniature.data import pictures

CLIP = WEIGHTS.parent / "clip"


class _Fixed(Judge):
    """Says what it is told to say."""

    name, version, threshold, hash = "fixed", "1", 0.7, "0"
    settings: Mapping[str, Any] = {}

    def __init__(self, scores: list[float], broken: list[float]) -> None:
        self.scores, self.bad = np.array(scores), np.array(broken)

    def knows(self, concept_name: str) -> bool:
        return True

    def score(self, images: Images, concept_name: str) -> np.ndarray:
        return self.scores

    def broken(self, images: Images) -> np.ndarray:
        return self.bad


def test_shown_is_a_score_at_the_threshold_in_a_picture_that_is_not_broken() -> None:
    fixed = _Fixed([0.7, 0.69, 1.0, 1.0, 0.9], [0.0, 0.0, 0.5, 0.49, 1.0])
    assert fixed.shown([], "cat").tolist() == [True, False, False, True, False]
    assert not isinstance(fixed, Features)


def test_a_score_that_is_no_number_never_reads_as_erased() -> None:
    assert _Fixed([float("nan")], [0.0]).shown([], "cat").tolist() == [True]
    assert _Fixed([0.9], [float("nan")]).shown([], "cat").tolist() == [True]


@pytest.mark.parametrize(
    "text",
    [
        "miniature-conv",
        "miniature-patch",
        f"clip:model={CLIP},labels=cat|dog,captions=a view, of nothing|a ball,template=an {{}}",
    ],
)
def test_a_judge_is_made_again_from_its_record(text: str) -> None:
    first = judge(text)
    record = first.record()
    assert set(record) == {"name", "version", "hash", "threshold", "settings"}
    again = from_record(record | {"threshold": 0.8})
    images = [Image.fromarray(pictures(1, 0).pixels[0].permute(1, 2, 0).numpy())]
    assert again.threshold == 0.8
    np.testing.assert_array_equal(first.score(images, "cat"), again.score(images, "cat"))


def test_a_record_of_another_judge_is_refused(tmp_path: Path) -> None:
    record = judge("miniature-conv").record()
    with pytest.raises(ValueError, match="now has hash"):
        from_record(record | {"hash": "0" * 64})
    with pytest.raises(ValueError, match="now has version"):
        from_record(record | {"version": "1"})
    with pytest.raises(ValueError, match="has a setting 'size'"):
        from_record(record | {"settings": {"size": 3}})
    torch.manual_seed(0)
    save(build("conv"), tmp_path / "conv.safetensors")
    own = MiniatureJudge.load("conv", tmp_path)
    assert from_record(own.record()).hash == own.hash != record["hash"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("miniature-con", "did you mean 'miniature-conv'"),
        ("nudenet", "expected one of miniature-conv"),
        ("clip:lables=cat|dog", "did you mean 'labels'"),
        ("clip:cat", "setting=value"),
        ("clip:labels=cat,labels=dog", "labels twice"),
        ("clip", "got neither"),
        ("miniature-conv:folder=/nowhere", "no judge at /nowhere"),
    ],
)
def test_names_that_do_not_exist_get_a_hint(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge(text)


def test_a_miniature_has_two_judges_of_different_make(backbone: Backbone) -> None:
    first, second = default_judge(backbone), second_judge(backbone)
    assert second is not None
    assert (first.name, second.name) == ("miniature-conv", "miniature-patch")


def test_captions_of_a_template_fit_the_name() -> None:
    template = "a photo of a {}"
    assert filled(template, "cat") == "a photo of a cat"
    assert filled(template, "airplane") == "a photo of an airplane"
    assert filled(template, "the moon") == "a photo of the moon"
    assert filled("a painting by {}", "Edvard Munch") == "a painting by Edvard Munch"
    assert filled("a {}, photographed", "apple") == "an apple, photographed"


def test_a_template_is_put_on_what_it_fits_alone() -> None:
    clip = CLIPJudge(
        ["Van Gogh", "Claude Monet"],
        ["a photo of a chair", "a photo"],
        CLIP,
        "a painting by {}",
    )
    assert clip.competing("van gogh")[0] == "a painting by van gogh"
    assert len(clip.competing("van gogh")) == 4
    assert clip.competing("chair")[0] == "a photo of a chair"
    assert sorted(clip.competing("chair")) == [
        "a painting by Claude Monet",
        "a painting by Van Gogh",
        "a photo",
        "a photo of a chair",
    ]
    assert not clip.knows("tree")
    with pytest.raises(ValueError, match="a whole caption"):
        clip.score([], "tree")
    usual = CLIPJudge(["dog"], model=CLIP)
    assert usual.competing("tree") == ["a photo of a tree", "a photo of a dog"]


def test_settings_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="a list of texts"):
        CLIPJudge("cat", model=CLIP)
    with pytest.raises(ValueError, match="one slot"):
        CLIPJudge(["cat"], model=CLIP, template="a photo")
    one, other = (CLIPJudge(["dog"], [text], CLIP) for text in ("a ball", "a box"))
    assert one.hash != other.hash


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    for name in ("config.json", "tokenizer.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((CLIP / name).read_bytes())
    torch.save(load_file(CLIP / "model.safetensors"), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickles .* are refused"):
        CLIPJudge(["cat"], model=tmp_path)
