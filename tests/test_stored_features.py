"""Features that came in OpenShape's files: several fields under one name, those of words, what is absent masked."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.pipeline.base.digests import digest_of
from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.stats import statistics
from recon.pipeline.sources.openshape import OpenShapeSource
from recon.pipeline.stages.imported import LOOKED_AT
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.spaces import one_space
from tests.openshape_files import DIM, POINTS, ensemble, four, shape, thumbnail, vector

SHIPPED = Path(__file__).resolve().parents[1] / "data_manifests" / "openshape.toml"
MANIFEST = """
name = "mini"
[source]
layout = "openshape"
strip = "/mnt/data/"
{source}
[source.lists]
train = "meta_data/split/train_all.json"
[sample]
num_points = {points}
[[features.stored]]
name = "clip"
field = {field}
views = {views}
dim = {dim}
partial = {partial}
model = "bigG"
{words}
[[captions]]
kind = "stored"
keep = {keep}
"""
WORDS = """
[[features.stored]]
name = "words"
of = "text"
dim = {dim}
variant = "{variant}"
keep = {keep}
model = "bigG"
"""
BOTH = '["thumbnail_feat", "image_feat"]'


def manifest(folder: Path, **changes: Any) -> Path:
    """A manifest that needs no teacher."""
    wanted = {"field": BOTH, "views": 12, "partial": "true", "keep": 8, "source": "", "variant": "prompt_avg"}
    wanted |= {"dim": DIM, "points": POINTS} | changes
    path = folder / "mini.toml"
    path.write_text(MANIFEST.format(**wanted, words=WORDS.format(**wanted) if wanted["variant"] else ""))
    return path


def made(tmp_path: Path, root: Path, **changes: Any) -> tuple[FeatureStore, dict[str, dict[str, str]]]:
    """The store of a manifest, and why shapes were set aside, by stage and uid."""
    store = FeatureStore.create(tmp_path / "s.zarr")
    flow = Flow(load_manifest(manifest(tmp_path, **changes)), root, store)
    flow.all()
    failed = {name: {uid: f.reason for uid, f in r.failed.items()} for name, r in flow.results.items() if r.failed}
    return FeatureStore.open(tmp_path / "s.zarr"), failed


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    folder = tmp_path_factory.mktemp("mini")
    store, failed = made(folder, ensemble(folder / "root"))
    assert not failed
    return store


def test_a_thumbnail_that_only_some_shapes_have_is_masked(mini: FeatureStore) -> None:
    """13 features a shape as ReCon++ trains on them; zeros in the thumbnail's place are none."""
    targets = mini.targets()
    assert targets.teacher == "clip" and targets.of == "image" and targets.ok.all()
    assert targets.feat.shape == (1, 4, 13, DIM) and targets.present is not None
    present = np.asarray(targets.present[0])
    assert present[:, 1:].all() and present[:, 0].tolist() == [True, False, False, False]
    for row, held in enumerate(four().values()):
        feat = np.asarray(targets.feat[0, row])
        assert np.array_equal(feat[1:], held["image_feat"].astype(np.float16))
        assert np.array_equal(feat[0], (thumbnail(0)[0] if row == 0 else np.zeros(DIM)).astype(np.float16))


def test_words_lie_beside_the_captions(mini: FeatureStore) -> None:
    """In the order of the captions, each text once; retrieved texts have no average; what has no feature is masked."""
    words, captions = mini.targets("words"), mini.captions()
    assert words.of == "text" and words.present is not None and words.feat.shape == (1, 4, 8, DIM)
    assert captions[0] == [
        "Chair_v2", "a chair", "one chair by a wall", "a red office chair", "chair | shop"
    ]  # fmt: skip
    retrieved = ("a red office chair", "chair | shop", "bar stool")
    raw = {" ".join(text.split()): text for text in ("a  chair", "one chair\nby a wall")}
    for row, texts in enumerate(captions):
        present = np.asarray(words.present[0, row])
        assert present.tolist() == [bool(text) and text != "AmazonBasics stool" for text in [*texts, *[""] * 8][:8]]
        for at, text in enumerate(texts):
            wanted = vector(raw.get(text, text), "original" if text in retrieved else "prompt_avg")
            feat = np.asarray(words.feat[0, row, at])
            assert np.array_equal(feat, wanted.astype(np.float16) if present[at] else np.zeros(DIM))


