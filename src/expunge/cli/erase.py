"""Erase concepts; the options are those of the method that is asked for."""

from __future__ import annotations

import inspect
import json
import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

from cyclopts import Parameter

from expunge import names
from expunge.cli.app import (
    PATH,
    WHOLE,
    Json,
    app,
    check_folder,
    command_line,
    print_json,
    resumable,
    say,
)
from expunge.cli.source import USUAL_SOURCE, Source
from expunge.concept import run_folder
from expunge.concept_file import Request, read_concepts
from expunge.eraser.base import check_concepts
from expunge.presets import Choice, choose
from expunge.record import RECORD, occupied, read_record
from expunge.run.files import check_writable
from expunge.settings import shown

if TYPE_CHECKING:
    from expunge.concept import Concept
    from expunge.eraser.base import Eraser

_FILES = (".yaml", ".yml", ".csv")
_USUAL = "trace"


@app.command
def erase(
    *concepts: Annotated[
        str,
        Parameter(
            help="What goes: names the model knows, or any words; or one file of concepts "
            "(.yaml, .yml, .csv)."
        ),
    ],
    method: Annotated[str, Parameter(help=f"{', '.join(names.ERASERS)}.")] = _USUAL,
    out: Annotated[
        Path | None, PATH, Parameter(help="Folder to write; runs/CONCEPT by default.")
    ] = None,
    kind: Annotated[str | None, Parameter(help="object, identity, style or explicit.")] = None,
    anchor: Annotated[str | None, Parameter(help="Neutral phrase drawn instead.")] = None,
    synonym: Annotated[
        tuple[str, ...], Parameter(help="Another name; repeatedly.", negative="")
    ] = (),
    neighbour: Annotated[
        tuple[str, ...], Parameter(help="What must stay; repeatedly.", negative="")
    ] = (),
    source: Source = USUAL_SOURCE,
    preset: Annotated[
        bool, Parameter(help="Start from values tuned for the model, not from the method's own.")
    ] = True,
    force: Annotated[
        bool, Parameter(negative="", help="Replace another erasure in the folder.")
    ] = False,
    as_json: Json = False,
    **options: Annotated[
        Any, Parameter(help="The method's own: expunge erase --method trace --help.")
    ],
) -> None:
    """Erase concepts from a model.

    The model's weights stay as they are: what is written is a LoRA beside them. The same command
    goes on where a stopped one was.

    Example: `expunge erase cat --method trace --steps 200 --out runs/cat`

    Example: `expunge erase concepts.yaml --method uce --model OWNER/NAME`
    """
    given = {name: value for name, value in options.items() if value is not None}
    found = names.find("eraser", method)
    found(**given)
    profile = source.profile()
    said = {"anchor": anchor, "synonyms": synonym, "neighbours": neighbour}
    requests = _asked(concepts, kind, {name: value for name, value in said.items() if value})
    known = [request.resolve(profile.vocabulary) for request in requests]
    place = _place(out, known, source.named()[0], force)

    def chosen(family: str) -> Choice:
        return choose(family, found, known, given) if preset else Choice(found(**given), None)

    # The preset of a model without a profile is known only when the model is loaded.
    early = chosen(profile.preset or "").eraser if profile.preset or not preset else None
    if place.holds(found.__name__, early):
        return _tell(place.folder, as_json, done=True)
    check_writable(place.folder)
    backbone = source.load()
    choice = chosen(backbone.profile.preset or backbone.architecture)
    if early is None and place.holds(found.__name__, choice.eraser):
        return _tell(place.folder, as_json, done=True)
    say(f"erasing {_named(known)} from {backbone.name} by {found.__name__}")
    place.clear_stopped()
    with resumable(place.folder / "checkpoints"):
        erasure = choice.erase(backbone, known, place.folder)
        erasure.record["command"] = command_line()
        erasure.save(place.folder, force=force)
    return _tell(place.folder, as_json)


