"""Two edits, or more, one after the other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from expunge.backbone.base import Backbone
from expunge.watermark.edit.base import Edit, Subject
from expunge.watermark.scheme.base import Scheme, seeds_for


@dataclass(frozen=True)
class Chain(Edit):
    """Edits in their order.

    Attributes:
        edits: at least two.
    """

    name: ClassVar[str] = "chain"
    edits: tuple[Edit, ...]

    @property
    def label(self) -> str:
        """All of them with their levels, joined by `+`."""
        return "+".join(_with_level(edit) for edit in self.edits)

    def __post_init__(self) -> None:
        if len(self.edits) < 2:
            raise ValueError(f"a chain takes at least two edits, got {len(self.edits)}")

    @property
    def spec(self) -> dict[str, Any]:
        return {"edit": self.name, "edits": [edit.spec for edit in self.edits]}

    @property
    def redraws(self) -> bool:
        return any(edit.redraws for edit in self.edits)

    @property
    def white_box(self) -> bool:
        return any(edit.white_box for edit in self.edits)

    @property
    def reads_captions(self) -> bool:
        return any(edit.reads_captions for edit in self.edits)

    def check(self, scheme: Scheme, backbone: Backbone | None) -> None:
        for edit in self.edits:
            edit.check(scheme, backbone)

    def __call__(self, subject: Subject) -> Tensor:
        for link, edit in enumerate(self.edits):
            own = replace(subject, seeds=seeds_for(f"link {link}", subject.seeds))
            subject = replace(subject, pixels=edit(own))
        return subject.pixels


def _with_level(edit: Edit) -> str:
    if edit.strength is None:
        return edit.label
    name, _, settings = edit.label.partition(":")
    return ",".join([f"{name}:{edit.strength:g}", *([settings] if settings else [])])
