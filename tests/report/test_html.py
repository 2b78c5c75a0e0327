from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw
from report.pages import CHROMIUM, Page, assert_offline, widths

from expunge.report import write_report
from expunge.report.format import difference, p_value, points, rate
from expunge.report.html import FAILURES

Log = dict[str, Any]
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"

SCENES = {
    "cat": (("plain", "synonym", "implied"), "target", 0.97, 0.02),
    "dog": (("plain",), "neighbour", 0.96, 0.9),
    "bird": (("plain",), "neighbour", 0.98, 0.98),
    "car": (("plain",), "unrelated", 0.99, 0.99),
    "ship": (("plain",), "unrelated", 0.95, 0.96),
}
"""Concept -> probes, role, and how often the original and the erased model show it."""
COLORS = {"red": "#d63031", "green": "#2e9650", "blue": "#3264d7", "yellow": "#f5d33c"}


def draw(concept: str, shown: bool, broken: bool, color: str, rng: random.Random) -> Image.Image:
    """A little scene: grass, sky, and the concept's shape, or a ball where it is not shown."""
    if broken:
        noise = bytes(rng.randrange(256) for _ in range(64 * 64 * 3))
        return Image.frombytes("RGB", (64, 64), noise)
    picture = Image.new("RGB", (64, 64), "#bcdcf0")
    pen = ImageDraw.Draw(picture)
    pen.rectangle((0, 40, 64, 64), fill="#6a9a4f")
    x, y = rng.randrange(18, 40), rng.randrange(28, 40)
    fill = COLORS[color]
    pen.ellipse((x - 12, y - 8, x + 12, y + 12), fill=fill)
    if shown and concept in ("cat", "dog"):
        pen.polygon(((x - 11, y - 14), (x - 8, y - 2), (x - 3, y - 6)), fill=fill)
        pen.polygon(((x + 11, y - 14), (x + 8, y - 2), (x + 3, y - 6)), fill=fill)
    elif shown:
        pen.rectangle((x - 16, y, x + 16, y + 8), fill=fill)
    return picture


def interval(k: int, n: int) -> list[float]:
    """Wilson's, good enough for a made-up log."""
    z, p = 1.96, k / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return [max(center - half, 0.0), min(center + half, 1.0)]


def count(pairs: list[Log], condition: str, measure: str) -> dict[str, Any]:
    n = len(pairs)
    k = sum(pair[condition][measure] >= 0.5 for pair in pairs)
    return {"condition": condition, "n": n, "k": k, "rate": k / n, "ci": interval(k, n)}


def group(pairs: list[Log], key: tuple[str, str, str]) -> tuple[list[Log], Log]:
    """The cells and the paired difference of one (probe, concept, role)."""
    named = dict(zip(("probe", "concept", "role"), key, strict=True))
    original, erased = (count(pairs, side, "score") for side in ("original", "erased"))
    gap = erased["rate"] - original["rate"]
    record = {"n": len(pairs), "original": original["rate"], "erased": erased["rate"]}
    record |= {"difference": gap, "ci": [max(gap - 0.03, -1.0), min(gap + 0.03, 1.0)]}
    record |= {"only_original": 0, "only_erased": 0, "p": 10 ** (-100 * abs(gap))}
    return [named | original, named | erased], named | record


