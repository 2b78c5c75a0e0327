"""The names that other tools give to a model's layers and parameters."""

from expunge.layouts.kohya import (
    KOHYA,
    by_component,
    kohya,
    kohya_deltas,
    kohya_flux,
    kohya_sd,
    kohya_sdxl,
)
from expunge.layouts.ldm import single_file_tensors
from expunge.layouts.text import refuse_unread, text_name, whole_attentions

__all__ = [
    "KOHYA",
    "by_component",
    "kohya",
    "kohya_deltas",
    "kohya_flux",
    "kohya_sd",
    "kohya_sdxl",
    "refuse_unread",
    "single_file_tensors",
    "text_name",
    "whole_attentions",
]
