"""Benches: the papers' measures from what was seen, and the command from shell to tables."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.attack.base import Case
from expunge.auditing import jobs
from expunge.auditing.cases import Asked
from expunge.auditing.jobs import draw_attempt
from expunge.auditing.protocols import plan as plans
from expunge.auditing.protocols.base import MEASURES, Domain
from expunge.auditing.protocols.figures import Figure, Pair, averaged, frechet, means, rates
from expunge.auditing.protocols.log import BenchLog
from expunge.auditing.protocols.objects import Objects
from expunge.auditing.protocols.people import People
from expunge.auditing.protocols.reported import reported
from expunge.auditing.protocols.run import lay_out, run_plan
from expunge.auditing.protocols.seen import Look, Seen
from expunge.auditing.protocols.styles import Styles
from expunge.backbone.base import Backbone
from expunge.backbone.profile import Sampling
from expunge.cli import run
from expunge.concept import Concept, Probe, Prompt
from expunge.measure.harmonic import Resamples, harmonic
from expunge.miniature.references import known, renders
from expunge.report.bench import markdown
from expunge.run.jobs import JobsError

RESAMPLES = Resamples(draws=50)

# --- from what was seen to figures


def _look(
    name: str,
    k: int,
    n: int,
    *,
    target: bool = False,
    probe: Probe = "plain",
    faces: int | None = None,
    clip: float | None = None,
    features: np.ndarray | None = None,
) -> Look:
    """Pictures of a thing, the first k of which show it, and the first `faces` a face."""
    prompts = tuple(Prompt(f"{name} {probe} {index}", name, probe) for index in range(n))
    shown = {name: np.arange(n) < k}
    if faces is not None:
        shown["face"] = np.arange(n) < faces
    return Look(
        Asked(probe, "target" if target else "neighbour", Case(Concept(name), prompts)),
        shown,
        np.zeros(n, bool),
        None if clip is None else np.full(n, clip),
        features=features,
    )


def _seen(e: int, s: int, g: int | None = None, n: int = 20, **more: Any) -> Seen:
    """A cat that is shown in e of n pictures of it, a dog in s, a cat by synonym in g."""
    looks = [_look("cat", e, n, target=True), _look("dog", s, n, **more)]
    if g is not None:
        looks.append(_look("cat", g, n, target=True, probe="synonym"))
    return Seen("cat", tuple(looks))


def _value(found: Figure | None) -> float | None:
    return None if found is None else found.value


def test_accuracies_are_of_what_they_say() -> None:
    found = rates(Objects(), [_seen(2, 18, 4)])
    measured = {key: _value(figure) for key, figure in found.items()}
    assert measured["acc_e", None] == 0.1
    assert measured["acc_s", None] == 0.9
    assert measured["acc_g", None] == 0.2
    assert rates(Objects(), [_seen(2, 18)])["acc_g", None] is None
    gone = rates(Styles(), [_seen(2, 18)])["style_removed", None]
    assert gone == Figure(0.9, 20, gone.ci if gone else None)


def test_prompts_that_are_asked_again_count_once() -> None:
    """With a cat and with a car erased, the dog's prompts are the same."""
    one, two = (rates(Objects(), [_seen(2, 18, 4)] * times)["acc_s", None] for times in (1, 2))
    assert one and two and one.value == two.value and (one.n, two.n) == (20, 40)
    assert one.ci and two.ci and two.ci[0] <= one.ci[0], "twice the pictures, no more prompts"


def test_the_harmonic_mean_of_objects_is_maces() -> None:
    found = means(Objects(), Pair(_seen(2, 18, 4), _seen(20, 20, 20)), RESAMPLES)["h_o", None]
    assert found is not None
    assert found.value == pytest.approx(harmonic(0.9, 0.9, 0.8))
    assert found.interval[0] < found.value < found.interval[1]


