"""Fixtures several test modules share: a small teacher on disk, a small manifest, and a store made from both."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from recon.trainer.evaluate.features import Probe
    from recon.trainer.evaluate.labelled import Labelled
    from tests.serving import Served

# Neither the clock nor the load nor chance decides: every run draws the same examples and none is kept on disk.
# `--hypothesis-profile default` looks for new ones.
settings.register_profile(
    "recon", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("recon")

# One thread a library, as the pipeline's own processes set it: pytest may import numpy before any of our modules.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LP_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}

MANIFEST = """
name = "small"
test_fraction = 0.25
[source]
layout = "procedural"
categories = ["chair", "mug", "table"]
shapes_per_category = {shapes}
[sample]
num_points = 256
[render]
preset = "ring2"
resolution = 32
[features]
draws = 2
[[features.teachers]]
name = "tiny"
kind = "open_clip"
model = "{model}"
"""

FOLDER_MANIFEST = """
name = "shapes"
[source]
layout = "folder"
[sample]
num_points = 64
[render]
preset = "ring2"
resolution = 32
[[features.teachers]]
name = "tiny"
kind = "open_clip"
model = "{model}"
"""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: one more than the cores this process may use: a third of the tests' time is waiting for processes."""
    from recon.pipeline.base.machine import cores

    return cores() + 1


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is put into the user's cache folder, nor taken from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def clip_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random open_clip model in open_clip's own form: a JSON config and its weights beside it."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    (folder / "tiny.json").write_text(json.dumps(CLIP_CONFIG))
    torch.manual_seed(0)
    model = open_clip.CLIP(**CLIP_CONFIG)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, folder / "tiny.safetensors")
    return folder / "tiny.json"


@pytest.fixture(scope="session")
def small_manifest(clip_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve shapes in three categories, three of them for testing, 32 px, two views, two draws."""
    path = tmp_path_factory.mktemp("manifest") / "small.toml"
    path.write_text(MANIFEST.format(shapes=4, model=clip_config))
    return path


@pytest.fixture(scope="session")
def small_store(small_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store of `small_manifest`, for reading only."""
    from recon.pipeline.flow.manifest import load_manifest
    from recon.pipeline.flow.run import Flow
    from recon.pipeline.store import FeatureStore

    path = tmp_path_factory.mktemp("store") / "small.zarr"
    results = Flow(load_manifest(small_manifest), None, FeatureStore.create(path)).all()
    assert not any(result.failed for result in results)
    return path


@pytest.fixture(scope="session")
def probed_run(small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of a tiny model on `small_store`, for reading only."""
    from tests.probed_run import train

    return train(small_store, tmp_path_factory.mktemp("probed") / "run")


@pytest.fixture
def own_run(probed_run: Path, tmp_path: Path) -> Path:
    """A copy of `probed_run` to write to."""
    shutil.copytree(probed_run, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture(scope="session")
def probe(probed_run: Path, small_store: Path) -> Probe:
    """`probed_run`'s student, to be measured on `small_store`."""
    from recon.trainer.evaluate.features import load_probe
    from tests.probed_run import CPU

    return load_probe(probed_run, small_store, CPU)


@pytest.fixture(scope="module")
def served(
    probed_run: Path, small_store: Path, clip_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The page of `recon-train serve` on a copy of `probed_run` and `small_store`; has a process of its own."""
    from tests.serving import serving

    run = tmp_path_factory.mktemp("served") / "run"
    shutil.copytree(probed_run, run)
    with serving(run, small_store, clip_config.parent) as found:
        yield found


@pytest.fixture(scope="session")
def testing(probe: Probe) -> Labelled:
    """`small_store`'s test shapes."""
    return probe.split("test")
