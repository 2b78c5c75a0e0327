"""The audit from end to end: what it asks, what it keeps, what it refuses."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from backbone.architectures import TINY

import expunge
from expunge import UCE
from expunge.attack.base import Access, Attack, Attempt, Case, Sight
from expunge.auditing import Log, jobs
from expunge.auditing.cases import Asked, Sizes, cases
from expunge.auditing.jobs import Draw, Score, Worker, draw_attempt
from expunge.auditing.plan import Plan, plan
from expunge.auditing.run import usual_judges
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Concept, Prompt
from expunge.condition import erased, original
from expunge.erasure import Erasure
from expunge.judge.miniature import MiniatureJudge
from expunge.prompts import split_of
from expunge.run.jobs import JobsError
from expunge.run.store import Store, StoreError
from expunge.vocabulary import Vocabulary

SIZES = Sizes(target=4, neighbour=1, unrelated=1, attack=2)
SAMPLING = Sampling(num_inference_steps=2, guidance_scale=3.0, height=64, width=64, batch_size=4)
WORD = "<thing>"


@dataclass(frozen=True, kw_only=True)
class Nudge(Attack):
    """A word that is read as some fixed vectors."""

    name: ClassVar[str] = "nudge"
    access: ClassVar[Access] = "embedding"
    white: bool = True
    size: float = 0.02

    @property
    def text(self) -> str:
        return "with a nudge"

    @property
    def white_box(self) -> bool:
        return self.white

    @property
    def budget(self) -> dict[str, int]:
        return {"steps": 1}

    def propose(self, sight: Sight, case: Case) -> Attempt:
        width = sight.backbone.text_encoders["text_encoder"].config.hidden_size
        vectors = torch.full((1, width), self.size)
        asked = tuple(prompt.text.replace("cat", WORD) for prompt in case.prompts)
        return Attempt(asked, {WORD: {"text_encoder": vectors}})


class Failing(Nudge):
    """Fails on the erased model alone."""

    name: ClassVar[str] = "failing"

    def propose(self, sight: Sight, case: Case) -> Attempt:
        if sight.backbone.networks and _applied(sight.backbone):
            raise ArithmeticError("the loss is nan")
        return super().propose(sight, case)


class Idle(Nudge):
    """An attack that is none."""

    name: ClassVar[str] = "idle"

    def propose(self, sight: Sight, case: Case) -> Attempt:
        return Attempt(tuple(prompt.text for prompt in case.prompts))


def _applied(backbone: Backbone) -> bool:
    from expunge.erasure import applied_erasures

    return bool(applied_erasures(backbone))


@pytest.fixture(scope="module")
def small(backbone: Backbone) -> Erasure:
    """A cat with few surroundings, erased."""
    cat = backbone.profile.vocabulary.resolve("cat")
    cat = replace(cat, synonyms=("kitten",), neighbours=("dog",), unrelated=("ship",))
    return UCE(prompts=5, preserved=5, tokens="suffix", to_anchor=True).erase(backbone, [cat])


@pytest.fixture(scope="module")
def finished(pipe: Any, small: Erasure, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    _audit(pipe, small, folder)
    return folder


def _audit(pipe: Any, erasure: Erasure, folder: Path, **options: Any) -> Log:
    asked = {"sizes": SIZES, "sampling": SAMPLING, "folder": folder, **options}
    return expunge.audit(pipe, erasure, **asked)


def _plan(backbone: Backbone, erasure: Erasure, **options: Any) -> Plan:
    asked = {"sizes": SIZES, "sampling": SAMPLING, "judges": usual_judges(backbone), **options}
    return plan(backbone, erasure, **asked)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Prompts of every batch that is drawn."""
    batches: list[tuple[str, ...]] = []

    def spy(backbone: Any, attempt: Attempt, *rest: Any) -> Any:
        batches.append(attempt.prompts)
        return draw_attempt(backbone, attempt, *rest)

    monkeypatch.setattr(jobs, "draw_attempt", spy)
    return batches


