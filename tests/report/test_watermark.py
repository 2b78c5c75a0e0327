from __future__ import annotations

import base64
import copy
import io
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report.benches import DASH, EDITS, SCHEMES, Log, concept_of, make_log
from report.pages import CHROMIUM, Page, assert_offline, widths

from expunge.report.curves import HEIGHT, LEFT, RIGHT, TOP, WIDTH, curves
from expunge.report.format import decibels, decimal, percent, rare, rate, share
from expunge.report.pictures import AMPLIFIED, change
from expunge.report.scatter import scatters
from expunge.report.strips import chosen_edits
from expunge.report.survival import standings, units
from expunge.report.watermark import write_watermark_report


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def written(store: Path) -> Log:
    return make_log(store)


@pytest.fixture
def log(written: Log) -> Log:
    return copy.deepcopy(written)


def plain(text: str) -> str:
    return " ".join(text.replace("\N{NARROW NO-BREAK SPACE}", " ").split())


def between(path: Path, start: str, end: str) -> str:
    """What a reader sees of a part of the page, with plain spaces."""
    html = path.read_text(encoding="utf-8").partition(start)[2].partition(end)[0]
    return plain(re.sub(r"<[^>]+>", " ", html))


def section(path: Path, name: str) -> str:
    return between(path, f'<section aria-labelledby="{name}">', "</section>")


def verdict(path: Path) -> str:
    return between(path, "<header>", "<nav")


def test_every_figure_of_every_cell_is_in_the_tables(log: Log, store: Path, tmp_path: Path) -> None:
    path = write_watermark_report(log, store, tmp_path / "new" / "report.html")
    apart, ordinary = section(path, "white-box"), section(path, "figures")
    for each in log["cells"]:
        text = apart if each["white_box"] else ordinary
        rates = [(each["detection_rate"], each["detection_ci"])]
        rates += [(each["bit_accuracy"], each["ci"]), (each["payload_rate"], each["payload_ci"])]
        expected = [share(*pair) for pair in rates]
        expected += [percent(each[f"{key}_rate"]) for key in ("wrong_payload", "declared_failure")]
        expected += [decimal(each["advantage"], 2), decimal(each["log_snr"], 2)]
        for far in each["quality"].values():
            expected += [decibels(far["psnr"], far["psnr_half_width"])]
            expected += [decimal(far["ssim"]), decimal(far["lpips"])]
        assert [figure for figure in expected if plain(figure) not in text] == []


def test_what_the_log_says_of_schemes_and_making_is_there(
    log: Log, store: Path, tmp_path: Path
) -> None:
    path = write_watermark_report(log, store, tmp_path / "report.html")
    page = Page(path)
    for each in log["schemes"]:
        for key in ("source", "terms", "weights"):
            assert each[key] in page.text
    for text in ("9f2c" * 16, log["made"]["command"], "2026-11-24 14:07:18 UTC", "37.25"):
        assert text in page.text


def test_false_positives_stand_beside_the_law(log: Log, store: Path, tmp_path: Path) -> None:
    path = write_watermark_report(log, store, tmp_path / "report.html")
    text = section(path, "false-positives")
    for each in log["unmarked"]:
        figures = [rare(each["mean"], each["mean_ci"]), rare(each["worst"], each["worst_ci"])]
        figures += [rare(each[key]) for key in ("asked", "law", "law_worst", "law_worst_high")]
        assert all(plain(figure) in text for figure in figures)
    assert "26 of 32" in text and "0.145" in text
    rule = "detected from 26 of 32 right bits on: a false positive rate of 0.1 % asked, 0.027 %"
    assert rule in section(path, "figures")
    assert "Worst key interval: holds for the worst of all keys" in text
    log["unmarked"] = []
    path = write_watermark_report(log, store, tmp_path / "none.html")
    assert "not measured" in section(path, "false-positives")
    assert rule in section(path, "figures")


def test_alarms_stand_at_their_scheme(log: Log, store: Path, tmp_path: Path) -> None:
    path = write_watermark_report(log, store, tmp_path / "report.html")
    assert "alarm" not in section(path, "false-positives").lower()
    log["unmarked"][1]["alarm"] = True
    path = write_watermark_report(log, store, tmp_path / "report.html")
    text = section(path, "false-positives")
    assert text.count(" alarm ") == 1 and "trustmark alarm 3000" in text
    assert "Alarm: more unmarked pictures pass" in text
    rules = re.findall(r"(\w+) detected from|unmarked pictures (pass)", section(path, "figures"))
    assert rules == [("learned", ""), ("trustmark", ""), ("", "pass")]


