"""Presets and the camera convention: what other programs need to read the pictures right."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.procedural.geometry import box
from recon.pipeline.rendering import rasterizer
from recon.pipeline.rendering.cameras import (
    MAX_VIEWS,
    PRESETS,
    Cameras,
    camera_angles,
    camera_poses,
    covered,
    intrinsic_matrix,
    preset_angles,
    projection_matrix,
)
from recon.pipeline.rendering.render import RenderConfig, Renderer
from recon.pipeline.shapes.mesh import Material, Mesh, Primitive


@pytest.mark.parametrize("preset", [*PRESETS, "ring5", "sphere-1", "sphere-2", "sphere-37"])
def test_poses_are_rigid_and_look_at_the_centre(preset):
    cameras = Cameras(preset=preset)
    poses, angles = camera_poses(cameras), camera_angles(cameras)
    assert np.allclose(poses[:, :3, :3] @ poses[:, :3, :3].swapaxes(1, 2), np.eye(3))
    assert np.allclose(np.linalg.det(poses[:, :3, :3]), 1)
    assert np.allclose(poses[:, :3, 3], cameras.distance * poses[:, :3, 2])
    assert np.allclose(np.degrees(np.arcsin(poses[:, 1, 2].clip(-1, 1))), angles[:, 1], atol=1e-4)
    assert angles.shape == (cameras.num_views, 3)
    assert np.allclose(angles[:, 2], cameras.distance)


def test_the_default_preset_has_a_view_straight_from_the_front():
    assert np.allclose(camera_poses(Cameras())[4, :3, :3], np.eye(3))


@pytest.mark.parametrize(
    ("preset", "views", "elevations"),
    [
        ("openshape12", 12, {-30, 0, 30}),
        ("ulip30", 30, {0}),
        ("objaverse12", 12, {30}),
        ("pointclip6", 6, {0, 90, -90}),
        ("recon1", 1, {25}),
        ("ring8", 8, {20}),
    ],
)
def test_presets_take_the_views_they_are_named_for(preset, views, elevations):
    angles = preset_angles(preset)
    assert len(set(angles)) == views
    assert {elevation for _, elevation in angles} == elevations


def test_r2n2_is_drawn_once_for_all():
    """The numbers are part of every key made with them: another draw would pass for the same preset."""
    angles = np.array(preset_angles("r2n2-24"))
    assert angles.shape == (24, 2)
    assert angles[0].tolist() == [134.1585, 27.5406]
    assert angles[23].tolist() == [150.5932, 25.8241]
    assert 25 <= angles[:, 1].min() < 25.5 < 29.5 < angles[:, 1].max() <= 30
    assert len(np.unique(angles[:, 0] // 90)) == 4


def test_pointclips_six_look_along_the_axes_upright():
    poses = camera_poses(Cameras(preset="pointclip6"))
    where = [[0, 0, 1], [1, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]  # front, +X, back, -X, top, bottom
    up = [[0, 1, 0]] * 4 + [[0, 0, -1], [0, 0, 1]]  # from above the front lies at the picture's lower edge
    assert np.allclose(poses[:, :3, 2], where)
    assert np.allclose(poses[:, :3, 1], up)


@given(st.integers(4, MAX_VIEWS))
def test_sphere_views_are_even(num_views):
    """No two views closer than half of what an ideal spread leaves between them, and no side preferred."""
    directions = camera_poses(Cameras(preset=f"sphere-{num_views}"))[:, :3, 2]
    assert np.linalg.norm(directions.mean(0)) < 0.2
    cosines = directions @ directions.T - 2 * np.eye(num_views)
    ideal = np.sqrt(4 * np.pi / num_views)  # the side of each one's share of the sphere
    assert np.arccos(cosines.max()) > 0.5 * ideal


def test_a_single_sphere_view_is_the_front():
    assert preset_angles("sphere-1") == [(0.0, 0.0)]


@given(st.sampled_from(["openshape12", "r2n2-24", "sphere-9"]), st.integers(16, 300), st.floats(10, 100))
def test_k_and_camera_to_world_agree_with_what_is_drawn(preset, resolution, fov):
    """Projected as another program would, with K and a camera that looks along +Z with y down, a point lands where
    OpenGL's matrix puts it."""
    cameras = Cameras(preset, resolution, fov)
    rng = np.random.default_rng(resolution)
    points = rng.uniform(-0.5, 0.5, (20, 3))
    flip = np.diag([1.0, -1.0, -1.0])
    for pose in camera_poses(cameras):
        seen = (points - pose[:3, 3]) @ pose[:3, :3] @ flip
        pixel = seen @ intrinsic_matrix(cameras).T
        pixel = pixel[:, :2] / pixel[:, 2:]
        clip = np.c_[points, np.ones(20)] @ (projection_matrix(cameras) @ np.linalg.inv(pose)).T
        screen = clip[:, :2] / clip[:, 3:]
        assert np.allclose(pixel[:, 0], (1 + screen[:, 0]) / 2 * resolution)
        assert np.allclose(pixel[:, 1], (1 - screen[:, 1]) / 2 * resolution)
        assert (np.abs(clip[:, 2]) <= clip[:, 3]).all(), "within near and far"


