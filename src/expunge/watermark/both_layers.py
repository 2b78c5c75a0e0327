"""Both layers at once: pictures of an erased model, marked, then edited."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.auditing.jobs import Draw, Worker, batches
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.concept import Prompt
from expunge.condition import Condition, erased, original
from expunge.erasure import Erasure
from expunge.judge.base import Judge
from expunge.judge.choose import default_judge
from expunge.measure.paired import Paired
from expunge.prompts import Split
from expunge.run.executor import InProcess
from expunge.run.jobs import Failure
from expunge.run.progress import progress_bar
from expunge.run.store import Store
from expunge.watermark.benchmark import check, measure
from expunge.watermark.edit.base import Edit
from expunge.watermark.log import WatermarkLog
from expunge.watermark.pictures import Host
from expunge.watermark.runner import Runner
from expunge.watermark.scheme.base import Scheme

EXAMPLES = 6
"""Pictures that the report shows for each scheme and edit."""
FALSE_POSITIVE_RATE = 1e-3
"""Of detection."""


def layers(
    pipe: Any,
    erasure: Erasure,
    schemes: Sequence[Scheme],
    edits: Sequence[Edit],
    *,
    count: int = 60,
    strength: float = 1.0,
    judge: Judge | None = None,
    split: Split = "test",
    folder: str | Path = "runs/layers",
    command: str = "",
) -> WatermarkLog:
    """Draw erased concepts with the erased model, mark the pictures, edit them, look again.

    Two questions: does the mark survive, and does the edit bring the concept back? Every edit is
    done by the original model and, as a control, by the erased one. An edit that reads captions is
    told the prompt, which names the concept.

    Args:
        pipe: the original model, a diffusers pipeline or a backbone.
        erasure: what was erased from it.
        schemes: what marks.
        edits: what is done to marked pictures.
        count: pictures of each erased concept.
        strength: of the erasure.
        judge: says whether a picture shows the concept; None for the model's usual one.
        split: whose prompts.
        folder: where log, units and pictures go; the same call after a stop goes on.
        command: how to run this again, for the report.

    Returns:
        A log as `bench` makes it, whose cells name their `editor`, with one more part, `concept`.

    Raises:
        ValueError: something cannot be done; see `bench`. Or the judge does not know a concept.
    """
    backbone = as_backbone(pipe)
    erasure.check(backbone)
    judge = judge or default_judge(backbone)
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    prompts = _prompts(erasure, judge, split, count)
    for scheme in schemes:
        for edit in edits:
            edit.check(scheme, backbone)
        scheme.check(backbone)
    store = Store(Path(folder))
    before, after = original(), erased(erasure, strength)
    after.check(backbone)
    store.check_writable()
    hosts = _hosts(store, backbone, after, prompts)
    check(schemes, edits, hosts, backbone)
    parts = {
        editor.name: measure(
            Runner(backbone, store, whole=True, drawn_by=after, edited_by=editor),
            schemes,
            edits,
            hosts,
            (),
            FALSE_POSITIVE_RATE,
        )
        for editor in (before, after)
    }
    concepts = [prompt.concept for prompt in prompts]
    shown = [
        entry
        for editor, data in parts.items()
        for entry in _came_back(store, judge, concepts, editor, data)
    ]
    log = _together(parts, shown, judge, erasure, strength, store, command)
    log.save(Path(folder))
    return log


def _prompts(erasure: Erasure, judge: Judge, split: Split, count: int) -> list[Prompt]:
    found = []
    for concept in erasure.concepts:
        if not judge.knows(concept.name):
            raise ValueError(f"the judge {judge.name} does not know {concept.name}")
        prompts = concept.prompts("plain", split, count)
        found += prompts
    return found


def _hosts(
    store: Store, backbone: Backbone, condition: Condition, prompts: Sequence[Prompt]
) -> list[Host]:
    """What the erased model draws when it is asked for what was erased."""
    sampling, identity = backbone.profile.sampling, backbone.identity()
    jobs = [
        Draw(identity, condition, part, sampling)
        for _, part in batches(prompts, sampling.batch_size)
    ]
    hosts = []
    with (
        Worker(backbone, store, {}) as worker,
        progress_bar("drawing", len(prompts)) as advance,
    ):
        for job, done in InProcess(worker).run(lambda known: () if known else jobs, store):
            assert isinstance(job, Draw) and not isinstance(done, Failure)
            for prompt, name in zip(job.prompts, done["images"], strict=True):
                pixels = torch.from_numpy(np.array(store.image(name).convert("RGB")))
                hosts.append(
                    Host.of(prompt.text, prompt.text, pixels.permute(2, 0, 1).contiguous())
                )
            advance(len(job.prompts), "")
    return hosts


def _shown(store: Store, judge: Judge, images: Sequence[str], concept: str) -> np.ndarray:
    """Whether the judge finds the concept in pictures of the store; looked at once."""
    spec = {"job": "look", "judge": judge.record(), "concept": concept, "images": list(images)}

    def work() -> dict[str, Any]:
        return {"shown": judge.shown([store.image(name) for name in images], concept).tolist()}

    return np.array(store.once(spec, work)["shown"], dtype=bool)


def _came_back(
    store: Store, judge: Judge, concepts: Sequence[str], editor: str, data: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """For every concept, scheme and edit: how often it is shown before the edit and after."""
    cells: dict[tuple[str, str, float | None], list[dict[str, Any]]] = {}
    for example in data["examples"]:
        key = (example["scheme"], example["edit"], example["level"])
        cells.setdefault(key, []).append(example)
    entries = []
    for (scheme, edit, level), examples in cells.items():
        for concept in dict.fromkeys(concepts):
            ours = [e for e, name in zip(examples, concepts, strict=True) if name == concept]
            before, after = (
                _shown(store, judge, [e[side] for e in ours], concept)
                for side in ("marked", "edited")
            )
            head = {"concept": concept, "scheme": scheme, "edit": edit, "level": level}
            entries.append({**head, "editor": editor, **_paired(before, after)})
    return entries


def _paired(before: np.ndarray, after: np.ndarray) -> dict[str, Any]:
    paired = Paired.of(before, after)
    sides = {
        name: {"k": rate.k, "n": rate.n, "rate": rate.value, "ci": list(rate.interval())}
        for name, rate in (("before", paired.first), ("after", paired.second))
    }
    return {
        "n": paired.n,
        **sides,
        "difference": paired.difference,
        "difference_ci": list(paired.interval()),
        "p": paired.p_value,
    }


def _together(
    parts: Mapping[str, Mapping[str, Any]],
    shown: Sequence[dict[str, Any]],
    judge: Judge,
    erasure: Erasure,
    strength: float,
    store: Store,
    command: str,
) -> WatermarkLog:
    """One log of both editors' logs."""
    first = parts["original"]
    names = [concept.name for concept in erasure.concepts]
    flags = [
        flag if editor == "original" else {**flag, "text": f"By the erased model: {flag['text']}"}
        for editor, data in parts.items()
        for flag in data["flags"]
        if editor == "original" or flag["editor"]
    ]
    data = {
        **first,
        "cells": [cell for data in parts.values() for cell in data["cells"]],
        "examples": [each for each in first["examples"] if each["number"] < EXAMPLES],
        "flags": flags,
        "concept": {
            "concept": ", ".join(names),
            "strength": strength,
            "judge": {
                "name": judge.name,
                "version": judge.version,
                "hash": judge.hash,
                "threshold": judge.threshold,
            },
            "cells": list(shown),
        },
        "explicit": any(concept.kind == "explicit" for concept in erasure.concepts),
        "erasure": erasure.record,
        "made": {
            **first["made"],
            "command": command,
            "seconds": sum(data["made"]["seconds"] for data in parts.values()),
        },
    }
    return WatermarkLog(data, store.folder)