def test_white_box_stands_apart(log: Log, store: Path, tmp_path: Path) -> None:
    path = write_watermark_report(log, store, tmp_path / "report.html")
    assert "guided" not in section(path, "figures")
    assert "regeneration" not in section(path, "white-box")
    said = "what one attack that holds the decoder does; no bound, and no ordinary edit"
    assert said in verdict(path) and said in section(path, "white-box")
    assert "upper bound" not in Page(path).text
    assert verdict(path).count("after guided 0.3, the strongest of 2: 43 %") == 2
    assert len(re.findall(r"guided [0-9.]+ white box", section(path, "pictures"))) == 4
    assert "guided white box" in section(path, "curves")
    chain = next(c for c in log["cells"] if c["edit"] == "jpeg:50+crop:0.1")
    chain |= {"edit": "jpeg:50+guided:0.3", "white_box": True, "redrawn": True}
    path = write_watermark_report(log, store, tmp_path / "chain.html")
    assert "jpeg:50+guided:0.3" not in section(path, "figures")
    assert "jpeg:50+guided:0.3" in section(path, "white-box")
    assert "all 5 usual distortions" in verdict(path)
    log["cells"] = [each for each in log["cells"] if not each["white_box"]]
    without = Page(write_watermark_report(log, store, tmp_path / "without.html")).text
    assert "guided removal" not in without.lower()


def test_chance_is_named_beside_every_bit_accuracy(log: Log, store: Path, tmp_path: Path) -> None:
    path = write_watermark_report(log, store, tmp_path / "report.html")
    text = verdict(path)
    assert text.count("of bits are right") == text.count("of bits are right (chance is 50 %)") > 9
    pictures = section(path, "pictures")
    named = re.findall(r"bit accuracy [0-9.<>]+ % \(chance is 50 %\)", pictures)
    assert len(named) == pictures.count("bit accuracy") > 9
    assert section(path, "figures").count("Bit accuracy (chance is 50 %)") == 1
    for panel in path.read_text(encoding="utf-8").split("<svg")[1:]:
        if re.search(r'aria-label="(Bit accuracy|learned|trustmark)', panel):
            assert "chance 50\N{NARROW NO-BREAK SPACE}%" in panel


def test_verdict_counts_what_outlives_what(log: Log, store: Path, tmp_path: Path) -> None:
    text = verdict(write_watermark_report(log, store, tmp_path / "report.html"))
    assert "Some of its bits outlive all 6 usual distortions, the VAE alone and 2 of 3" in text
    assert "After jpeg:50+crop:0.1, the hardest of 6 usual distortions" in text
    for level in (0.1, 0.3, 0.6):
        assert text.count(f"After regeneration {level}") == len(SCHEMES)
    assert "Not counted" not in text


def test_levels_that_show_something_else_count_for_nothing(
    log: Log, store: Path, tmp_path: Path
) -> None:
    where = {"scheme": "learned", "edit": "regeneration", "level": 0.3, "editor": "original"}
    changed = next(c for c in log["cells"] if where.items() <= c.items())
    changed["content_changed_rate"] = 0.73
    path = write_watermark_report(log, store, tmp_path / "some.html")
    assert "Not counted" not in verdict(path)
    assert "73 % of pictures then show something else." in verdict(path)
    assert section(path, "figures").count("24.4 ± 0.7 73 % changed") == 1
    assert "below 15 dB of PSNR from the marked one" in section(path, "figures")
    log["flags"] = [
        {**where, "code": "content-changed", "text": "Far."},
        {**where, "code": "content-changed", "text": "Farther.", "editor": "erased"},
    ]
    text = verdict(write_watermark_report(log, store, tmp_path / "report.html"))
    # The level that the flag names, which is not the one with the lowest PSNR.
    assert "the VAE alone and 1 of 2 redrawings" in text
    assert "Not counted: regeneration 0.3, where the picture shows something else" in text
    assert text.count("show something else, so this is neither survival nor removal") == 1
    assert "Far. content-changed" in text


def test_unchanged_pictures_are_not_called_changed(log: Log, store: Path, tmp_path: Path) -> None:
    path = write_watermark_report(log, store, tmp_path / "report.html")
    assert "something else" not in Page(path).text
    assert "changed" not in section(path, "figures")


def test_bits_below_chance_are_called_so(log: Log, store: Path, tmp_path: Path) -> None:
    path = write_watermark_report(log, store, tmp_path / "report.html")
    below = sum(c["below_chance"] for c in log["cells"])
    assert section(path, "white-box").count("below chance") == below == 3
    assert "below chance" not in section(path, "figures")
    assert verdict(path).count("of bits are right (chance is 50 %), below chance") == 2


