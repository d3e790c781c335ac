import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.mesh import Material, Mesh, Primitive
from pipeline.sample import normalisation, sample_points
from pipeline.sources.procedural.geometry import box, cylinder, ellipsoid

GREY = Material("grey", (0.5, 0.5, 0.5))
SQUARE = np.array([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]])
SQUARE_FACES = np.array([[0, 1, 2], [0, 2, 3]])


def two_boxes() -> Mesh:
    """Areas 1 : 3 (a box's surface goes with the square of its scale)."""
    small, large = box(1, 1, 1), box(3**0.5, 3**0.5, 3**0.5).move(x=5)
    return Mesh(
        (
            Primitive("small", small.vertices, small.faces, Material("red", (1.0, 0.0, 0.0))),
            Primitive("large", large.vertices, large.faces, Material("blue", (0.0, 0.0, 1.0))),
        )
    )


def square(uv=None, texture=None, colors=None) -> Mesh:
    return Mesh((Primitive("square", SQUARE, SQUARE_FACES, Material("w", (1.0, 1.0, 1.0)), colors, uv, texture),))


def test_points_follow_area_and_carry_part_and_colour():
    points = sample_points(two_boxes(), 20000, seed=1)
    assert points.xyz.shape == points.normal.shape == points.color.shape == (20000, 3)
    assert [a.dtype for a in (points.xyz, points.normal, points.color, points.part)] == ["f4", "f4", "u1", "u1"]
    # 0.75 of the area; four standard deviations of a binomial
    assert abs((points.part == 1).mean() - 0.75) < 4 * (0.75 * 0.25 / 20000) ** 0.5
    assert ((points.xyz[:, 0] > 2.5) == (points.part == 1)).all()
    assert (points.color[points.part == 0] == [255, 0, 0]).all()
    assert (points.color[points.part == 1] == [0, 0, 255]).all()


def test_points_are_uniform_within_a_triangle():
    xy = sample_points(square(), 40000, seed=2).xyz[:, :2]
    counts = np.histogram2d(xy[:, 0], xy[:, 1], bins=8, range=[[0, 1], [0, 1]])[0]
    chi = ((counts - 625) ** 2 / 625).sum()  # 63 degrees of freedom: 120 has a probability below 1e-4
    assert chi < 120


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(1, 300))
def test_same_seed_same_bits(seed, num_points):
    first, second = (sample_points(two_boxes(), num_points, seed) for _ in range(2))
    for name in ("xyz", "normal", "color", "part"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()
    other = sample_points(two_boxes(), num_points, seed ^ 1)
    assert first.xyz.tobytes() != other.xyz.tobytes()


def test_normals_are_units_and_point_outwards():
    ball = ellipsoid(1, 1, 1)
    points = sample_points(Mesh((Primitive("ball", ball.vertices, ball.faces, GREY),)), 2000, seed=3)
    assert np.allclose(np.linalg.norm(points.normal, axis=1), 1, atol=1e-5)
    outward = points.xyz / np.linalg.norm(points.xyz, axis=1, keepdims=True)
    assert (points.normal * outward).sum(1).min() > 0.98, "smooth: nearer to the sphere's than facet normals"


def test_faces_without_area_get_no_points_and_no_nan():
    faces = np.concatenate([[[0, 0, 1]], SQUARE_FACES, [[2, 2, 2]]])
    mesh = Mesh((Primitive("s", SQUARE, faces, GREY), Primitive("none", SQUARE, np.array([[1, 1, 1]]), GREY)))
    points = sample_points(mesh, 500, seed=4)
    assert np.isfinite(points.xyz).all() and np.isfinite(points.normal).all()
    assert (points.part == 0).all() and (points.normal == [0, 0, 1]).all()


def test_vertex_colours_are_interpolated():
    colors = np.array([[0.0, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 0]])
    points = sample_points(square(colors=colors), 1000, seed=5)
    assert np.abs(points.color[:, 0] - 255 * points.xyz[:, 0]).max() <= 0.51


def test_textures_repeat_decode_srgb_and_have_v_upwards():
    # top row white, bottom row sRGB 128; uv runs over two tiles upwards and starts below zero
    texture = np.array([[[255] * 3], [[128] * 3]], np.uint8)
    points = sample_points(square(uv=SQUARE[:, :2] * 2 - 1, texture=texture), 1000, seed=6)
    lower = (points.xyz[:, 1] * 2) % 1 < 0.5
    assert (points.color[lower] == 55).all(), "linear: 255 * 0.2159"
    assert (points.color[~lower] == 255).all()


def test_transparent_texels_get_no_points():
    texture = np.full((1, 2, 4), 255, np.uint8)
    texture[0, 0, 3] = 0
    points = sample_points(square(uv=SQUARE[:, :2], texture=texture), 400, seed=7)
    # nine draws in all: one of 400 points stays on the hidden half with probability 400 / 2^9 at most
    assert (points.xyz[:, 0] < 0.5).sum() <= 5


def test_normalisation_encloses_the_faces_and_ignores_stray_vertices():
    tube = cylinder(1.0, 4.0)
    vertices = np.vstack([tube.move(x=10).vertices, [1e5, 0, 0]])
    frame = normalisation(Mesh((Primitive("tube", vertices, tube.faces, GREY),)))
    middle = (tube.vertices.min(0) + tube.vertices.max(0)) / 2 + [10, 0, 0]
    assert np.allclose(frame.box_center, middle)
    assert frame.box_radius == pytest.approx(np.linalg.norm(vertices[:-1] - middle, axis=1).max())
