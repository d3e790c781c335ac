"""Patch tokens read at a shape's points: projection, visibility, the tokens' grid, and their mean over views."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from recon.pipeline.rendering.cameras import Cameras, camera_poses, intrinsic_matrix
from recon.pipeline.rendering.visibility import project, sight
from recon.pipeline.stages.lift import lifted
from recon.pipeline.teachers.images import Preprocess
from recon.pipeline.teachers.patches import PatchGrid, patch_grid

FRONT = Cameras("recon1", resolution=64, fov_degrees=40.0)
presets = st.sampled_from(["openshape12", "ring5", "pointclip6", "sphere-7", "recon1"])
cameras = st.builds(Cameras, presets, st.integers(16, 96), st.floats(10.0, 100.0))


def of(given_cameras: Cameras) -> tuple[NDArray[Any], NDArray[Any]]:
    """As the store has them."""
    return camera_poses(given_cameras), intrinsic_matrix(given_cameras)


def facing(resolution: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """One camera on the +Z axis, three radii away, whose picture is two radii wide there, x and y as in the picture."""
    pose = np.eye(4)
    pose[2, 3] = 3.0
    middle = resolution / 2
    return pose[None], np.array([[3 * middle, 0, middle], [0, 3 * middle, middle], [0, 0, 1]])


def unprojected(
    pixel: NDArray[Any], depth: NDArray[Any], pose: NDArray[Any], intrinsics: NDArray[Any]
) -> NDArray[np.float64]:
    """The point [3] that shows at a pixel at a depth, by rays: the other way round than the code under test."""
    x = (pixel[0] - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (pixel[1] - intrinsics[1, 2]) / intrinsics[1, 1]
    right, up, back, eye = pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3]
    return eye + depth * (x * right - y * up - back)


# ---- projection and visibility


@given(cameras, st.integers(0, 10**6))
def test_a_point_shows_where_its_ray_passes(given_cameras: Cameras, seed: int) -> None:
    rng = np.random.default_rng(seed)
    poses, intrinsics = of(given_cameras)
    pixel = rng.uniform(0, given_cameras.resolution, 2)
    depth = rng.uniform(given_cameras.near, given_cameras.far)
    points = np.stack([unprojected(pixel, depth, pose, intrinsics) for pose in poses])
    found, away = project(points, poses, intrinsics)
    for view in range(len(poses)):
        assert np.allclose(found[view, view], pixel, atol=2e-4 * given_cameras.resolution)
        assert math.isclose(away[view, view], depth, rel_tol=1e-5)


def test_what_stands_behind_a_wall_is_hidden() -> None:
    """Two walls that face the camera, the nearer one covers the left half of the picture."""
    side = 64
    poses, intrinsics = facing(side)
    drawn = np.full((1, side, side), 3.5, np.float16)
    drawn[:, :, : side // 2] = 2.5
    rng = np.random.default_rng(0)
    place = rng.uniform(1.5, [[30.5, 62.5]], (200, 2))  # left half, a pixel from the edge
    wall = np.stack([unprojected(p, 2.5, poses[0], intrinsics) for p in place])
    hidden = np.stack([unprojected(p, 3.5, poses[0], intrinsics) for p in place])
    shown = np.stack([unprojected(p + np.array([32.0, 0.0]), 3.5, poses[0], intrinsics) for p in place])
    assert sight(wall, drawn, poses, intrinsics).visible.all()
    assert not sight(hidden, drawn, poses, intrinsics).visible.any()
    assert sight(shown, drawn, poses, intrinsics).visible.all()
    tokens = rng.normal(size=(1, 16, 8)).astype(np.float16)
    both, grid = np.concatenate([hidden, wall]), PatchGrid(4, 4, 0, 0, 64, 64)
    feat, count = lifted(tokens, both, drawn, (poses, intrinsics), grid)
    assert not feat[:200].any() and not count[:200].any()
    assert (count[200:] == 1).all() and feat[200:].any(1).all()


@given(st.floats(-1.4, 1.4), st.floats(0, math.pi), st.integers(0, 10**6))
def test_a_plane_is_seen_however_it_is_turned(slant: float, turn: float, seed: int) -> None:
    """Depth is of the pixels' centres, in float16; the places are anywhere between them."""
    side = 48
    poses, intrinsics = facing(side)
    normal = np.array([math.sin(slant) * math.cos(turn), math.sin(slant) * math.sin(turn), math.cos(slant)])

    def depth_at(pixel: NDArray[Any]) -> float:
        ray = unprojected(pixel, np.array(1.0), poses[0], intrinsics) - poses[0, :3, 3]
        return float(-(poses[0, :3, 3] @ normal) / (ray @ normal))

    drawn = np.array([[depth_at(np.array([x + 0.5, y + 0.5])) for x in range(side)] for y in range(side)])
    there = (drawn > 1.5) & (drawn < 6)  # the rest lies behind the camera or where nobody looks
    drawn = np.where(there, drawn, 0).astype(np.float16)[None]
    places = np.random.default_rng(seed).uniform(4, side - 4, (40, 2))
    inner = [p for p in places if there[int(p[1]) - 2 : int(p[1]) + 3, int(p[0]) - 2 : int(p[0]) + 3].all()]
    points = np.array([unprojected(p, np.array(depth_at(p)), poses[0], intrinsics) for p in inner]).reshape(-1, 3)
    assert sight(points, drawn, poses, intrinsics).visible.all()
    behind = points + 0.1 * (points - poses[0, :3, 3])  # a tenth farther along the ray
    steep = abs(slant) > 1.0  # then a pixel spans more than that tenth
    assert steep or not sight(behind, drawn, poses, intrinsics).visible.any()