def test_a_mark_lost_in_the_autoencoder_is_told(log: Log, store: Path, tmp_path: Path) -> None:
    said = "The mark is not shown to be above chance after the autoencoder alone."
    assert said not in verdict(write_watermark_report(log, store, tmp_path / "report.html"))
    flag = {"code": "gone-at-vae", "scheme": "trustmark", "edit": None, "level": None}
    log["flags"] = [flag | {"editor": "original", "text": "Gone."}]
    text = verdict(write_watermark_report(log, store, tmp_path / "report.html"))
    assert text.count(said) == 1
    assert said in text.partition("trustmark : before any edit")[2].partition("tree-ring :")[0]


def test_marks_without_bits_show_detection_only(log: Log, store: Path, tmp_path: Path) -> None:
    for key in ("schemes", "cells", "examples"):
        log[key] = [each for each in log[key] if each["scheme"] == "tree-ring"]
    path = write_watermark_report(log, store, tmp_path / "report.html")
    text = verdict(path)
    assert "the mark is detected in" in text
    assert "bits are right" not in text and "payload in" not in text
    assert "bit accuracy" not in section(path, "pictures")
    assert [panel.title for panel in curves(standings(log))[0].panels] == ["Detection"]
    assert "gives p ≤ the false positive rate asked" in section(path, "figures")


def test_reported_figures_stand_in_a_column_of_their_own(
    log: Log, store: Path, tmp_path: Path
) -> None:
    path = write_watermark_report(log, store, tmp_path / "report.html")
    html = path.read_text(encoding="utf-8")
    column = re.findall(r'<td class="reported"[^>]*>([^<]*)</td>', html)
    assert len(column) == len(log["cells"])
    assert [plain(each) for each in column if each != DASH] == ["94.7 %"]
    text = section(path, "reported")
    for figure in ("99.8", "92.5", "100.0", "96.4", "31.8", "jpeg 50", log["reported"]["note"]):
        assert figure in text


@pytest.mark.parametrize("gain", [0.2, 0.0, -0.2])
def test_concepts_that_come_back_are_told(
    gain: float, log: Log, store: Path, tmp_path: Path
) -> None:
    log["concept"] = concept_of([(0.3, 0.3 + gain)])
    path = write_watermark_report(log, store, tmp_path / "report.html")
    words = "With the original model it does, after" if gain > 0 else "no difference shows, after"
    text = verdict(path)
    assert "Does the edit bring cat back?" in text and words in text
    table = section(path, "concept")
    made = log["concept"]["cells"][0]
    for figure in (rate(made["before"]), rate(made["after"]), "0.012", "miniature-conv"):
        assert plain(figure) in table


def test_concepts_and_editors_are_counted_apart(log: Log, store: Path, tmp_path: Path) -> None:
    log["concept"] = concept_of([(0.1, 0.5), (0.1, 0.1), (0.1, 0.12), (0.1, 0.9), (0.0, 1.0)])
    one, two, three, dog, plainly = log["concept"]["cells"]
    two["level"], three["editor"], dog["concept"] = 0.1, "erased", "dog"
    plainly["edit"] = "jpeg"
    text = verdict(write_watermark_report(log, store, tmp_path / "report.html"))
    assert text.count("Does the edit bring cat back?") == 1
    assert "With the original model it does after 1 of 2 edits, and most after" in text
    assert "With the erased model no difference shows, after" in text
    assert "Does the edit bring dog back? With the original model it does, after" in text
    assert plain(rate(one["after"])) in text and plain(rate(plainly["after"])) not in text


def test_edits_by_an_erased_model_have_rows_of_their_own(
    log: Log, store: Path, tmp_path: Path
) -> None:
    again = copy.deepcopy(log["cells"])
    for each in again:
        each["editor"] = "erased"
        each["psnr"] += 0.1 * (each["edit"] == "regeneration")
    log["cells"] += again
    path = write_watermark_report(log, store, tmp_path / "report.html")
    text = section(path, "figures")
    assert text.count("regeneration, erased model") == 2 * 3 * len(SCHEMES)
    assert "jpeg, erased model" not in text and "vae, erased model" not in text
    names = [each.edit for each in curves(standings(log))]
    assert names == ["jpeg", "regeneration", "regeneration, erased model", "guided"]
    for level in (0.1, 0.3, 0.6):
        assert f"After regeneration {level}, erased model" in verdict(path)