SAID = st.one_of(st.none(), st.sampled_from(["", " ", "a chair", "a  chair\n", "b", "c"]))
FEATURE = st.sampled_from([None, {}, {"original": None}, {"prompt_avg": np.zeros(0)}, "both"])


@given(own=st.lists(st.tuples(SAID, FEATURE), max_size=4), blip=SAID, retrieved=st.lists(SAID, max_size=3))
@settings(max_examples=60)
def test_a_text_has_the_feature_of_the_first_place_it_stands_in(
    tmp_path_factory: pytest.TempPathFactory, own: list[Any], blip: str | None, retrieved: list[Any]
) -> None:
    """Whatever is blank, doubled, None or without a feature: beside a plain walk through all places."""
    held = shape(0, [text for text, _ in own], blip or "", "", (), blip_caption=blip or "", retrieval_text=retrieved)
    number = iter(range(1, 99))

    def numbered(*variants: str) -> dict[str, Any]:
        return {variant: np.full((1, DIM), next(number), np.float32) for variant in variants}

    both = ("original", "prompt_avg")
    held["text_feat"] = [numbered(*both) if feature == "both" else feature for _, feature in own]
    held["blip_caption_feat"] = numbered(*both)
    held["retrieval_text_feat"] = [numbered("original") for _ in retrieved]
    folder = tmp_path_factory.mktemp("file")
    np.save(folder / "a.npy", np.array(held, dtype=object))
    places = [*zip(held["text"], held["text_feat"], ["prompt_avg"] * len(own), strict=True)]
    places += [(held["blip_caption"], held["blip_caption_feat"], "prompt_avg")]
    places += [*zip(retrieved, held["retrieval_text_feat"], ["original"] * len(retrieved), strict=True)]
    wanted: dict[str, Any] = {}
    for text, feature, variant in places:
        name = " ".join((text or "").split())
        if name and name not in wanted:
            value = (feature or {}).get(variant)
            wanted[name] = None if value is None or not value.size else float(value[0, 0])
    source = OpenShapeSource(layout="openshape", lists={"train": "a.json"})
    found = source.words(folder, "a.npy", "prompt_avg")
    assert source.texts(folder, "a.npy") == [text for text, _ in found] == list(wanted)
    assert [None if feature is None else float(feature[0]) for _, feature in found] == list(wanted.values())


def test_what_is_absent_is_not_handed_out(mini: FeatureStore) -> None:
    assert [len(feat) for _, feat in mini.features("clip")] == [13, 12, 12, 12]
    assert [len(feat) for _, feat in mini.features("words")] == [5, 3, 2, 3]
    assert all(feat.any(1).all() for name in ("clip", "words") for _, feat in mini.features(name))


def test_no_teacher_has_to_run(mini: FeatureStore) -> None:
    """No text tower, no kind text; pictures and words claim one model, so they can be compared."""
    ref = mini.ref()
    assert list(ref.targets) == ["clip", "words"] and not ref.text
    seeing, reading = (mini.targets(name).recipe["teacher"] for name in ("clip", "words"))
    assert one_space(seeing, reading, DIM, DIM) and not one_space(seeing, reading, DIM, DIM + 1)
    assert not one_space(seeing, reading | {"model": "H"}, DIM, DIM)
    assert not one_space(seeing | {"model": ""}, reading | {"model": ""}, DIM, DIM)


