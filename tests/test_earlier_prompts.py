"""Stores of the time before the release's words were at hand: they are read as they are, and brought up to date."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.report import report
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.verify import verify
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.prompts import CLASS_PROMPTS, EARLIER_PROMPTS, class_prompts
from recon.trainer.evaluate.zero_shot import class_embeddings, classify, teacher_feature

pytestmark = pytest.mark.slow  # whole stores are made

CLASSES = ("chair", "mug", "table")


@pytest.fixture
def earlier(small_store: Path, small_manifest: Path, tmp_path: Path) -> Path:
    """The small store as it was made then: those prompts alone, and a ref that says nothing of templates."""
    path = tmp_path / "s.zarr"
    shutil.copytree(small_store, path, ignore=shutil.ignore_patterns("cache"))
    (key,) = FeatureStore.open(path).ref().text.values()
    for folder in (path / "text" / key, path / "receipts" / key):
        shutil.rmtree(folder)
    (tmp_path / "earlier.txt").write_text("\n".join(EARLIER_PROMPTS))
    (tmp_path / "m.toml").write_text('class_prompts = "earlier.txt"\n' + small_manifest.read_text())
    Flow(load_manifest(tmp_path / "m.toml"), None, FeatureStore.create(path)).all()
    ref = path / "refs" / "small.json"
    held = json.loads(ref.read_text())
    assert tuple(held.pop("templates")) == EARLIER_PROMPTS
    ref.write_text(json.dumps(held, indent=1) + "\n")
    return path


def test_an_earlier_store_is_read_evaluated_and_brought_up_to_date(earlier: Path, small_manifest: Path) -> None:
    store = FeatureStore.open(earlier)
    text = store.text()
    before = {prompt: text.feat[row] for row, prompt in enumerate(text.prompts)}
    assert store.ref().templates == EARLIER_PROMPTS
    for number, name in enumerate(CLASSES):
        assert [text.prompts[row] for row in text.class_prompts[number]] == class_prompts(name, EARLIER_PROMPTS)
    numbers = np.arange(3)
    by_hand = [np.sum([before[p] for p in class_prompts(n, EARLIER_PROMPTS)], 0, np.float32) for n in CLASSES]
    np.testing.assert_allclose(class_embeddings(text, numbers), by_hand, rtol=1e-4, atol=1e-4)
    predicted = classify(teacher_feature(store.targets(), np.arange(12)), class_embeddings(text, numbers))
    assert predicted.shape == (12,)

    lines = {line.stage: line for line in report(Flow(load_manifest(small_manifest), None, store), 1)}
    assert (lines["text tiny"].todo, lines["text tiny"].why) == (180, ("180 prompts are new",))
    assert all(line.todo == 0 for name, line in lines.items() if name != "text tiny")

    results = Flow(load_manifest(small_manifest), None, FeatureStore.create(earlier)).all()
    assert [(r.kind, r.computed) for r in results if r.computed] == [("text", 180)]
    store = FeatureStore.open(earlier)
    new = store.text()
    assert store.ref().templates == CLASS_PROMPTS
    assert new.key == text.key, "a key of words is the teacher's; what is embedded under it are the words"
    assert [[new.prompts[row] for row in line] for line in new.class_prompts] == [class_prompts(n) for n in CLASSES]
    assert all(np.array_equal(new.feat[new.prompts.index(prompt)], feature) for prompt, feature in before.items())
    assert not verify(store, full=True).damages
