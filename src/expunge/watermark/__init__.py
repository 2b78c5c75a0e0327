"""What is left of a provenance mark after a picture is edited: embed, edit, extract.

The bench always embeds a payload of its own first. Nothing here takes a picture that somebody else
marked and returns it clean. Reading a log imports no torch: all else is found on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from expunge.watermark.log import WatermarkLog

if TYPE_CHECKING:
    from expunge.watermark.benchmark import bench
    from expunge.watermark.both_layers import layers

__all__ = ["WatermarkLog", "bench", "layers"]


def __getattr__(name: str) -> Any:
    if name == "bench":
        from expunge.watermark.benchmark import bench

        return bench
    if name == "layers":
        from expunge.watermark.both_layers import layers

        return layers
    raise AttributeError(f"module 'expunge.watermark' has no attribute {name!r}")
