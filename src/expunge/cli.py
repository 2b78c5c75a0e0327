"""The command line: names to objects, and figures to people or to JSON."""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console
from rich.table import Table

from expunge import HOMES

if TYPE_CHECKING:
    from expunge.auditing import Log
    from expunge.backbone.base import Backbone

METHODS = {
    name.lower(): f"{home}:{name}" for name, home in HOMES.items() if home == "expunge.eraser"
}
"""Every eraser by the name the command line knows it by."""

app = App(
    name="expunge",
    help="Erase concepts from text-to-image diffusion models, and prove how far they are gone.",
    version="0.1.0",
    help_format="markdown",
    suppress_keyboard_interrupt=False,
)
miniature = App(name="miniature", help="The bundled world and its models: train, show, check.")
app.command(miniature)

Model = Annotated[str, Parameter(help="Bundled name, diffusers folder, hub id or .safetensors.")]
Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object.")]
Run = Annotated[Path, Parameter(help="Folder that `expunge erase` wrote.")]


def _say(text: str) -> None:
    Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)


def _print_json(data: object) -> None:
    sys.stdout.write(json.dumps(data, indent=1, ensure_ascii=False) + "\n")


def _backbone(model: str, config: str | None = None) -> Backbone:
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    from expunge.backbone.load import as_backbone, load

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    return as_backbone(load(model, config=config))


def _command() -> str:
    return shlex.join(["expunge", *sys.argv[1:]])


def _near(kind: str, name: str, known: Sequence[str]) -> ValueError:
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"no {kind} {name!r}, expected one of {', '.join(known)}{hint}")


# --- erase


def eraser_class(name: str) -> type[Any]:
    """The eraser class of that name.

    Raises:
        ValueError: there is none.
    """
    if name.lower() not in METHODS:
        raise _near("method", name, list(METHODS))
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
    backbone = _backbone(model, config)
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
    erasure.record["command"] = _command()
    erasure.save(folder)
    if as_json:
        _print_json({"folder": str(folder), **erasure.record})
    else:
        names = ", ".join(concept.name for concept in asked)
        _say(f"{names} erased by {eraser.name} in {erasure.record['seconds']:.1f} s: {folder}")
        _say(f"next: expunge audit {shlex.quote(str(folder))}")


def _with_options(eraser: type[Any]) -> Callable[..., None]:
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


def _asked_method(tokens: Sequence[str]) -> str:
    for index, token in enumerate(tokens):
        if token == "--method" and index + 1 < len(tokens):
            return tokens[index + 1]
        if token.startswith("--method="):
            return token.partition("=")[2]
    return "trace"


# --- look


@app.command
def draw(
    *prompts: Annotated[str, Parameter(help="What to draw, one row a prompt.")],
    model: Annotated[str | None, Parameter(help="The model; the erasure's own by default.")] = None,
    erasure: Annotated[Path | None, Parameter(help="Folder of an erasure to draw with.")] = None,
    strength: Annotated[float, Parameter(help="Of the erasure; 0 is off.")] = 1.0,
    seeds: Annotated[int, Parameter(help="Pictures a prompt.")] = 6,
    scale: Annotated[int, Parameter(help="Enlarge every picture so many times.")] = 2,
    out: Annotated[Path, Parameter(help="PNG to write.")] = Path("grid.png"),
) -> None:
    """Draw a grid of pictures: the original above, the erased model below, same seeds.

    Example: `expunge draw "a photo of a cat" --erasure runs/cat --out cat.png`
    """
    from expunge.concept import Prompt
    from expunge.erasure import Erasure
    from expunge.grid import grid

    if not prompts:
        raise ValueError('say what to draw, such as: expunge draw "a photo of a cat"')
    loaded = Erasure.load(erasure) if erasure else None
    named = model or (loaded.record["model"] if loaded else "miniature-sd")
    backbone = _backbone(named)
    rows = []
    for text in prompts:
        numbers = [Prompt(text, "").seed(index) for index in range(seeds)]
        rows.append((text, backbone.draw([text] * seeds, numbers)))
        if loaded:
            with loaded.applied(backbone, strength):
                rows.append((f"{text} (erased)", backbone.draw([text] * seeds, numbers)))
    grid(rows, scale).save(out)
    _say(f"{len(rows)} rows of {seeds}: {out}")


# --- audit and report


def _show_log(log: Log) -> None:
    table = Table(title=f"{', '.join(log.data['target']['concepts'])}: shown in % of pictures")
    for column in ("asked for", "how", "role", "n", "original", "erased", "difference"):
        table.add_column(column, justify="left" if column in {"asked for", "how"} else "right")
    cells = {(c["probe"], c["concept"], c["condition"]): c for c in log.data["cells"]}
    for row in log.data["differences"]:
        sides = [cells[row["probe"], row["concept"], side] for side in ("original", "erased")]
        table.add_row(
            row["concept"],
            row["probe"],
            row["role"],
            str(row["n"]),
            *(_percent(side["rate"], side["ci"]) for side in sides),
            _percent(row["difference"], row["ci"]),
        )
    Console().print(table)
    for flag in log.data["flags"]:
        _say(f"note: {flag['text']}")