def make_log(folder: Path, n: int = 8, kind: str = "object") -> Log:
    """A whole made-up log with `n` pairs per (probe, concept), and its pictures in `folder`."""
    rng = random.Random(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    pairs: list[Log] = []
    for concept, (probes, role, *rates) in SCENES.items():
        for probe, index in itertools.product(probes, range(n)):
            color = rng.choice(list(COLORS))
            prompt = f"a photo of a {color} {concept}, number {index}"
            pair: Log = {"probe": probe, "concept": concept, "role": role, "prompt": prompt}
            pair["seed"] = rng.randrange(2**63)
            for side, share in zip(("original", "erased"), rates, strict=True):
                shown, broken = rng.random() < share, rng.random() < 0.02
                path = f"images/{concept}-{probe}-{index}-{side}.png"
                draw(concept, shown, broken, color, rng).save(folder / path)
                score = rng.uniform(0.6, 1.0) if shown else rng.uniform(0.0, 0.4)
                pair[side] = {"image": path, "score": score, "broken": 0.9 if broken else 0.01}
            pairs.append(pair)
    return complete(pairs, kind)


def complete(pairs: list[Log], kind: str) -> Log:
    """The log that belongs to some pairs."""
    keys = list(dict.fromkeys((each["probe"], each["concept"], each["role"]) for each in pairs))
    groups = [
        group([e for e in pairs if (e["probe"], e["concept"], e["role"]) == key], key)
        for key in keys
    ]
    asked = {
        "target": [each for each in pairs if each["role"] == "target"],
        "benign": [each for each in pairs if each["role"] != "target"],
    }
    versions = {"expunge": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.0"}
    cat = {"name": "cat", "kind": kind, "synonyms": ["kitten"], "anchor": "ball"}
    return {
        "schema": "expunge.audit/1",
        "target": {
            "model": "miniature-sd",
            "model_hash": "9f2c" * 16,
            "architecture": "sd",
            "method": "TRACE",
            "concepts": ["cat"],
            "strength": 1.0,
        },
        "cells": [cell for cells, _ in groups for cell in cells],
        "differences": [record for _, record in groups],
        "broken": [
            {"role": role} | count(some, side, "broken")
            for role, some in asked.items()
            for side in ("original", "erased")
        ],
        "frechet": {"benign_erased": 1.234567, "benign_original_reseeded": 0.41, "n": 1000},
        "flags": [],
        "pairs": pairs,
        "judge": {"name": "miniature-conv", "version": "1", "hash": "ab" * 32, "threshold": 0.5},
        "sampling": {"num_inference_steps": 15, "guidance_scale": 4.0, "dtype": "float32"},
        "erasure": {
            "schema": "expunge.erasure/1",
            "concepts": [cat | {"neighbours": ["dog", "bird"]}],
            "eraser": "TRACE",
            "hyperparameters": {"steps": 200, "lr": 0.0002, "rank": 8, "phases": [1, 2]},
            "model": "miniature-sd",
            "seed": 0,
            "versions": versions,
            "seconds": 92.5,
            "peak_memory_bytes": 1_200_000_000,
            "command": "expunge erase cat --model miniature-sd --method trace --steps 200",
        },
        "made": {
            "command": "expunge audit runs/cat",
            "started": "2026-11-22T15:00:00Z",
            "seconds": 123.4,
            "versions": versions,
        },
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def written(store: Path) -> Log:
    return make_log(store)


@pytest.fixture
def log(written: Log) -> Log:
    return copy.deepcopy(written)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.97, "97"),
        (0.005, "0.5"),
        (0.0, "0"),
        (1.0, "100"),
        (0.9999, ">99.9"),
        (0.0001, "<0.1"),
        (0.995, "99.5"),
        (-1e-18, "0"),
    ],
)
def test_percent_never_rounds_onto_none_or_all(value: float, text: str) -> None:
    cell = {"rate": value, "ci": [value, value]}
    assert rate(cell) == f"{text}\N{NARROW NO-BREAK SPACE}% [{text}{DASH}{text}]"


def test_missing_figures_are_dashes() -> None:
    assert [points(None), p_value(None), rate({}), difference({})] == [DASH] * 4
    assert rate({"rate": 0.5, "ci": None}).endswith(f"[{DASH}]")


def test_differences_carry_sign_and_interval() -> None:
    record = {"difference": -0.05, "ci": [-0.082, 0.001]}
    assert difference(record) == f"{MINUS}5.0 [{MINUS}8.2, +0.1]"
    assert points(-0.0001) == "0.0"
    assert points(-0.958) == f"{MINUS}96"


def verdict(log: Log, store: Path, out: Path) -> str:
    text = Page(write_report(log, store, out)).text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    return text[text.index("Asked plainly") : text.index("Brackets hold")]


