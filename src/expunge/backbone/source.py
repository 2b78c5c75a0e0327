"""What a model's name can stand for, found out without torch."""

from __future__ import annotations

import difflib
from pathlib import Path

from expunge.backbone.profile import BUNDLED, Profile
from expunge.run.files import refuse_pickle
from expunge.settings import shown


def check_source(source: str | Path, config: str | Path | None = None) -> None:
    """Refuse what cannot be a model.

    Args:
        source: a bundled name, a diffusers folder, a hub id or a single `.safetensors` file.
        config: where a single file's configuration comes from.

    Raises:
        ValueError: nothing is there, it is a pickle, or a single file without a configuration.
    """
    text = str(source)
    path = BUNDLED.get(text, Path(source))
    refuse_pickle(path)
    if len(text) > 1000 or "\0" in text:
        raise ValueError(f"no model at {shown(text)}: that is no name")
    if path.is_file():
        _check_file(path, config)
    elif not (path / "model_index.json").is_file():
        _check_hub(text)


def _check_file(path: Path, config: str | Path | None) -> None:
    if path.suffix != ".safetensors":
        raise ValueError(f"a single-file model must be .safetensors, got {shown(path.name)}")
    if config is None:
        raise ValueError(
            f"{path.name} is a single file: say config=… (a bundled model's name, a diffusers "
            "folder or hub id)"
        )


def _check_hub(source: str) -> None:
    if source in BUNDLED:
        raise ValueError(f"the weights of {source} are missing from this installation")
    near = difflib.get_close_matches(source, BUNDLED, 1, 0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    if source.count("/") != 1 or Path(source).exists() or source.startswith((".", "/")):
        raise ValueError(
            f"no model at {shown(source)}: expected {', '.join(BUNDLED)}, a diffusers folder, "
            f"a hub id (owner/name) or a .safetensors file{hint}"
        )


def profile_of(source: str | Path, config: str | Path | None = None) -> Profile:
    """What is known of a model by its name.

    Raises:
        ValueError: it cannot be a model; see `check_source`.
    """
    check_source(source, config)
    return Profile.read(BUNDLED.get(str(source), Path(source))) or Profile()
