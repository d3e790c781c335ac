from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.pipeline.procedural.geometry import box, cylinder, ellipsoid
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.shapes.mesh import Material, Mesh, Primitive
from recon.pipeline.shapes.meshfile import MeshError
from recon.pipeline.shapes.sample import farthest_point_order, normalisation, point_frame, sample_points, take_points

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


@settings(max_examples=20)
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


def is_farthest_point_order(xyz, order):
    """Whether every point is as far from those before it as any is, in float64, within float32's rounding."""
    xyz = xyz.astype(np.float64)
    nearest = np.full(len(xyz), np.inf)
    for index, following in pairwise(order):
        nearest = np.minimum(nearest, ((xyz - xyz[index]) ** 2).sum(1))
        if nearest[following] < nearest.max() * (1 - 1e-5):
            return False
    return True


@given(st.integers(2, 200), st.integers(0, 99), st.sampled_from(["normal", "sphere", "line", "grid"]))
def test_any_prefix_of_the_order_is_a_farthest_point_sample(num_points, seed, kind):
    xyz = np.random.default_rng(seed).standard_normal((num_points, 3)).astype(np.float32)
    if kind == "sphere":
        xyz /= np.linalg.norm(xyz, axis=1, keepdims=True)
    if kind == "line":
        xyz[:, 1:] = 0
    if kind == "grid":  # many equal points, and many ties
        xyz = np.rint(xyz * 2) / 2
    order = farthest_point_order(xyz)
    assert sorted(order) == list(range(num_points))  # no point is lost or named twice
    assert is_farthest_point_order(xyz, order)
    assert np.array_equal(order, farthest_point_order(xyz.copy()))


def test_one_point_and_one_place_have_an_order_too():
    for count in (1, 2, 5):
        assert sorted(farthest_point_order(np.ones((count, 3), np.float32))) == list(range(count))


def cloud_of(num_points):
    xyz = np.arange(num_points * 3, dtype=np.float32).reshape(-1, 3)
    part = np.arange(num_points, dtype=np.uint8)
    return Cloud(xyz, normal=-xyz, color=np.repeat(part[:, None], 3, 1), part=part)


@given(st.integers(2, 60), st.integers(1, 90), st.integers(0, 9))
def test_taken_points_keep_what_belongs_to_them(has, wanted, seed):
    taken = take_points(cloud_of(has), wanted, seed)
    assert np.array_equal(taken.xyz[:, 0], 3 * taken.part) and np.array_equal(taken.normal, -taken.xyz)
    assert np.array_equal(taken.color[:, 2], taken.part)
    counts = np.bincount(taken.part, minlength=has)
    assert counts.sum() == wanted
    # a subset names none twice, repeats come only after every point was taken
    assert counts.max() <= 1 if wanted <= has else counts.min() >= 1


def test_taken_points_are_shuffled_and_seeded():
    """Readers take runs of neighbours for random subsets; a file sorted by height must not reach them sorted."""
    first, again, other = (take_points(cloud_of(200), 200, seed).part for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert abs(np.corrcoef(first, np.arange(200))[0, 1]) < 0.2


def test_a_cloud_without_normals_and_colours_says_so_by_zeros_and_grey():
    taken = take_points(Cloud(np.eye(3, dtype=np.float32)), 3, 0)
    assert not taken.normal.any() and (taken.color == 128).all() and not taken.part.any()


@pytest.mark.parametrize(
    ("xyz", "reason"),
    [(np.empty((0, 3)), "no-points"), ([[0, 0, np.nan], [1, 1, 1]], "non-finite"), (np.ones((4, 3)), "degenerate")],
)
def test_clouds_that_no_stage_can_use_are_refused(xyz, reason):
    with pytest.raises(MeshError) as error:
        take_points(Cloud(np.asarray(xyz, np.float32)), 2, 0)
    assert error.value.reason == reason


def test_the_points_frame_is_the_centroid_and_the_largest_distance():
    xyz = np.array([[0, 0, 0], [4, 0, 0], [0, 4, 0], [0, 0, 4]], np.float32)
    center = np.array([1.0, 1, 1])
    assert np.allclose(point_frame(xyz), [*center, np.linalg.norm(xyz - center, axis=1).max()])
