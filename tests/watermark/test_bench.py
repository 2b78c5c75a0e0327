"""The bench: figures, resuming, what it refuses, and both layers at once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from expunge import UCE
from expunge.backbone.base import Backbone
from expunge.concept import Concept
from expunge.erasure import Erasure
from expunge.measure.quality import psnr
from expunge.watermark import bench, layers, names, pictures
from expunge.watermark.log import SCHEMA, WatermarkLog
from expunge.watermark.runner import at_psnr
from expunge.watermark.scheme.learned import Learned

KEYS = ("scheme", "edit", "level", "n", "bit_accuracy", "ci", "payload_rate", "detection_rate")
LIGHT = ["none", "jpeg", "crop", "noise"]


def _edits(*texts: str) -> list[Any]:
    return [names.edit(text) for text in texts]


def _run(folder: Path, edits: Sequence[str] = LIGHT, count: int = 30, **more: Any) -> WatermarkLog:
    return bench([Learned()], _edits(*edits), pictures.world(count), folder=folder, **more)


def test_every_cell_has_its_figures(tmp_path: Path) -> None:
    log = _run(tmp_path, unmarked=pictures.world(60, first=10**6))
    assert log.data["schema"] == SCHEMA
    assert [cell["edit"] for cell in log.data["cells"]] == LIGHT
    for cell in log.data["cells"]:
        assert all(cell[key] is not None for key in KEYS if key != "level")
        assert cell["ci"][0] <= cell["bit_accuracy"] <= cell["ci"][1]
        assert cell["advantage"] == pytest.approx(2 * cell["bit_accuracy"] - 1)
        parts = ("payload_rate", "wrong_payload_rate", "declared_failure_rate")
        assert sum(cell[part] for part in parts) == pytest.approx(1)
        assert cell["n"] == 30
    clean, noisy = log.cell("learned", "none"), log.cell("learned", "noise")
    assert clean["bit_accuracy"] > 0.99 and clean["psnr"] == 100
    assert noisy["level"] == pytest.approx(10 / 255)
    assert noisy["psnr"] == pytest.approx(28.1, abs=0.5), "noise of 10 of 255 lies at 28.1 dB"
    [unmarked] = log.data["unmarked"]
    assert unmarked["n"] == 60 and unmarked["keys"] == 1000
    assert json.loads(json.dumps(log.summary())) == log.summary()


def test_a_run_again_does_nothing_and_a_broken_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(tmp_path / "whole", ["none", "jpeg", "blur"])
    edit = names.edit("blur")

    def stop(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(type(edit), "__call__", stop)
        with pytest.raises(KeyboardInterrupt):
            _run(tmp_path / "part", ["none", "jpeg", "blur"])
    assert len(list((tmp_path / "part/units").iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(type(names.edit("jpeg")), "distort", stop)
        rest = _run(tmp_path / "part", ["none", "jpeg", "blur"])
        patch.setattr(Learned, "_embed", stop)
        again = _run(tmp_path / "part", ["none", "jpeg", "blur"])
    assert whole.data["cells"] == rest.data["cells"] == again.data["cells"]


def test_a_batch_means_what_its_pictures_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _run(tmp_path / "a").data["cells"]
    monkeypatch.setattr("expunge.watermark.pictures.BATCH", 7)
    parts = _run(tmp_path / "b").data["cells"]
    for one, other in zip(whole, parts, strict=True):
        assert one["bit_accuracy"] == other["bit_accuracy"]
        assert one["psnr"] == pytest.approx(other["psnr"])


def test_scaling_brings_every_scheme_to_one_distance(tmp_path: Path) -> None:
    pixels = torch.stack([host.load() for host in pictures.world(4)])
    marked = Learned(psnr=30.0).embed(pixels, Learned().payloads([1, 2, 3, 4]))
    assert psnr(at_psnr(pixels, marked, 38.0), pixels) == pytest.approx([38] * 4, abs=0.4)
    log = _run(tmp_path, ["none"], psnr=40.0)
    assert log.cell("learned", "none")["quality"]["original_marked"]["psnr"] == pytest.approx(
        40, abs=0.5
    )


def test_pictures_of_many_sizes_from_a_folder(tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for number, (height, width) in enumerate([(64, 64), (90, 120), (90, 120), (200, 70)]):
        smooth = Image.fromarray(rng.integers(0, 255, (6, 6, 3), np.uint8)).resize((width, height))
        smooth.save(tmp_path / f"{number}.png")
    log = bench([Learned()], _edits("none"), pictures.folder(tmp_path), folder=tmp_path / "out")
    assert log.cell("learned", "none")["n"] == 4
    assert {(s["height"], s["width"]) for s in log.data["pictures"]["sizes"]} == {
        (64, 64),
        (90, 120),
        (200, 70),
    }


@pytest.mark.parametrize(
    ("schemes", "edits", "count", "words"),
    [
        ([], ["none"], 2, "schemes must not be empty"),
        (["learned"], [], 2, "edits must not be empty"),
        (["learned"], ["none"], 0, "pictures must not be empty"),
        (["learned", "learned"], ["none"], 2, "learned is named twice"),
        (["learned"], ["jpeg", "jpeg:50"], 2, "jpeg 50.0 is named twice"),
        (["dwtdctsvd"], ["none"], 2, "at least 256 x 256"),
        (["learned"], ["vae"], 2, "name one with --model"),
        (["tree-ring"], ["none"], 2, "name one with --model"),
        (["dwtdct:bits=8"], ["none"], 2, "at least 256 x 256"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    tmp_path: Path, schemes: list[str], edits: list[str], count: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        bench(
            [names.scheme(text) for text in schemes],
            _edits(*edits),
            pictures.world(count),
            folder=tmp_path / "out",
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"psnr": float("nan")}, "psnr must lie between 10 and 60"),
        ({"psnr": 200.0}, "psnr must lie between 10 and 60"),
        ({"examples": 13}, "examples must lie between 0 and 12"),
        ({"false_positive_rate": 1e-12}, "choose more bits or another rate"),
        ({"false_positive_rate": 0.9}, "between 0 and 0.5"),
    ],
)
def test_numbers_out_of_range(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        _run(tmp_path / "out", ["none"], count=2, **more)
    assert not (tmp_path / "out").exists()


def test_unmarked_pictures_are_checked_as_well(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="at least 64 x 64"):
        _run(tmp_path / "a", ["none"], count=2, unmarked=pictures.world(1, size=48))
    with pytest.raises(ValueError, match="model's own size, 64 x 64"):
        bench(
            [names.scheme("tree-ring")],
            _edits("none"),
            pictures.world(2),
            pipe=backbone,
            unmarked=pictures.world(1, size=80),
            folder=tmp_path / "a",
        )
    assert not (tmp_path / "a").exists()


def test_another_autoencoder_gives_other_units(tmp_path: Path, pipe: Any) -> None:
    import copy

    from expunge.backbone.load import as_backbone

    other = copy.copy(pipe)
    other.vae = copy.deepcopy(pipe.vae)
    with torch.no_grad():
        other.vae.decoder.conv_out.weight.mul_(0.5)
    first = _run(tmp_path, ["vae"], count=4, pipe=as_backbone(pipe))
    second = _run(tmp_path, ["vae"], count=4, pipe=as_backbone(other))
    assert first.cell("learned", "vae")["psnr"] > second.cell("learned", "vae")["psnr"] + 1


def test_another_rate_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = _run(tmp_path, ["noise:0.2"], false_positive_rate=1e-6)

    def stop(*_: object) -> Tensor:
        raise AssertionError("the units are there")

    monkeypatch.setattr(Learned, "_embed", stop)
    loose = _run(tmp_path, ["noise:0.2"], false_positive_rate=0.1)
    rates = [log.cell("learned", "noise")["detection_rate"] for log in (strict, loose)]
    assert rates[0] < rates[1]


def test_large_pictures_are_shown_in_part(tmp_path: Path) -> None:
    from PIL import Image

    large = pictures.world(1, size=400)
    log = bench([Learned()], _edits("none"), large, folder=tmp_path)
    [example] = log.data["examples"]
    assert Image.open(tmp_path / example["edited"]).size == (320, 320)


def test_a_stopped_run_of_both_layers_leaves_no_log(
    tmp_path: Path, backbone: Backbone, gone: Erasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("expunge.watermark.both_layers._came_back", stop)
    with pytest.raises(KeyboardInterrupt):
        layers(backbone, gone, [Learned()], _edits("none"), count=2, folder=tmp_path)
    assert not (tmp_path / "watermark.json").exists()
    assert (tmp_path / "units").exists()


def test_marks_in_noise_run_through_the_bench(tmp_path: Path, backbone: Backbone) -> None:
    log = bench(
        [names.scheme("tree-ring:radius=0.3"), names.scheme("gaussian-shading:bits=16")],
        _edits("none", "jpeg:80"),
        pictures.world(3),
        pipe=backbone,
        unmarked=pictures.world(5, first=10**6),
        folder=tmp_path,
    )
    ring, shading = (scheme["scheme"] for scheme in log.data["schemes"])
    assert log.cell(ring, "none")["bit_accuracy"] is None
    assert log.cell(ring, "none")["detection_ci"][1] <= 1
    assert log.cell(shading, "none")["bit_accuracy"] > 0.5, "64 copies a bit"
    assert [entry["keys"] for entry in log.data["unmarked"]] == [1, 1000]


def test_flags_say_what_to_be_careful_about(tmp_path: Path, backbone: Backbone) -> None:
    edits = ["vae", "regeneration:0.9,num_inference_steps=5"]
    log = _run(tmp_path, edits, count=10, pipe=backbone)
    codes = {flag["code"] for flag in log.data["flags"]}
    assert {"few-pictures", "content-changed"} <= codes
    assert log.cell("learned", "vae")["quality"]["original_marked"]["psnr"] > 34
    faint = bench(
        [Learned(psnr=58.0)], _edits(*edits), pictures.world(10), pipe=backbone, folder=tmp_path
    )
    assert "gone-at-vae" in {flag["code"] for flag in faint.data["flags"]}
    alone = _run(tmp_path, edits[1:], count=10, pipe=backbone)
    assert "no-control" in {flag["code"] for flag in alone.data["flags"]}


@pytest.fixture(scope="module")
def gone(backbone: Backbone) -> Erasure:
    cat = backbone.profile.vocabulary.resolve("cat")
    return UCE(prompts=20, preserved=20, tokens="suffix", to_anchor=True).erase(backbone, [cat])


def test_both_layers_at_once(tmp_path: Path, backbone: Backbone, gone: Erasure) -> None:
    log = layers(
        backbone,
        gone,
        [Learned()],
        _edits("none", "img2img:0.9,num_inference_steps=10"),
        count=12,
        folder=tmp_path,
    )
    entries = {(e["edit"].partition(":")[0], e["editor"]): e for e in log.data["concept"]["cells"]}
    assert set(entries) == {(e, w) for e in ("none", "img2img") for w in ("original", "erased")}
    for entry in entries.values():
        assert entry["before"]["n"] == 12
        assert entry["before"]["rate"] < 0.5, "it was erased"
    assert entries["none", "original"]["difference"] == 0
    back, kept = entries["img2img", "original"], entries["img2img", "erased"]
    assert back["after"]["rate"] > kept["after"]["rate"], "the original draws the cat again"
    assert {cell["editor"] for cell in log.data["cells"]} == {"original", "erased"}
    assert WatermarkLog.load(tmp_path).data["concept"] == log.data["concept"]


def test_layers_refuse_before_drawing(
    tmp_path: Path, backbone: Backbone, gone: Erasure, cat: Concept
) -> None:
    with pytest.raises(ValueError, match="count must be at least 1"):
        layers(backbone, gone, [Learned()], _edits("none"), count=0, folder=tmp_path / "a")
    with pytest.raises(ValueError, match="no differentiable one"):
        layers(backbone, gone, [names.scheme("dwtdct")], _edits("guided"), folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_logs_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no watermark bench in"):
        WatermarkLog.load(tmp_path)
    (tmp_path / "watermark.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        WatermarkLog.load(tmp_path)
    (tmp_path / "watermark.json").write_text('{"schema": "expunge.watermark/9", "store": "."}')
    with pytest.raises(ValueError, match="upgrade Expunge"):
        WatermarkLog.load(tmp_path)