@pytest.mark.parametrize("drawn", [True, False])
def test_the_log_says_which_edits_a_model_draws_in(drawn: bool, log: Log) -> None:
    for each in log["cells"]:
        if each["edit"] in {"jpeg:50+crop:0.1", "regeneration"}:
            each["redrawn"] = drawn
    found = standings(log)[0]
    moved = {"jpeg:50+crop:0.1", "regeneration"}
    assert moved & {c["edit"] for c in found.redrawn} == (moved if drawn else set())
    assert moved & {c["edit"] for c in found.distortions} == (set() if drawn else moved)


def test_differences_are_amplified_around_grey(tmp_path: Path) -> None:
    first, second = np.full((8, 8, 3), 100, np.uint8), np.full((8, 8, 3), 100, np.uint8)
    second[0, 0], second[1, 1], second[2, 2] = (103, 95, 100), 255, 0
    for name, pixels in (("a.png", first), ("b.png", second)):
        Image.fromarray(pixels).save(tmp_path / name)
    found = change(tmp_path, "a.png", "b.png")
    data = base64.b64decode((found.uri or "").partition(",")[2])
    grey = np.asarray(Image.open(io.BytesIO(data)))
    assert abs(grey[7, 7] - 127.5).max() <= 0.5
    assert np.abs(grey[0, 0] - (127.5 + AMPLIFIED * np.array([3, -5, 0]))).max() <= 0.5
    assert (grey[1, 1].min(), grey[2, 2].max()) == (255, 0)


def test_caption_says_that_differences_are_amplified(log: Log, store: Path, tmp_path: Path) -> None:
    text = section(write_watermark_report(log, store, tmp_path / "report.html"), "pictures")
    assert f"amplified {AMPLIFIED} times around mid-grey" in text
    assert text.count(f"− marked, × {AMPLIFIED}") == 6 * len(SCHEMES)


@pytest.mark.parametrize("path", ["images/none.png", "../secret.png", "/etc/passwd", None])
def test_missing_pictures_are_labelled_gaps(
    path: str | None, log: Log, store: Path, tmp_path: Path
) -> None:
    (store.parent / "secret.png").write_bytes((store / "images/0.png").read_bytes())
    for each in log["examples"]:
        each["marked"] = path
    page = Page(write_watermark_report(log, store, tmp_path / "report.html"))
    gaps = [tag for tag in page.all("div") if tag.get("class") == "gap"]
    # For each scheme the marked picture, what it changed, and what six edits changed in it.
    assert len(gaps) == 8 * len(SCHEMES)
    assert f"missing{path or 'no path'}" in page.text.replace("missing ", "missing")


@pytest.mark.parametrize(
    ("height", "width", "cut"), [(320, 320, False), (321, 64, True), (64, 512, True)]
)
def test_cuts_of_larger_pictures_are_told(
    height: int, width: int, cut: bool, log: Log, store: Path, tmp_path: Path
) -> None:
    log["pictures"]["sizes"].append({"height": height, "width": width, "n": 1})
    text = section(write_watermark_report(log, store, tmp_path / "report.html"), "pictures")
    assert ("Larger pictures are cut to their middle." in text) == cut


def test_pictures_of_different_sizes_have_no_difference(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "b.png")
    assert change(tmp_path, "a.png", "b.png").uri is None


def test_examples_are_counted_by_scheme(log: Log, store: Path, tmp_path: Path) -> None:
    for count in (1, 4, 100):
        page = Page(write_watermark_report(log, store, tmp_path / "report.html", examples=count))
        edited = [e for e in page.all("img") if "edited by" in (e["alt"] or "")]
        shown = [
            min(count, sum(e["scheme"] == scheme and e["edit"] != "none" for e in log["examples"]))
            for scheme in SCHEMES
        ]
        assert len(edited) == 2 * sum(shown)


def test_chosen_edits_differ(log: Log) -> None:
    first = standings(log)[0]
    assert [edit for edit, _ in chosen_edits(first, 4)] == [
        *("jpeg:50+crop:0.1", "vae", "regeneration", "guided")
    ]
    chosen = chosen_edits(first, 50)
    assert len(chosen) == len(set(chosen)) == len(EDITS) - 1
    log["cells"] = log["cells"][:1]
    assert chosen_edits(standings(log)[0], 4) == [("none", None)]


@pytest.mark.parametrize("explicit", [True, False])
def test_explicit_pictures_are_veiled(
    explicit: bool, log: Log, store: Path, tmp_path: Path
) -> None:
    page = Page(
        write_watermark_report(log | {"explicit": explicit}, store, tmp_path / "report.html")
    )
    assert len(page.all("input")) == (len(page.all("img")) if explicit else 0)


