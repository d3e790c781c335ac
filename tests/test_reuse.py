"""More views: what another preset's key has of the same camera is copied, and the bits are those of computing it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import stages
from pipeline.flow import Flow
from pipeline.manifest import Manifest, load_manifest
from pipeline.render import Renderer
from pipeline.store import FeatureStore


def with_preset(path: Path, preset: str) -> Manifest:
    manifest = load_manifest(path)
    return manifest.model_copy(update={"render": manifest.render.__class__(preset=preset, resolution=32)})


@pytest.fixture(scope="module")
def grown(small_manifest: Path, small_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[int]]:
    """A copy of the two-view store that has run with four views, and how many pictures each stage then made."""
    path = tmp_path_factory.mktemp("grown") / "s.zarr"
    shutil.copytree(small_store, path)
    made = [0, 0]
    with pytest.MonkeyPatch.context() as patch:
        render, teacher = Renderer.render_some, stages.teacher_of(load_manifest(small_manifest).features.teachers[0])
        embed = teacher.embed_images

        def count_render(self: Renderer, mesh: Any, chosen: Any) -> Any:
            made[0] += len(chosen)
            return render(self, mesh, chosen)

        def count_embed(images: Any, seeds: Any) -> Any:
            made[1] += len(images)
            return embed(images, seeds)

        patch.setattr(Renderer, "render_some", count_render)
        patch.setattr(teacher, "embed_images", count_embed)
        store = FeatureStore.open(path, write=True)
        Flow(with_preset(small_manifest, "ring4"), None, store).all()
    return path, made


def test_only_the_new_views_are_made(grown: tuple[Path, list[int]]) -> None:
    """ring4 holds ring2's two cameras: 12 shapes x 2 new views, and as many pictures for each of two draws."""
    assert grown[1] == [24, 48]


@pytest.mark.slow
def test_grown_views_are_those_made_at_once(
    grown: tuple[Path, list[int]], small_manifest: Path, small_store: Path, tmp_path: Path
) -> None:
    store = FeatureStore.create(tmp_path / "s.zarr")
    Flow(with_preset(small_manifest, "ring4"), None, store).all()
    after = FeatureStore.open(grown[0])
    assert {key: store.digest(key) for _, key in store.list_keys()}.items() <= {
        key: after.digest(key) for _, key in after.list_keys()
    }.items()
    before = FeatureStore.open(small_store)
    for _, key in before.list_keys():
        assert after.digest(key) == before.digest(key)  # the old keys stay as they were


def test_fewer_views_are_copied_without_a_renderer(
    grown: tuple[Path, list[int]], small_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(grown[0], tmp_path / "s.zarr")
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    wide = store.views()
    monkeypatch.setattr(Renderer, "render_some", None)
    Flow(with_preset(small_manifest, "ring1"), None, store).render()
    views = store.views()
    assert views.key != wide.key
    assert np.array_equal(views.rgb[:, 0], wide.rgb[:, 0])
    assert np.array_equal(views.frame[:], wide.frame[:])


def test_another_resolution_is_no_donor(small_manifest: Path, small_store: Path, tmp_path: Path) -> None:
    shutil.copytree(small_store, tmp_path / "s.zarr")
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    manifest = load_manifest(small_manifest)
    larger = manifest.render.__class__(preset="ring2", resolution=48)
    Flow(manifest.model_copy(update={"render": larger}), None, store).render()
    assert store.views().rgb.shape == (12, 2, 48, 48, 3)
    assert store.views().ok.all()
