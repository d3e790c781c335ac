"""Point-cloud operations that need only torch and NumPy; docs/kernels.md states what they promise."""

from kernels.chamfer import ChamferL1, ChamferL2, chamfer_distance
from kernels.fps import sample_farthest_points
from kernels.group import group_points
from kernels.interpolate import interpolate_three
from kernels.knn import KNN, knn_gather, knn_points

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
