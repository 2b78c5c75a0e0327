"""BibTeX of what a run used, and an entry for everything that could be."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from expunge import citations, cli, names

COMING = (
    *("rece", "mace", "ant", "trce", "stereo", "eap", "concept-ablation", "selective-amnesia"),
    *("advunlearn", "eraseanything", "double-projection"),
)


@pytest.mark.parametrize("kind", list(citations.TABLES))
def test_everything_has_its_citation(kind: str) -> None:
    for name in names.TABLES.get(kind, ()):
        assert citations.keys(kind, name) is not None, f"add {name} to citations.py"
    for cited in citations.TABLES[kind].values():
        assert set(cited) <= set(citations.ENTRIES)


def test_every_eraser_has_an_entry() -> None:
    for name in (*names.ERASERS, *COMING):
        assert citations.keys("eraser", name), f"add {name} to citations.py"
        assert citations.keys("eraser", name.replace("-", "")) == citations.keys("eraser", name)


def test_entries_are_bibtex() -> None:
    for key, text in citations.ENTRIES.items():
        assert re.match(rf"@(inproceedings|misc)\{{{key},\n", text)
        assert text.count("{") == text.count("}") and text.endswith("\n}")
        fields = dict(re.findall(r"^  (\w+) *= \{(.*)\},$", text, re.MULTILINE))
        assert {"author", "title", "year"} <= set(fields)
        assert all(len(each.split(",")) == 2 for each in fields["author"].split(" and ")) or (
            fields["author"] == "{Black Forest Labs}"
        )
        assert fields["year"] in key
    used = {key for table in citations.TABLES.values() for keys in table.values() for key in keys}
    used |= {key for keys in citations.MODELS.values() for key in keys}
    assert used == set(citations.ENTRIES), "entries that nothing cites"


@pytest.mark.parametrize(
    ("model", "key"),
    [
        ("CompVis/stable-diffusion-v1-4", "rombach2022high"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "podell2024sdxl"),
        ("stabilityai/stable-diffusion-3.5-medium", "esser2024scaling"),
        ("black-forest-labs/FLUX.1-dev", "blackforestlabs2024flux"),
    ],
)
def test_base_models_are_known_by_their_names(model: str, key: str) -> None:
    assert citations.model_keys(model) == (key,)
    assert citations.model_keys("miniature-flux") == () == citations.model_keys("me/mine")


def test_a_run_is_cited_by_what_its_records_say(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = json.loads((run / "erasure.json").read_text())
    audit = {
        "schema": "expunge.audit/2",
        "judges": [{"name": "clip:clip-vit-large-patch14"}],
        "attacks": [{"name": "plain"}, {"name": "textual-inversion:steps=3"}],
        "conditions": [{"spec": {"guards": [{"name": "irece", "level": 0.7}]}}, {"spec": {}}],
        "frechet": {"n": 1000},
    }
    (run / "log").mkdir()
    (run / "log/audit.json").write_text(json.dumps(audit))
    (run / "erasure.json").write_text(
        json.dumps({**record, "hub": "CompVis/stable-diffusion-v1-4"})
    )
    assert _run("cite", str(run)) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^@\w+\{(\w+),", shown, re.MULTILINE) == [
        *("gandikota2024unified", "rombach2022high", "radford2021learning", "gal2023image"),
        *("pham2024circumventing", "weng2025merasurebench", "heusel2017gans"),
    ]
    assert _run("cite", str(run), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["entries"][0]["used"] == ["eraser uce"]
    assert found["entries"][0]["bibtex"] in shown


def test_merged_erasures_cite_each(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((run / "erasure.json").read_text())
    merged = {**record, "eraser": "merge", "merged": [{"eraser": "UCE"}, {"eraser": "TRACE"}]}
    (run / "erasure.json").write_text(json.dumps(merged))
    assert _run("cite", str(run)) == 0
    captured = capsys.readouterr()
    assert "gandikota2024unified" in captured.out and "carter2025trace" in captured.out
    assert captured.err == ""


def test_a_bench_is_cited_by_its_methods_and_measures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = {
        "schema": "expunge.bench/1",
        "protocol": "people",
        "methods": {"esd:steps=3": {}, "mine": {}},
        "judge": {"name": "miniature-patch"},
        "model": {"name": "miniature-sd"},
        "rows": [{"measure": "clip", "value": 30.0}, {"measure": "fid", "value": None}],
    }
    (tmp_path / "bench.json").write_text(json.dumps(log))
    assert _run("cite", str(tmp_path)) == 0
    captured = capsys.readouterr()
    assert re.findall(r"^@\w+\{(\w+),", captured.out, re.MULTILINE) == [
        *("gandikota2023erasing", "lu2024mace", "carter2025trace", "fu2025fade", "yu2022s2mlp"),
        "hessel2021clipscore",
    ]
    assert "nobody is known to be cited for the eraser mine" in captured.err


def test_what_is_no_run_gets_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run("cite", str(tmp_path)) == 2
    assert "nothing to cite" in capsys.readouterr().err
    (tmp_path / "bench.json").write_text('{"schema": "expunge.bench/9"}')
    assert _run("cite", str(tmp_path)) == 2
    assert "this Expunge reads" in capsys.readouterr().err


def _run(*tokens: str) -> int:
    return cli.run(tokens)