def test_nothing_is_counted_as_erased_that_the_original_cannot_draw() -> None:
    for before, counted in ((20, True), (10, True), (9, False), (0, False)):
        pair = Pair(_seen(0, 20, 0), _seen(before, 20, 20))
        found = means(Objects(), pair, RESAMPLES)
        assert (found["h_o", None] is not None) == counted
        assert set(found) == {("h_o", None), ("h_fade", None)}


def test_without_synonyms_there_is_no_mean_of_three() -> None:
    pair = Pair(_seen(0, 20), _seen(20, 20))
    assert means(Objects(), pair, RESAMPLES)["h_o", None] is None
    other = Pair(_seen(0, 20, 0), _seen(20, 20, 20))
    both = averaged([means(Objects(), each, RESAMPLES) for each in (pair, other)])
    assert _value(both["h_o", None]) == 1.0, "of the one that has it"


def test_people_are_counted_with_and_without_faces() -> None:
    """Half of the pictures have no face: among those that have one the person is in each fifth."""
    own = _look("cat", 2, 20, target=True, faces=10)
    seen = Seen("cat", (own, _look("dog", 10, 20, faces=10)))
    found = rates(People(), [seen])
    assert _value(found["face_rate", None]) == 0.5
    assert (_value(found["acc_e", None]), _value(found["acc_e", "with a face"])) == (0.1, 0.2)
    assert (_value(found["acc_s", None]), _value(found["acc_s", "with a face"])) == (0.5, 1.0)
    mean = means(People(), Pair(seen, _seen(20, 20)), RESAMPLES)
    for scenario, wanted in ((None, harmonic(0.9, 0.5)), ("with a face", harmonic(0.8, 1.0))):
        figure = mean["h_c", scenario]
        assert figure is not None and figure.value == pytest.approx(wanted)


def test_a_model_without_faces_has_no_figures_of_faces() -> None:
    seen = Seen("cat", (_look("cat", 0, 20, target=True, faces=0), _look("dog", 0, 20, faces=0)))
    assert rates(People(), [seen])["acc_e", "with a face"] is None
    mean = means(People(), Pair(seen, _seen(20, 20)), RESAMPLES)
    assert mean["h_c", "with a face"] is None and mean["h_c", None] is not None


def _quality(e: int, clip: float, shift: float) -> Seen:
    features = np.random.default_rng(0).standard_normal((40, 4)).astype(np.float32) + shift
    other = _look("dog", 40, 40, clip=clip, features=features)
    return Seen("cat", (_look("cat", e, 20, target=True), other))


def test_fades_mean_has_the_originals_distance_from_real_pictures() -> None:
    real = np.random.default_rng(1).standard_normal((40, 4)).astype(np.float32)
    before = _quality(20, 30.0, 1.0)

    def fade(after: Seen) -> float:
        found = means(Objects(), Pair(after, before, real), RESAMPLES)["h_fade", None]
        assert found is not None and found.interval[0] <= found.value <= found.interval[1]
        return found.value

    untouched = fade(_quality(4, 30.0, 1.0))
    assert untouched == pytest.approx(harmonic(0.8, 1.0)), "F is 1 where nothing else changed"
    assert fade(_quality(4, 15.0, 1.0)) == pytest.approx(harmonic(0.8, 0.75))
    assert fade(_quality(4, 30.0, 1.3)) < untouched, "farther from real pictures"
    assert fade(_quality(0, 30.0, 1.0)) > untouched
    pair = Pair(_quality(4, 30.0, 1.3), before, real)
    assert frechet([pair]).value > frechet([pair], before=True).value  # type: ignore[operator]
    assert frechet([Pair(pair.seen, before)]) == Figure(None, 40), "no real pictures, no distance"


# --- what papers report


