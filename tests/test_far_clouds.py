"""Ready-made clouds far from the origin keep their shape, and near ones their bits."""

import numpy as np
import pytest

from recon.pipeline.shapes.axes import axes
from recon.pipeline.shapes.mesh import MeshError
from recon.pipeline.shapes.sample import take_points
from recon.pipeline.sources.clouds import cloud_of, read_table

AT = np.array([448262.25, 535123.5, 923456.75])


def some(size: float, spread: tuple[float, float, float] = (1, 1, 1)) -> np.ndarray:
    return (np.random.default_rng(0).random((500, 3)) - 0.5) * size * spread


@pytest.mark.parametrize("size", [0.02, 1.0])
@pytest.mark.parametrize("spread", [(1, 1, 1), (1, 0.1, 1)])
@pytest.mark.parametrize("up", ["+Y", "+Z"])
def test_a_far_cloud_is_the_one_near_the_origin(size, spread, up):
    near = some(size, spread)
    front = "+Z" if up == "+Y" else "-Y"
    found = cloud_of(near + AT, up, front, "a").xyz
    assert len(np.unique(found, axis=0)) == 500, "in float32 many would be one"
    wanted = near @ axes(up, front).T
    middle = (wanted.min(0) + wanted.max(0)) / 2
    assert np.abs(found - (wanted - middle)).max() < 1e-5 * size
    assert found.dtype == np.float32


def test_small_far_shapes_are_kept_apart():
    cube, slab = (cloud_of(some(0.02, spread) + AT, "+Y", "+Z", "a").xyz for spread in ((1, 1, 1), (1, 0.1, 1)))
    assert np.ptp(cube[:, 1]) > 8 * np.ptp(slab[:, 1])


def test_near_clouds_and_those_that_are_float32_stay_as_they_are():
    near = some(1.0) + 50
    assert (cloud_of(near, "+Y", "+Z", "a").xyz == near.astype(np.float32)).all()
    lost = (some(1.0) + AT).astype(np.float32)
    assert (cloud_of(lost, "+Y", "+Z", "a").xyz == lost).all()


def test_a_far_table_is_read_in_float64(tmp_path):
    path = tmp_path / "a.txt"
    np.savetxt(path, np.hstack([some(0.5) + AT, np.tile([0.0, 0.0, 1.0], (500, 1))]), fmt="%.6f", delimiter=",")
    cloud = cloud_of(read_table(path, 6, ","), "+Y", "+Z", "a")
    assert len(np.unique(cloud.xyz, axis=0)) == 500 and cloud.normal.dtype == np.float32


@pytest.mark.parametrize("value", [np.inf, np.nan, 1e300])
def test_what_is_not_finite_is_still_refused(value):
    points = some(1.0)
    points[3, 1] = value
    with pytest.raises(MeshError, match="non-finite"):
        take_points(cloud_of(points, "+Y", "+Z", "a"), 16, 0)
