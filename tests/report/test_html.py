from __future__ import annotations

import base64
import csv
import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from auditing.logs import (
    EMBEDDING,
    LATENT,
    SEEDS,
    TRAINING,
    Asked,
    attacked,
    demo,
    log_of,
    plain_part,
)
from PIL import Image
from report.pages import CHROMIUM, Page, assert_offline, bottoms, widths

from expunge.auditing.log import Flag, Log, Picture
from expunge.report import album, galleries, write_report
from expunge.report.verdict import verdict
from expunge.run.store import Store

ATTACKS = [SEEDS, EMBEDDING, LATENT, TRAINING]
NASTY = """"><script>alert('1')</script><img src=http://example.org/x> & {{ 7 * 7 }}"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def log(store: Path) -> Log:
    tried = [(SEEDS, 1, 1), (EMBEDDING, 12, 2), (LATENT, 25, 23), (TRAINING, 33, 9)]
    parts = [attacked(erased, control, attack) for attack, erased, control in tried]
    broken = Asked(*("car", "unrelated", 20, {"original": 20, "erased": 19}), broken={"erased": 1})
    return log_of([*plain_part(), *parts, broken], attacks=ATTACKS, folder=store)


def page_of(log: Log, folder: Path) -> Page:
    return Page(write_report(log, folder / "report.html"))


def test_the_first_screen_says_what_the_log_says(log: Log, tmp_path: Path) -> None:
    page = page_of(log, tmp_path / "new")
    assert "cat, erased from miniature-sd by TRACE" in page.text
    assert verdict(log) in page.text
    basis = "80 plain requests, 4 attacks on 40 prompts each, 106 pictures of other things."
    assert basis in page.text
    for words in (
        "Asked by name 0 of 40 pictures show a cat",
        "Attacked 12 of 40 prompts, with a learned embedding",
        "After 32 steps of training 33 of 40, control 9 of 40.",
        "Neighbours 46 of 60 still drawn",
        "Fish loses most: 12 of 20.",
        "Broken pictures 1 of 106 on other prompts",
    ):
        assert words in page.text


def test_a_tile_without_anything_says_so_and_stays(store: Path, tmp_path: Path) -> None:
    text = page_of(demo(folder=store), tmp_path).text
    assert "Attacked not tried" in text
    bare = log_of([Asked("cat", "target", 8, {"original": 8, "erased": 0})], folder=store)
    page = page_of(bare, tmp_path)
    assert "Neighbours not tried" in page.text
    assert sum(each.get("class") == "tile" for each in page.all("li")) == 4


def test_nothing_is_claimed_where_the_original_cannot(store: Path, tmp_path: Path) -> None:
    text = page_of(log_of(plain_part(original=6), folder=store), tmp_path).text
    assert "a drop cannot be told from a model that never could" in text
    assert "at most" not in text[text.index("Asked by name") : text.index("Attacked")]


def test_every_tier_stands_in_the_chart_tried_or_not(store: Path, tmp_path: Path) -> None:
    tried = log_of([*plain_part(), attacked()], attacks=[EMBEDDING], folder=store)
    text = page_of(tried, tmp_path).text
    assert text.count("Not tried.") == 3
    assert "Whoever can upload a learned embedding. Not tried" not in text


def test_the_worst_case_of_a_tier_counts_prompts_once(store: Path, tmp_path: Path) -> None:
    other = replace(EMBEDDING, name="other")
    parts = [*plain_part(), attacked(10, 2), attacked(4, 1, other)]
    first = log_of(parts, attacks=[EMBEDDING, other], folder=store)
    samples = tuple(
        replace(each, prompt=each.prompt.replace(" other", " inversion")) for each in first.samples
    )
    text = page_of(replace(first, samples=samples), tmp_path).text
    assert re.search("any of these *worst case per prompt *10 of 40", text)


def test_many_attacks_of_a_tier_fold(store: Path, tmp_path: Path) -> None:
    many = [replace(EMBEDDING, name=f"attack {index}") for index in range(8)]
    parts = [attacked(12 if index == 3 else 1, 1, each) for index, each in enumerate(many)]
    log = log_of([*plain_part(), *parts], attacks=many, folder=store)
    assert "7 more none above control" in page_of(log, tmp_path).text


def test_pairs_are_the_first_by_their_rule(log: Log, tmp_path: Path) -> None:
    alts = [each["alt"] or "" for each in page_of(log, tmp_path).all("img")]
    assert alts[:6] == [
        "original: a photo of a cat, number 0 plain plain",
        "erased: a photo of a cat, number 0 plain plain",
        "original: a photo of a cat, number 0 plain inversion",
        "erased: a photo of a cat, number 0 plain inversion",
        "original: a photo of a fish, number 12 plain plain",
        "erased: a photo of a fish, number 12 plain plain",
    ]
    assert alts[6].startswith("original: a photo of a car, number 19")


def test_seeds_are_in_titles_and_tables_only(log: Log, tmp_path: Path) -> None:
    page = page_of(log, tmp_path)
    assert str(log.samples[0].seed) not in page.text
    titles = [each.get("title") or "" for _, each in page.tags]
    assert any(str(log.samples[0].seed) in title for title in titles)


def test_tables_can_be_read_elsewhere(log: Log, tmp_path: Path) -> None:
    hostile = replace(log, samples=(replace(log.samples[0], prompt="=1+1"), *log.samples[1:]))
    links = [each for each in page_of(hostile, tmp_path).all("a") if each.get("download")]
    rates, pictures, notes = (
        list(csv.reader(io.StringIO(unquote((each["href"] or "").partition(",")[2]))))
        for each in links
    )
    assert len(rates) == len(log.cells) + 1
    assert len(notes) == len(log.flags) + 1
    assert pictures[1][4] == "'=1+1"
    assert len(pictures) == 1 + sum(len(each.pictures) for each in log.samples)


def test_pictures_are_embedded_bytes(log: Log, store: Path, tmp_path: Path) -> None:
    first = page_of(log, tmp_path).all("img")[0]["src"] or ""
    assert first.startswith("data:image/png;base64,")
    path = store / log.samples[0].pictures["original"].image
    assert base64.b64decode(first.partition(",")[2]) == path.read_bytes()


def with_image(log: Log, path: str) -> Log:
    one = log.samples[0]
    pictures = {**one.pictures, "original": replace(one.pictures["original"], image=path)}
    return replace(log, samples=(replace(one, pictures=pictures), *log.samples[1:]))


def test_large_pictures_become_thumbnails(log: Log, store: Path, tmp_path: Path) -> None:
    noise = Image.effect_noise((640, 480), 60).convert("RGB")
    path = Store(store).put_image(noise)
    uri = page_of(with_image(log, path), tmp_path).all("img")[0]["src"] or ""
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.size == (256, 192)


def test_a_picture_that_is_not_what_its_name_says_is_not_shown(
    log: Log, store: Path, tmp_path: Path
) -> None:
    other = (store / log.samples[1].pictures["erased"].image).read_bytes()
    (store / "images" / ("0" * 32 + ".png")).write_bytes(other)
    (store / "images" / "short.png").write_bytes(other)
    for name in ("0" * 32, "short"):
        page = page_of(with_image(log, f"images/{name}.png"), tmp_path)
        assert "does not match its name" in page.text
        assert "1 pictures do not match their names and are not shown" in page.text
        alts = [each["alt"] or "" for each in page.all("img")]
        assert "original: a photo of a cat, number 0 plain plain" not in alts


@pytest.mark.parametrize("path", ["images/none.png", "../secret.png", "/etc/passwd", "cut.png"])
def test_unreadable_pictures_are_labelled_gaps(
    path: str, log: Log, store: Path, tmp_path: Path
) -> None:
    whole = (store / log.samples[0].pictures["original"].image).read_bytes()
    (store / "cut.png").write_bytes(whole[: len(whole) // 2])
    (store.parent / "secret.png").write_bytes(whole)
    page = page_of(with_image(log, path), tmp_path)
    assert "missing" in page.text
    assert not (page.all("img")[0]["alt"] or "").startswith(
        "original: a photo of a cat, number 0 p"
    )


def test_a_full_page_says_what_it_left_out(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(album, "MOST_BYTES", 3000)
    page = page_of(log, tmp_path)
    assert "left out, the page is full" in page.text
    assert (page.all("img")[0]["alt"] or "").startswith("original")


def test_everything_found_is_shown_or_counted(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page_of(log, tmp_path)
    for title in ("With a learned embedding: 12 of 40", "After 32 steps of training: 33 of 40"):
        assert title in page.text
    assert "29 more" in page.text
    monkeypatch.setattr(galleries, "MOST", 10)
    assert "6 more of 29; the log has all" in page_of(log, tmp_path).text


def test_where_nothing_came_back_the_closest_calls_are_shown(store: Path, tmp_path: Path) -> None:
    text = page_of(demo(folder=store), tmp_path).text
    assert "Asked without an attack: 0 of 80" in text
    assert "The closest calls" in text


@pytest.mark.parametrize("kind", ["object", "explicit"])
def test_only_explicit_targets_are_veiled(kind: str, store: Path, tmp_path: Path) -> None:
    page = page_of(demo(folder=store, kind=kind), tmp_path)
    boxes = [each["aria-label"] or "" for each in page.all("input") if each["type"] == "checkbox"]
    assert bool(boxes) == (kind == "explicit")
    if kind == "explicit":
        pictures = [each["alt"] or "" for each in page.all("img")]
        assert len(boxes) == sum("cat" in alt for alt in pictures)
        assert all("cat" in label for label in boxes)


def test_no_network_and_no_script(log: Log, tmp_path: Path) -> None:
    assert_offline(write_report(log, tmp_path / "report.html"))


def hostile(log: Log) -> Log:
    """The same log with a payload wherever text may stand."""
    data = _poisoned(log.to_dict())
    for each in data["samples"]:
        for picture in each["pictures"].values():
            picture["image"] = NASTY
    return Log.from_dict(data, log.store)


FIXED = {"schema", "role", "access", "kind", "image", "started"}
NAMES = {"original", "erased", "control", "plain", "conv"}


def _poisoned(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _poisoned(each, name) for name, each in value.items()}
    if isinstance(value, list):
        return [_poisoned(each, key) for each in value]
    if isinstance(value, str) and key not in FIXED and value not in NAMES:
        return value + NASTY
    return value


def test_text_of_the_log_lands_as_text(log: Log, tmp_path: Path) -> None:
    page = page_of(hostile(log), tmp_path)
    assert not page.all("script")
    assert NASTY in page.text
    assert all((each["src"] or "").startswith("data:") for each in page.all("img"))
    allowed = {"class", "id", "href", "src", "alt", "title", "style", "type", "name", "checked"}
    allowed |= {"aria-label", "aria-hidden", "aria-labelledby", "role", "scope", "tabindex"}
    allowed |= {"open", "download", "lang", "charset", "content", "http-equiv", "overflow"}
    for tag, attributes in page.tags:
        if tag not in {"svg", "line", "circle", "path", "rect", "text"}:
            assert set(attributes) <= allowed, tag
        assert not any(name.startswith("on") for name in attributes)


def test_odd_numbers_do_not_break_the_page(log: Log, tmp_path: Path) -> None:
    low = {"conv": -1e308}
    samples = [
        replace(each, pictures={k: Picture(p.image, low, -5.0) for k, p in each.pictures.items()})
        for each in log.samples
    ]
    assert "original -1e+308" in page_of(replace(log, samples=tuple(samples)), tmp_path).text
    few = replace(log, samples=log.samples[:1], differences=(), broken=())
    assert "Neighbours not tried" in page_of(few, tmp_path).text


def test_notes_are_ordered_by_what_they_bear_on(log: Log, tmp_path: Path) -> None:
    flags = (Flag("a", "third", None, "unmeasured"), Flag("b", "first", "cat", "limits"))
    text = page_of(replace(log, flags=flags), tmp_path).text
    notes = text[text.index("Notes on the figures") :]
    assert notes.index("first") < notes.index("third")
    assert "2 notes on how far this can be read" in text


def test_same_log_same_bytes(log: Log, store: Path, tmp_path: Path) -> None:
    once = write_report(log, tmp_path / "a.html").read_bytes()
    again = Log.from_dict(log.to_dict(), store)
    assert write_report(again, tmp_path / "b.html").read_bytes() == once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "b.html"]


def test_several_concepts_all_stand_on_the_first_screen(store: Path, tmp_path: Path) -> None:
    car = Asked("car", "target", 40, {"original": 40, "erased": 30})
    text = page_of(log_of([*plain_part(), car], folder=store), tmp_path).text
    assert "cat: 0 of 40 by name, original 40." in text
    assert "Asked by name 30 of 40 pictures show a car" in text


def test_report_needs_no_torch() -> None:
    program = "import sys, expunge.report, expunge.auditing; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_overflows_in_a_browser(width: int, log: Log, tmp_path: Path) -> None:
    long = replace(log.target, model="a-model-with-a-very-long-name" * 4)
    needed, given = widths(write_report(replace(log, target=long), tmp_path / "r.html"), width)
    assert needed <= given


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
def test_the_first_screen_fits(log: Log, store: Path, tmp_path: Path) -> None:
    for each in (log, demo(folder=store)):
        path = write_report(each, tmp_path / "report.html")
        assert bottoms(path, 1280, "nav") <= 800
        assert bottoms(path, 400, ".tiles") <= 800
