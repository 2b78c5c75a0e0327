"""List what there is, by name: found in the tables and in docstrings, without loading any of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from expunge import names
from expunge.cli.app import Json, app, print_json
from expunge.cli.source import USUAL, USUAL_SOURCE, Source

What = Literal[
    "models",
    "concepts",
    "erasers",
    "attacks",
    "guards",
    "judges",
    "schemes",
    "edits",
    "protocols",
]


@app.command(name="list")
def list_(
    what: Annotated[What | None, Parameter(help="One sort of thing; all by default.")] = None,
    *,
    source: Source = USUAL_SOURCE,
    as_json: Json = False,
) -> None:
    """List methods, bundled models, and the concepts that a model is known to draw.

    Example: `expunge list erasers --json`

    Example: `expunge list concepts --model miniature-sd`
    """
    profile = source.profile()
    concepts = {name: {"kind": str(c.kind)} for name, c in profile.vocabulary.concepts.items()}
    found: dict[str, dict[str, dict[str, Any]]] = {
        "models": _models(),
        "concepts": concepts,
        **_things(),
    }
    chosen = found if what is None else {what: found[what]}
    if as_json:
        return print_json(chosen)
    for title, things in chosen.items():
        of = f" of {source.model or USUAL}" if title == "concepts" else ""
        _show(f"{title}{of}", things, detailed=what is not None)
    return None


def _models() -> dict[str, dict[str, str]]:
    from expunge.backbone.profile import BUNDLED

    return {name: {"text": "comes with the package"} for name in BUNDLED}


def _things() -> dict[str, dict[str, dict[str, Any]]]:
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for kind in ("eraser", "attack", "guard", "judge", "scheme", "edit", "protocol"):
        table = names.TABLES[kind]
        found[f"{kind}s"] = {name: names.described(kind, name) for name in table}
    for name, told in found["erasers"].items():
        told |= _of_eraser(name)
    return found


def _of_eraser(name: str) -> dict[str, Any]:
    from expunge.eraser.finetune import FineTuner

    made = names.find("eraser", name)
    trained = issubclass(made, FineTuner)
    return {
        "name": name,
        "kind": "training" if trained else "closed form",
        "architectures": list(made.architectures),
        "needs": "gradients through the denoiser; a GPU for large models"
        if trained
        else "no training: one solve, on a CPU too",
        "exports": list(made.exports),
    }


def _show(title: str, things: Mapping[str, Mapping[str, Any]], *, detailed: bool) -> None:
    console = Console(highlight=False)
    if not things:
        console.print(f"{title}: none yet")
    elif not detailed:
        console.print(f"{title}: {', '.join(things)}", markup=False)
    else:
        table = Table.grid(padding=(0, 2, 0, 0))
        for name, told in things.items():
            head = ": ".join(told[key] for key in ("kind", "needs") if key in told)
            on = f"on {', '.join(told['architectures'])}" if "architectures" in told else ""
            files = f"exports: {', '.join(told['exports']) or 'none'}" if "exports" in told else ""
            lines = [head, on, files, told.get("source", ""), told.get("text", "")]
            table.add_row(Text(name), Text("\n".join(filter(None, lines))))
        console.print(table)
