"""ReCon's feature pipeline, trainer and point-cloud kernels, under one name.

    from recon import FeatureStore, load_model
    from recon.kernels import knn_points

The folders `pipeline`, `trainer`, `kernels` and `data_manifests` stand beside this one in a checkout and are linked
here; a wheel holds them here. What this module offers is imported when it is first asked for.
"""

from __future__ import annotations

import getpass
import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    __version__: str
    from recon.pipeline.flow.manifest import Manifest as Manifest
    from recon.pipeline.flow.manifest import list_shapes as list_shapes
    from recon.pipeline.flow.manifest import load_manifest as load_manifest
    from recon.pipeline.shapes.meshfile import load_mesh as load_mesh
    from recon.pipeline.shapes.sample import sample_points as sample_points
    from recon.pipeline.store import FeatureStore as FeatureStore
    from recon.pipeline.teachers import TeacherSpec as TeacherSpec
    from recon.pipeline.teachers import load_teacher as load_teacher
    from recon.trainer.checkpoints.loading import load_model as load_model
    from recon.trainer.config import DataConfig as DataConfig
    from recon.trainer.data.dataset import load_dataset as load_dataset

_HOME = {
    "DataConfig": "recon.trainer.config",
    "FeatureStore": "recon.pipeline.store",
    "Manifest": "recon.pipeline.flow.manifest",
    "TeacherSpec": "recon.pipeline.teachers",
    "list_shapes": "recon.pipeline.flow.manifest",
    "load_dataset": "recon.trainer.data.dataset",
    "load_manifest": "recon.pipeline.flow.manifest",
    "load_mesh": "recon.pipeline.shapes.meshfile",
    "load_model": "recon.trainer.checkpoints.loading",
    "load_teacher": "recon.pipeline.teachers",
    "sample_points": "recon.pipeline.shapes.sample",
}
__all__ = list(_HOME)
_FOLDERS = ("data_manifests", "kernels", "pipeline", "trainer")

for _name in _FOLDERS:
    if not (_folder := Path(__file__).with_name(_name)).is_dir():
        raise ImportError(
            f"{_folder} should be a link to the folder ../{_name}, and this copy of the checkout has lost it: "
            "`git config core.symlinks true && git checkout recon`, or install the wheel"
        )


try:
    getpass.getuser()
except (KeyError, OSError):  # torch asks too, while it is imported, and a container's user may have a number alone
    os.environ["LOGNAME"] = f"uid{os.getuid()}"


def __getattr__(name: str) -> Any:
    if name in _FOLDERS:
        return import_module(f"recon.{name}")
    if name == "__version__":
        return _version()
    if name not in _HOME:
        raise AttributeError(f"module 'recon' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def _version() -> str:
    """The distribution's; of a checkout that nobody installed, what its pyproject.toml says."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("recon-pointcloud")
    except PackageNotFoundError:
        import tomllib

        settings = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
        return str(settings["project"]["version"])


def __dir__() -> list[str]:
    return __all__
