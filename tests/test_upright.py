"""Which way is up, guessed from what a shape can rest on: told where it is clear, and nowhere else."""

from pathlib import Path

import numpy as np
import pytest

from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.preview import WARNING, contact_sheet
from recon.pipeline.keeping.stats import describe, statistics
from recon.pipeline.shapes.axes import axes
from recon.pipeline.shapes.mesh import Material, Mesh, Primitive
from recon.pipeline.shapes.sample import sample_points
from recon.pipeline.shapes.upright import DIRECTIONS, UNCLEAR, likely_up, support
from recon.pipeline.store.feature_store import FeatureStore

FRONT = {"Y": "+Z", "X": "+Y", "Z": "+Y"}


def boxes(*sizes_and_places) -> Mesh:
    from recon.pipeline.procedural.geometry import box

    pieces = []
    for size, place in sizes_and_places:
        solid = box(*size)
        pieces.append(Primitive("a", solid.vertices + np.array(place, float), solid.faces, Material("", (1, 1, 1))))
    return Mesh(tuple(pieces))


LEGS = [((0.1, 0.5, 0.1), (x, 0.25, z)) for x in (-0.45, 0.45) for z in (-0.45, 0.45)]
CHAIR = boxes(*LEGS, ((1, 0.1, 1), (0, 0.55, 0)), ((0.3, 0.5, 0.1), (0, 0.85, -0.45)))


@pytest.mark.parametrize("way", DIRECTIONS)
def test_a_chair_stands_on_its_legs_whichever_way_its_file_turns_it(way):
    points = sample_points(CHAIR, 2048, 0).xyz
    assert likely_up(points @ axes(way, FRONT[way[1]])) == way


def test_a_cone_stands_on_its_base():
    rng = np.random.default_rng(0)
    share = np.sqrt(rng.random((4000, 1)))
    angle = rng.random((4000, 1)) * 2 * np.pi
    side = np.hstack([share * np.cos(angle), 1 - share, share * np.sin(angle)])
    assert likely_up(side) == "+Y"
    assert support(side)[2] == pytest.approx(np.pi / 4, abs=0.05) and support(side)[3] == pytest.approx(0, abs=0.01)


def test_boxes_balls_sticks_and_what_would_fall_over_are_unclear():
    rng = np.random.default_rng(0)
    ball = rng.normal(size=(2000, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    assert likely_up(sample_points(boxes(((1, 2, 1), (0, 0, 0))), 2048, 0).xyz) == UNCLEAR
    assert likely_up(ball) == UNCLEAR and likely_up(np.outer(np.arange(9.0), [0, 1, 0])) == UNCLEAR
    leaning = boxes(((0.2, 0.1, 0.2), (0, 0.05, 0)), ((2, 0.1, 0.2), (1, 1, 0)), ((0.1, 1, 0.1), (0, 0.5, 0)))
    assert support(sample_points(leaning, 2048, 0).xyz)[2] == 0


@pytest.fixture(scope="module")
def store(tmp_path_factory, clip_config) -> FeatureStore:
    """Three chairs as they stand and one on its face."""
    from tests.conftest import FOLDER_MANIFEST

    folder = tmp_path_factory.mktemp("up")
    (folder / "meshes" / "chair").mkdir(parents=True)
    for name, way in (("a", "+Y"), ("b", "+Y"), ("c", "+Y"), ("tipped", "+Z")):
        lines, first = [], 1
        for piece in CHAIR.primitives:
            turned = piece.vertices @ axes(way, FRONT[way[1]])
            lines += [f"v {x} {y} {z}" for x, y, z in turned]
            lines += ["f {} {} {}".format(*(face + first)) for face in piece.faces]
            first += len(turned)
        (folder / "meshes" / "chair" / f"{name}.obj").write_text("\n".join(lines))
    text = FOLDER_MANIFEST.format(model=clip_config).replace("num_points = 64", "num_points = 1024")
    (folder / "m.toml").write_text(text)
    flow = Flow(load_manifest(folder / "m.toml"), folder / "meshes", FeatureStore.create(folder / "s.zarr"))
    flow.sample()
    flow.render()
    return flow.store


def test_stats_show_the_share_of_each_way_and_name_the_others(store):
    found = statistics(store).points
    assert found.up == {"+Y": 3, "+Z": 1} and found.tipped == ("chair/tipped.obj",)
    assert "  likely up: +Y 75%, +Z 25%; not +Y: chair/tipped.obj" in describe(statistics(store))


def test_preview_frames_the_others_and_turns_nothing(store, tmp_path: Path):
    from PIL import Image, ImageColor

    before = np.array(store.points().xyz[:])
    (sheet,) = contact_sheet(store, tmp_path).files
    with Image.open(sheet) as image:
        marked = (np.asarray(image) == ImageColor.getrgb(WARNING)).all(2)
    columns = np.flatnonzero(marked.sum(0) > 100)
    assert len(columns) == 6 and np.ptp(columns) < 150, "one frame of three pixels"
    assert (np.array(store.points().xyz[:]) == before).all()
