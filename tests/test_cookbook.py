"""Every command of the cookbook runs, in a reader's order, on miniatures of the data sets in their genuine layouts."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from tests import cloud_trees, miniature_meshes
from tests.test_docs import ROOT, commands, small_settings, succeeds, without_workers

CATEGORIES = ("02691156", "03001627")
# The first page trains the student that the last one measures.
PAGES = ("shapenet55", "shapenet_clip", "folder", "evaluation")


def shapenet_core(root: Path) -> None:
    """Enough shapes for a batch of the trainer."""
    miniature_meshes.build_shapenet_core_v2(root)
    for synset in CATEGORIES:
        for number in range(8):
            miniature_meshes.write_obj(root / synset / f"{number}d" / "models" / "model_normalized.obj")


# Folder of a data set in the pages -> what builds its miniature.
DATA: dict[str, Callable[[Path], None]] = {
    "shapenet55": partial(
        miniature_meshes.build_shapenet55,
        train=[f"{synset}-{number}a-b" for synset in CATEGORIES for number in range(3)],
        test=[f"{synset}-{number}c" for synset in CATEGORIES for number in range(2)],
    ),
    "ShapeNetCore.v2": shapenet_core,
    "modelnet40_fps": cloud_trees.fps_tree,
    "scanobjectnn": cloud_trees.scan_tree,
    "shapenetpart": cloud_trees.part_tree,
    "modelnet_fewshot": cloud_trees.fold_tree,
}
# Settings of the shipped manifests that the miniatures are too small for.
SMALLER = {"points = 8192": "points = 40", "way = 5": "way = 2", "shot = 10": "shot = 2"}
TABLES = """[sample]
num_points = 128

[render]
preset = "ring2"
resolution = 32

[[features.teachers]]
name = "clip-b32"
kind = "open_clip"
model = "{clip}"

[[features.teachers]]
name = "vit-b16"
kind = "timm"
model = "{vit}"
"""


@pytest.fixture
def workplace(tmp_path: Path, clip_config: Path) -> Path:
    """The shipped manifests with their own sources and small recipes, and every data set under data/."""
    torch.manual_seed(0)
    arguments = {"img_size": 32, "depth": 1}
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **arguments), str(tmp_path / "vit"), model_args=arguments)
    tables = TABLES.format(clip=clip_config, vit=tmp_path / "vit")
    words_only = re.sub(r"\[render\].*?\n\n|\n\[\[features.teachers\]\]\nname = \"vit.*", "", tables, flags=re.DOTALL)
    (tmp_path / "data_manifests").mkdir()
    for path in (ROOT / "data_manifests").glob("*.toml"):
        shipped = path.read_text(encoding="utf-8")
        kept = shipped[: shipped.index("[sample]")]
        for setting, smaller in SMALLER.items():
            kept = kept.replace(f"\n{setting}\n", f"\n{smaller}\n")
        (tmp_path / "data_manifests" / path.name).write_text(kept + (tables if "[render]" in shipped else words_only))
    for name, build in DATA.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        build(tmp_path / "data" / name)
    for category in ("chairs", "tables"):
        for number in range(4):
            miniature_meshes.write_obj(tmp_path / "my" / "meshes" / category / f"{number}.obj")
    return tmp_path


@pytest.mark.slow
def test_every_command_of_the_cookbook_runs(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {path.stem for path in (ROOT / "docs" / "cookbook").glob("*.md")} == {
        *PAGES,
        "openshape",
    }  # test_cookbook_openshape.py
    monkeypatch.chdir(workplace)
    monkeypatch.setattr("recon.pipeline.flow.manifest.SHIPPED", workplace / "data_manifests")
    without_workers(monkeypatch)
    for page in PAGES:
        for program, *words in commands(ROOT / "docs" / "cookbook" / f"{page}.md"):
            more = small_settings() if words[0] == "pretrain" else []
            more += ["--set", "optim.batch_size=2"] if "recon-single" in words else []  # of three clouds
            # A miniature lacks most of what was published, which is what `check` is there to say.
            succeeds(program, *words, *more, status=1 if words[0] == "check" and "my/meshes" not in words else 0)
