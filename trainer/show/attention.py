"""What the global queries, and local tokens, attend to: per block and head, as a picture and as a page to turn."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, select_autoescape
from numpy.typing import NDArray
from torch import Tensor, nn

from recon.pipeline.base.errors import UserError
from recon.trainer.model.blocks import Attention, CrossAttention
from recon.trainer.model.encoder import TwoTowers
from recon.trainer.model.recon import ReCon
from recon.trainer.show.clouds import STOPS, STOPS_ON_DARK, draw_cloud, grid, heat, plain

MAX_PAGE_BYTES = 5_000_000
NEIGHBOURS = 3  # centres whose attention a point's is interpolated from, as in segmentation
LARGE, CELL = 192, 88  # px
CHOSEN = (208, 20, 60)


@dataclass(frozen=True)
class Attended:
    """Attention over one cloud, each head's row of it adding up to 1 (in one stream, together with the queries')."""

    name: str
    points: NDArray[np.float32]
    """[N, 3] within the unit sphere"""
    centers: NDArray[np.float32]
    """[G, 3] of the groups that the local tokens stand for"""
    queries: tuple[str, ...]
    cross: NDArray[np.float32]
    """[depth, heads, Q, G] of the queries"""
    local: NDArray[np.float32]
    """[depth, heads, G, G] of the local tokens: who looks, then at whom"""

    def spread(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For each point the nearest centres [N, 3] and their shares [N, 3], by inverse squared distance."""
        squared = np.square(self.points[:, None].astype(np.float64) - self.centers[None]).sum(-1)
        nearest = np.argsort(squared, axis=1, kind="stable")[:, :NEIGHBOURS]
        shares = 1 / (np.take_along_axis(squared, nearest, axis=1) + 1e-8)
        return nearest, shares / shares.sum(axis=1, keepdims=True)

    def on_points(self, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Values of the groups [G] at the points [N]."""
        nearest, shares = self.spread()
        found: NDArray[np.float64] = (values[nearest] * shares).sum(axis=1)
        return found

    def tokens(self, count: int) -> list[int]:
        """`count` local tokens to show: those that lie farthest from each other, the highest one first."""
        chosen = [int(self.centers[:, 1].argmax())]
        while len(chosen) < min(count, len(self.centers)):
            gaps = np.linalg.norm(self.centers[:, None] - self.centers[None, chosen], axis=2).min(axis=1)
            chosen.append(int(gaps.argmax()))
        return chosen


@torch.inference_mode()
def attend(model: ReCon, names: Sequence[str], points: Tensor) -> list[Attended]:
    """Of clouds [B, N, C] within the unit sphere, as the model takes them. Of two towers that of the teachers."""
    encoder = model.encoder.teaching if isinstance(model.encoder, TwoTowers) else model.encoder
    queries = model.config.queries
    taken: dict[nn.Module, tuple[Tensor, ...]] = {}

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        taken[module] = given

    looking = [module for module in encoder.modules() if isinstance(module, Attention)]  # in the blocks' order
    reading = [module for module in encoder.modules() if isinstance(module, CrossAttention)]
    with ExitStack() as hooks:
        for module in (*looking, *reading):
            hooks.callback(module.register_forward_pre_hook(keep).remove)
        model.forward_features(points)
    local = _stacked(module.weights(taken[module][0], *taken[module][2:]) for module in looking)
    if reading:
        cross = _stacked(module.weights(*taken[module]) for module in reading)
    else:  # one stream: queries and tokens side by side
        count = encoder.num_queries
        cross, local = local[..., :count, count:], local[..., count:, count:]
    _, centers = model.group(points)
    arrays = [each.float().cpu().numpy() for each in (points[..., :3], centers, cross, local)]
    return [
        Attended(name, cloud, middle, queries, a, b) for name, cloud, middle, a, b in zip(names, *arrays, strict=True)
    ]


def _stacked(weights: Iterator[Tensor]) -> Tensor:
    """One [B, heads, Q, L] a block -> [B, depth, heads, Q, L]."""
    return torch.stack(list(weights), dim=1)


def overview(shapes: Sequence[Attended], num_tokens: int) -> bytes:
    """PNG: a row a shape; its points, then what each query and chosen token attends to in the last block, all heads."""
    rows = []
    for shape in shapes:
        pictures = [draw_cloud(shape.points, plain(len(shape.points)), LARGE)]
        pictures += [_drawn(shape, shape.cross[-1, :, query].mean(0), LARGE) for query in range(len(shape.queries))]
        pictures += [
            _drawn(shape, shape.local[-1, :, token].mean(0), LARGE, token) for token in shape.tokens(num_tokens)
        ]
        rows.append((shape.name, pictures))
    names = [
        *(f"query {name}" for name in shapes[0].queries),
        *(f"token {i + 1}" for i in range(len(rows[0][1]) - 1 - len(shapes[0].queries))),
    ]
    note = (
        "The last block's attention over the local tokens, mean of the heads, interpolated from the groups' centres to "
        "the points. Grey: none; black: the picture's largest. A token is the group around the red dot."
    )
    return grid("What the queries attend to", rows, ["points", *names], note)


def heads_and_blocks(shape: Attended, num_tokens: int) -> bytes:
    """PNG of one shape: a row a block, a column each of the heads of every query and of the chosen tokens."""
    looking: list[tuple[str, NDArray[np.float32], int | None]] = [
        (f"{name}", shape.cross[:, :, place], None) for place, name in enumerate(shape.queries)
    ]
    looking += [(f"token {i + 1}", shape.local[:, :, token], token) for i, token in enumerate(shape.tokens(num_tokens))]
    depth, heads = shape.cross.shape[:2]
    rows = [
        (
            f"block {block + 1}",
            [_drawn(shape, values[block, head], CELL, token) for _, values, token in looking for head in range(heads)],
        )
        for block in range(depth)
    ]
    columns = [f"{name} h{head + 1}" for name, _, _ in looking for head in range(heads)]
    return grid(
        f"{shape.name}: attention by block and head", rows, columns, "Each picture is scaled to its own largest."
    )


def _drawn(shape: Attended, values: NDArray[np.float32], size: int, token: int | None = None) -> NDArray[np.uint8]:
    points, colors = shape.points, heat(shape.on_points(values))
    picture = draw_cloud(points, colors, size, radius=0.03 if size < LARGE else 0.021)
    if token is None:
        return picture
    own = draw_cloud(shape.centers[token : token + 1], plain(1, CHOSEN), size, radius=0.07)
    return np.where((own < 250).any(axis=2, keepdims=True), own, picture).astype(np.uint8)


def page(title: str, shapes: Sequence[Attended]) -> str:
    """One HTML document that holds everything it needs. UserError where that is more than `MAX_PAGE_BYTES`."""
    loader = Environment(loader=PackageLoader("recon.trainer", "show"), autoescape=select_autoescape())
    document: str = loader.get_template("attention.html").render(
        title=title,
        stops=(STOPS, STOPS_ON_DARK),
        data=_for_script({"queries": shapes[0].queries, "shapes": [_packed(shape) for shape in shapes]}),
    )
    size = len(document.encode())
    if size > MAX_PAGE_BYTES:
        fitting = max(len(shapes) * MAX_PAGE_BYTES // size, 1)
        raise UserError(
            f"{len(shapes)} shapes make a page of {size / 1e6:.1f} MB, and it may have {MAX_PAGE_BYTES / 1e6:.0f}: "
            f"name fewer with --shape, e.g. {fitting}"
        )
    return document


def _packed(shape: Attended) -> dict[str, Any]:
    """A shape for the page: attention as bytes, each head's row scaled by its largest, which stands beside."""
    nearest, shares = shape.spread()
    packed = {"name": shape.name, "depth": shape.cross.shape[0], "heads": shape.cross.shape[1]}
    packed |= {"groups": len(shape.centers)}
    for name, values in (("cross", shape.cross), ("local", shape.local)):
        largest = np.maximum(values.max(axis=-1, keepdims=True), 1e-12)
        packed[name] = _base64(np.rint(values / largest * 255).astype(np.uint8))
        packed[f"{name}Most"] = _base64(largest[..., 0].astype("<f4"))
    packed["points"] = _base64(np.rint(shape.points * 32000).astype("<i2"))
    packed["centers"] = _base64(np.rint(shape.centers * 32000).astype("<i2"))
    packed["nearest"] = _base64(nearest.astype("<u2"))
    packed["shares"] = _base64(np.rint(shares * 255).astype(np.uint8))
    return packed


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def _for_script(value: Any) -> str:
    """JSON that may stand within a script element, whatever a shape is called."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", r"\u003c").replace(">", r"\u003e").replace("&", r"\u0026").replace("\u2028", r"\u2028")
