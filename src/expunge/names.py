"""Every kind of thing by name: what a user or a file says, to where it lives, to an object.

A new method is its file, one line here, and one row in its tests. The package's public face, the
command line's options and help, and `expunge list` follow from these tables. Nothing here imports
what it names before it is asked for.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib
import inspect
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from expunge.settings import shown

_WATERMARK = "expunge.watermark"

ERASERS = {
    "uce": "expunge.eraser.uce:UCE",
    "speed": "expunge.eraser.speed:SPEED",
    "esd": "expunge.eraser.esd:ESD",
    "ant": "expunge.eraser.ant:ANT",
    "trace": "expunge.eraser.trace:TRACE",
    "trce": "expunge.eraser.trce:TRCE",
    "erase-anything": "expunge.eraser.erase_anything:EraseAnything",
    "spm": "expunge.eraser.spm:SPM",
    "receler": "expunge.eraser.receler:Receler",
    "fade": "expunge.eraser.fade:FADE",
}
ATTACKS = {
    "plain": "expunge.attack.plain:Plain",
    "textual-inversion": "expunge.attack.textual_inversion:TextualInversion",
}
GUARDS = {
    "irece": "expunge.guard.irece:IRECE",
}
JUDGES = {
    "miniature-conv": "expunge.judge.miniature:conv",
    "miniature-patch": "expunge.judge.miniature:patch",
    "clip": "expunge.judge.clip:CLIPJudge",
}
SCHEMES = {
    "learned": f"{_WATERMARK}.scheme.learned:Learned",
    "learned-vae": f"{_WATERMARK}.scheme.learned:LearnedVAE",
    "dwtdct": f"{_WATERMARK}.scheme.invisible:DwtDct",
    "dwtdctsvd": f"{_WATERMARK}.scheme.invisible:DwtDctSvd",
    "rivagan": f"{_WATERMARK}.scheme.invisible:RivaGAN",
    "trustmark": f"{_WATERMARK}.scheme.trustmark:TrustMark",
    "stegastamp": f"{_WATERMARK}.scheme.stegastamp:StegaStamp",
    "vine": f"{_WATERMARK}.scheme.vine:VINE",
    "tree-ring": f"{_WATERMARK}.scheme.tree_ring:TreeRing",
    "gaussian-shading": f"{_WATERMARK}.scheme.gaussian_shading:GaussianShading",
}
EDITS = {
    "none": f"{_WATERMARK}.edit.distortions:NoEdit",
    "jpeg": f"{_WATERMARK}.edit.distortions:JPEG",
    "crop": f"{_WATERMARK}.edit.distortions:Crop",
    "noise": f"{_WATERMARK}.edit.distortions:Noise",
    "rotation": f"{_WATERMARK}.edit.distortions:Rotation",
    "scaling": f"{_WATERMARK}.edit.distortions:Scaling",
    "blur": f"{_WATERMARK}.edit.distortions:Blur",
    "sharpening": f"{_WATERMARK}.edit.distortions:Sharpening",
    "brightness": f"{_WATERMARK}.edit.distortions:Brightness",
    "contrast": f"{_WATERMARK}.edit.distortions:Contrast",
    "vae": f"{_WATERMARK}.edit.vae:VAE",
    "regeneration": f"{_WATERMARK}.edit.regeneration:Regeneration",
    "img2img": f"{_WATERMARK}.edit.regeneration:ImageToImage",
    "inversion": f"{_WATERMARK}.edit.inversion:Inversion",
    "inpainting": f"{_WATERMARK}.edit.inpainting:Inpainting",
    "guided": f"{_WATERMARK}.edit.guided:Guided",
}
PROTOCOLS = {
    "objects": "expunge.auditing.protocols.objects:Objects",
    "people": "expunge.auditing.protocols.people:People",
    "styles": "expunge.auditing.protocols.styles:Styles",
    "explicit": "expunge.auditing.protocols.explicit:Explicit",
}
GATES = {
    "prompt": "expunge.prompt_gate:PromptGate",
}

TABLES: Mapping[str, Mapping[str, str]] = {
    "eraser": ERASERS,
    "attack": ATTACKS,
    "guard": GUARDS,
    "judge": JUDGES,
    "scheme": SCHEMES,
    "edit": EDITS,
    "protocol": PROTOCOLS,
    "gate": GATES,
}
"""Kind of thing -> name -> where it lives: a module, a colon, a class or function of it."""


def unknown(what: str, name: str, known: Sequence[str] | Mapping[str, Any]) -> ValueError:
    """What to raise where a name is unknown, with the nearest one.

    Args:
        what: what is named, such as `eraser`.
        name: what was asked for.
        known: all there are.
    """
    if not known:
        return ValueError(f"no {what} {shown(name)}: there is none yet")
    near = difflib.get_close_matches(name[:100].lower(), known, 1, 0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return ValueError(f"no {what} {shown(name)}, expected one of {', '.join(known)}{hint}")


def check(kind: str, text: str) -> None:
    """Refuse a name that nothing has, without importing anything.

    Args:
        kind: of thing.
        text: a name, perhaps with settings.

    Raises:
        ValueError: there is no such thing.
    """
    if bare(text) not in TABLES[kind]:
        raise unknown(kind, text.strip().partition(":")[0].strip(), TABLES[kind])


def bare(text: str) -> str:
    """The name in `name[:setting=value,…]`."""
    return text.strip().partition(":")[0].strip().lower()


def find(kind: str, name: str) -> Any:
    """The class, or the function that makes one, of that name; capitals do not matter.

    Raises:
        ValueError: there is none.
    """
    check(kind, name)
    module, _, attribute = TABLES[kind][name.strip().lower()].partition(":")
    return getattr(importlib.import_module(module), attribute)


def make(kind: str, text: str) -> Any:
    """The object that `name[:setting=value,…]` names, such as `trustmark:variant=P`.

    A setting `level` needs no name: `jpeg:20`. A comma ends a value only where another setting
    follows, so texts may hold commas; several texts have `|` between them.

    Raises:
        ValueError: an unknown name or setting, or a value of another type or out of range.
    """
    made, values = parsed(kind, text)
    lacking = [n for n, (_, free) in settings(made).items() if not (free or n in values)]
    if lacking:
        name = text.strip().partition(":")[0]
        example = ",".join(f"{each}=…" for each in lacking)
        raise ValueError(f"the {kind} {name} needs {', '.join(lacking)}: say {name}:{example}")
    return made(**values)


def parsed(kind: str, text: str) -> tuple[Any, dict[str, Any]]:
    """The class or function that `name[:setting=value,…]` names, and the settings it is given.

    Raises:
        ValueError: an unknown name or setting, or a value of another type.
    """
    name, _, rest = text.strip().partition(":")
    made = find(kind, name)
    return made, _values(f"the {kind} {name.strip().lower()}", settings(made), rest)


def listed(texts: Sequence[str]) -> list[str]:
    """Names with their settings, separated by commas: `jpeg:20,crop` are two.

    A comma before a setting goes on with the same one: `trustmark:variant=P,ecc=BCH_3` is one.
    """
    parts = [part.strip() for text in texts for part in re.split(r",(?!\s*\w+=)", text)]
    return [part for part in parts if part]


def settings(made: Any) -> dict[str, tuple[Any, bool]]:
    """Settings of a class, or of a function that makes one: name -> type, whether it may be left
    out."""
    bare = isinstance(made, type) and not dataclasses.is_dataclass(made)
    typed = vars(made)["__init__"] if bare else made
    hints = typing.get_type_hints(typed)
    found = inspect.signature(made).parameters.values()
    return {
        each.name: (hints.get(each.name, str), each.default is not each.empty) for each in found
    }


def described(kind: str, name: str) -> dict[str, str]:
    """What docstrings say of it (`text`) and of its `source`, read without importing anything."""
    module, _, attribute = TABLES[kind][name].partition(":")
    path = Path(__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    made = next(n for n in tree.body if getattr(n, "name", None) == attribute)
    assert isinstance(made, (ast.ClassDef, ast.FunctionDef))
    texts = {"text": ast.get_docstring(made), "source": ast.get_docstring(tree)}
    first = {key: (text or "").partition("\n\n")[0] for key, text in texts.items()}
    return {key: " ".join(text.split()) for key, text in first.items()}


def _values(what: str, known: Mapping[str, tuple[Any, bool]], rest: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    has = f"it has {', '.join(known)}" if known else "it has none"
    for part in re.split(r",(?=\s*\w+=)", rest) if rest else ():
        key, equals, value = part.partition("=")
        key, value = (key.strip(), value.strip()) if equals else ("level", key.strip())
        if not equals and key not in known:
            raise ValueError(f"{what} wants setting=value, got {shown(value)}; {has}")
        if key in values:
            raise ValueError(f"{what} is given {key} twice; give it once")
        if key not in known:
            near = difflib.get_close_matches(key[:100], known, 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} has no setting {shown(key)}; {has}{hint}")
        values[key] = value_of(f"{what}'s {key}", known[key][0], value)
    return values


def value_of(what: str, wanted: Any, text: str) -> Any:
    """What a text says, as a value of some type.

    Raises:
        ValueError: it says no such value.
    """
    origin = get_origin(wanted)
    if origin in (Union, types.UnionType):
        return _one_of(what, get_args(wanted), text)
    if origin is Literal:
        known = get_args(wanted)
        if text not in known:
            raise ValueError(f"{what} must be one of {', '.join(known)}, got {shown(text)}")
        return text
    if origin is not None and issubclass(origin, Sequence):
        return tuple(each.strip() for each in text.split("|") if each.strip())
    if wanted is bool:
        if text not in ("true", "false"):
            raise ValueError(f"{what} must be true or false, got {shown(text)}")
        return text == "true"
    return _number(what, wanted, text) if wanted in (int, float) else _plain(wanted)(text)


def _plain(wanted: Any) -> Any:
    return Path if wanted is Path else str


def _number(what: str, wanted: Any, text: str) -> Any:
    word = "a whole number" if wanted is int else "a number"
    try:
        value = wanted(text)
    except ValueError:
        raise ValueError(f"{what} must be {word}, got {shown(text)}") from None
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, got {shown(text)}")
    return value


def _one_of(what: str, kinds: Sequence[Any], text: str) -> Any:
    """A value of the first type of several that fits; the word `none` where nothing may be said."""
    if type(None) in kinds and text.lower() == "none":
        return None
    kinds = [kind for kind in kinds if kind is not type(None)]
    for kind in sorted(kinds, key=lambda kind: kind in (str, Path)):
        try:
            return value_of(what, kind, text)
        except ValueError as error:
            failure = error
    raise failure
