"""What is left of a provenance mark after a picture is edited: embed, edit, extract.

The bench always embeds a payload of its own first. Nothing here takes a picture that somebody else
marked and returns it clean.
"""

from expunge.watermark.benchmark import bench
from expunge.watermark.both_layers import layers
from expunge.watermark.log import WatermarkLog

__all__ = ["WatermarkLog", "bench", "layers"]
