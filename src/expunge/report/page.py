"""What every report shares: how a log is checked, and how a template becomes one HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from expunge.report.format import FILTERS, Record
from expunge.report.pictures import AMPLIFIED, LONGEST_SIDE, SMALL
from expunge.run.files import write_text


@dataclass(frozen=True)
class Form:
    """What a report asks of a log.

    Attributes:
        schema: name and version.
        keys: parts it must have.
        whose: the log in words, such as `an audit's log`.
        again: what makes a complete one.
    """

    schema: str
    keys: Sequence[str]
    whose: str
    again: str

    def check(self, log: Record, examples: int) -> None:
        """Refuse what cannot be reported, before anything is read or written.

        Raises:
            ValueError: the log has another schema or lacks a part, or `examples` is below 1.
        """
        if examples < 1:
            raise ValueError(f"examples must be at least 1, got {examples}")
        schema, family = log.get("schema"), self.schema.partition("/")[0]
        wrong = f"log has schema {schema!r}, expected {self.schema!r}"
        name, _, version = str(schema).partition("/")
        if name != family or not version.isdecimal():
            raise ValueError(f"{wrong}: pass {self.whose}")
        if schema != self.schema:
            raise ValueError(f"{wrong}: upgrade expunge")
        if lacking := [key for key in self.keys if key not in log]:
            raise ValueError(
                f"log lacks {', '.join(lacking)}: {self.again}, or pass a complete log"
            )


def write_page(out: Path, template: str, **values: object) -> Path:
    """Fill a template of this package and write the page; its folder is made where needed."""
    environment = Environment(
        loader=PackageLoader("expunge.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {each.__name__: each for each in FILTERS}
    environment.globals["limits"] = {"small": SMALL, "side": LONGEST_SIDE, "times": AMPLIFIED}
    write_text(out, environment.get_template(template).render(**values))
    return out
