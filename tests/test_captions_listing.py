"""Texts that come with a list or a taxonomy reach the store by themselves, with meshes and without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.shapes.cloud import Cloud
from recon.pipeline.sources.procedural import ProceduralSource
from recon.pipeline.sources.source import Listed
from recon.pipeline.store import FeatureStore

TEXTS = {"mug-0-00000": ("a  mug", "a cup", "a mug", " "), "chair-0-00001": ("a seat",)}


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The embedded shapes, with captions in their listing and a taxonomy."""
    shapes = ProceduralSource.shapes

    def with_captions(self: Any, root: Path) -> list[Listed]:
        fields = ("uid", "category", "split", "source", "fingerprint")
        return [
            Listed(*(getattr(item, name) for name in fields), TEXTS.get(item.uid, ())) for item in shapes(self, root)
        ]

    names = {"mug": ("mug", "coffee_mug"), "table": ("table",), "ship": ("boat",)}
    monkeypatch.setattr(ProceduralSource, "shapes", with_captions)
    monkeypatch.setattr(ProceduralSource, "synonyms", lambda self, root: names)
    return monkeypatch


def clouds(monkeypatch: pytest.MonkeyPatch) -> None:
    def cloud(self: Any, root: Path, reference: str) -> Cloud:
        return Cloud(np.random.default_rng(0).normal(size=(64, 3)).astype(np.float32))

    monkeypatch.setattr(ProceduralSource, "has_meshes", property(lambda self: False))
    monkeypatch.setattr(ProceduralSource, "has_clouds", property(lambda self: True))
    monkeypatch.setattr(ProceduralSource, "cloud", cloud)


def said(store: FeatureStore) -> dict[str, list[str]]:
    lines = zip(store.registry.uid, store.captions(), strict=True)
    return {uid: [text for text in line if text] for uid, line in lines if any(line)}


def test_clouds_keep_what_their_listing_says(listed: pytest.MonkeyPatch, small_manifest: Path, tmp_path: Path) -> None:
    """No table is needed for it, and no mesh: words are embedded as of any other data set."""
    clouds(listed)
    store = FeatureStore.create(tmp_path / "s.zarr")
    results = Flow(load_manifest(small_manifest), None, store).all()
    assert [result.kind for result in results] == ["points", "captions", "text"]
    assert said(store) == {"mug-0-00000": ["a mug", "a cup"], "chair-0-00001": ["a seat"]}
    text = store.text()
    row = store.registry.uid.index("mug-0-00000")
    assert [text.prompts[i] for i in text.captions[row] if i >= 0] == ["a mug", "a cup"]


def test_tables_choose_what_counts(listed: pytest.MonkeyPatch, small_manifest: Path, tmp_path: Path) -> None:
    clouds(listed)
    path = tmp_path / "m.toml"
    tables = '[[captions]]\nkind = "synonyms"\n[[captions]]\nkind = "listing"\nkeep = 1\n'
    path.write_text(small_manifest.read_text() + tables)
    store = FeatureStore.create(tmp_path / "s.zarr")
    Flow(load_manifest(path), None, store).caption()
    assert said(store) == {
        "mug-0-00000": ["a coffee mug", "a mug"],
        **{f"mug-0-0000{i}": ["a coffee mug"] for i in (1, 2, 3)},
        "chair-0-00001": ["a seat"],
    }
    assert list(store.ref().captions) == ["synonyms", "listing"]
    path.write_text("captions = []\n" + small_manifest.read_text())
    Flow(load_manifest(path), None, store).caption()
    assert said(store) == {}


def test_facts_and_listing_stand_side_by_side(listed: pytest.MonkeyPatch, small_manifest: Path, tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "s.zarr")
    Flow(load_manifest(small_manifest), None, store, limit=1).caption()
    # Of all that is listed: a part of a data set, in whose shapes there is no text, has the same tables as the others.
    assert list(store.ref().captions) == ["facts", "listing"]
    assert "chair" in said(store)["chair-0-00000"][0]
