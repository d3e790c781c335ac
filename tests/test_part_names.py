"""Parts named by words alone: on a teacher that sees the words, and the chance that is told beside it."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch

from recon.pipeline.base.errors import UserError
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.procedural.geometry import box
from recon.pipeline.store import FeatureStore
from recon.trainer.cli import app
from recon.trainer.evaluate.part_names import PROMPT, name_parts, overlaps
from tests.colour_teacher import COLOURS

pytestmark = pytest.mark.slow  # whole runs on stores of their own

CPU = torch.device("cpu")
MANIFEST = """
name = "coloured"
class_prompts = "prompts.txt"
[source]
layout = "folder"
[sample]
num_points = 512
[render]
preset = "openshape12"
resolution = 64
[render.lights]
unlit = true
[features.lift]
teachers = ["colours"]
num_points = 256
[[features.teachers]]
name = "colours"
kind = "python"
model = "tests.colour_teacher:Colours"
"""


def write_boxes(path: Path, turn: int) -> None:
    """Three boxes in a row, each of a colour that its part is called by."""
    names = [*COLOURS][turn:] + [*COLOURS][:turn]
    lines, materials, count = [f"mtllib {path.stem}.mtl"], [], 1
    for place, name in enumerate(names):
        solid = box(0.9, 0.9, 0.9).move(x=float(place - 1))
        lines += [f"o {name}", f"usemtl {name}", *(f"v {x} {y} {z}" for x, y, z in solid.vertices.tolist())]
        lines += [f"f {a + count} {b + count} {c + count}" for a, b, c in solid.faces.tolist()]
        count += len(solid.vertices)
        materials += [f"newmtl {name}", "Kd {} {} {}".format(*COLOURS[name])]
    path.write_text("\n".join(lines) + "\n")
    path.with_suffix(".mtl").write_text("\n".join(materials) + "\n")


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("coloured")
    (folder / "root" / "row").mkdir(parents=True)
    for turn in range(3):
        write_boxes(folder / "root" / "row" / f"{turn}.obj", turn)
    (folder / "coloured.toml").write_text(MANIFEST)
    (folder / "prompts.txt").write_text("{}\n")
    flow = Flow(load_manifest(folder / "coloured.toml"), folder / "root", FeatureStore.create(folder / "store.zarr"))
    assert not any(result.failed for result in flow.all())
    return folder / "store.zarr"


def test_a_teacher_that_sees_the_words_names_the_parts(coloured: Path) -> None:
    store = FeatureStore.open(coloured)
    split = str(store.registry.split[0])
    found = name_parts(coloured, CPU, split=split)
    assert found["shapes"] == int((store.registry.split == split).sum())
    assert found["part_miou"] > 0.85 and found["accuracy"] > 0.9
    assert found["chance"] == pytest.approx(1 / 3, abs=0.05)
    assert 0.11 < found["one_part"] < 0.14
    assert 0.5 < found["points_seen"] <= 1
    shown = np.asarray(store.lifted().count[:]) > 0
    assert found["points_seen"] == pytest.approx(float(shown[store.registry.split == split].mean()))


def test_wrong_names_are_as_bad_as_they_are(coloured: Path) -> None:
    """Words that no part is called by lie as near to one as to another, and the first is taken."""
    split = str(FeatureStore.open(coloured).registry.split[0])
    found = name_parts(coloured, CPU, split=split, prompt="no{part}s")
    assert found["part_miou"] == pytest.approx(1 / 9, abs=0.02) and found["accuracy"] == pytest.approx(1 / 3, abs=0.06)


def test_chance_is_the_mean_over_all_ways_of_dealing_the_names() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        predicted, truth = rng.integers(0, 4, (2, 60))
        each = []
        for names in permutations(range(4)):
            dealt = np.array(names)[predicted]
            pairs = [(dealt == j, truth == j) for j in range(4)]
            each.append([np.sum(a & b) / max(np.sum(a | b), 1) for a, b in pairs])
        found = overlaps(predicted, truth, 4)
        assert found.mean() == pytest.approx(np.mean(each))
        assert np.trace(found) / 4 == pytest.approx(np.mean(each[0]))


@pytest.mark.parametrize("prompt", ["a chair", "{place}", "{", "{0}", "{category}", "{part.x}"])
def test_a_prompt_says_what_it_takes(coloured: Path, prompt: str) -> None:
    split = str(FeatureStore.open(coloured).registry.split[0])
    with pytest.raises(UserError, match=r"--prompt .*: takes \{part\} and \{category\}"):
        name_parts(coloured, CPU, split=split, prompt=prompt)


def test_what_is_lacking_is_one_line(coloured: Path, small_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="has no shape of split 'val' that is lifted"):
        name_parts(coloured, CPU, split="val")
    with pytest.raises(UserError, match="no features of points yet; run `recon-pipeline lift`"):
        name_parts(small_store, CPU)
    with pytest.raises(UserError, match="no teacher 'clip'; it holds colours"):
        name_parts(coloured, CPU, teacher="clip")
    split = str(FeatureStore.open(coloured).registry.split[0])
    app(["nameparts", "--store", str(coloured), "--split", split], standalone_mode=False)
    said = capsys.readouterr().out
    assert "part_miou" in said and "chance" in said
    assert PROMPT.format(part="red", category="row") == "a row with a red."
