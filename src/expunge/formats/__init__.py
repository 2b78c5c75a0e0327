"""Files that other tools read."""

from expunge.formats.card import how_to_apply, model_card, write_card
from expunge.formats.export import FORMATS, WITHOUT_BASE, export
from expunge.formats.lora import DEFAULT, describe_lora, lost_at, write_lora

__all__ = [
    "DEFAULT",
    "FORMATS",
    "WITHOUT_BASE",
    "describe_lora",
    "export",
    "how_to_apply",
    "lost_at",
    "model_card",
    "write_card",
    "write_lora",
]