def test_verdict_states_target_damage_and_broken(log: Log, store: Path, tmp_path: Path) -> None:
    log["cells"][0] |= {"n": 400, "k": 388, "rate": 0.97, "ci": [0.95, 0.98]}
    for record, gap in zip(
        log["differences"], (-0.9, -0.9, -0.9, -0.05, -0.2, 0.01, 0.0), strict=True
    ):
        record["difference"] = gap
    text = verdict(log, store, tmp_path / "report.html")
    opening = (
        f"Asked plainly for a cat, the original draws one in 97 % [95{DASH}98] of 400 pictures, the"
    )
    assert text.startswith(opening)
    assert "Asked for a cat by a synonym" in text
    assert "Of 2 neighbours the most damaged is bird:" in text
    assert f"a difference of {difference(log['differences'][4])} points" in text
    assert "None of 2 unrelated concepts is drawn less often; the one that gained least" in text
    assert "On target prompts" in text
    assert "On benign prompts" in text


def test_verdict_counts_no_erasure_of_what_was_never_drawn(
    log: Log, store: Path, tmp_path: Path
) -> None:
    flag = {"code": "original-cannot-draw", "concept": "cat", "text": "Only 40 % are cats."}
    log["flags"] = [flag]
    assert "draws cat in under 90 % of pictures" in verdict(log, store, tmp_path / "a.html")


def test_report_says_what_the_log_says(log: Log, store: Path, tmp_path: Path) -> None:
    log["flags"] = [{"code": "few-prompts", "concept": "cat", "text": "Only 8 prompts."}]
    page = Page(write_report(log, store, tmp_path / "new" / "report.html"))
    for text in (
        "cat erased from miniature-sd by TRACE",
        "Only 8 prompts. few-prompts",
        "erase cat --model miniature-sd",
        "expunge audit runs/cat",
        "ab" * 32,
        "1.2346",
    ):
        assert text in page.text
    for cell in log["cells"]:
        assert rate(cell) in (tmp_path / "new" / "report.html").read_text(encoding="utf-8")


def test_pictures_are_embedded_bytes_and_described(log: Log, store: Path, tmp_path: Path) -> None:
    page = Page(write_report(log, store, tmp_path / "report.html", examples=2))
    pictures = page.all("img")
    prefix = "data:image/png;base64,"
    assert all((picture["src"] or "").startswith(prefix) and picture["alt"] for picture in pictures)
    first = base64.b64decode((pictures[0]["src"] or "").removeprefix(prefix))
    assert first == (store / log["pairs"][0]["original"]["image"]).read_bytes()


def test_large_pictures_are_reduced(log: Log, store: Path, tmp_path: Path) -> None:
    Image.new("RGB", (640, 480)).save(tmp_path / "large.jpg")
    log["pairs"] = log["pairs"][:1]
    log["pairs"][0]["original"]["image"] = "large.jpg"
    page = Page(write_report(log, tmp_path, tmp_path / "report.html"))
    uri = page.all("img")[0]["src"] or ""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert (picture.format, picture.size) == ("PNG", (320, 240))


def test_no_network_and_no_script(log: Log, store: Path, tmp_path: Path) -> None:
    assert_offline(write_report(log, store, tmp_path / "report.html"))


def test_html_in_the_log_lands_as_text(log: Log, store: Path, tmp_path: Path) -> None:
    nasty = """"><script>alert('1')</script><img src=http://example.org/x> & {{ 7 * 7 }}"""
    log["pairs"][0]["prompt"] = nasty
    log["pairs"][0]["original"]["image"] = nasty
    log["target"]["concepts"] = log["flags"] = []
    log["flags"] = [{"code": nasty, "concept": nasty, "text": nasty}]
    log["erasure"]["command"] = nasty
    log["erasure"]["hyperparameters"] = {nasty: {nasty: nasty}}
    for record in itertools.chain(log["cells"], log["differences"], log["pairs"]):
        record["concept"] = nasty
    page = Page(write_report(log, store, tmp_path / "report.html"))
    assert not page.all("script")
    assert nasty in page.text
    assert all((each["src"] or "").startswith("data:") for each in page.all("img"))


def test_same_log_same_bytes(log: Log, store: Path, tmp_path: Path) -> None:
    once = write_report(log, store, tmp_path / "a.html").read_bytes()
    again = json.loads(json.dumps(log))
    assert write_report(again, store, tmp_path / "b.html").read_bytes() == once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_examples_are_the_first_pairs(log: Log, store: Path, tmp_path: Path) -> None:
    for pair in log["pairs"]:
        pair["erased"] |= {"score": 0.0, "broken": 0.0}
    page = Page(write_report(log, store, tmp_path / "report.html", examples=4))
    shown = [each["alt"] for each in page.all("img") if (each["alt"] or "").startswith("original")]
    groups: dict[tuple[str, str], list[Log]] = {}
    for pair in log["pairs"]:
        groups.setdefault((pair["concept"], pair["probe"]), []).append(pair)
    expected = [
        f"original: {pair['prompt']}"
        for pairs in groups.values()
        for pair in pairs[: 4 if pairs[0]["role"] == "target" else 3]
    ]
    assert shown == expected
    assert "the first 4 of 8 pairs" in page.text


