"""What warm_up compiles is what training then asks for."""

from typing import Any

import clouds
import pytest
import torch

from recon import kernels

pytest.importorskip("triton")

from recon.kernels.on_triton import chamfer, chamfer_backward, fps, interpolate, knn, segments

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODULES = (chamfer, chamfer_backward, fps, interpolate, knn, segments)
Variant = tuple[Any, ...]
# NumPy, which stands in for the GPU, warns of inf - inf.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


class Noted:
    """Stands for a kernel: notes what a launch would be compiled for, and launches."""

    def __init__(self, kernel: Any, variants: set[Variant]) -> None:
        self.kernel, self.variants = kernel, variants

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **named: Any) -> None:
            given = dict(zip(self.kernel.arg_names, arguments, strict=False)) | named
            fixed = tuple(
                (name, value)
                for name, value in sorted(given.items())
                if name.isupper() or value is None or name == "num_warps"
            )
            self.variants.add((self.kernel.__name__, *fixed))
            self.kernel[grid](*arguments, **named)

        return launch


def step(num_clouds: int) -> None:
    """A step of pretraining and one of segmentation, on clouds of 8 points."""
    x, y = (clouds.cloud("random", num_clouds, 8, 3, torch.float32, 3 * s + 1).to(DEVICE) for s in (0, 1))
    groups, centers = kernels.group_points(x, 3, 2)
    chosen, _ = kernels.sample_farthest_points(x, K=3)
    x.requires_grad_(), y.requires_grad_()
    loss = kernels.ChamferL1()(x, y) + kernels.ChamferL2()(x, y) + kernels.chamfer_distance(x, y)[0]
    (loss + kernels.interpolate_three(chosen, chosen, y).sum() + groups.sum() + centers.sum()).backward()


def test_what_is_compiled_first_is_what_training_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECON_KERNELS", "triton")
    variants: set[Variant] = set()
    for module in MODULES:
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Noted(getattr(module, name), variants))
    kernels.warm_up([(2, 8, 3)], num_group=3, group_size=2, device=DEVICE)
    warmed = set(variants)
    assert {variant[0] for variant in warmed} >= {"nearest_kernel", "backward_kernel", "resident_kernel", "rows_kernel"}
    variants.clear()
    step(2)
    assert variants and variants <= warmed, variants - warmed


def test_the_device_is_one_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kernels.warm_up([(1, 4, 2)])


def test_it_runs_where_there_is_no_triton_and_refuses_what_is_no_shape() -> None:
    kernels.warm_up([(1, 4, 2), (2, 9, 3)], device="cpu")
    with pytest.raises(ValueError, match=r"shapes must each be \(clouds, points, coordinates\), got \(3, 4\)"):
        kernels.warm_up([(3, 4)], device="cpu")  # type: ignore[list-item]
    with pytest.raises(ValueError, match="every number of a shape must be an integer >= 1, got 0"):
        kernels.warm_up([(3, 0, 3)], device="cpu")
