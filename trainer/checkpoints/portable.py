"""Models as programs that run without this package: of torch.export (.pt2) and ONNX (.onnx).

Clouds go in as they are, features or logits come out: centring, scaling and grouping are inside. Sampling and
neighbours are one operator while the model is traced. A .pt2 has it written out in torch's own operators, step by step;
an .onnx as a loop. All three find the same points, those of `recon.kernels.group_points`, ties included.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import custom_op

from recon.kernels import knn_points, sample_farthest_points
from recon.pipeline.base.errors import UserError
from recon.pipeline.base.files import write_atomically
from recon.trainer.model.clouds import colored
from recon.trainer.model.heads import Classifier, Model, Segmenter
from recon.trainer.model.recon import ReCon

CLOSE = 1e-4
"""How far onnxruntime's outputs may lie from the model's, relative to the largest"""
OPSET = 18
INPUT = "points"


class Program(nn.Module):
    """What a program computes, of clouds `points [B, N, 3]`.

    Of a pretrained model any frame and scale will do, and out come "embedding" `[B, 2C]` as by `Student.embed` and each
    teacher's predicted feature `[B, D]` under its name; of a classifier "logits" `[B, K]` of clouds in the frame it was
    trained on.
    """

    def __init__(self, model: ReCon | Classifier) -> None:
        super().__init__()
        self.model = model
        model.cut = self._cut  # type: ignore[method-assign] # so that every task's own forward is what is traced
        teachers = [teacher.name for teacher in model.config.teachers]
        self.outputs = ["embedding", *teachers] if isinstance(model, ReCon) else ["logits"]

    def forward(self, points: Tensor) -> tuple[Tensor, ...]:
        """One tensor for each of `outputs`."""
        if isinstance(self.model, Classifier):
            return (self.model(points),)
        embedding, predicted = self.model.describe(points)
        return embedding, *predicted

    def _cut(self, points: Tensor) -> tuple[Tensor, Tensor]:
        config = self.model.config
        if config.color:
            points = colored(points, config.default_color)
        indices = neighbourhoods(points[..., :3].contiguous(), config.num_group, config.group_size)
        flat = indices.flatten(1)[..., None].expand(-1, -1, points.shape[2])
        taken = points.gather(1, flat).view(*indices.shape, points.shape[2])
        centers = taken[:, :, 0, :3]
        groups = taken[:, :, 1:, :3] - centers[:, :, None]
        return torch.cat([groups, taken[:, :, 1:, 3:]], dim=-1) if config.color else groups, centers


@custom_op("recon::neighbourhoods", mutates_args=())
def neighbourhoods(points: Tensor, num_group: int, group_size: int) -> Tensor:
    """Indices [B, G, 1 + S] of each group of `points [B, N, 3]`: the centre, then its points, the nearest first."""
    centers, chosen = sample_farthest_points(points, K=num_group)
    return torch.cat([chosen[..., None], knn_points(centers, points, K=group_size).idx], dim=2)


@neighbourhoods.register_fake
def _(points: Tensor, num_group: int, group_size: int) -> Tensor:
    return points.new_empty(points.shape[0], num_group, 1 + group_size, dtype=torch.int64)


def written_out(points: Tensor, num_group: int, group_size: int) -> Tensor:
    """As `neighbourhoods`, in operators of torch alone, a step a centre."""
    place = torch.arange(points.shape[1], device=points.device)[None]  # [1, N]
    far = torch.full_like(points[..., 0], torch.inf)  # [B, N]
    chosen = place[:, :1].expand(points.shape[0], 1)  # [B, 1]
    picked = []
    for _ in range(num_group):
        picked.append(chosen)
        center = points.gather(1, chosen[..., None].expand(-1, -1, 3))
        far = torch.minimum(far, _squared(points, center))
        far = torch.where(place == chosen, -1.0, far)  # none twice, however many coincide
        chosen = far.argmax(1, keepdim=True)
    centers = points.gather(1, torch.cat(picked, 1)[..., None].expand(-1, -1, 3))
    distances = _squared(points[:, None], centers[:, :, None])  # [B, G, N]
    nearest = distances.sort(dim=2, stable=True).indices[..., :group_size]
    return torch.cat([torch.cat(picked, 1)[..., None], nearest], dim=2)


def _squared(points: Tensor, center: Tensor) -> Tensor:
    """Squared distances, summed in the order of the kernels' so that ties are ties."""
    x, y, z = (points - center).unbind(-1)
    return x * x + y * y + z * z


