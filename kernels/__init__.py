"""Point-cloud operations that need only torch and NumPy; docs/kernels.md states what they promise."""

from typing import Any

if __name__ == "kernels":  # in a checkout's folder, where transformers asks for a package of this name and its version
    __path__: list[str] = []

    def __getattr__(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"no kernels.{name} any more: it is recon.kernels.{name} (from recon.kernels import {name})")

else:
    from recon.kernels.chamfer import ChamferL1, ChamferL2, chamfer_distance
    from recon.kernels.fps import sample_farthest_points
    from recon.kernels.group import group_points
    from recon.kernels.interpolate import interpolate_three
    from recon.kernels.knn import KNN, knn_gather, knn_points

    __all__ = [
        "KNN",
        "ChamferL1",
        "ChamferL2",
        "chamfer_distance",
        "group_points",
        "interpolate_three",
        "knn_gather",
        "knn_points",
        "sample_farthest_points",
    ]