def test_own_texts_that_were_refused_are_left_out(mini: FeatureStore, tmp_path: Path) -> None:
    """Of captions and features alike, and under keys of their own: points and pictures keep theirs."""
    root = ensemble(tmp_path / "root", without=("obj0",))
    store, failed = made(tmp_path, root, source='text_filter = "meta_data/gpt4_filtering.json"')
    assert not failed
    assert store.captions()[0][:2] == ["one chair by a wall", "a chair"] and store.captions()[1][0] == "chair"
    feat = np.asarray(store.targets("words").feat[0, 0])
    assert np.array_equal(feat[0], vector("one chair\nby a wall", "prompt_avg").astype(np.float16))
    ours, others = store.ref(), mini.ref()
    assert ours.keys == others.keys and ours.targets["clip"] == others.targets["clip"]
    assert ours.targets["words"] != others.targets["words"] and ours.captions != others.captions


def test_old_manifests_keep_their_keys(tmp_path: Path) -> None:
    """The recipe, and so the key, of one field with nothing masked is what it was before there was more to say."""
    root = ensemble(tmp_path / "root")
    store, _ = made(tmp_path, root, field='"image_feat"', partial="false", variant="")
    teacher = {"kind": "stored", "field": "image_feat", "dim": DIM, "views": 12, "model": "bigG"}
    files = {"layout": "openshape", "up": "+Y", "front": "+Z"}
    recipe = {"stage": "imported", "version": 1, "files": files, "teacher": teacher}
    assert store.ref().targets == {"clip": digest_of(recipe)}
    assert digest_of(recipe) == "38009d1f5b0c59b8"
    assert store.targets().present is None


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no picture": ({"image_feat": None}, "targets clip: holds no features of pictures"),
    "zeros alone": ({"image_feat": np.zeros((12, DIM), np.float32)}, "targets clip: holds no features of pictures"),
    "wide pictures": ({"image_feat": np.ones((12, 9), np.float32)}, "targets clip: image_feat is 9 wide"),
    "too few features": ({"text_feat": []}, "targets words: text_feat holds 0 features beside 1 texts"),
    "no list": ({"text_feat": np.ones(DIM)}, "targets words: text_feat holds no list beside 1 texts"),
    "no dict": ({"text_feat": [np.ones(DIM)]}, "targets words: text_feat 0 is no dict of original and prompt_avg"),
    "words for numbers": ({"text_feat": [{"prompt_avg": "x"}]}, "text_feat 0: no array of numbers 'prompt_avg'"),
    "wide words": ({"text_feat": [{"prompt_avg": np.ones(9)}]}, "the feature of 'chair' is 9 wide, the store's is 8"),
    "infinite": ({"text_feat": [{"prompt_avg": np.full(DIM, 1e9)}]}, "'chair' is not finite in float16"),
}


def test_bad_features_set_their_shape_aside_in_one_line(tmp_path: Path) -> None:
    shapes = {"ShapeNet/1/good": shape(0, ["chair"])}
    shapes |= {f"ShapeNet/1/bad{i}": shape(i, ["chair"], **change) for i, (change, _) in enumerate(BAD.values())}
    _, failed = made(tmp_path, ensemble(tmp_path / "root", shapes))
    said = {uid: f"{stage}: {reason}" for stage, failures in failed.items() for uid, reason in failures.items()}
    assert len(said) == len(BAD) and "\n" not in "".join(said.values())
    for i, (_, words) in enumerate(BAD.values()):
        reason = said[f"ShapeNet/1/bad{i}"]
        assert f"bad{i}.npy" in reason
        for part in words.split(": ", 1) if words.startswith("targets") else [words]:
            assert part in reason


