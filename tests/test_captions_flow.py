"""Captions from end to end: every kind of table in one store, whose keys do not hang together, and what leaves it."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recon.pipeline.base.errors import UserError
from recon.pipeline.commands import cli
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.report import report
from recon.pipeline.flow.run import Flow
from recon.pipeline.keeping.export import export
from recon.pipeline.keeping.gc import plan_gc
from recon.pipeline.keeping.merge import merge
from recon.pipeline.keeping.stats import describe, statistics
from recon.pipeline.keeping.verify import verify
from recon.pipeline.store import FeatureStore
from recon.pipeline.store.prompts import class_prompts
from tests.tiny_captioner import save_captioner

pytestmark = pytest.mark.slow  # whole stores are made

MUG = "mug-0-00000"
FILE = f'chair-0-00000,"a chair, by hand"\n{MUG},a mug by hand\n{MUG},a second one\n{MUG},a third one\nother,not here\n'
TABLES = """
[[captions]]
kind = "captioner"
name = "tiny"
model = "blip"
num = 2
keep = 3
max_new_tokens = 6
rerank = "tiny"
[[captions]]
kind = "facts"
[[captions]]
kind = "file"
name = "hand"
path = "{file}"
keep = 2
[[captions]]
kind = "attributes"
teacher = "tiny"
margin = {margin}
[captions.words]
colour = ["red", "green", "blue"]
material = ["wooden", "metal"]
"""

pytest.importorskip("transformers", reason="the extra `captioner` is not installed")
Write = Callable[..., Path]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_manifest: Path) -> Path:
    """A folder with the captioner, the file and a manifest of all tables, the class prompts being two of one's own."""
    folder = tmp_path_factory.mktemp("captions")
    save_captioner(folder / "blip")
    (folder / "hand.csv").write_text(FILE)
    (folder / "two.txt").write_text("{article} {name}\nthe {}\n")
    write(folder, small_manifest)
    return folder


def write(
    folder: Path, base: Path, name: str = "m.toml", margin: float = 0.002, replace: tuple[str, str] = ("", "")
) -> Path:
    text = 'class_prompts = "two.txt"\n' + base.read_text() + TABLES.format(file=folder / "hand.csv", margin=margin)
    (folder / name).write_text(text.replace(*replace))
    return folder / name


@pytest.fixture(scope="module")
def full(place: Path, small_store: Path) -> Path:
    """The small store brought up to date with that manifest."""
    shutil.copytree(small_store, place / "s.zarr", ignore=shutil.ignore_patterns("cache"))
    results = Flow(load_manifest(place / "m.toml"), None, FeatureStore.create(place / "s.zarr")).all()
    assert not any(result.failed for result in results)
    assert [(r.kind, r.computed) for r in results if r.computed] == [
        ("captions", 12), ("captions", 12), ("captions", 12), ("text", len(new_prompts(place / "s.zarr"))),
    ]  # fmt: skip
    return place / "s.zarr"


def new_prompts(path: Path) -> set[str]:
    """What the text teacher had not seen in the small store."""
    store = FeatureStore.open(path)
    ref = store.ref("small")
    said = {text for line in store.captions(ref) for text in line if text}
    said |= {prompt for name in ("chair", "mug", "table") for prompt in class_prompts(name, ref.templates)}
    facts = store.captions_of({"facts": ref.captions["facts"]})
    held = {text for line in facts for text in line}
    return said - held - {prompt for name in ("chair", "mug", "table") for prompt in class_prompts(name)}


def test_what_a_ref_says(full: Path) -> None:
    store = FeatureStore.open(full)
    ref = store.ref()
    assert list(ref.captions) == ["tiny", "facts", "hand", "attributes"]  # the manifest's order, not that of the runs
    assert ref.templates == ("{article} {name}", "the {}")
    assert "captions" not in ref.keys


def test_captions_are_joined_in_the_manifests_order(full: Path) -> None:
    store = FeatureStore.open(full)
    row = store.registry.uid.index(MUG)
    joined = [text for text in store.captions()[row] if text]
    records = [caption for caption in store.caption_records()[row] if caption.kept]
    assert joined == list(dict.fromkeys(caption.text for caption in records))
    assert [c.table for c in records] == sorted((c.table for c in records), key=list(store.ref().captions).index)
    assert [c.text for c in records if c.table == "hand"] == ["a mug by hand", "a second one"]
    assert len({len(line) for line in store.captions()}) == 1
    text = store.text()
    assert [text.prompts[i] for i in text.captions[row] if i >= 0] == joined
    assert [text.prompts[i] for i in text.class_prompts[1]] == ["a mug", "the mug"]


