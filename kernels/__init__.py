"""Point-cloud operations that need only torch and NumPy; docs/kernels.md states what they promise."""

from typing import Any

if __name__ == "kernels":
    from recon.former_names import moved, stands_aside

    # Without another the import succeeds all the same: transformers asks whatever has this name for its version.
    if not stands_aside("kernels"):
        del __path__  # so that submodules, too, are asked for below

        def __getattr__(name: str) -> Any:
            if name.startswith("__") and name != "__path__":
                raise AttributeError(name)
            raise moved("kernels")

else:
    from recon.kernels.chamfer import ChamferL1, ChamferL2, chamfer_distance
    from recon.kernels.fps import sample_farthest_points
    from recon.kernels.group import group_points
    from recon.kernels.interpolate import interpolate_three
    from recon.kernels.knn import KNN, knn_gather, knn_points
    from recon.kernels.warm import warm_up

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
        "warm_up",
    ]