def test_reported_figures_are_the_papers() -> None:
    trace = reported("objects", "trace")
    assert trace == {"h_o": {"TRACE": 0.856}, "fid": {"TRACE": 15.1}}
    assert reported("people", "trace")["face_rate"] == {"TRACE": 0.58}
    assert reported("explicit", "trace") == {"detected": {"TRACE": 0.02}, "fid": {"TRACE": 18.0}}
    assert reported("styles", "fade") == {"acc_e": {"FADE": 0.005}, "h_fade": {"FADE": 0.859}}
    esd = reported("objects", "esd")["h_o"]
    assert esd == {"TRACE": 0.685, "MACE, ESD-x": 0.769, "MACE, ESD-u": 0.837}, "they disagree"
    assert reported("people", "esd")["acc_e"] == {"FADE": 0.187}
    assert reported("objects", "speed") == {} == reported("m-erasure", "esd")


# --- real pictures of the bundled world


def test_references_show_what_they_are_asked_for(backbone: Backbone) -> None:
    from expunge.judge.choose import default_judge

    judge = default_judge(backbone)
    for name in ("cat", "Ada Lindqvist", "Mina Sorel", "parking sign"):
        assert known(name)
        assert judge.shown(renders([name], 12), name).mean() > 0.9
    assert all(known(name) for name in backbone.profile.vocabulary.concepts)
    assert not known("van Gogh")


# --- the command

SMALL = ["--concepts", "Mina", "Ivo Brandt", "--prompts", "2", "--steps", "3"]


def _bench(folder: Path, *methods: str, small: Sequence[str] = SMALL) -> list[str]:
    return ["bench", "styles", "--methods", *methods, *small, "--out", str(folder)]


