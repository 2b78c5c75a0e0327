"""The names that other tools give to a model's layers and parameters."""

from expunge.layouts.kohya import (
    is_kohya_flux,
    kohya_flux,
    kohya_sd,
    kohya_sdxl,
    read_kohya_flux,
)
from expunge.layouts.ldm import single_file_tensors

__all__ = [
    "is_kohya_flux",
    "kohya_flux",
    "kohya_sd",
    "kohya_sdxl",
    "read_kohya_flux",
    "single_file_tensors",
]
