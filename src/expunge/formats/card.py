"""The page that goes with a file, and the lines that put it to use."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader

from expunge.backbone.profile import BUNDLED
from expunge.erasure import Erasure
from expunge.formats.lora import DEFAULT, describe_lora
from expunge.formats.naming import model_name, title
from expunge.run.files import write_text

CARD = "README.md"


def write_card(erasure: Erasure, folder: Path, format_: str) -> Path:
    """Write the page of a folder."""
    path = folder / CARD
    write_text(path, model_card(erasure, format_))
    return path


def model_card(erasure: Erasure, format_: str = "lora") -> str:
    """What is erased, how it was made, and how it is used.

    Args:
        erasure: what the card is of.
        format_: what lies beside it: a name of a format, or `erasure` for its own folder.
    """
    lora = erasure.record.get("lora") or describe_lora(erasure)
    whole = format_ in ("merged", "components", "single")
    hub = erasure.record.get("hub")
    page: str = _template().render(
        title=title(erasure),
        model=model_name(erasure.record),
        hub=hub,
        relation="finetune" if whole else "adapter",
        tags=["concept-erasure", "expunge", *([] if whole or not lora.get("rank") else ["lora"])],
        record=erasure.record,
        concepts=erasure.concepts,
        components=erasure.components,
        layers=erasure.layers,
        lora=lora,
        use=_use(erasure, format_, lora),
    )
    return page


def how_to_apply(erasure: Erasure, folder: str | Path) -> str:
    """Three lines of Python that draw without the concepts, in a program of one's own.

    Args:
        erasure: what was saved.
        folder: where it was saved.
    """
    model, config = erasure.record.get("model"), erasure.record.get("config")
    more = f", config={config!r}" if config else ""
    lora = erasure.record.get("lora") or describe_lora(erasure)
    if lora["file"] is None:
        return "\n".join(
            (
                "import expunge",
                f"pipe = expunge.load({model!r}{more})",
                f"expunge.Erasure.load({str(folder)!r}).apply(pipe)",
            )
        )
    if model in BUNDLED or config:
        first = ("import expunge", f"pipe = expunge.load({model!r}{more})")
    else:
        first = (
            "import diffusers",
            f"pipe = diffusers.DiffusionPipeline.from_pretrained({model!r})",
        )
    return "\n".join((*first, f"pipe.load_lora_weights({str(folder)!r})"))


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("expunge.formats", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        autoescape=False,
    )
    environment.filters.update(yaml=json.dumps, line=_line)
    return environment.get_template("model_card.md.jinja")


def _line(value: object) -> str:
    """On one line, as it is spelled: no link, no table, no tag."""
    plain = " ".join(str(value).split()).replace("<", "&lt;")
    return re.sub(r"([\\`*_\[\]|])", r"\\\1", plain)


def _use(erasure: Erasure, format_: str, lora: dict[str, Any]) -> str:
    """How what lies beside the card is used; no path of this machine."""
    loaded = {
        "lora": 'pipe.load_lora_weights("this folder")',
        "diffusers": 'pipe.load_lora_weights("this folder")',
        "kohya": 'pipe.load_lora_weights("this folder", weight_name="kohya_lora.safetensors")',
        "merged": 'pipe = DiffusionPipeline.from_pretrained("this folder", use_safetensors=True)',
        "components": "\n".join(
            f'pipe.{name} = type(pipe.{name}).from_pretrained("this folder/{name}")'
            for name in erasure.components
        ),
        "single": 'pipe = type(pipe).from_single_file("model.safetensors", config="the base")',
    }
    if format_ == "full":
        return (
            "This file holds whole differences of weights. ComfyUI, Forge and A1111 load it like a "
            "LoRA; diffusers does not read it."
        )
    if lora["file"] is None and format_ == "lora":
        return (
            f"There is no LoRA here: {lora['why']}.\n\n```python\nimport expunge\n\n"
            'expunge.Erasure.load("this folder").apply(pipe)\n```'
        )
    return f"```python\n{loaded[format_]}\n```"


__all__ = ["CARD", "DEFAULT", "how_to_apply", "model_card", "write_card"]