def test_what_is_known_of_each(full: Path, place: Path) -> None:
    store = FeatureStore.open(full)
    text, targets = store.text(), store.targets()
    weights = text.recipe["teacher"]["weights"]
    blip = store.recipe("captions", store.ref().captions["tiny"])["captioner"]["weights"]
    for row, captions in enumerate(store.caption_records()):
        written = [caption for caption in captions if caption.source == "captioner"]
        assert {c.view for c in written} == {0, 1}
        assert {(c.model, c.seed) for c in written} == {(blip, 0)}
        assert [c.score for c in written] == sorted((c.score for c in written), reverse=True)  # type: ignore[type-var]
        kept = [c for c in written if c.kept]
        assert len(kept) == len({c.text for c in kept}) == min(3, len({c.text for c in written}))
        for caption in kept:  # the score is the cosine of what the store holds, up to its half precision
            word = np.asarray(text.feat[text.prompts.index(caption.text)], np.float64)
            seen = np.asarray(targets.feat[0, row, caption.view], np.float64)
            cosine = word @ seen / np.linalg.norm(word) / np.linalg.norm(seen)
            assert caption.score == pytest.approx(cosine, abs=2e-3)
        chosen = [caption for caption in captions if caption.source == "attributes"]
        assert len(chosen) == 2  # one a group, told or not
        assert {(c.model, c.seed, c.view) for c in chosen} == {(weights, None, None)}
        assert all((c.model, c.score, c.view) == (None, None, None) for c in captions if c.source in ("facts", "file"))


@pytest.mark.slow
def test_a_word_is_told_where_it_is_clear(full: Path, place: Path, small_manifest: Path, tmp_path: Path) -> None:
    """With other margins: the same words and scores, others of them told."""
    told: dict[float, int] = {}
    store = FeatureStore.open(full)
    group = store.kind_group("captions", store.ref().captions["attributes"])
    margins = np.asarray(group["margin"][:])  # type: ignore[index]
    between = float(np.median(margins))
    for margin in (0.0, between, 2.0):
        path = write(place, small_manifest, "margin.toml", margin)
        shutil.copytree(full, tmp_path / f"{margin}.zarr", ignore=shutil.ignore_patterns("cache"))
        own = FeatureStore.create(tmp_path / f"{margin}.zarr")
        Flow(load_manifest(path), None, own).caption()
        records = [c for line in own.caption_records() for c in line if c.table == "attributes"]
        before = [c for line in store.caption_records() for c in line if c.table == "attributes"]
        assert [(c.text, c.score) for c in records] == [(c.text, c.score) for c in before]
        told[margin] = sum(c.kept for c in records)
    assert told[0.0] == 24 > told[between] > told[2.0] == 0


def test_one_table_leaves_the_others_alone(full: Path, place: Path, small_manifest: Path, tmp_path: Path) -> None:
    """A captioner costs hours: a line more in a file, or another margin, must not make it run again."""
    shutil.copytree(full, tmp_path / "s.zarr", ignore=shutil.ignore_patterns("cache"))
    (tmp_path / "more.csv").write_text(FILE + "table-0-00000,a table by hand\n")
    path = write(place, small_manifest, "more.toml", replace=(str(place / "hand.csv"), str(tmp_path / "more.csv")))
    store = FeatureStore.create(tmp_path / "s.zarr")
    before, keys = digests(store), dict(store.ref().captions)
    done = Flow(load_manifest(path), None, store).all()
    assert [(r.kind, r.computed) for r in done if r.computed] == [("captions", 1), ("text", 1)]
    assert store.ref().captions == keys
    changed = {key for key, digest in digests(store).items() if before.get(key) != digest}
    assert changed == {keys["hand"], store.ref().text["tiny"]}
    path = write(place, small_manifest, "margin.toml", margin=0.004)
    Flow(load_manifest(path), None, store).caption()
    now = store.ref().captions
    assert {name for name in keys if now[name] != keys[name]} == {"attributes"}


def digests(store: FeatureStore) -> dict[str, str]:
    return {key: store.digest(key) for _, key in store.list_keys()}