def test_a_shape_without_a_text_is_no_bad_shape(tmp_path: Path) -> None:
    """Its pictures are there to learn from; but where no file has a word's feature the manifest is at fault."""
    shapes = {"ABO/1/none": shape(0, [], text_feat=[]), "ABO/1/bare": shape(1, ["a"], text_feat=[None])}
    shapes["ABO/1/full"] = shape(2, ["a"])
    store, failed = made(tmp_path, ensemble(tmp_path / "root", shapes))
    present = store.targets("words").present
    assert not failed and present is not None and store.targets("words").ok.all()
    assert np.asarray(present[0]).sum(1).tolist() == [0, 0, 1]
    assert [feat.shape for _, feat in store.features("words")] == [(0, DIM), (0, DIM), (1, DIM)]
    (words,) = [found for found in statistics(store).targets if found.teacher == "words"]
    assert words.sampled == 1
    bare = {f"ABO/1/{i}": shape(i, ["a"], text_feat=[{"original": vector("a")}]) for i in range(LOOKED_AT)}
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=r"'words': none of the first 16 files has a feature of a text, prompt_avg"):
        made(tmp_path / "other", ensemble(tmp_path / "bare", bare))


def test_fewer_views_than_declared(tmp_path: Path) -> None:
    """Masked where the manifest says partial; otherwise the shape is set aside, and the line says what to do."""
    few = {"ShapeNet/1/a": shape(0, ["a"]), "ShapeNet/1/b": shape(1, ["b"], image_feat=np.ones((5, DIM), np.float32))}
    root = ensemble(tmp_path / "root", few)
    store, failed = made(tmp_path, root, field='"image_feat"', variant="")
    present = store.targets().present
    assert not failed and present is not None and np.asarray(present[0]).sum(1).tolist() == [12, 5]
    (tmp_path / "whole").mkdir()
    _, failed = made(tmp_path / "whole", root, field='"image_feat"', partial="false", variant="")
    assert "image_feat has 5 views of 12; partial = true masks" in failed["targets clip"]["ShapeNet/1/b"]


def test_the_width_is_looked_at_in_the_first_file_that_has_features(tmp_path: Path) -> None:
    bare = {"ABO/1/bare": shape(0, ["a"], text_feat=None), "ABO/1/full": shape(1, ["b"])}
    bare["ABO/1/full"]["text_feat"] = [{"prompt_avg": np.ones(5)}]
    root = ensemble(tmp_path / "root", bare)
    with pytest.raises(UserError, match=r"'words' has dim = 8, the feature of 'b' in .*full.npy is 5 wide; set dim ="):
        made(tmp_path, root)


REFUSED: dict[str, tuple[dict[str, str], str]] = {
    "unknown field": (
        {"field": '["msft_caption"]'},
        r"'features\.stored\.0\.field\.0': Input should be 'image_feat' or",
    ),
    "twice": ({"field": '["image_feat", "image_feat"]'}, "names a field twice; remove one"),
    "thumbnails": ({"field": '"thumbnail_feat"'}, "thumbnail_feat is one picture; set views = 1"),
    "of what": ({"variant": 'original"\nof2 = "'}, r"unknown field 'features\.stored\.1\.of2'"),
    "no such variant": ({"variant": "mean"}, r"'features\.stored\.1\.variant'"),
}


class Attack:
    """What a pickle can ask a careless reader to do."""

    def __reduce__(self) -> Any:
        return os.system, ("exit 1",)


def test_a_file_that_names_anything_but_arrays_is_set_aside_unread(tmp_path: Path) -> None:
    """By every stage that reads it, in one line each, wherever in the dict it stands; it may be the first file."""
    shapes = {f"ABO/1/{name}": shape(0, ["a"], **{name: Attack()}) for name in ("image_feat", "text_feat", "id")}
    shapes["ABO/1/good"] = shape(1, ["a"])
    _, failed = made(tmp_path, ensemble(tmp_path / "root", shapes))
    assert set(failed) == {"points", "targets clip", "targets words", "captions stored"}
    for reasons in failed.values():
        assert len(reasons) == 3 and "\n" not in "".join(reasons.values())
        assert all("names 'posix.system'; only numpy arrays" in reason for reason in reasons.values())