@pytest.mark.parametrize(
    "preset", ["openshape", "ring0", "ring73", "ring06", "ring-6", "", "Ring6", "sphere-0", "sphere-73", "sphere6"]
)
def test_unknown_presets_are_refused(preset):
    with pytest.raises(UserError, match="no camera preset"):
        Cameras(preset=preset)


def test_a_near_miss_is_named():
    for wrong, meant in (("openshape_12", "openshape12"), ("r2n2_24", "r2n2-24"), ("sphere12", "sphere-12")):
        with pytest.raises(UserError, match=f"did you mean '{meant}'"):
            Cameras(preset=wrong)
    for field in ({"resolution": 0}, {"fov_degrees": 0.0}, {"fov_degrees": float("nan")}):
        with pytest.raises(UserError, match=next(iter(field))):
            Cameras(**field)


def test_angles_are_the_same_text_everywhere():
    """They stand in keys as JSON: sines of another library must not change a digit."""
    for preset in ("sphere-72", "r2n2-24"):
        angles = preset_angles(preset)
        assert json.loads(json.dumps(angles)) == [list(pair) for pair in angles]
        assert all(abs(value * 1e6 - round(value * 1e6)) < 1e-6 for pair in angles for value in pair)


@pytest.mark.parametrize("normals", [False, True])
def test_no_pixel_of_the_shape_is_beyond_what_is_resolved(normals, monkeypatch):
    legs = [box(0.1, 1.0, 0.1).move(x, 0.0, z) for x in (0.0, 2.0) for z in (0.0, 0.7)]
    grey = Material("grey", (0.2, 0.2, 0.2))
    mesh = Mesh(tuple(Primitive("leg", leg.vertices, leg.faces, grey) for leg in legs))
    with Renderer(RenderConfig(preset="openshape12", resolution=64, normals=normals)) as renderer:
        views = renderer.render(mesh)
        monkeypatch.setattr(rasterizer, "covered", lambda box, pose, projection, side: (0, 0, side, side))
        whole = renderer.render(mesh)
    for name in ("rgb", "alpha", "depth", "normal"):
        assert np.array_equal(getattr(views, name), getattr(whole, name)), name


def test_a_box_about_the_camera_may_show_anywhere():
    pose, projection = np.eye(4), projection_matrix(RenderConfig())
    assert covered(np.array([[-1.0] * 3, [1.0] * 3]), pose, projection, 64) == (0, 0, 64, 64)
    left, low, right, high = covered(np.array([[-0.1, -0.1, -3.0], [0.2, 0.1, -2.9]]), pose, projection, 64)
    assert 0 < left < 32 < right < 64
    assert 64 - right < left
    assert low == 64 - high > 0