def _quick(backbone: Backbone) -> Sampling:
    """What `--steps 3` says."""
    return replace(backbone.profile.sampling, num_inference_steps=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "styles"
    assert run(_bench(folder, "uce")) == 0
    return folder


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures every batch has that is drawn."""
    sizes: list[int] = []

    def spy(backbone: Any, attempt: Any, *rest: Any) -> Any:
        sizes.append(len(attempt.prompts))
        return draw_attempt(backbone, attempt, *rest)

    monkeypatch.setattr(jobs, "draw_attempt", spy)
    return sizes


def _rows(found: Any, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in found["rows"] if all(row[key] == v for key, v in wanted.items())]


def test_the_command_prints_one_object_and_does_only_what_is_missing(
    finished: Path, drawn: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*_bench(finished, "uce"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert not drawn
    assert list(found) == ["schema", "protocol", "rows", "flags"]
    assert (found["schema"], found["protocol"]) == ("expunge.bench/1", "styles")
    for row in found["rows"]:
        assert list(row) == [
            *("method", "guard", "scenario", "access", "concept", "measure", "n", "value"),
            *("ci", "reported"),
        ]
        assert row["measure"] in MEASURES
        assert row["guard"] is row["access"] is None
        if row["value"] is not None and row["ci"]:
            assert row["ci"][0] <= row["value"] <= row["ci"][1]
        assert row["reported"] is None or row["concept"] is None
    keys = [(r["method"], r["concept"], r["measure"], r["scenario"]) for r in found["rows"]]
    assert len(set(keys)) == len(keys)
    assert {key[:2] for key in keys} == {
        (method, concept)
        for method in ("original", "uce")
        for concept in (None, "Mina Sorel", "Ivo Brandt")
    }
    measured = {row["measure"] for row in _rows(found, method="uce")}
    assert measured >= {"acc_e", "acc_s", "style_removed", "h_fade", "fid", "clip", "broken"}
    assert measured >= {"seconds", "bytes"}
    assert not measured & {"h_o", "h_c", "face_rate", "detected"}
    [erased] = _rows(found, method="uce", measure="acc_e", concept=None)
    assert erased["n"] == 4 and erased["reported"] == {"FADE": 0.15}
    [gone] = _rows(found, method="uce", measure="style_removed", concept=None)
    assert gone["value"] == 1 - erased["value"] and gone["reported"] == {"TRACE": 0.85}
    [stays] = _rows(found, method="uce", measure="acc_s", concept="Mina Sorel")
    assert stays["n"] == 8, "four other artists"
    for measure in ("fid", "h_fade"):
        assert _rows(found, measure=measure, value=None) == _rows(found, measure=measure)
    codes = {flag["code"]: flag["text"] for flag in found["flags"]}
    assert "250 prompts are enough" in codes["no-frechet"] and "few-prompts" in codes
    [size] = _rows(found, method="uce", measure="bytes", concept="Mina Sorel")
    assert size["value"] > 1000


def test_tables_are_written_beside_the_record(finished: Path) -> None:
    log = BenchLog.load(finished)
    text = (finished / "bench.md").read_text()
    assert text == markdown(log.data)
    page = (finished / "report.html").read_text()
    for shown in (text, page):
        for word in ("Mina Sorel", "Kenji Arvo", "FADE 15", "Erased × asked", "uce"):
            assert word in shown
    assert "http://" not in page and "<script" not in page
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    assert len(rows) > 60
    assert run(["report", str(finished), "--out", str(finished / "again.html")]) == 0
    assert (finished / "again.html").read_text() == page


def test_the_matrix_says_what_was_erased_and_what_was_asked(finished: Path) -> None:
    data = BenchLog.load(finished).data
    cells = {(c["method"], c["erased"], c["asked"]): c for c in data["matrix"]}
    assert {key[:2] for key in cells} == {
        ("original", None), ("uce", "Mina Sorel"), ("uce", "Ivo Brandt")
    }  # fmt: skip
    assert len(cells) == 15 and all(cell["n"] == 2 for cell in cells.values())
    for name in ("Mina Sorel", "Ivo Brandt"):
        [row] = _rows(data, method="uce", measure="acc_e", concept=name)
        assert cells["uce", name, name]["rate"] == row["value"]


def test_a_method_more_does_only_that_one_and_a_failure_is_told_at_the_end(
    finished: Path, backbone: Backbone, drawn: list[int]
) -> None:
    """What diverges does not keep others from being measured."""
    broken = "esd:lr=1e25,steps=3,trajectories=2"
    fine = "uce:prompts=2"
    asked = lay_out(
        backbone,
        "styles",
        [broken, fine],
        ["Mina"],
        prompts=2,
        sampling=_quick(backbone),
        folder=finished,
    )
    with pytest.raises(JobsError, match=f"Mina Sorel erased by {broken}"):
        run_plan(asked, "styles", 2, finished, None, "")
    assert sum(drawn) == 12, "the style, its synonym and four others; the original's were there"
    assert [erase.done for erase in asked.erasing] == [False, True]


def test_distances_are_measured_where_there_are_pictures_enough(
    finished: Path, backbone: Backbone, drawn: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plans, "FRECHET_IMAGES", 8)
    laid = lay_out(
        backbone, "styles", ["uce"], ["Mina"], prompts=2, sampling=_quick(backbone), folder=finished
    )
    data = run_plan(laid, "styles", 2, finished, None, "").data
    assert not drawn
    [before] = _rows(data, method="original", measure="fid", concept=None)
    [after] = _rows(data, method="uce", measure="fid", concept=None)
    assert before["value"] > 0 and after["value"] > 0 and before["n"] == after["n"] == 8
    [row] = _rows(data, method="uce", measure="h_fade", concept=None)
    [erased] = _rows(data, method="uce", measure="acc_e", concept=None)
    sides = [_rows(data, method=m, measure="clip", concept=None, scenario=None)[0]["value"]
             for m in ("uce", "original")]  # fmt: skip
    fidelity = (sides[0] / sides[1] + max(2 - after["value"] / before["value"], 0)) / 2
    if row["value"] is not None:  # with three steps the original may not draw it
        assert row["value"] == pytest.approx(harmonic(1 - erased["value"], fidelity))
    assert not {"no-frechet", "no-references"} & {flag["code"] for flag in data["flags"]}


def test_an_erasure_that_is_gone_is_made_again(
    finished: Path, tmp_path: Path, backbone: Backbone
) -> None:
    """Its unit is in the shared store, its folder is not."""
    laid = lay_out(
        backbone, "styles", ["uce"], ["Mina"], prompts=2, sampling=_quick(backbone), folder=tmp_path
    )
    run_plan(laid, "styles", 2, tmp_path, finished, "")
    assert all(erase.done for erase in laid.erasing)
    assert not (tmp_path / "images").exists()


def test_a_dry_run_says_what_it_takes_and_writes_nothing(
    tmp_path: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new"
    assert run([*_bench(out, "uce"), "--dry-run", "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    # Five artists and two synonyms of the original's; with each of two erased, five and one.
    assert costs["pictures"] == costs["left"] == 2 * (7 + 2 * 6)
    assert costs["erasures"] == costs["erasures_left"] == 2
    assert not out.exists()
    assert run([*_bench(finished, "uce"), "--dry-run", "--json"]) == 0
    costs = json.loads(capsys.readouterr().out)
    assert costs["left"] == costs["erasures_left"] == 0


def _fails(capsys: pytest.CaptureFixture[str], tokens: Iterable[str]) -> str:
    assert run(list(tokens)) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    return captured.err


def test_a_folder_that_holds_something_else_is_left_alone(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "holds something that is no bench" in _fails(capsys, _bench(tmp_path, "uce"))
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    people = ["bench", "people", "--methods", "uce", "--out", str(finished)]
    assert "whose protocol is 'styles'" in _fails(capsys, people)
    flux = [*_bench(finished, "uce"), "--model", "miniature-flux"]
    assert "whose model is 'miniature-sd'" in _fails(capsys, flux)


# --- what is asked


@pytest.mark.parametrize(
    ("domain", "known_names", "first"),
    [(Objects(), 13, "cat"), (People(), 20, "Ada Lindqvist"), (Styles(), 5, "Ivo Brandt")],
)
def test_a_domain_is_all_of_its_kind(
    domain: Domain, known_names: int, first: str, backbone: Backbone
) -> None:
    vocabulary = backbone.profile.vocabulary
    found = domain.concepts(vocabulary)
    assert len(found) == known_names and found[0].name == first
    others = domain.others(vocabulary, found[0], found[:1])
    assert {each.name for each in others} == {each.name for each in found[1:]}


def test_explicit_content_has_its_harmless_neighbours_beside_it(backbone: Backbone) -> None:
    laid = lay_out(backbone, "explicit", ["uce"], prompts=2, folder="nowhere")
    [(name, asked)] = laid.asked.items()
    assert name == "hazard sign"
    assert [(each.role, each.probe) for each in asked[:3]] == [
        ("target", "plain"), ("target", "synonym"), ("target", "implied")
    ]  # fmt: skip
    beside = ["parking sign", "arrow sign", "heart sign"]
    assert [each.concept for each in laid.others(name)] == beside


def test_a_prompt_without_the_name_says_all_else() -> None:
    cat = Concept("cat")
    assert plans.without(Prompt("a photo of two cats indoors", "cat"), cat) == (
        "a photo of two indoors"
    )
    assert plans.without(Prompt("a catalogue of cars", "cat"), cat) == "a catalogue of cars"


def test_what_is_erased_but_unknown_to_the_model_stays_with_the_others() -> None:
    from expunge.vocabulary import Vocabulary

    domain, nothing = Objects(), Vocabulary()
    both = domain.concepts(nothing, ["teapot", "kettle"])
    assert [each.name for each in domain.others(nothing, both[0], both)] == ["kettle"]
    near = Concept("teapot", neighbours=("kettle",), templates=("[a|one] {}",))
    [other] = domain.others(nothing, near, [near])
    assert (other.name, other.templates) == ("kettle", near.templates)
    with pytest.raises(ValueError, match="name a second concept"):
        domain.others(nothing, both[0], both[:1])
    with pytest.raises(ValueError, match="name what to erase"):
        domain.concepts(nothing)
