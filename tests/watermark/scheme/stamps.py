"""A StegaStamp as ONNX files, linear and exported in one way or another; pictures to stamp."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

BITS = 100
BLOCKS = 40
"""Blocks along a side of a picture, ten pixels each: one value of a carrier in each."""
FLOAT = TensorProto.FLOAT


def pictures(count: int, height: int, width: int) -> Tensor:
    """Smooth and not too bright or dark, so that nothing is cut off."""
    drawn = np.random.default_rng(3).uniform(90, 160, (count, 3, 5, 5))
    large = F.interpolate(torch.from_numpy(drawn), (height, width), mode="bicubic")
    return large.clamp(0, 255).round().to(torch.uint8)


def stegastamp(
    path: Path,
    inputs: list[str],
    outputs: list[str],
    *,
    last: bool = False,
    batch: int | str = "batch",
) -> str:
    """A linear scheme as an ONNX file: 100 orthogonal carriers of mean 0, added with bits' signs.

    Args:
        path: of the file.
        inputs: `image`, and `secret` where the file hides or just wants one.
        outputs: among `stegastamp`, `residual`, `logits`, their `chance`, and
            `decoded` (rounded).
        last: whether pictures have channels last.
        batch: a number, or a name for any number.
    """
    values = np.random.default_rng(0).standard_normal((3 * BLOCKS**2, BITS))
    carriers = np.linalg.qr(values - values.mean(axis=0))[0].T.astype(np.float32)
    constants = {
        "carriers": carriers,
        "transposed": carriers.T.copy(),
        "half": np.float32(0.5),
        "zero": np.float32(0),
        "one": np.float32(1),
        "blocks": np.array([-1, 3, BLOCKS, BLOCKS]),
        "flat": np.array([-1, 3 * BLOCKS**2]),
        "scales": np.array([1, 1, 10, 10], np.float32),
    }
    shape = [batch, 400, 400, 3] if last else [batch, 3, 400, 400]
    to_first = {"perm": [0, 3, 1, 2]} if last else {"perm": [0, 1, 2, 3]}
    to_last = {"perm": [0, 2, 3, 1]} if last else {"perm": [0, 1, 2, 3]}
    node = helper.make_node
    nodes = []
    if {"stegastamp", "residual"} & set(outputs):
        nodes += [
            node("Sub", ["secret", "half"], ["signs"]),
            node("MatMul", ["signs", "carriers"], ["sum"]),
            node("Reshape", ["sum", "blocks"], ["small"]),
            node("Resize", ["small", "", "scales"], ["large"], mode="nearest"),
            node("Transpose", ["large"], ["residual"], **to_last),
            node("Add", ["image", "residual"], ["added"]),
            node("Clip", ["added", "zero", "one"], ["stegastamp"]),
        ]
    if {"decoded", "chance", "logits"} & set(outputs):
        nodes += [
            node("Transpose", ["image"], ["first"], **to_first),
            node("AveragePool", ["first"], ["means"], kernel_shape=[10, 10], strides=[10, 10]),
            node("Reshape", ["means", "flat"], ["flattened"]),
            node("MatMul", ["flattened", "transposed"], ["logits"]),
            node("Sigmoid", ["logits"], ["chance"]),
            node("Round", ["chance"], ["decoded"]),
        ]
    shapes: dict[str, list[int | str]] = {"image": shape, "stegastamp": shape, "residual": shape}
    described = {
        name: helper.make_tensor_value_info(
            name, TensorProto.FLOAT, shapes.get(name, [batch, BITS])
        )
        for name in (*inputs, *outputs)
    }
    graph = helper.make_graph(
        nodes,
        "stegastamp",
        [described[name] for name in inputs],
        [described[name] for name in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return str(path)