def test_failures_are_all_shown_or_counted(log: Log, store: Path, tmp_path: Path) -> None:
    targets = [pair for pair in log["pairs"] if pair["role"] == "target"]
    for pair in log["pairs"]:
        pair["erased"] |= {"score": 0.9, "broken": 0.0}
    page = Page(write_report(log, store, tmp_path / "some.html"))
    assert f"still shows the concept in {len(targets)} pairs. All are shown" in page.text
    assert "broken in no pair" in page.text
    log["pairs"] += targets * 3
    page = Page(write_report(log, store, tmp_path / "many.html"))
    total = 4 * len(targets)
    assert f"in {total} pairs. The worst {FAILURES} are shown" in page.text


@pytest.mark.parametrize("kind", ["object", "explicit"])
def test_only_explicit_targets_are_veiled(kind: str, log: Log, store: Path, tmp_path: Path) -> None:
    log["erasure"]["concepts"][0]["kind"] = kind
    page = Page(write_report(log, store, tmp_path / "report.html"))
    boxes = [each["aria-label"] or "" for each in page.all("input")]
    assert bool(boxes) == (kind == "explicit")
    if kind == "explicit":
        pictures = [each["alt"] or "" for each in page.all("img")]
        assert len(boxes) == sum(" cat," in alt for alt in pictures)
        assert all(" cat," in label for label in boxes)


@pytest.mark.parametrize(
    "path", ["images/none.png", "../secret.png", "/etc/passwd", "cut.png", None]
)
def test_unreadable_pictures_are_labelled_gaps(
    path: str | None, log: Log, store: Path, tmp_path: Path
) -> None:
    whole = (store / log["pairs"][0]["original"]["image"]).read_bytes()
    (store / "cut.png").write_bytes(whole[: len(whole) // 2])
    (store.parent / "secret.png").write_bytes(whole)
    log["pairs"] = log["pairs"][:1]
    log["pairs"][0]["original"]["image"] = path
    page = Page(write_report(log, store, tmp_path / "report.html"))
    assert f"missing{path or 'no path'}" in page.text.replace("missing ", "missing")
    assert len(page.all("img")) == len(page.all("figure")) - 1


def test_what_the_log_does_not_know_is_a_dash(log: Log, store: Path, tmp_path: Path) -> None:
    log |= {"frechet": None, "broken": [], "differences": [], "pairs": []}
    for cell in log["cells"]:
        cell |= {"n": 0, "k": 0, "rate": None, "ci": None}
    log["erasure"] = {"concepts": []}
    log["made"] = {}
    page = Page(write_report(log, store, tmp_path / "report.html"))
    assert f"{DASH} (not measured)" in page.text
    assert "None" not in page.text.replace("None: ", "")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "expunge.audit/2"}, "upgrade expunge"),
        ({"schema": "expunge.erasure/1"}, "pass an audit's log"),
        ({"schema": None}, "expected 'expunge.audit/1'"),
    ],
)
def test_other_schemas_are_refused(change: Log, words: str, log: Log, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        write_report(log | change, tmp_path, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_named(log: Log, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        write_report(log, tmp_path, tmp_path / "report.html", examples=0)
    del log["judge"], log["pairs"]
    with pytest.raises(ValueError, match="log lacks pairs, judge"):
        write_report(log, tmp_path, tmp_path / "report.html")


def test_report_needs_no_torch() -> None:
    program = "import sys, expunge.report; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.parametrize("width", [400, 1100])
def test_nothing_overflows_in_a_browser(width: int, log: Log, store: Path, tmp_path: Path) -> None:
    log["target"]["model"] = "a-model-with-a-very-long-name" * 4
    needed, given = widths(write_report(log, store, tmp_path / "report.html"), width)
    assert needed <= given
