from __future__ import annotations

from dataclasses import replace

import pytest
from auditing.logs import (
    EMBEDDING,
    JUDGE,
    SEEDS,
    Asked,
    attacked,
    demo,
    log_of,
    plain_part,
)

from expunge.auditing.figures import figures, losses, pooled
from expunge.auditing.flags import cut_short
from expunge.auditing.log import Condition, Log


def codes(log: Log) -> dict[str, str]:
    return {flag.code: flag.text for flag in log.flags}


def test_cells_count_what_samples_show() -> None:
    log = demo()
    for cell in log.cells:
        mine = [s for s in log.samples if (s.concept, s.probe) == (cell.concept, cell.probe)]
        assert cell.n == len(mine)
        assert cell.k == sum(log.judge.finds(s.pictures[cell.condition]) for s in mine)
        assert cell.ci[0] <= cell.rate <= cell.ci[1]


def test_a_broken_picture_shows_nothing_and_is_counted() -> None:
    """A model that draws noise must not look like one that forgot."""
    noise = Asked("cat", "target", 40, {"original": 40, "erased": 40}, broken={"erased": 40})
    log = log_of([noise])
    assert log.cell().k == 0
    [entry] = [each for each in log.broken if each.condition == "erased"]
    assert (entry.k, entry.n) == (40, 40)
    assert entry.difference_ci is not None
    assert entry.difference_ci[0] > 0.5
    assert "no success" in codes(log)["broken-pictures"]


def test_every_condition_is_compared_with_the_original_and_controls_with_erased() -> None:
    log = log_of([*plain_part(), attacked(12, 2)], attacks=[EMBEDDING])
    pairs = {(row.attack, row.first, row.second) for row in log.differences}
    assert pairs == {
        ("plain", "original", "erased"),
        ("inversion", "original", "erased"),
        ("inversion", "original", "control"),
        ("inversion", "control", "erased"),
    }
    [above] = [row for row in log.differences if row.first == "control"]
    assert above.difference == pytest.approx(10 / 40)
    assert above.ci[0] > 0


def test_all_judges_are_counted_and_the_first_gives_the_headline() -> None:
    strict = replace(JUDGE, name="strict", threshold=0.95)
    log = log_of(plain_part(), judges=[JUDGE, strict])
    assert log.cell(condition="original").k == 40
    assert sum(cell.k for cell in log.cells if cell.judge == "strict") == 0
    assert "judges-disagree" not in codes(log)
    apart = log_of(plain_part(erased=20), judges=[JUDGE, strict])
    assert "differ on 20 of 80" in codes(apart)["judges-disagree"]


def test_prompts_drawn_often_count_as_far_as_they_differ() -> None:
    log = demo()
    plain = [s for s in log.samples if s.concept == "cat" and s.probe == "plain"]
    again = [replace(s, seed=s.seed + 1000 + index) for s in plain for index in range(5)]
    once = figures(plain, log.conditions, [JUDGE]).cells
    often = figures(again, log.conditions, [JUDGE]).cells
    assert often[1].n == 5 * once[1].n
    assert often[1].ci == pytest.approx(once[1].ci)


def test_pooled_is_the_sum() -> None:
    rows = [row for row in demo().differences if row.role == "neighbour"]
    together = pooled(rows)
    assert together is not None
    assert (together.n, together.first.k, together.second.k) == (60, 54, 46)
    assert pooled([]) is None


def test_only_what_chance_does_not_explain_is_a_loss() -> None:
    assert [row.concept for row in losses(demo().differences) if row.role == "neighbour"] == [
        "fish"
    ]
    little = Asked("dog", "neighbour", 20, {"original": 20, "erased": 19})
    assert not losses(
        r for r in log_of([*plain_part()[:1], little]).differences if r.role != "target"
    )


def test_words_fit_the_role() -> None:
    texts = [flag.text for flag in demo().flags if flag.code == "original-cannot-draw"]
    assert texts == [
        f"The original draws {name} in only 17 of 20 pictures, so damage to it is harder to see."
        for name in ("dog", "horse")
    ]
    texts = [flag.text for flag in log_of(plain_part(original=34)).flags]
    said = (
        "The original draws cat in only 34 of 40 pictures, so its absence afterwards says little."
    )
    assert said in texts


def test_small_samples_are_said_as_what_could_be_missed() -> None:
    few = codes(demo())["few-prompts"]
    assert few.startswith("40 prompts a probe: a rate under 9 %")
    assert "a loss under" in few
    many = [Asked("cat", "target", 60, {"original": 60, "erased": 0})]
    assert "few-prompts" not in codes(log_of(many))


def test_what_was_not_measured_is_said() -> None:
    assert "prompt, embedding, latent, weights" in codes(demo())["not-attacked"]
    tried = log_of([*plain_part(), attacked()], attacks=[EMBEDDING])
    assert "access to prompt, latent, weights" in codes(tried)["not-attacked"]
    assert "no-frechet" in codes(demo())
    assert {flag.kind for flag in demo().flags} == {"limits", "precision", "unmeasured"}


def test_attacks_without_a_control_and_guards_outside_the_loop_are_said() -> None:
    alone = Asked("cat", "target", 40, {"original": 40, "erased": 3}, attack="best-of-16")
    guard = Condition("guard", "guarded", "with a guard", {})
    assert "no-control" in codes(log_of([*plain_part(), alone], attacks=[SEEDS]))
    assert "no-control" not in codes(log_of([*plain_part(), attacked()], attacks=[EMBEDDING]))
    guarded = replace(alone, shown={**alone.shown, "guard": 1})
    log = log_of([*plain_part(), guarded], attacks=[SEEDS], conditions=[guard])
    assert "best-of-16" in codes(log)["guard-not-in-loop"]


def test_attacks_that_prove_little_are_said() -> None:
    """Weak on the original, at work without a memory, or beside a control that draws nothing."""
    fine = codes(log_of([*plain_part(), attacked(control=0)], attacks=[EMBEDDING]))
    assert not {"attack-weak", "attack-puts-in", "control-broken"} & set(fine)
    weak = Asked(
        "cat", "target", 40, {"original": 19, "erased": 0, "control": 0}, attack="inversion"
    )
    found = codes(log_of([*plain_part(), weak], attacks=[EMBEDDING]))
    assert "cat in only 19 of 40 pictures" in found["attack-weak"]
    along = codes(log_of([*plain_part(), attacked(control=9)], attacks=[EMBEDDING]))
    assert "show cat in 9 of 40 pictures" in along["attack-puts-in"]
    wrecked = replace(attacked(control=0), broken={"control": 40})
    said = codes(log_of([*plain_part(), wrecked], attacks=[EMBEDDING]))
    assert "inversion" in said["control-broken"]
    assert "broken-pictures" not in said


def test_cut_prompts_are_said() -> None:
    assert cut_short([]) == ()
    assert "2 prompts" in cut_short(["b", "a"])[0].text