def _percent(rate: float, interval: Sequence[float]) -> str:
    low, high = interval
    return f"{100 * rate:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


@app.command
def audit(
    run: Run,
    *,
    model: Annotated[str | None, Parameter(help="The original; the record's by default.")] = None,
    prompts: Annotated[int, Parameter(help="Distinct prompts for each way of asking.")] = 400,
    neighbours: Annotated[int, Parameter(help="Prompts for each neighbour.")] = 150,
    unrelated: Annotated[int, Parameter(help="Prompts for each unrelated concept.")] = 80,
    strength: Annotated[float, Parameter(help="Of the erasure.")] = 1.0,
    split: Annotated[Literal["test", "validation"], Parameter(help="Whose prompts.")] = "test",
    frechet: Annotated[
        bool, Parameter(help="Fréchet distance, from 1,000 benign pictures.")
    ] = True,
    store: Annotated[Path | None, Parameter(help="Share pictures between audits here.")] = None,
    as_json: Json = False,
) -> None:
    """Ask an erased model for what was erased, and for what should have stayed.

    A stopped audit goes on where it was when the same command is given again.

    Example: `expunge audit runs/cat --prompts 100 --json`
    """
    from expunge.auditing import audit as run_audit
    from expunge.auditing.text import Sizes
    from expunge.erasure import Erasure

    sizes = Sizes(prompts, neighbours, unrelated)
    erasure = Erasure.load(run)
    log = run_audit(
        _backbone(model or erasure.record["model"]),
        erasure,
        sizes=sizes,
        strength=strength,
        split=split,
        frechet=frechet,
        folder=run / "log",
        store=store,
        command=_command(),
    )
    if as_json:
        _print_json(log.summary())
    else:
        _show_log(log)
        _say(f"next: expunge report {shlex.quote(str(run))}")


@app.command
def report(
    run: Run,
    *,
    out: Annotated[
        Path | None, Parameter(help="HTML to write; report.html beside the log.")
    ] = None,
) -> None:
    """Write an audit as one HTML file that needs no network.

    Example: `expunge report runs/cat`
    """
    from expunge.auditing import Log

    _say(str(Log.load(run / "log").report(out or run / "report.html")))


# --- exports


@app.command
def export(
    run: Run,
    *,
    format: Annotated[
        Literal["diffusers", "kohya", "merged", "denoiser", "single"],
        Parameter(
            help="A LoRA file (`diffusers`, `kohya`), or with the changes built in: a whole model "
            "(`merged`), its UNet or transformer (`denoiser`), one checkpoint file (`single`)."
        ),
    ] = "diffusers",
    out: Annotated[Path | None, Parameter(help="Folder; the run's own by default.")] = None,
    model: Annotated[str | None, Parameter(help="The original; the record's by default.")] = None,
) -> None:
    """Write an erasure for other tools.

    Example: `expunge export runs/cat --format kohya`
    """
    from expunge.erasure import Erasure
    from expunge.exports import WITHOUT_BASE
    from expunge.exports import export as write

    erasure = Erasure.load(run)
    alone = format in WITHOUT_BASE
    pipe = None if alone else _backbone(model or erasure.record["model"]).pipe
    folder = out or (run / format if format in ("merged", "denoiser") else run)
    _say(str(write(erasure, folder, format, pipe)))


@app.command
def verify(
    path: Annotated[Path, Parameter(help="File or folder that `expunge export` wrote.")],
    *,
    model: Annotated[str | None, Parameter(help="The original; the record's by default.")] = None,
    as_json: Json = False,
) -> None:
    """Load an export through plain diffusers: does it change the model as recorded?

    Exit code 1 if it does not.

    Example: `expunge verify runs/cat/pytorch_lora_weights.safetensors`
    """
    from expunge.verification import recorded
    from expunge.verification import verify as check

    result = check(path, _backbone(model or recorded(path)["model"]))
    if as_json:
        _print_json(result)
    else:
        for part in ("weights", "predictions"):
            word = "as recorded" if result[part]["agree"] else "NOT as recorded"
            _say(f"{part}: {word} (largest relative difference {result[part]['worst']:.1e})")
    if not result["agree"]:
        raise SystemExit(1)


@app.command(name="list")
def list_(
    *,
    model: Model = "miniature-sd",
    as_json: Json = False,
) -> None:
    """List the methods, the bundled models, and the concepts a model is known to draw.

    Example: `expunge list --json`
    """
    from expunge.backbone.profile import BUNDLED, Profile

    profile = Profile.read(BUNDLED.get(model, Path(model))) or Profile()
    vocabulary = profile.vocabulary
    concepts = {name: concept.kind for name, concept in vocabulary.concepts.items()}
    found = {"methods": list(METHODS), "models": list(BUNDLED), "concepts": concepts}
    if as_json:
        return _print_json(found)
    table = Table("kind", "concepts of " + model)
    for kind in dict.fromkeys(concepts.values()):
        table.add_row(kind, ", ".join(name for name, other in concepts.items() if other == kind))
    Console().print(f"methods: {', '.join(METHODS)}\nmodels: {', '.join(BUNDLED)}", table)
    return None


