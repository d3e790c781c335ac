"""The embedded shapes: every category builds, varies, and stays within what the stages and captions rely on."""

from __future__ import annotations

import json

import numpy as np
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.caption.facts import describe
from recon.pipeline.procedural import CATEGORIES, build, shape_seed
from recon.pipeline.shapes.mesh import Mesh
from recon.pipeline.shapes.meshfile import check_mesh, mesh_digest

SEEDS = range(40)


@pytest.fixture(scope="module", params=CATEGORIES)
def shapes(request: pytest.FixtureRequest) -> list[Mesh]:
    """Forty shapes of a category. All tests of one category run before the next one's shapes are built."""
    return [build(request.param, shape_seed(request.param, 7, i)) for i in SEEDS]


@pytest.mark.slow
def test_sound_meshes_of_plausible_size(shapes: list[Mesh]) -> None:
    for mesh in shapes:
        check_mesh(mesh)
        assert 300 <= sum(len(p.faces) for p in mesh.primitives) <= 6000
        low, high = mesh.bounds()
        assert 0.02 <= (high - low).max() <= 200  # metres: a mug to a cargo ship
        assert np.abs((low + high)[[0, 2]] / 2).max() <= 0.35 * (high - low).max()


@pytest.mark.slow
def test_six_parameters_and_two_variants(shapes: list[Mesh]) -> None:
    assert min(len(mesh.facts["values"]) for mesh in shapes) >= 6  # names differ where the structure does
    variants: dict[str, set[str]] = {}
    for mesh in shapes:
        for name, value in mesh.facts["choices"].items():
            variants.setdefault(name, set()).add(value)
    assert sum(len(values) >= 2 for values in variants.values()) >= 2


@pytest.mark.slow
def test_shapes_of_a_category_differ(shapes: list[Mesh]) -> None:
    assert len({mesh_digest(mesh) for mesh in shapes}) == len(shapes)
    # Not the same mesh in other colours: the shapes themselves differ too.
    outlines = {tuple(np.round(mesh.bounds().ravel() / np.ptp(mesh.bounds()), 3)) for mesh in shapes}
    assert len(outlines) > len(shapes) // 2


@pytest.mark.slow
def test_every_face_has_a_named_part(shapes: list[Mesh]) -> None:
    for mesh in shapes:
        assert len(mesh.parts) <= 255  # the store's uint8
        assert all(part and part == part.strip().lower() for part in mesh.parts)
        assert set(mesh.facts["materials"]) == set(mesh.parts)
    assert len({part for mesh in shapes for part in mesh.parts}) >= 3


@pytest.mark.slow
def test_captions_can_be_made_of_the_facts(shapes: list[Mesh]) -> None:
    spoken = set()
    for mesh in shapes:
        facts = json.loads(json.dumps(mesh.facts))
        captions = describe(facts)
        assert 1 <= len(captions) <= 4  # the store's slots
        assert all(facts["category"] in caption for caption in captions)
        spoken.update(captions)
    assert len(spoken) > len(SEEDS)


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_seed_is_a_mesh(category: str) -> None:
    mesh = build(category, 5)
    check_mesh(mesh)
    assert mesh.facts["category"] == category
    assert mesh_digest(mesh) == mesh_digest(build(category, 5))


def test_seeds_do_not_collide() -> None:
    seeds = {shape_seed(c, s, i) for c in CATEGORIES for s in (0, 1, 10_000_000) for i in SEEDS}
    assert len(seeds) == len(CATEGORIES) * 3 * len(SEEDS)


def test_an_unknown_category_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="airplane"):
        build("dragon", 0)
