from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from expunge.auditing.text import Sizes, plan

import expunge
from expunge.auditing import Log
from expunge.backbone.base import Backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Concept
from expunge.erasure import Erasure
from expunge.judge.base import Judge
from expunge.prompts import split_of
from expunge.run.store import StoreError

SIZES = Sizes(target=6, neighbour=2, unrelated=2)
SAMPLING = Sampling(num_inference_steps=2, guidance_scale=3.0, height=64, width=64, batch_size=4)


def _audit(pipe: Any, erasure: Erasure, folder: Path, **options: Any) -> Log:
    return expunge.audit(pipe, erasure, sizes=SIZES, sampling=SAMPLING, folder=folder, **options)


@pytest.mark.usefixtures("untouched")
def test_the_log_says_what_the_issue_asks(pipe: Any, erasure: Erasure, tmp_path: Path) -> None:
    log = _audit(pipe, erasure, tmp_path)
    data = log.summary()
    assert json.loads(json.dumps(data)) == data
    assert data["schema"] == "expunge.audit/2"
    assert data["target"]["concepts"] == ["cat"]
    for cell in data["cells"]:
        assert cell["rate"] == cell["k"] / cell["n"]
        assert 0 <= cell["ci"][0] <= cell["rate"] <= cell["ci"][1] <= 1
    seen = {(cell["probe"], cell["concept"], cell["role"]) for cell in data["cells"]}
    assert {("plain", "cat", "target"), ("synonym", "cat", "target")} < seen
    assert {("plain", "dog", "neighbour"), ("plain", "ship", "unrelated")} < seen
    assert {flag["code"] for flag in data["flags"]} >= {"few-prompts", "no-frechet"}
    assert Log.load(tmp_path) == log


def test_both_sides_have_the_same_prompts_and_seeds(
    pipe: Any, backbone: Backbone, erasure: Erasure, tmp_path: Path
) -> None:
    sample = _audit(pipe, erasure, tmp_path).samples[0]
    store = Log.load(tmp_path).store
    original = _open(store / sample.pictures["original"].image)
    with backbone.exact():
        again = backbone.draw([sample.prompt], [sample.seed], SAMPLING)[0]
    assert np.abs(original - np.asarray(again, float)).mean() < 4
    with erasure.applied(backbone), backbone.exact():
        after = backbone.draw([sample.prompt], [sample.seed], SAMPLING)[0]
    erased = _open(store / sample.pictures["erased"].image)
    assert np.abs(erased - np.asarray(after, float)).mean() < 4
    assert np.abs(original - erased).mean() > 4


def _open(path: Path) -> np.ndarray:
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image, float)


class _Stopping(Judge):
    """The bundled judge, which is interrupted after so many pictures."""

    def __init__(self, inner: Judge, after: int) -> None:
        self.inner, self.left = inner, after
        self.name, self.version, self.threshold = inner.name, inner.version, inner.threshold

    @property
    def hash(self) -> str:
        return self.inner.hash

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.inner.settings

    def knows(self, concept_name: str) -> bool:
        return self.inner.knows(concept_name)

    def score(self, images: Any, concept_name: str) -> np.ndarray:
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt
        return self.inner.score(images, concept_name)

    def broken(self, images: Any) -> np.ndarray:
        return self.inner.broken(images)


@pytest.mark.usefixtures("untouched")
def test_a_killed_audit_resumes(
    pipe: Any, erasure: Erasure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.judge.miniature import MiniatureJudge

    judge = MiniatureJudge.load("conv")
    with pytest.raises(KeyboardInterrupt):
        _audit(pipe, erasure, tmp_path / "a", judge=_Stopping(judge, 5))
    kept = {path.name for path in (tmp_path / "a" / "units").iterdir()}
    assert kept
    assert not (tmp_path / "a" / "audit.json").exists()
    resumed = _audit(pipe, erasure, tmp_path / "a", judge=judge)
    fresh = _audit(pipe, erasure, tmp_path / "b", judge=judge)
    assert resumed.cells == fresh.cells
    assert resumed.samples == fresh.samples

    def no_drawing(*_: object, **__: object) -> None:
        raise AssertionError("an audit that is done draws nothing")

    monkeypatch.setattr(Backbone, "draw", no_drawing)
    assert _audit(pipe, erasure, tmp_path / "a").cells == fresh.cells


def test_the_hazard_is_also_asked_for_without_its_name(backbone: Backbone) -> None:
    hazard = backbone.profile.vocabulary.resolve("hazard")
    groups = plan(backbone, [hazard], SIZES, "test")
    implied = [group for group in groups if group.probe == "implied"]
    assert len(implied) == 1
    assert not any("hazard" in prompt.text for prompt in implied[0].prompts)
    roles = {group.concept: group.role for group in groups}
    assert roles["parking sign"] == "neighbour"


def test_an_erased_neighbour_is_no_damage(backbone: Backbone) -> None:
    concepts = [backbone.profile.vocabulary.resolve(name) for name in ("cat", "dog")]
    groups = plan(backbone, concepts, SIZES, "test")
    assert {group.role for group in groups if group.concept == "dog"} == {"target"}


def test_bad_requests_get_one_sentence_before_any_drawing(
    pipe: Any, backbone: Backbone, erasure: Erasure, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Backbone, "draw", lambda *_: pytest.fail("drew"))
    with pytest.raises(ValueError, match="at least 1 prompt"):
        Sizes(target=0)
    outside = next(f"z{i} {{}}" for i in range(99) if split_of(f"z{i} cat") != "test")
    with pytest.raises(ValueError, match="no test prompt contains 'cat'"):
        plan(backbone, [Concept("cat", templates=(outside,))], SIZES, "test")
    unknown = Erasure(
        [type(erasure.parts[0])(Concept("wombat"), erasure.parts[0].closed)], erasure.record
    )
    with pytest.raises(ValueError, match="does not know"):
        _audit(pipe, unknown, tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        _audit(pipe, erasure, tmp_path / "file")


def test_a_log_from_a_newer_schema_is_refused(tmp_path: Path) -> None:
    (tmp_path / "audit.json").write_text(json.dumps({"schema": "expunge.audit/3"}))
    with pytest.raises(ValueError, match="upgrade Expunge"):
        Log.load(tmp_path)
    (tmp_path / "audit.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        Log.load(tmp_path)
    with pytest.raises(ValueError, match="no audit in"):
        Log.load(tmp_path / "nowhere")


def test_the_report_is_made_of_the_log_alone(pipe: Any, erasure: Erasure, tmp_path: Path) -> None:
    _audit(pipe, erasure, tmp_path)
    page = Log.load(tmp_path).report(tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "cat" in page


def test_enough_benign_pictures_give_frechet_distances(
    pipe: Any, erasure: Erasure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.auditing.text.FRECHET_IMAGES", 10)
    distances = _audit(pipe, erasure, tmp_path).frechet
    assert distances is not None
    assert distances.n == 18
    assert distances.benign_erased > 0
    assert distances.benign_original_reseeded > 0
    assert _audit(pipe, erasure, tmp_path, frechet=False).frechet is None