@pytest.mark.slow
def test_a_second_run_does_nothing_and_a_first_one_elsewhere_gives_the_same(
    full: Path, place: Path, tmp_path: Path
) -> None:
    store = FeatureStore.create(full)
    flow = Flow(load_manifest(place / "m.toml"), None, store)
    assert not any(result.computed for result in flow.all())
    assert flow.notes == [
        f"{place / 'hand.csv'}: 1 of 5 captions are of no shape of this data set, such as 'other'",
        "captions 'hand': 1 shapes have more than keep = 2: the first count",
    ]
    assert not any(line.todo for line in report(Flow(load_manifest(place / "m.toml"), None, store), 1))
    steps = FeatureStore.create(tmp_path / "steps.zarr")
    for limit in (5, None):  # other batches, so other company for each picture
        Flow(load_manifest(place / "m.toml"), None, steps, limit=limit).all()
    ours, theirs = store.ref(), steps.ref()
    assert ours == theirs
    for key in (*ours.captions.values(), *ours.targets.values()):
        assert store.digest(key) == steps.digest(key)


def test_plan_tells_each_table_by_its_name(place: Path, small_store: Path, tmp_path: Path) -> None:
    """Before the run: what is to come, and for words that it is not known yet how many."""
    shutil.copytree(small_store, tmp_path / "s.zarr", ignore=shutil.ignore_patterns("cache"))
    flow = Flow(load_manifest(place / "m.toml"), None, FeatureStore.open(tmp_path / "s.zarr", write=True))
    lines = {line.stage: line for line in report(flow, 1)}
    assert {name: line.todo for name, line in lines.items() if name.startswith("captions ")} == {
        "captions tiny": 12, "captions facts": 0, "captions hand": 12, "captions attributes": 12,
    }  # fmt: skip
    assert "prompts of shapes that are not ingested yet come on top" in lines["text tiny"].why


def test_new_templates_are_work_for_the_words(full: Path, place: Path, small_manifest: Path) -> None:
    """Found by looking at the prompts themselves: no row of the text key is stale by them."""
    path = write(place, small_manifest, "templates.toml", replace=('"two.txt"', '"three.txt"'))
    (place / "three.txt").write_text("{article} {name}\nthe {}\nmy {}\n")
    lines = {
        line.stage: line for line in report(Flow(load_manifest(path), None, FeatureStore.open(full, write=True)), 1)
    }
    assert (lines["text tiny"].todo, lines["text tiny"].why) == (3, ("3 prompts are new",))


def test_a_manifest_without_a_table_forgets_it(full: Path, small_manifest: Path, tmp_path: Path) -> None:
    """And what only that table asked for is nobody's any more."""
    shutil.copytree(full, tmp_path / "s.zarr", ignore=shutil.ignore_patterns("cache"))
    store = FeatureStore.create(tmp_path / "s.zarr")
    before = dict(store.ref().captions)
    assert not any(item.kind == "captions" for item in plan_gc(store, 0).items)
    Flow(load_manifest(small_manifest), None, store).all()
    assert store.ref().captions == {"facts": before.pop("facts")}
    assert {item.key for item in plan_gc(store, 0).items if item.kind == "captions"} == set(before.values())


def test_the_jsonl_export(full: Path, place: Path, tmp_path: Path) -> None:
    """Exact lines; and a file of captions again, as it stands."""
    store = FeatureStore.open(full)
    export(store, tmp_path / "out", "captions")
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    kept = [c for row in store.caption_records() for c in row if c.kept]
    assert [line["caption"] for line in lines] == [c.text for c in kept]
    by_hand = (tmp_path / "out" / "captions.jsonl").read_text().splitlines()
    assert [line for line in by_hand if "by hand" in line] == [
        '{"uid": "chair-0-00000", "caption": "a chair, by hand", "category": "chair", "split": "train", '
        '"table": "hand", "source": "file", "view": null, "score": null, "model": null, "seed": null}',
        '{"uid": "mug-0-00000", "caption": "a mug by hand", "category": "mug", "split": "train", '
        '"table": "hand", "source": "file", "view": null, "score": null, "model": null, "seed": null}',
    ]
    written = next(line for line in lines if line["source"] == "captioner")
    assert isinstance(written["view"], int)
    assert -1 <= written["score"] <= 1
    assert (len(written["model"]), written["seed"]) == (64, 0)
    from recon.pipeline.caption.files import read_captions

    again = read_captions(tmp_path / "out" / "captions.jsonl", set(store.registry.uid)).captions
    assert again[MUG] == tuple(text for text in store.captions()[store.registry.uid.index(MUG)] if text)


