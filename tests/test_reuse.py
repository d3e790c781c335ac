"""More views: what another preset's key has of the same camera is copied, and the bits are those of computing it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.flow.manifest import Manifest, load_manifest
from recon.pipeline.flow.report import report
from recon.pipeline.flow.run import Flow
from recon.pipeline.rendering.render import Renderer
from recon.pipeline.store import FeatureStore
from recon.pipeline.teachers import images
from recon.pipeline.teachers import loaded as models

pytestmark = pytest.mark.slow  # whole stores are made


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
        render, teacher = Renderer.render_some, models.teacher_of(load_manifest(small_manifest).features.teachers[0])
        embed = teacher.embed_read

        def count_render(self: Renderer, mesh: Any, chosen: Any) -> Any:
            made[0] += len(chosen)
            return render(self, mesh, chosen)

        def count_embed(count: int, read: Any, seeds: Any) -> Any:
            made[1] += count
            return embed(count, read, seeds)

        patch.setattr(Renderer, "render_some", count_render)
        patch.setattr(teacher, "embed_read", count_embed)
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


def test_every_column_of_a_view_is_copied(
    small_manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alpha and normals too: a column left behind would be a silent block of zeros."""

    def flow(preset: str, store: FeatureStore, normals: bool = True) -> Flow:
        manifest = load_manifest(small_manifest)
        render = manifest.render.__class__(preset=preset, resolution=32, normals=normals)
        return Flow(manifest.model_copy(update={"render": render}), None, store)

    store = FeatureStore.create(tmp_path / "s.zarr")
    flow("ring2", store).render()
    two = store.views()
    flow("ring4", store).render()
    four = store.views()
    monkeypatch.setattr(Renderer, "render_some", None)
    flow("ring1", store).render()
    for views, own, there in ((four, 0, 0), (four, 2, 1), (store.views(), 0, 0)):
        for name in ("rgb", "alpha", "depth", "normal"):
            column = getattr(two, name)[:, there]
            assert column.any()
            assert np.array_equal(getattr(views, name)[:, own], column), name
    # what has no normals cannot give them
    monkeypatch.undo()
    flow("ring2", store, normals=False).render()
    assert store.views().normal is None
    assert store.views().key != two.key


def test_teachers_features_are_kept_when_normals_are_added(
    small_manifest: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They see the pictures alone, so asking for normals must not send a whole data set through them again."""
    shutil.copytree(small_store, tmp_path / "s.zarr")
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    before = store.targets()
    manifest = load_manifest(small_manifest)
    render = manifest.render.__class__(preset="ring2", resolution=32, normals=True)
    teacher = models.teacher_of(manifest.features.teachers[0])
    monkeypatch.setattr(teacher, "embed_read", None)
    Flow(manifest.model_copy(update={"render": render}), None, store).all()
    after = store.targets()
    assert after.key != before.key
    assert np.array_equal(after.feat[:], before.feat[:])


def test_readers_get_cameras_and_straight_colours(small_store: Path) -> None:
    """What a program that knows no presets needs stands beside the pictures."""
    views = FeatureStore.open(small_store).views()
    assert views.angles.tolist() == pytest.approx(np.array([[0, 20, 2.9238], [180, 20, 2.9238]]), abs=1e-3)
    assert views.near < views.angles[0, 2] - 1 < views.angles[0, 2] + 1 < views.far
    assert np.allclose(np.linalg.norm(views.camera_to_world[:, :3, 3], axis=1), views.angles[:, 2])
    rgba, masks = views.rgba(0), views.masks(0)
    assert rgba.shape == (2, 32, 32, 4) and masks.shape == (2, 32, 32)
    assert np.array_equal(rgba[..., 3], views.alpha[0])
    assert 0 < masks.mean() < 1


def test_the_clean_draw_stays_when_others_are_augmented_anew(
    small_manifest: Path, small_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a store made before the release's augmentation was at hand, or with another seed."""
    shutil.copytree(small_store, tmp_path / "s.zarr", ignore=shutil.ignore_patterns("cache"))
    manifest = load_manifest(small_manifest)
    teacher = models.teacher_of(manifest.features.teachers[0])
    embed, made, version = teacher.embed_read, [], images.AUGMENTATION_VERSION
    monkeypatch.setattr(images, "AUGMENTATION_VERSION", "another/0")
    monkeypatch.setattr(teacher, "embed_read", lambda *given: made.append(given) or embed(*given))
    store = FeatureStore.open(tmp_path / "s.zarr", write=True)
    before = store.targets()
    lines = {line.stage: line for line in report(Flow(manifest, None, store), 1)}
    assert (
        lines["targets tiny"].why[0] == f'differs from {before.key}: teacher.augmentation: "{version}" -> "another/0"'
    )
    Flow(manifest, None, store).all()
    after = store.targets()
    assert after.key != before.key
    assert made and all(seeds is not None for _, _, seeds in made), "no clean picture is embedded again"
    assert np.array_equal(after.feat[0], before.feat[0])
    assert not np.array_equal(after.feat[1], before.feat[1])
    assert np.array_equal(store.kind_group("targets", before.key)["feat"][:], before.feat[:])