def test_curves_hold_every_level_and_the_autoencoder(log: Log) -> None:
    found = {(each.edit, each.white_box): each for each in curves(standings(log))}
    assert list(found) == [("jpeg", False), ("regeneration", False), ("guided", True)]
    regeneration = found["regeneration", False]
    assert [len(line.marks) for line in regeneration.panels[0].lines] == [4, 4, 0]
    assert [len(line.marks) for line in regeneration.panels[2].lines] == [4, 4, 4]
    assert not found["guided", True].control
    for panel in itertools.chain(*(each.panels for each in found.values())):
        for mark in itertools.chain(*(line.marks for line in panel.lines)):
            assert LEFT <= mark.x <= WIDTH - RIGHT
            assert TOP <= mark.high <= mark.y <= mark.low <= HEIGHT


def test_schemes_differ_in_shape_as_well_as_in_colour(log: Log) -> None:
    looks = [line.look for line in curves(standings(log))[0].panels[2].lines]
    assert len({look.shape for look in looks}) == len({look.color for look in looks}) == 3


def test_every_cell_has_a_labelled_mark_against_quality(log: Log) -> None:
    found = scatters(standings(log), log["cells"], units(log))
    names = [spot.label.text for each in found for spot in each.spots]
    assert len(names) == len(log["cells"])
    assert "noise 10/255" in names and "guided 0.3, white box" in names
    for each in found:
        assert len({(spot.label.x, spot.label.y) for spot in each.spots}) == len(each.spots)


def test_no_network_and_no_script(log: Log, store: Path, tmp_path: Path) -> None:
    assert_offline(write_watermark_report(log, store, tmp_path / "report.html"))


def test_html_in_the_log_lands_as_text(log: Log, store: Path, tmp_path: Path) -> None:
    nasty = """"><script>alert('1')</script><img src=http://example.org/x> & {{ 7 * 7 }}"""
    log["schemes"][0] |= {"scheme": nasty, "source": nasty, "terms": nasty, nasty: nasty}
    log["concept"] = concept_of([(0.3, 0.5)]) | {"concept": nasty}
    log["flags"] = [{"code": nasty, "scheme": nasty, "edit": nasty, "text": nasty}]
    log["model"]["name"] = log["made"]["command"] = log["reported"]["note"] = nasty
    for each in itertools.chain(log["cells"], log["examples"], log["unmarked"]):
        if each["scheme"] == "learned":
            each["scheme"] = nasty
        if "edit" in each:
            each["edit"] = nasty + each["edit"]
        each |= {"unit": nasty, "caption": nasty, "picture": nasty}
    path = write_watermark_report(log, store, tmp_path / "report.html")
    page = Page(path)
    assert nasty in page.text
    assert_offline(path)


def test_same_log_same_bytes(log: Log, store: Path, tmp_path: Path) -> None:
    once = write_watermark_report(log, store, tmp_path / "a.html").read_bytes()
    again = json.loads(json.dumps(log))
    assert write_watermark_report(again, store, tmp_path / "b.html").read_bytes() == once


def test_what_the_log_does_not_know_is_a_dash(log: Log, store: Path, tmp_path: Path) -> None:
    log |= {"unmarked": [], "examples": [], "reported": None, "model": None, "made": {}}
    log |= {"psnr": None, "cells": []}
    page = Page(write_watermark_report(log, store, tmp_path / "report.html"))
    assert "None" not in page.text
    assert "before any edit it was not read" in page.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": "expunge.watermark/2"}, "upgrade expunge"),
        ({"schema": "expunge.audit/1"}, "pass a watermark bench's log"),
        ({"schema": None}, "expected 'expunge.watermark/1'"),
    ],
)
def test_other_schemas_are_refused(change: Log, words: str, log: Log, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words):
        write_watermark_report(log | change, tmp_path, tmp_path / "report.html")
    assert not list(tmp_path.iterdir())


def test_bad_arguments_are_named(log: Log, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="examples must be at least 1, got 0"):
        write_watermark_report(log, tmp_path, tmp_path / "report.html", examples=0)
    del log["cells"], log["made"]
    with pytest.raises(ValueError, match="log lacks cells, made: run the bench again"):
        write_watermark_report(log, tmp_path, tmp_path / "report.html")


def test_report_needs_no_torch() -> None:
    program = "import sys, expunge.report.watermark; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the path")
@pytest.mark.parametrize("width", [400, 760, 1100])
def test_nothing_overflows_in_a_browser(width: int, log: Log, store: Path, tmp_path: Path) -> None:
    log["model"]["name"] = "a-model-with-a-very-long-name" * 4
    log["concept"] = concept_of([(0.3, 0.5)])
    needed, given = widths(write_watermark_report(log, store, tmp_path / "report.html"), width)
    assert needed <= given