def test_what_walks_a_ref_knows_of_captions(full: Path, tmp_path: Path) -> None:
    store = FeatureStore.open(full)
    assert not verify(store, full=True).damages
    found = statistics(store)
    assert [line.table for line in found.captions] == ["tiny", "facts", "hand", "attributes"]
    hand = found.captions[2]
    assert (hand.source, hand.shapes, hand.captions, hand.distinct, hand.rejected) == ("file", 2, 3, 3, 0)
    assert hand.score_median is None
    assert "captions/hand: 3 of 2 shapes, 3 distinct; 0 unkept" in describe(found)
    merged = merge(tmp_path / "merged.zarr", [full])
    assert merged.keys == len(store.list_keys())
    # How many prompts are cut is counted by the next run, for several parts' cannot be added up.
    assert FeatureStore.open(tmp_path / "merged.zarr").ref() == replace(store.ref(), cut={}, cut_of={})


def test_parts_of_other_class_prompts_are_not_merged(place: Path, small_manifest: Path, tmp_path: Path) -> None:
    facts = small_manifest.read_text() + '[[captions]]\nkind = "facts"\n'
    parts = []
    for number, top in enumerate(('class_prompts = "two.txt"\n', "")):
        (place / "part.toml").write_text(top + facts)
        parts.append(tmp_path / f"{number}.zarr")
        Flow(load_manifest(place / "part.toml"), None, FeatureStore.create(parts[-1]), shard=(number, 2)).caption()
    with pytest.raises(UserError, match=r"different class prompts in ref 'small'"):
        merge(tmp_path / "merged.zarr", parts)


def test_damage_upstream_is_no_shapes_fault(full: Path, place: Path, small_manifest: Path, tmp_path: Path) -> None:
    """Attributes of a features file that is gone would come out as if every shape looked alike."""
    shutil.copytree(full, tmp_path / "s.zarr", ignore=shutil.ignore_patterns("cache"))
    store = FeatureStore.create(tmp_path / "s.zarr")
    for file in (tmp_path / "s.zarr" / "targets" / store.ref().targets["tiny"] / "feat" / "c").rglob("0"):
        if file.is_file():
            file.unlink()
    path = write(place, small_manifest, "damage.toml", margin=0.5)
    with pytest.raises(UserError, match="missing, though its receipt"):
        Flow(load_manifest(path), None, store).caption()


@pytest.mark.parametrize(
    ("replace", "told"),
    [
        (("num = 2", "num = 2\nviews = [0, 2]"), "captions 'tiny': there is no view 2: preset 'ring2' has 0 to 1"),
        (('model = "blip"', 'model = "nobody/nothing"'), "captions 'tiny': cannot fetch the captioner nobody/nothing"),
        (("hand.csv", "none.csv"), "none.csv: cannot be read"),
        (('name = "tiny"\nkind', 'name = "tiny"\ntap = "cls"\nkind'), "has no pictures and words in one space"),
        (('kind = "facts"', 'kind = "synonyms"'), "captions 'synonyms': layout 'procedural' has no taxonomy here"),
    ],
)
def test_what_cannot_be_made_is_one_line(
    replace: tuple[str, str],
    told: str,
    place: Path,
    small_manifest: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = write(place, small_manifest, "wrong.toml", replace=replace)
    words = ["recon-pipeline", "caption", "-m", str(path), "-s", str(tmp_path / "s.zarr"), "--workers", "0"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    errors = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 1
    assert errors[-1].startswith("error: ")
    assert told in errors[-1]


def test_clouds_have_no_views_to_describe(place: Path, small_manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recon.pipeline.sources.procedural import ProceduralSource

    monkeypatch.setattr(ProceduralSource, "has_meshes", property(lambda self: False))
    flow: Any = Flow(load_manifest(place / "m.toml"), None, FeatureStore.create(place / "clouds.zarr"))
    with pytest.raises(UserError, match="captions 'tiny': kind 'captioner' needs meshes, and layout 'procedural'"):
        flow.caption()