def test_the_log_says_what_is_asked(finished: Path, small: Erasure) -> None:
    log = Log.load(finished)
    data = log.summary()
    assert json.loads(json.dumps(data)) == data
    assert data["target"]["concepts"] == ["cat"]
    assert [judge["name"] for judge in data["judges"]] == ["miniature-conv", "miniature-patch"]
    for cell in data["cells"]:
        assert cell["attack"] == "plain"
        assert cell["condition"] in ("original", "erased")
        assert cell["ci"][0] <= cell["rate"] == cell["k"] / cell["n"] <= cell["ci"][1]
    seen = {(cell["probe"], cell["concept"], cell["role"], cell["n"]) for cell in data["cells"]}
    assert seen == {
        ("plain", "cat", "target", 4), ("synonym", "cat", "target", 4),
        ("plain", "dog", "neighbour", 1), ("plain", "ship", "unrelated", 1),
    }  # fmt: skip
    assert {flag["code"] for flag in data["flags"]} >= {"few-prompts", "no-frechet", "not-attacked"}
    assert all(split_of(sample.prompt) == "test" for sample in log.samples)
    assert log.erasure["sketch"] == small.record["sketch"]
    assert "data:image/" in log.report(finished / "report.html").read_text()


@pytest.mark.usefixtures("untouched")
def test_each_condition_draws_the_same_prompts_and_seeds_with_what_it_says(
    backbone: Backbone, small: Erasure, finished: Path
) -> None:
    """The original is drawn under `original()`, so an adapter that hangs there is silent."""
    laid, store = _plan(backbone, small), Store(finished)
    drawings = [batch.draw for batch in laid.batches if batch.prompts[0].concept == "dog"]
    assert len({tuple(draw.seeds) for draw in drawings}) == 1
    names = [store.get(draw.id)["images"] for draw in drawings]  # type: ignore[index]
    assert names[0] != names[1]
    with small.applied(backbone), Worker(backbone, store, {}) as worker:
        assert drawings[0].run(worker, {})["images"] == names[0]
    with Worker(backbone, store, {}) as worker:
        assert drawings[1].run(worker, {})["images"] == names[1]


