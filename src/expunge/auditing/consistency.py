"""What must hold between the parts of a log beyond their types."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.auditing.log import Difference, Log


def check(log: Log) -> None:
    """Refuse a log whose parts contradict each other.

    Raises:
        ValueError: in one sentence that begins with the path of what is wrong.
    """
    conditions = _names("conditions", [each.name for each in log.conditions])
    attacks = _names("attacks", [each.name for each in log.attacks])
    judges = _names("judges", [each.name for each in log.judges])
    if not judges:
        raise ValueError("judges must name at least one judge, got none")
    for role in ("original", "erased"):
        if not any(each.name == each.role == role for each in log.conditions):
            raise ValueError(f"conditions must hold {role!r}, in that role")
    if "plain" not in attacks:
        raise ValueError("attacks must hold 'plain', which is no attack")
    _check_samples(log, conditions, attacks, judges)
    _check_figures(log, conditions, attacks, judges)
    _check_ranges(log)
    _check_targets(log)


def without_schema(data: object, schema: str) -> dict[str, Any]:
    """What stands in a log beside its schema.

    Raises:
        ValueError: no object, or of another schema; says what to do.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"an audit's log must be an object, got {type(data).__name__}")
    if (found := data.get("schema")) == schema:
        return {key: value for key, value in data.items() if key != "schema"}
    wrong = f"the log has schema {str(found)[:60]!r}, this Expunge reads {schema!r}: "
    (name, _, version), (family, _, ours) = (str(s).partition("/") for s in (found, schema))
    if name != family or not version.isdecimal():
        raise ValueError(wrong + "pass an audit's log")
    raise ValueError(wrong + ("upgrade Expunge" if int(version) > int(ours) else "audit again"))


def _names(path: str, names: Sequence[str]) -> set[str]:
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{path} must have different names, got {twice[0]!r} twice")
    return set(names)


def _known(path: str, name: str, names: Iterable[str]) -> None:
    if name not in names:
        raise ValueError(f"{path} must be one of {', '.join(sorted(names))}, got {name[:60]!r}")


def _check_samples(log: Log, conditions: set[str], attacks: set[str], judges: set[str]) -> None:
    for index, sample in enumerate(log.samples):
        path = f"samples[{index}]"
        _known(f"{path}.attack", sample.attack, attacks)
        for name, picture in sample.pictures.items():
            _known(f"{path}.pictures", name, conditions)
            if set(picture.scores) != judges:
                raise ValueError(
                    f"{path}.pictures.{name}.scores must hold every judge, "
                    f"{', '.join(sorted(judges))}"
                )


def _check_figures(log: Log, conditions: set[str], attacks: set[str], judges: set[str]) -> None:
    for index, cell in enumerate(log.cells):
        path = f"cells[{index}]"
        _known(f"{path}.condition", cell.condition, conditions)
        _known(f"{path}.attack", cell.attack, attacks)
        _known(f"{path}.judge", cell.judge, judges)
        _check_rate(path, cell.k, cell.n, cell.rate)
    for index, each in enumerate(log.broken):
        _known(f"broken[{index}].condition", each.condition, conditions)
        _known(f"broken[{index}].attack", each.attack, attacks)
        _check_rate(f"broken[{index}]", each.k, each.n, each.rate)
    for index, row in enumerate(log.differences):
        path = f"differences[{index}]"
        _known(f"{path}.first", row.first, conditions)
        _known(f"{path}.second", row.second, conditions)
        _known(f"{path}.attack", row.attack, attacks)
        _known(f"{path}.judge", row.judge, judges)
        _check_pairs(path, row)


def _check_ranges(log: Log) -> None:
    """Intervals are shares or differences of shares, in order."""
    for name, least in (("cells", 0.0), ("broken", 0.0), ("differences", -1.0)):
        for index, row in enumerate(getattr(log, name)):
            low, high = row.ci
            if not least <= low <= high <= 1:
                raise ValueError(f"{name}[{index}].ci must run from {least:g} to 1, low end first")
    for index, each in enumerate(log.broken):
        low, high = each.difference_ci or (0.0, 0.0)
        if not (-1 <= low <= high <= 1 and -1 <= (each.difference or 0) <= 1):
            raise ValueError(f"broken[{index}].difference_ci must run from -1 to 1, low end first")
    for judge in log.judges:
        if not 0 <= judge.threshold <= 1:
            raise ValueError(f"the threshold of {judge.name} must lie between 0 and 1")
    for name, value in vars(log.thresholds).items():
        if not 0 <= value <= 1:
            raise ValueError(f"thresholds.{name} must lie between 0 and 1, got {value:g}")


def _check_rate(path: str, k: int, n: int, rate: float) -> None:
    if n < 1:
        raise ValueError(f"{path}.n must be at least 1, got {n}")
    if not 0 <= k <= n:
        raise ValueError(f"{path}.k must lie between 0 and n = {n}, got {k}")
    if abs(rate - k / n) > 1e-6:
        raise ValueError(f"{path}.rate must be k / n = {k / n:.6g}, got {rate:.6g}")


def _check_pairs(path: str, row: Difference) -> None:
    n, one, two = row.n, row.only_first, row.only_second
    first, second = row.first_rate, row.second_rate
    if n < 1 or not (0 <= first <= 1 and 0 <= second <= 1):
        raise ValueError(f"{path} must hold rates between 0 and 1 of at least 1 pair")
    if abs(second - first - row.difference) > 1e-6 or not 0 <= row.p <= 1:
        raise ValueError(f"{path}.difference must be second_rate - first_rate, and p a share")
    both = round(first * n) - one
    rates = abs(first * n - round(first * n)) + abs(second * n - both - two)
    if min(one, two, both, n - both - one - two) < 0 or rates > 1e-3:
        raise ValueError(f"{path} holds counts and rates that no {n} pairs can give")


def _check_targets(log: Log) -> None:
    """Every target is of a known kind (explicit ones are veiled by it) and was asked for."""
    if not log.target.concepts:
        raise ValueError("target.concepts must name at least one concept, got none")
    records = log.erasure.get("concepts")
    if not isinstance(records, list | tuple) or not all(isinstance(r, dict) for r in records):
        raise ValueError("erasure.concepts must be a list of concepts")
    for index, record in enumerate(records):
        for key in ("name", "kind"):
            if not isinstance(record.get(key), str):
                raise ValueError(f"erasure.concepts[{index}].{key} must be text")
    for concept in log.target.concepts:
        _known("target.concepts", concept, {record["name"] for record in records})
        for condition in ("original", "erased"):
            try:
                log.cell(concept=concept, condition=condition)
            except KeyError:
                raise ValueError(
                    f"cells must hold {concept!r} asked by name of the {condition} model"
                ) from None
