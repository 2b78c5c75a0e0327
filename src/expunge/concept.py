"""What is to go: concepts, and the prompts that ask for them.

A prompt template is a pattern: `[red|blue|]` stands for one of the alternatives (the last one here
is "nothing"), `{}` for the concept. Patterns keep a few hundred prompts in one readable line.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from typing import Literal

Split = Literal["train", "validation", "test"]
"""Erasers learn on `train`, choices are made on `validation`, audits report on `test`."""


def fill(template: str, name: str = "") -> str:
    """Put a name in a template's place, with single spaces and the right article."""
    text = " ".join(template.replace("{}", name).split())
    return re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)


def expand(pattern: str) -> list[str]:
    """Every template a pattern stands for, in a fixed order."""
    parts = [part.split("|") for part in re.split(r"\[([^\]]*)\]", pattern)]
    return [" ".join("".join(choice).split()) for choice in itertools.product(*parts)]


def split_of(prompt: str) -> Split:
    """The split a prompt belongs to, by its own hash: the same prompt never lands in two."""
    share = hashlib.sha256(prompt.encode()).digest()[0] / 256
    return "train" if share < 0.5 else "validation" if share < 0.65 else "test"