@app.command
def demo(
    *,
    out: Annotated[Path, Parameter(help="Where to.")] = Path("runs/demo"),
    prompts: Annotated[int, Parameter(help="Prompts for each way of asking for a cat.")] = 40,
    steps: Annotated[int | None, Parameter(help="Training steps; the preset's by default.")] = None,
    open_report: Annotated[bool, Parameter(name="--open", help="Open the report.")] = False,
) -> None:
    """Erase the cat from the bundled model, audit the result, and write the report.

    Example: `expunge demo --out runs/demo`
    """
    erase("cat", neighbour=("dog", "bird", "horse", "fish", "car"), out=out, steps=steps)
    audit(out, prompts=prompts, neighbours=max(1, prompts // 2), unrelated=max(1, prompts // 3))
    report(out)
    if open_report:
        import webbrowser

        webbrowser.open((out / "report.html").resolve().as_uri())


# --- miniature


@miniature.command(name="train")
def miniature_train(
    *,
    out: Annotated[Path, Parameter(help="Where to; a stopped run goes on from there.")],
    model: Annotated[
        Literal["miniature-sd", "miniature-flux"],
        Parameter(help="`miniature-flux` takes over CLIP and autoencoder of `miniature-sd`."),
    ] = "miniature-sd",
    device: Annotated[str | None, Parameter(help="cpu or cuda; a GPU if there is one.")] = None,
    share: Annotated[float, Parameter(help="Share of the full steps, to try it out.")] = 1.0,
) -> None:
    """Make a bundled model from nothing: `miniature-sd` with its judges, or `miniature-flux`.

    On two CPU cores that takes about two and a half hours or one and a half. Ctrl-C and the same
    command later is fine.

    Example: `expunge miniature train --out runs/miniature`
    """
    from expunge.miniature import flux
    from expunge.miniature.train import Plans, train

    if model == "miniature-sd":
        made = [train(out, Plans().shortened(share), device)]
    else:
        made = flux.train(out, flux.Plans().shortened(share), device)
    for folder in made:
        _say(str(folder))


@miniature.command(name="show")
def miniature_show(
    *,
    out: Annotated[Path, Parameter(help="Folder for the sheets.")] = Path("runs/miniature-show"),
    model: Model = "miniature-sd",
    count: Annotated[int, Parameter(help="Pictures a sheet.")] = 60,
) -> None:
    """Make contact sheets of the world, and of what a model draws for the same captions.

    Example: `expunge miniature show --out sheets`
    """
    from expunge.miniature.show import show

    for path in show(_backbone(model), out, count):
        _say(str(path))


@miniature.command(name="check")
def miniature_check(
    *,
    model: Model = "miniature-sd",
    prompts: Annotated[int, Parameter(help="Distinct held-out prompts a domain.")] = 1000,
    judges: Annotated[
        Path | None, Parameter(help="Folder of the judges; the bundled ones.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure what the bundled model and judges can do, with intervals.

    Example: `expunge miniature check --prompts 200`
    """
    from expunge.miniature.check import check

    figures = check(_backbone(model), prompts, judges)
    if as_json:
        return _print_json(figures)
    table = Table("figure", "of", "n", "measured", "wanted", "met")
    for row in figures["figures"]:
        shown = (
            _percent(row["value"], row["ci"]) if row["unit"] == "rate" else f"{row['value']:.2f}"
        )
        wanted = f"≥ {100 * row['wanted']:.0f}" if row["unit"] == "rate" else f"≥ {row['wanted']}"
        met = "yes" if row["met"] else "no"
        table.add_row(row["figure"], row["of"], str(row["n"]), shown, wanted, met)
    Console().print(table)
    return None


# --- entry


def _fail(text: str) -> int:
    _say(f"expunge: {' '.join(text.split())}")
    return 2


def run(tokens: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
    options: dict[str, Any] = {
        "exit_on_error": False,
        "print_error": False,
        "result_action": "return_value",
    }
    try:
        if tokens and tokens[0] == "erase":
            eraser = App(
                name="expunge erase", help_format="markdown", suppress_keyboard_interrupt=False
            )
            eraser.default(_with_options(eraser_class(_asked_method(tokens))))
            eraser(tokens[1:], **options)
        else:
            app(tokens, **options)
    except CycloptsError as error:
        return _fail(str(error).splitlines()[-1])
    except (ValueError, OSError, ArithmeticError) as error:
        return _fail(str(error))
    except KeyboardInterrupt as error:
        _say(f"\nexpunge: {str(error) or 'stopped; the same command goes on where it was'}")
        return 130
    return 0


def main() -> None:
    """Entry point of the `expunge` command."""
    raise SystemExit(run(sys.argv[1:]))