def test_a_killed_audit_goes_on(
    pipe: Any, small: Erasure, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def stopping(*rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return draw_attempt(*rest)

    monkeypatch.setattr(jobs, "draw_attempt", stopping)
    with pytest.raises(KeyboardInterrupt):
        _audit(pipe, small, tmp_path)
    assert not (tmp_path / "audit.json").exists()
    again = _audit(pipe, small, tmp_path)
    assert calls == len({batch.draw.id for batch in _plan(as_backbone(pipe), small).batches}) + 1
    assert again.samples == Log.load(finished).samples


def test_a_finished_audit_draws_nothing_and_is_quick(
    pipe: Any, small: Erasure, finished: Path, drawn: list[Any]
) -> None:
    before = Log.load(finished)
    start = time.process_time()
    assert _audit(pipe, small, finished).samples == before.samples
    assert not drawn
    assert time.process_time() - start < 3


def test_damaged_and_deleted_pictures_are_drawn_again(
    pipe: Any, small: Erasure, finished: Path, drawn: list[tuple[str, ...]]
) -> None:
    before = Log.load(finished)
    lost, hurt = (next(s for s in before.samples if s.concept == name) for name in ("dog", "ship"))
    (finished / lost.pictures["original"].image).unlink()
    (finished / hurt.pictures["erased"].image).write_bytes(b"not what its name says")
    assert _audit(pipe, small, finished).samples == before.samples
    assert sorted(drawn) == sorted([(lost.prompt,), (hurt.prompt,)])


def test_the_plan_counts_pictures(
    backbone: Backbone, small: Erasure, finished: Path, tmp_path: Path
) -> None:
    laid = _plan(backbone, small)
    assert laid.pictures == 2 * (4 + 4 + 1 + 1)
    assert laid.left(Store(tmp_path)) == laid.pictures
    assert laid.left(Store(finished)) == 0
    attacked = _plan(backbone, small, attacks=[Nudge()])
    assert attacked.pictures == laid.pictures + 3 * 2
    assert len(attacked.proposals) == 3
    assert len(_plan(backbone, small, attacks=[Nudge(white=False)]).proposals) == 1


# --- attacks


@pytest.fixture(scope="module")
def attacked(pipe: Any, small: Erasure, finished: Path) -> Log:
    return _audit(pipe, small, finished, attacks=[Nudge(), Nudge(size=0.03, white=False)])


@pytest.mark.usefixtures("untouched")
def test_attacks_are_drawn_on_every_condition_beside_their_control(attacked: Log) -> None:
    labels = ["nudge", "nudge:white=false,size=0.03"]
    assert [each.name for each in attacked.attacks] == ["plain", *labels]
    for label in labels:
        drawn = {cell.condition for cell in attacked.cells if cell.attack == label}
        assert drawn == {"original", "erased", "random weights"}
        pairs = {(row.first, row.second) for row in attacked.differences if row.attack == label}
        assert ("random weights", "erased") in pairs
    mine = [sample for sample in attacked.samples if sample.attack == "nudge"]
    for sample in mine:
        assert len({picture.image for picture in sample.pictures.values()}) == 3
    codes = {flag.code for flag in attacked.flags}
    assert "attack-weak" in codes
    assert "no-control" not in codes


def test_attempts_are_kept_as_tensors_and_drawn_as_they_are(
    attacked: Log, backbone: Backbone, small: Erasure
) -> None:
    store = Store(attacked.store)
    laid = _plan(backbone, small, attacks=[Nudge()])
    seen = next(each for each in laid.proposals if each.seen.name == "erased")
    record = store.get(seen.id)
    assert record is not None
    kept = store.tensors(record["tensors"])[f"{WORD}/text_encoder"]
    assert torch.equal(kept, torch.full((1, kept.shape[1]), 0.02))
    batch = next(b for b in laid.batches if b.draw.proposed == seen.id)
    attempt = Attempt(tuple(record["prompts"]), {WORD: {"text_encoder": kept}})
    with erased(small).on(backbone) as model:
        again = draw_attempt(model, attempt, batch.draw.seeds, SAMPLING)
    names = [store.put_image(picture) for picture in again]
    assert names == store.get(batch.draw.id)["images"]  # type: ignore[index]


def test_a_failed_attempt_is_named_and_all_else_is_kept(
    pipe: Any, small: Erasure, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(JobsError, match=r"failing on erased, cat \(ArithmeticError: the loss is"):
        _audit(pipe, small, tmp_path, store=finished, attacks=[Failing()])
    assert not (tmp_path / "audit.json").exists()
    laid = _plan(as_backbone(pipe), small, attacks=[Failing()])
    assert laid.left(Store(finished)) == SIZES.attack


def test_an_attack_that_asks_as_before_is_none(
    pipe: Any, small: Erasure, finished: Path, tmp_path: Path
) -> None:
    with pytest.raises(JobsError, match="which is no attack"):
        _audit(pipe, small, tmp_path, store=finished, attacks=[Idle()])


def test_random_weights_are_refused_on_quantised_models(
    backbone: Backbone, small: Erasure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(backbone), "quantised", True)
    with pytest.raises(ValueError, match="quantised"):
        _plan(backbone, small, attacks=[Nudge()])
    names = [
        each.name for each in _plan(backbone, small, attacks=[Nudge()], control=False).conditions
    ]
    assert names == ["original", "erased"]


# --- what is refused


def test_bad_requests_are_refused_before_any_drawing(
    pipe: Any, backbone: Backbone, small: Erasure, tmp_path: Path, drawn: list[Any]
) -> None:
    with pytest.raises(ValueError, match="target must be at least 1"):
        Sizes(target=0)
    wombat = replace(small.concepts[0], name="wombat")
    unknown = Erasure([replace(small.parts[0], concept=wombat)], small.record)
    with pytest.raises(ValueError, match="does not know wombat"):
        _audit(pipe, unknown, tmp_path)
    with pytest.raises(ValueError, match="attacks must differ, got nudge twice"):
        _audit(pipe, small, tmp_path, attacks=[Nudge(), Nudge()])
    judge = MiniatureJudge.load("conv")
    with pytest.raises(ValueError, match="judges must differ"):
        _audit(pipe, small, tmp_path, judge=[judge, judge])
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        _audit(pipe, small, tmp_path / "file")
    with small.applied(backbone), pytest.raises(ValueError, match="an erasure is applied"):
        _audit(pipe, small, tmp_path)
    assert not drawn


def _cases(concept: Concept, *known: Concept) -> list[Asked]:
    return cases(Vocabulary.of((concept, *known)), [concept], SIZES, "test")


def test_a_concept_without_prompts_is_refused() -> None:
    outside = next(f"z{i} {{}}" for i in range(99) if split_of(f"z{i} cat") != "test")
    with pytest.raises(ValueError, match="no test prompt contains 'cat'"):
        _cases(Concept("cat", templates=(outside,)))


def test_surroundings_of_explicit_concepts_name_no_minors() -> None:
    """A neighbour may be of another kind, with patterns of its own."""
    school = Concept("parking sign", templates=("a [red|blue|green|grey] {} at a child's school",))
    hazard = Concept("hazard", kind="explicit", neighbours=("parking sign",), unrelated=())
    with pytest.raises(ValueError, match="must not name minors"):
        _cases(hazard, school)


def test_an_erased_neighbour_is_no_damage(backbone: Backbone) -> None:
    vocabulary = backbone.profile.vocabulary
    concepts = [vocabulary.resolve(name) for name in ("cat", "dog", "hazard")]
    asked = cases(vocabulary, concepts, SIZES, "test")
    assert {each.role for each in asked if each.concept == "dog"} == {"target"}
    [implied] = [each for each in asked if each.probe == "implied"]
    assert implied.concept == "hazard sign"
    assert not any("hazard" in prompt.text for prompt in implied.prompts)


# --- what a unit's name holds


def _ids(pipe: Any, judge: MiniatureJudge) -> tuple[str, str]:
    identity = as_backbone(pipe).identity()
    draw = Draw(identity, original(), (Prompt("a cat", "cat"),), SAMPLING)
    return draw.id, Score(judge.record(), "cat", draw.id).id


def test_names_of_units_change_with_all_that_determines_them() -> None:
    pipe, judge = TINY["sd"](), MiniatureJudge.load("conv")
    before = _ids(pipe, judge)
    assert _ids(pipe, judge) == before
    judge.version = "another"
    assert _ids(pipe, judge)[0] == before[0]
    seen = {before[1], _ids(pipe, judge)[1]}
    assert len(seen) == 2
    for change in (
        lambda: pipe.text_encoder.get_input_embeddings().weight.data.add_(1e-3),
        lambda: pipe.vae.decoder.conv_out.bias.data.add_(1e-3),
        lambda: pipe.scheduler.register_to_config(beta_end=0.02),
    ):
        last = _ids(pipe, judge)[0]
        change()
        assert _ids(pipe, judge)[0] != last


def test_enough_benign_pictures_give_frechet_distances(
    pipe: Any, small: Erasure, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("expunge.auditing.plan.FRECHET_IMAGES", 6)
    sizes = replace(SIZES, neighbour=3, unrelated=3)
    asked = {"sizes": sizes, "store": finished}
    found = _audit(pipe, small, tmp_path, **asked).frechet
    assert found is not None
    assert found.n == 6
    assert found.benign_erased > 0
    assert found.benign_original_reseeded > 0
    assert _audit(pipe, small, tmp_path, **asked, frechet=False).frechet is None