def _asked(concepts: Sequence[str], kind: str | None, changes: Mapping[str, Any]) -> list[Request]:
    """What goes, from names or from a file.

    Raises:
        ValueError: nothing is asked for, a path stands where a name should, or options that
            cannot be meant for all of them.
    """
    if not concepts:
        raise ValueError("say what to erase, such as: expunge erase cat")
    if any(name.lower().endswith(_FILES) for name in concepts):
        if len(concepts) > 1:
            raise ValueError("give names, or one file of concepts; not both, nor several files")
        if kind or changes:
            raise ValueError(
                "a file of concepts says kind, anchor, synonyms and neighbours of each itself; "
                "leave --kind, --anchor, --synonym and --neighbour out"
            )
        return read_concepts(concepts[0])
    for name in concepts:
        if name.startswith(("/", "./", "../", "~")) or name.strip() in (".", ".."):
            raise ValueError(
                f"{shown(name)} is a path and no concept; to choose the folder say --out"
            )
    if len(concepts) > 1 and "synonyms" in changes:
        raise ValueError("--synonym is for one concept; put several into a file (.yaml or .csv)")
    return [Request(name, kind, changes) for name in concepts]  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Place:
    """Where an erasure will lie, and what may lie there already."""

    folder: Path
    model: str
    concepts: Sequence[Concept]
    force: bool

    def holds(self, method: str, eraser: Eraser | None) -> bool:
        """Whether this very erasure is there; None for an eraser that is not known yet.

        Raises:
            ValueError: another one is there, and must not be replaced.
        """
        if self.force or not (self.folder / RECORD).is_file():
            return False
        record = read_record(self.folder)
        wanted = {"eraser": method, "concepts": [concept.to_dict() for concept in self.concepts]}
        if eraser is not None:
            wanted["hyperparameters"] = json.loads(json.dumps(asdict(eraser)))
        same = all(record.get(name) == value for name, value in wanted.items())
        if not (same and _same_model(record.get("model"), self.model)):
            raise occupied(self.folder)
        return eraser is not None

    def clear_stopped(self) -> None:
        """Drop what a stopped run left, where it is to be replaced."""
        if self.force:
            shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)


def _place(out: Path | None, concepts: Sequence[Concept], model: str, force: bool) -> _Place:
    check_concepts(concepts)
    folder = out or Path("runs") / run_folder([concept.name for concept in concepts])
    check_folder("out", folder)
    return _Place(folder, model, concepts, force)


def _same_model(recorded: object, asked: str) -> bool:
    if recorded == asked:
        return True
    here = isinstance(recorded, str) and Path(recorded).exists() and Path(asked).exists()
    return here and Path(str(recorded)).samefile(asked)


def _named(concepts: Sequence[Concept]) -> str:
    told = ", ".join(concept.name for concept in concepts[:5])
    return told if len(concepts) <= 5 else f"{told} and {len(concepts) - 5} more"


def _tell(folder: Path, as_json: bool, *, done: bool = False) -> None:
    """What lies in the folder now, and what can be done with it."""
    from expunge.erasure import Erasure
    from expunge.formats import how_to_apply

    erasure = Erasure.load(folder)
    if as_json:
        return print_json({"folder": str(folder), **erasure.record})
    if done:
        say(f"{_named(erasure.concepts)} is erased already, by the same settings: {folder}")
    else:
        seconds, eraser = erasure.record["seconds"], erasure.record["eraser"]
        say(f"{_named(erasure.concepts)} erased by {eraser} in {seconds:.1f} s: {folder}")
    say("to draw without it in Python:")
    for line in how_to_apply(erasure, folder).splitlines():
        say(f"    {line}")
    say(f"next: expunge audit {shlex.quote(str(folder))}")
    return None


def with_options(method: str) -> Callable[..., None]:
    """`erase` with one option for every hyperparameter of a method, described by its docstring.

    Raises:
        ValueError: there is no such method.
    """
    from docstring_parser import parse

    eraser = names.find("eraser", method)
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
    group, named = f"{eraser.__name__} (default: preset)", [each.name for each in fields(eraser)]
    free = [_option(name, hints[name], notes.get(name, ""), group) for name in named]

    def run(*concepts: str, **options: Any) -> None:
        erase(*concepts, **options)

    run.__doc__, run.__name__ = erase.__doc__, "erase"
    run.__signature__ = inspect.Signature([*fixed, *free])  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in (*fixed, *free)}
    return run


def _option(name: str, hint: Any, note: str, group: str) -> inspect.Parameter:
    """A hyperparameter as an option; None, where it is not given."""
    more = Parameter(help=note, group=group)
    whole = hint in (int, int | None)
    annotation = Annotated[hint | None, WHOLE, more] if whole else Annotated[hint | None, more]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def asked_method(tokens: Sequence[str]) -> str:
    """The method a command line asks for, before it is parsed."""
    for index, token in enumerate(tokens):
        if token == "--method" and index + 1 < len(tokens):
            return tokens[index + 1]
        if token.startswith("--method="):
            return token.partition("=")[2]
    return _USUAL
