"""The names that other tools give to a model's layers and parameters."""

from expunge.layouts.kohya import kohya_flux, kohya_sd, kohya_sdxl
from expunge.layouts.ldm import single_file_tensors

__all__ = ["kohya_flux", "kohya_sd", "kohya_sdxl", "single_file_tensors"]
