"""`recon::neighbourhoods` in ONNX: a Loop over the centres, and TopK, whose ties go to the lower index as ours do."""

# onnxscript reads this source as ONNX, not as Python.
# mypy: ignore-errors

from __future__ import annotations

from typing import Any

import onnxscript
from onnxscript import FLOAT, INT64
from onnxscript import opset18 as op
from onnxscript.values import Opset

LOCAL = Opset("recon", 1)


# onnxscript reads the source of these functions: types are ONNX's, constants stand where they are used.
@onnxscript.script(LOCAL, default_opset=op)
def neighbourhoods(points: FLOAT[...], num_group: INT64[1], group_size: INT64[1]) -> INT64[...]:
    """points [B, N, 3] -> indices [B, G, 1 + S]; see `recon.trainer.checkpoints.portable.written_out`."""
    place = op.Unsqueeze(op.Range(0, op.Squeeze(op.Shape(points, start=1, end=2)), 1), [0, 2])
    far = op.Add(op.Mul(op.Slice(points, [0], [1], [2]), 0.0), 3e38)  # [B, N, 1], each farther than any
    chosen = op.ArgMax(far, axis=1, keepdims=1)  # [B, 1, 1], the first
    picked = chosen
    for _ in range(op.Sub(op.Squeeze(num_group), 1)):
        apart = op.Sub(points, op.GatherElements(points, op.Expand(chosen, [1, 1, 3]), axis=1))
        x, y, z = op.Split(op.Mul(apart, apart), axis=2, num_outputs=3)
        far = op.Where(op.Equal(place, chosen), -1.0, op.Min(far, op.Add(op.Add(x, y), z)))
        chosen = op.ArgMax(far, axis=1, keepdims=1)
        picked = op.Concat(picked, chosen, axis=1)
    centers = op.GatherElements(points, op.Expand(picked, [1, 1, 3]), axis=1)
    between = op.Sub(op.Unsqueeze(points, [1]), op.Unsqueeze(centers, [2]))  # [B, G, N, 3]
    x, y, z = op.Split(op.Mul(between, between), axis=3, num_outputs=3)
    distances = op.Squeeze(op.Add(op.Add(x, y), z), [3])
    _, nearest = op.TopK(distances, group_size, axis=2, largest=0)
    return op.Concat(picked, nearest, axis=2)


def translate(points: Any, num_group: int, group_size: int) -> Any:
    """The operator's call in a graph of torch.onnx."""
    return neighbourhoods(points, op.Constant(value_ints=[num_group]), op.Constant(value_ints=[group_size]))
