"""Erase concepts; the options are those of the method that is asked for."""

from __future__ import annotations

import importlib
import inspect
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from cyclopts import Parameter

from expunge.cli.app import (
    METHODS,
    Json,
    Model,
    app,
    backbone_of,
    command_line,
    near,
    print_json,
    say,
)


def eraser_class(name: str) -> type[Any]:
    """The eraser class of that name.

    Raises:
        ValueError: there is none.
    """
    if name.lower() not in METHODS:
        raise near("method", name, list(METHODS))
    home, _, attribute = METHODS[name.lower()].partition(":")
    found: type[Any] = getattr(importlib.import_module(home), attribute)
    return found


@app.command
def erase(
    *concepts: Annotated[str, Parameter(help="What goes: a name the model knows, or any words.")],
    model: Model = "miniature-sd",
    method: Annotated[str, Parameter(help="uce, esd or trace.")] = "trace",
    out: Annotated[Path | None, Parameter(help="Where to; runs/CONCEPT by default.")] = None,
    kind: Annotated[str | None, Parameter(help="object, identity, style or explicit.")] = None,
    anchor: Annotated[str | None, Parameter(help="Neutral phrase drawn instead.")] = None,
    synonym: Annotated[
        tuple[str, ...], Parameter(help="Another name; repeatedly.", negative="")
    ] = (),
    neighbour: Annotated[
        tuple[str, ...], Parameter(help="What must stay; repeatedly.", negative="")
    ] = (),
    config: Annotated[str | None, Parameter(help="Configuration of a single-file model.")] = None,
    preset: Annotated[bool, Parameter(help="Start from tuned values, not the paper's.")] = True,
    as_json: Json = False,
    **options: Annotated[
        Any, Parameter(help="The method's own: expunge erase --method trace --help.")
    ],
) -> None:
    """Erase concepts from a model.

    The model's weights stay as they are: what is written is a LoRA that any tool loads.

    Example: `expunge erase cat --method trace --steps 200 --out runs/cat`
    """
    chosen = eraser_class(method)
    given = {name: value for name, value in options.items() if value is not None}
    if not concepts:
        raise ValueError("say what to erase, such as: expunge erase cat")
    chosen(**given)
    backbone = backbone_of(model, config)
    said = {"anchor": anchor, "synonyms": synonym, "neighbours": neighbour}
    changes = {name: value for name, value in said.items() if value}
    vocabulary = backbone.profile.vocabulary
    asked = [vocabulary.resolve(name, kind, **changes) for name in concepts]  # type: ignore[arg-type]
    from expunge.presets import preset as tuned
    from expunge.run.files import check_writable

    defaults = tuned(backbone, chosen.__name__, asked[0].kind) if preset else {}
    eraser = chosen(**(defaults | given))
    folder = out or Path("runs") / "-".join(concept.name.replace(" ", "-") for concept in asked)
    check_writable(folder)
    erasure = eraser.erase(backbone, asked, folder=folder)
    erasure.record["command"] = command_line()
    erasure.save(folder)
    if as_json:
        print_json({"folder": str(folder), **erasure.record})
    else:
        names = ", ".join(concept.name for concept in asked)
        say(f"{names} erased by {eraser.name} in {erasure.record['seconds']:.1f} s: {folder}")
        say(f"next: expunge audit {shlex.quote(str(folder))}")


def with_options(eraser: type[Any]) -> Callable[..., None]:
    """`erase` with one option for every hyperparameter of a method, described by its docstring."""
    from docstring_parser import parse

    notes = {
        parameter.arg_name: " ".join((parameter.description or "").split())
        for base in reversed(eraser.__mro__)
        for parameter in parse(base.__doc__ or "").params
    }
    hints = get_type_hints(eraser)
    fixed = [
        parameter
        for parameter in inspect.signature(erase, eval_str=True).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    free = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                hints[name] | None,
                Parameter(help=notes.get(name, ""), group=f"{eraser.__name__} (default: preset)"),
            ],
        )
        for name in eraser.__dataclass_fields__
    ]

    def run(*concepts: str, **options: Any) -> None:
        erase(*concepts, **options)

    run.__doc__, run.__name__ = erase.__doc__, "erase"
    run.__signature__ = inspect.Signature([*fixed, *free])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*fixed, *free)}
    return run


def asked_method(tokens: Sequence[str]) -> str:
    """The method a command line asks for, before it is parsed."""
    for index, token in enumerate(tokens):
        if token == "--method" and index + 1 < len(tokens):
            return tokens[index + 1]
        if token.startswith("--method="):
            return token.partition("=")[2]
    return "trace"
