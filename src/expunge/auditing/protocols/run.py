"""A bench: methods × concepts of one domain, with the papers' measures, on any model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from expunge import names
from expunge.auditing.jobs import Worker
from expunge.auditing.protocols.base import Domain
from expunge.auditing.protocols.jobs import ALIGNED
from expunge.auditing.protocols.log import SCHEMA, BenchLog, check_folder_is, claim
from expunge.auditing.protocols.notes import notes
from expunge.auditing.protocols.plan import SPLIT, Plan, method_record, plan
from expunge.auditing.protocols.reported import SOURCES
from expunge.auditing.protocols.rows import matrix, rows
from expunge.auditing.protocols.work import Work
from expunge.backbone.base import Backbone
from expunge.backbone.load import as_backbone
from expunge.backbone.profile import Sampling
from expunge.concept import Concept
from expunge.judge.base import Judge
from expunge.judge.choose import default_judge, text_and_picture
from expunge.measure.harmonic import Resamples
from expunge.run.store import Store
from expunge.run.typed import plain
from expunge.run.versions import versions

ERASURES = "erasures"
"""Folder of what the methods made, each as `expunge erase` writes it."""


def bench(
    pipe: Any,
    protocol: str,
    methods: Sequence[str],
    concepts: Sequence[str | Concept] = (),
    *,
    prompts: int = 200,
    judge: Judge | None = None,
    clip: str | None = None,
    sampling: Sampling | None = None,
    preset: bool = True,
    folder: str | Path,
    store: str | Path | None = None,
    command: str = "",
) -> BenchLog:
    """Erase every concept by every method, and measure what the domain's papers do.

    Every erasure, every batch and every look at it is kept as soon as it is done: the same call
    after a stop, or with one method more, does only what is missing. The original is drawn once.

    Args:
        pipe: the model, a diffusers pipeline or a backbone.
        protocol: `objects`, `people`, `styles` or `explicit`.
        methods: erasers by name, with settings as in `esd:steps=200`.
        concepts: what is erased, one after the other; none for all of the domain that the model
            is known to draw.
        prompts: distinct held-out ones for each concept and way of asking; a Fréchet distance
            takes 1,000 pictures of other things.
        judge: says what a picture shows; None for the model's own.
        clip: hub id or folder of a CLIP that says how well it fits a text; None for the model's
            own, where it has one.
        sampling: how to draw; None for the model's usual way.
        preset: start methods from what is tuned for the model, not from their own defaults.
        folder: where the tables go, with all that was done for them.
        store: where pictures go, shared between benches and audits if one likes.
        command: how to run this again.

    Raises:
        ValueError: see `plan`; or the folder holds something else.
        StoreError: the folder cannot be written.
        JobsError: something could not be erased, drawn or judged; all else is kept.
    """
    laid = lay_out(
        pipe,
        protocol,
        methods,
        concepts,
        prompts=prompts,
        judge=judge,
        clip=clip,
        sampling=sampling,
        preset=preset,
        folder=folder,
    )
    return run_plan(laid, protocol, prompts, Path(folder), store, command)


def lay_out(
    pipe: Any,
    protocol: str,
    methods: Sequence[str],
    concepts: Sequence[str | Concept] = (),
    *,
    prompts: int,
    judge: Judge | None = None,
    clip: str | None = None,
    sampling: Sampling | None = None,
    preset: bool = True,
    folder: str | Path,
) -> Plan:
    """What `bench` will do; nothing is written.

    Raises:
        ValueError: something does not fit.
    """
    if prompts < 1:
        raise ValueError(f"prompts must be at least 1, got {prompts}")
    check_methods(methods)
    domain: Domain = names.make("protocol", protocol)
    backbone = as_backbone(pipe)
    check_folder_is(Path(folder), protocol, backbone.name)
    named = [each for each in concepts if isinstance(each, str)]
    made = [each for each in concepts if isinstance(each, Concept)]
    vocabulary = backbone.profile.vocabulary
    found = made + (domain.concepts(vocabulary, named) if named or not made else [])
    for concept in found:
        if concept.kind != domain.kind:
            raise ValueError(f"{concept.name!r} is of kind {concept.kind!r}, not {domain.kind!r}")
    return plan(
        backbone,
        domain,
        methods,
        found,
        prompts=prompts,
        sampling=sampling or backbone.profile.sampling,
        judge=judge or default_judge(backbone),
        clip=text_and_picture(backbone, clip),
        runs=Path(folder) / ERASURES,
        preset=preset,
    )


def check_methods(methods: Sequence[str]) -> None:
    """Refuse methods that there are none of, without importing them.

    Raises:
        ValueError: none is named, one is named twice, or there is no such eraser.
    """
    if not methods:
        raise ValueError("methods must name at least one; see expunge list erasers")
    for text in methods:
        names.check("eraser", text)
        if methods.count(text) > 1:
            raise ValueError(f"the method {text} is named twice; name it once")


def run_plan(
    laid: Plan, protocol: str, prompts: int, folder: Path, store: str | Path | None, command: str
) -> BenchLog:
    """Do what was laid out, and write the log.

    Raises:
        StoreError: the folder cannot be written.
        JobsError: something could not be done; all else is kept.
    """
    start, started = time.monotonic(), datetime.now(UTC).isoformat(timespec="seconds")
    shelf = Store(Path(store or folder))
    claim(folder, protocol, laid.backbone.name)
    shelf.check_writable()
    judges = {laid.judge.name: laid.judge} | ({ALIGNED: laid.clip} if laid.clip else {})
    with Worker(laid.backbone, shelf, judges) as worker:
        found = Work(laid, shelf).run(worker)
    original, benched = found[0], found[1:]
    resamples = Resamples()
    every = [row for each in found for row in rows(each, protocol, laid.domain, resamples)]
    log = BenchLog(
        {
            "schema": SCHEMA,
            "protocol": protocol,
            "model": _model(laid.backbone),
            "judge": laid.judge.record(),
            "clip": laid.clip and laid.clip.record(),
            "sampling": asdict(laid.sampling),
            "prompts": prompts,
            "split": SPLIT,
            "methods": {label: method_record(each) for label, each in laid.methods.items()},
            "concepts": list(laid.asked),
            "rows": [row.to_dict() for row in every],
            "matrix": [line for each in found for line in matrix(each)],
            "sources": SOURCES,
            "flags": [plain(flag) for flag in notes(laid, original, benched)],
            "made": {
                "command": command,
                "started": started,
                "seconds": round(time.monotonic() - start, 1),
                "versions": versions(),
            },
        },
        shelf.folder,
    )
    log.save(folder)
    return log


def _model(backbone: Backbone) -> dict[str, str]:
    return {
        "name": backbone.name,
        "hash": backbone.content_hash(),
        "architecture": backbone.architecture,
    }
