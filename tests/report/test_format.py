from __future__ import annotations

import pytest

from expunge.report.format import difference, of, p_value, points, rate, span

DASH, MINUS, SPACE = "\N{EN DASH}", "\N{MINUS SIGN}", "\N{NARROW NO-BREAK SPACE}"


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


def test_counts_and_intervals_in_prose() -> None:
    assert of(940, 1000) == "940 of 1,000"
    assert span([0.001, 0.034]) == f"0.1{DASH}3.4{SPACE}%"
    assert span([1.0, 1.0]) == f"100{SPACE}%"