def trace(model: Model, name: str) -> tuple[Program, torch.export.ExportedProgram]:
    """The model as a program of any number of clouds and points; UserError for one that takes more than clouds.

    `name` is what messages call it.
    """
    if isinstance(model, Segmenter):
        raise UserError(f"{name}: a part segmentation, which asks for categories too; write it as .pth or .safetensors")
    least = max(model.config.num_group, model.config.group_size)
    program = Program(model.float().requires_grad_(False)).eval()
    example = torch.rand(2, 2 * least + 1, model.config.channels, generator=torch.Generator().manual_seed(0))
    sizes = {0: torch.export.Dim("clouds", min=1), 1: torch.export.Dim("points", min=least)}
    with _quiet():
        return program, torch.export.export(program, (example,), dynamic_shapes=(sizes,))


def save_program(model: Model, path: Path, name: str) -> dict[str, Any]:
    """Write a .pt2, which `torch.export.load(path).module()` runs with torch alone; gives its outputs' names."""
    program, traced = trace(model, name)
    table: dict[Any, Callable[..., Any]] = {torch.ops.recon.neighbourhoods.default: written_out}
    with _quiet():
        plain = traced.run_decompositions(table)
    _through_a_file(
        path, lambda file: torch.export.save(plain, file, extra_files={"outputs": "\n".join(program.outputs)})
    )
    return {"outputs": program.outputs}


def save_onnx(model: Model, path: Path, name: str) -> dict[str, Any]:
    """Write an .onnx and check it by onnxruntime: the outputs' names, and how far they were from the model's.

    UserError without the extra `onnx`, and where a difference exceeds `CLOSE`: then nothing is written.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"-o {path}: needs the extra `onnx` ({error.name} is missing): pip install 'recon-pointcloud[onnx]'"
        ) from error
    program, traced = trace(model, name)
    written = to_onnx(traced, program.outputs)

    worst = 0.0

    def save(file: Path) -> None:
        nonlocal worst
        written.save(file)
        worst = _worst(program, onnxruntime.InferenceSession(file))
        if not worst <= CLOSE:
            raise UserError(
                f"{name}: onnxruntime's outputs differ from the model's by {worst:.1e} of the largest; not written"
            )

    _through_a_file(path, save)
    return {"outputs": program.outputs, "largest_difference": worst}


def to_onnx(traced: torch.export.ExportedProgram, outputs: list[str]) -> torch.onnx.ONNXProgram:
    """A program of one input in ONNX; needs the extra `onnx`."""
    from recon.trainer.checkpoints import onnx_groups

    with _quiet():
        written = torch.onnx.export(
            traced, opset_version=OPSET, input_names=[INPUT], output_names=outputs, verbose=False,
            custom_translation_table={torch.ops.recon.neighbourhoods.default: onnx_groups.translate},
        )  # fmt: skip
    assert written is not None
    return written


def _worst(program: Program, session: Any) -> float:
    """The largest difference of an output relative to its largest value, over clouds of two sizes."""
    worst, draw = 0.0, torch.Generator().manual_seed(1)
    least = max(program.model.config.num_group, program.model.config.group_size)
    for clouds, count in ((1, least), (3, 2 * least + 5)):
        points = torch.randn(clouds, count, program.model.config.channels, generator=draw)
        points[-1] = points[-1, torch.arange(count) // 2]  # pairs in one place
        with torch.no_grad():
            expected = program(points)
        for one, other in zip(session.run(None, {INPUT: points.numpy()}), expected, strict=True):
            apart = (torch.from_numpy(one) - other).abs().max() / other.abs().max().clamp_min(1e-6)
            worst = max(worst, float(apart)) if apart.isfinite() else float("inf")
    return worst


def _through_a_file(path: Path, save: Callable[[Path], object]) -> None:
    """Have `save` write a file of the same suffix elsewhere, and put it in place whole."""
    try:
        with TemporaryDirectory() as folder:
            file = Path(folder) / f"model{path.suffix}"
            save(file)
            write_atomically(path, file.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from error


class _quiet(warnings.catch_warnings):
    """torch's exporters warn of their own use of what they deprecate, and report progress."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered
