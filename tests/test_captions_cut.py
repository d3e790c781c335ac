"""Captions longer than a teacher's words reach are counted, and said where people look."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recon.pipeline.commands.cli import app
from recon.pipeline.flow import run
from recon.pipeline.keeping.stats import describe, statistics
from recon.pipeline.store.feature_store import FeatureStore
from recon.pipeline.teachers import TeacherSpec, load_teacher
from recon.pipeline.teachers.loaded import facts_of
from tests.conftest import FOLDER_MANIFEST
from tests.test_kept_meshes import put_boxes

LONG = "a tall box made of oak with a lid that opens to the left and four small feet " * 6
CAPTIONS = {"0": LONG + "painted red", "1": LONG + "painted blue", "2": "a red box"}


@pytest.fixture(scope="module")
def teacher(clip_config):
    return load_teacher(TeacherSpec(name="tiny", kind="open_clip", model=str(clip_config)), "cpu")


def test_what_is_cut_is_what_another_token_would_change(teacher):
    fits = " ".join(["box"] * 30)  # with a token before and one behind, 32
    assert teacher.cut([fits, fits + " box", "", "word " * 10_000, "böx"]) == [False, True, False, True, False]
    assert teacher.cut([]) == []
    once, more = teacher.tokens([fits + " box", fits + " lid"])
    assert once == more, "or nothing would be cut"


def write(folder: Path, model: Path | str) -> list[str]:
    put_boxes(folder)
    rows = [f'box/{name}.obj,box,"{text}"' for name, text in CAPTIONS.items()]
    (folder / "meshes" / "shapes.csv").write_text("\n".join(["path,class,caption", *rows]) + "\n")
    text = FOLDER_MANIFEST.format(model=model).replace('layout = "folder"', 'layout = "folder"\nlist = "shapes.csv"')
    (folder / "m.toml").write_text(text)
    places = {"--manifest": folder / "m.toml", "--root": folder / "meshes", "--store": folder / "s.zarr"}
    return [str(word) for option in places.items() for word in option]


def test_a_run_status_and_stats_say_how_many_prompts_were_cut(tmp_path, clip_config):
    options = write(tmp_path, clip_config)
    ran = CliRunner().invoke(app, ["all", *options, "--workers", "0"])
    assert ran.exit_code == 0, ran.output
    store = FeatureStore.open(tmp_path / "s.zarr")
    ref = store.ref()
    prompts = len(store.prompts(ref.text["tiny"]))
    assert ref.cut == {"tiny": (2, prompts)}
    said = f"cut short: 2 of {prompts} prompts are longer than teacher 'tiny' reads"
    assert said in " ".join(ran.stderr.split())
    assert said in CliRunner().invoke(app, ["status", *options]).stdout
    assert any(said in line for line in describe(statistics(store)))

    path = tmp_path / "s.zarr" / "refs" / "shapes.json"  # as of before there were counts
    held = json.loads(path.read_text())
    del held["cut"]
    path.write_text(json.dumps(held))
    again = CliRunner().invoke(app, ["all", *options, "--workers", "0"])
    assert "text" in again.stderr and "up to date" in again.stderr and said in " ".join(again.stderr.split())


def test_the_count_follows_prompts_that_were_embedded_before(tmp_path, clip_config, monkeypatch):
    """Captions, or class prompts, may leave a manifest, or come that another one had embedded: nothing is computed."""
    options = write(tmp_path, clip_config)
    assert CliRunner().invoke(app, ["all", *options, "--workers", "0"]).exit_code == 0
    store = FeatureStore.open(tmp_path / "s.zarr")
    (_, before), manifest = store.ref().cut["tiny"], tmp_path / "m.toml"
    listed = manifest.read_text()
    manifest.write_text(listed + '\n[[captions]]\nkind = "facts"\n')
    ran = CliRunner().invoke(app, ["all", *options, "--workers", "0"])
    assert ran.exit_code == 0 and "cut short" not in ran.stderr, ran.output
    cut, prompts = store.ref().cut["tiny"]
    assert cut == 0 and prompts < before

    manifest.write_text(listed)
    ran = CliRunner().invoke(app, ["all", *options, "--workers", "0"])
    assert "cut short: 2 of" in " ".join(ran.stderr.split())
    assert store.ref().cut["tiny"] == (2, before)
    asked, ask = [], run.ask
    monkeypatch.setattr(run, "ask", lambda *about: asked.append(about[1]) or ask(*about))
    assert CliRunner().invoke(app, ["all", *options, "--workers", "0"]).exit_code == 0
    assert asked == [facts_of], "of the same prompts they are counted once"


def test_captions_that_fit_are_not_spoken_of(tmp_path, clip_config, monkeypatch):
    monkeypatch.setitem(CAPTIONS, "0", "a small box")
    monkeypatch.setitem(CAPTIONS, "1", "a blue box")
    ran = CliRunner().invoke(app, ["all", *write(tmp_path, clip_config), "--workers", "0"])
    assert ran.exit_code == 0 and "cut short" not in ran.stderr
    assert FeatureStore.open(tmp_path / "s.zarr").ref().cut["tiny"][0] == 0


class Lengths:
    """A teacher of one's own, of words too, that cannot tell what it cuts."""

    shape = (3,)

    def __init__(self, spec, device):
        pass

    def recipe(self):
        return {"kind": "lengths-1", "weights": "none", "words": "none"}

    def embed_images(self, images, seeds):
        return images.mean((1, 2), dtype=np.float32)

    def text_recipe(self):
        return {"kind": "lengths-1", "weights": "none"}

    def embed_texts(self, texts):
        return np.array([[len(text), text.count(" "), 1] for text in texts], np.float32)


def test_a_teacher_that_cannot_tell_is_not_asked_again(tmp_path, monkeypatch):
    options = write(tmp_path, f"{__name__}:Lengths")
    manifest = tmp_path / "m.toml"
    manifest.write_text(manifest.read_text().replace('kind = "open_clip"', 'kind = "python"'))
    asked, ask = [], run.ask

    def spy(executor, function, about):
        asked.append(function)
        return ask(executor, function, about)

    monkeypatch.setattr(run, "ask", spy)
    for _ in range(2):
        asked.clear()
        ran = CliRunner().invoke(app, ["all", *options, "--workers", "0"])
        assert ran.exit_code == 0 and "cut short" not in ran.stderr, ran.output
        assert asked == [facts_of]
    assert "text" in ran.stderr and "up to date" in ran.stderr
    assert FeatureStore.open(tmp_path / "s.zarr").ref().cut == {}