def test_what_lies_outside_or_behind_or_on_the_background_is_not_seen() -> None:
    poses, intrinsics = facing(32)
    drawn = np.full((1, 32, 32), 3.0, np.float16)
    points = np.array([[0.0, 0, 0], [5.0, 0, 0], [0, -5.0, 0], [0, 0, 3.0], [0, 0, 9.0]])
    assert sight(points, drawn, poses, intrinsics).visible.tolist() == [[True, False, False, False, False]]
    assert not sight(points, np.zeros_like(drawn), poses, intrinsics).visible.any()


# ---- the grid


@pytest.mark.parametrize(
    ("fit", "size", "resize", "tokens", "grid"),
    [
        ("shortest", (32, 32), (32, 32), 16, (4, 4)),
        ("shortest", (28, 28), (32, 32), 49, (7, 7)),  # a margin is cut off
        ("squash", (32, 48), (32, 48), 24, (4, 6)),
        ("longest", (40, 40), (32, 32), 25, (5, 5)),  # a margin is added
        ("shortest", (24, 24), (24, 24), 9, (3, 3)),
    ],
)
def test_tokens_lie_where_the_teacher_saw_the_picture(
    fit: Any, size: tuple[int, int], resize: tuple[int, int], tokens: int, grid: tuple[int, int]
) -> None:
    """A dot in the picture turns up in the model's input where the grid says that it does."""
    recipe = Preprocess(size, resize, fit, "bicubic", (0.5,) * 3, (0.5,) * 3)
    found = patch_grid(recipe.recipe(), tokens, (64, 64))
    assert (found.rows, found.columns) == grid
    for x, y in ((20, 33), (40, 12), (31, 31)):
        picture = np.zeros((64, 64, 3), np.uint8)
        picture[y - 2 : y + 2, x - 2 : x + 2] = 255  # centred at (x, y)
        light = recipe.pixels(picture, None)[..., 0].astype(np.float64)
        rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
        centre = np.array([(light * columns).sum(), (light * rows).sum()]) / light.sum()
        token, weight, seen = found.read(np.array([x, y], np.float32))
        assert seen
        at = np.array([(weight * (token % grid[1] + 0.5)).sum(), (weight * (token // grid[1] + 0.5)).sum()])
        cell = np.array([size[1] / grid[1], size[0] / grid[0]])
        inner = np.clip(centre / cell, 0.5, np.array(grid[::-1]) - 0.5)
        assert np.allclose(at, inner, atol=0.06)


def test_beyond_what_a_teacher_saw_there_is_nothing() -> None:
    recipe = Preprocess((28, 28), (32, 32), "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
    grid = patch_grid(recipe.recipe(), 49, (64, 64))  # of which 4 px of 64 are cut off at each side
    _, _, seen = grid.read(np.array([[3.0, 32.0], [5.0, 32.0], [32.0, 61.0], [32.0, 59.0]], np.float32))
    assert seen.tolist() == [False, True, False, True]
    token, weight, _ = grid.read(np.array([4.5, 4.5], np.float32))
    assert (token[weight > 0] == 0).all()


def test_one_of_ones_own_is_taken_to_see_all_of_it() -> None:
    assert patch_grid({"kind": "mine"}, 9, (30, 30)) == PatchGrid(3, 3, 0.0, 0.0, 30, 30)
    with pytest.raises(ValueError, match="8 tokens are no grid of square patches of 30 x 30 pixels"):
        patch_grid({"kind": "mine"}, 8, (30, 30))


# ---- lifting


def one_by_one(
    tokens: NDArray[Any],
    points: NDArray[Any],
    drawn: NDArray[Any],
    poses: NDArray[Any],
    intrinsics: NDArray[Any],
    rows: int,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """The reference: a loop over points and views in float64; which points hang on a last bit comes third."""
    side, footprint = drawn.shape[1], 1 / intrinsics[0, 0]
    feat, count = np.zeros((len(points), tokens.shape[2])), np.zeros(len(points), np.int64)
    close = np.zeros(len(points), np.bool_)
    for number, point in enumerate(points):
        for view, pose in enumerate(poses):
            right, up, back, eye = pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3]
            away = float((point - eye) @ -back)
            if away <= 0:
                continue
            x = float((point - eye) @ right) / away * intrinsics[0, 0] + intrinsics[0, 2]
            y = -float((point - eye) @ up) / away * intrinsics[1, 1] + intrinsics[1, 2]
            close[number] |= any(abs(value - round(2 * value) / 2) < 1e-3 for value in (x, y))
            if not (0 <= x < side and 0 <= y < side):
                continue
            near = [
                float(drawn[view, i, j])
                for i in (math.floor(y - 0.5), math.floor(y - 0.5) + 1)
                for j in (math.floor(x - 0.5), math.floor(x - 0.5) + 1)
                if 0 <= i < side and 0 <= j < side
            ]
            room = max(near) + away * (footprint * math.sqrt(0.5) + 2**-11) - away
            close[number] |= abs(room) < 1e-4
            if max(near) == 0 or room < 0:
                continue
            count[number] += 1
            u, v = (min(max(value * rows / side - 0.5, 0), rows - 1) for value in (x, y))
            left, upper = min(int(u), rows - 1), min(int(v), rows - 1)
            for i, down in ((upper, 1 - (v - upper)), (min(upper + 1, rows - 1), v - upper)):
                for j, across in ((left, 1 - (u - left)), (min(left + 1, rows - 1), u - left)):
                    feat[number] += down * across * tokens[view, i * rows + j].astype(np.float64)
    return feat / np.maximum(count, 1)[:, None], count, close


@given(cameras, st.integers(1, 5), st.integers(0, 10**6))
def test_lifting_is_a_loop_over_points_and_views(given_cameras: Cameras, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    poses, intrinsics = of(given_cameras)
    side = given_cameras.resolution
    points = rng.normal(size=(30, 3))
    points *= rng.uniform(0, 1, (30, 1)) / np.linalg.norm(points, axis=1, keepdims=True)
    drawn = rng.uniform(given_cameras.near, given_cameras.far, (len(poses), side, side)).astype(np.float16)
    drawn[rng.random(drawn.shape) < 0.3] = 0
    tokens = rng.normal(size=(len(poses), rows * rows, 6)).astype(np.float16)
    feat, count = lifted(tokens, points, drawn, (poses, intrinsics), PatchGrid(rows, rows, 0, 0, side, side))
    wanted, wanted_count, close = one_by_one(tokens, points, drawn, poses, intrinsics, rows)
    sure = ~close
    assert (count[sure] == wanted_count[sure]).all()
    assert np.allclose(feat[sure], wanted[sure], atol=4e-3)
    assert (feat[count == 0] == 0).all()


def test_tokens_that_say_where_they_look_say_where_the_points_are() -> None:
    """A wall that faces the camera: its places are linear in the picture's, and so read without an error."""
    poses, intrinsics = facing(64)
    rows = 8
    centres = [((j + 0.5) * 8, (i + 0.5) * 8) for i in range(rows) for j in range(rows)]
    tokens = np.stack([unprojected(np.array(c), np.array(3.0), poses[0], intrinsics) for c in centres])[None]
    points = np.random.default_rng(0).uniform(-0.85, 0.85, (100, 3)) * [1, 1, 0]
    drawn = np.full((1, 64, 64), 3.0, np.float16)
    feat, count = lifted(tokens.astype(np.float16), points, drawn, (poses, intrinsics), PatchGrid(8, 8, 0, 0, 64, 64))
    assert (count == 1).all()
    assert np.allclose(feat, points, atol=1e-3)


@pytest.mark.parametrize("preset", ["openshape12", "ring5", "pointclip6", "sphere-7"])
def test_on_a_ball_they_say_so_within_a_patch(preset: str) -> None:
    """Each token says where its middle ray meets the ball, or passes it nearest."""
    given_cameras, rows, radius = Cameras(preset, resolution=64), 16, 0.9
    poses, intrinsics = of(given_cameras)

    def meets(count: int, pose: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """([count^2, 3] where rays through the middles of a picture's squares meet the ball, [count^2] the depth)."""
        eye, middles = pose[:3, 3], (np.arange(count) + 0.5) * 64 / count
        places = [np.array([x, y]) for y in middles for x in middles]
        rays = np.array([unprojected(place, np.array(1.0), pose, intrinsics) for place in places]) - eye
        length = (rays**2).sum(1)
        half = rays @ eye / length
        rest = half**2 - (eye @ eye - radius**2) / length
        depth = -half - np.sqrt(np.maximum(rest, 0))
        return eye + depth[:, None] * rays, np.where(rest > 0, depth, 0)

    drawn = np.stack([meets(64, pose)[1].reshape(64, 64) for pose in poses]).astype(np.float16)
    tokens = np.stack([meets(rows, pose)[0] for pose in poses]).astype(np.float16)
    points = np.random.default_rng(0).normal(size=(1000, 3))
    points *= radius / np.linalg.norm(points, axis=1, keepdims=True)
    feat, count = lifted(tokens, points, drawn, (poses, intrinsics), PatchGrid(rows, rows, 0, 0, 64, 64))
    patch = 64 / rows * given_cameras.distance / intrinsics[0, 0]
    away = np.linalg.norm(feat - points, axis=1)
    cosine = points @ poses[:, :3, 2].T / radius
    facing_one = (cosine > 0.6).any(1)  # seen not only from the side
    assert facing_one.sum() > 300 and (count[facing_one] > 0).all()
    assert away[facing_one].max() < 2 * patch and np.median(away[facing_one]) < patch / 2
    assert (count[(cosine < 0.1).all(1)] == 0).all()


# ---- the stage