@pytest.mark.parametrize("case", REFUSED)
def test_tables_that_do_not_fit(case: str, tmp_path: Path) -> None:
    changes, words = REFUSED[case]
    with pytest.raises(UserError, match=words) as caught:
        load_manifest(manifest(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_a_manifest_needs_a_teacher_or_stored_features(tmp_path: Path) -> None:
    path = manifest(tmp_path)
    path.write_text(path.read_text().split("[[features.stored]]")[0] + "[features]\n")
    with pytest.raises(UserError, match=r"field 'features': name a teacher in \[\[features\.teachers\]\], or"):
        load_manifest(path)
    path.write_text(path.read_text() + '[[features.stored]]\nname = "x"\nof = "sound"\ndim = 3\n')
    with pytest.raises(UserError, match=r"'features\.stored\.0': of = \"image\" or \"text\" says"):
        load_manifest(path)


def test_features_of_texts_need_a_layout_with_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OpenShapeSource, "has_texts", False)
    with pytest.raises(UserError, match=r"field 'features\.stored': files of layout 'openshape' hold no texts"):
        load_manifest(manifest(tmp_path))


FILTERS: dict[str, tuple[str | None, str]] = {
    "missing": (None, "no list .*gpt4_filtering.json: put it there"),
    "a list": ("[1]", 'is no object of ids, each with a "flag"'),
    "no flag": ('{"a": {}}', 'is no object of ids, each with a "flag"'),
    "no JSON": ("{", "not valid JSON"),
}


@pytest.mark.parametrize("case", FILTERS)
def test_filters_that_cannot_be_used_stop_the_run(case: str, tmp_path: Path) -> None:
    content, words = FILTERS[case]
    root = ensemble(tmp_path / "root")
    path = root / "meta_data/gpt4_filtering.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=words):
        made(tmp_path, root, source='text_filter = "meta_data/gpt4_filtering.json"')


def shipped(folder: Path, *changes: tuple[str, str]) -> Path:
    """The shipped manifest with the miniature's sizes."""
    text = SHIPPED.read_text()
    for before, after in (("dim = 1280", f"dim = {DIM}"), ("num_points = 10000", f"num_points = {POINTS}"), *changes):
        assert before in text
        text = text.replace(before, after)
    (folder / "openshape.toml").write_text(text)
    return folder / "openshape.toml"


def test_the_shipped_manifest_takes_all_there_is_and_runs_no_model(tmp_path: Path) -> None:
    root = ensemble(tmp_path / "root", without=("obj0",))
    results = Flow(load_manifest(shipped(tmp_path)), root, FeatureStore.create(tmp_path / "s.zarr")).all()
    assert [result.kind for result in results] == ["points", "targets", "targets", "captions"]
    assert not any(result.failed for result in results)
    store = FeatureStore.open(tmp_path / "s.zarr")
    pictures, words = store.targets(), store.targets("clip-bigg-words")
    assert pictures.feat.shape == (1, 4, 13, DIM) and words.feat.shape == (1, 4, 8, DIM)
    assert pictures.present is not None and words.present is not None
    assert np.asarray(pictures.present[0]).sum(1).tolist() == [13, 12, 12, 12]
    told = [sum(map(bool, texts)) for texts in store.captions()]
    assert told == [4, 3, 3, 3] and np.asarray(words.present[0]).sum(1).tolist() == [4, 3, 2, 3]


def test_the_data_sets_that_are_not_at_hand_can_be_left_out(tmp_path: Path) -> None:
    root = ensemble(tmp_path / "root")
    wanted = ("# datasets", "datasets")
    shapes = load_manifest(shipped(tmp_path, wanted)).source.shapes(root)
    assert [shape.uid.split("/")[0] for shape in shapes] == ["ShapeNet", "ABO", "3D-FUTURE"]
    with pytest.raises(
        UserError, match=r"'source\.datasets': the lists have no shape of 'ABC'; they have 3D-FUTURE, ABO"
    ):
        load_manifest(shipped(tmp_path, wanted, ('"ABO"', '"ABC"'))).source.shapes(root)
