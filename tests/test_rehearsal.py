"""The paper's recipe on a part of ShapeNet-55 in its genuine layout, with the wrong turns of a first attempt."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf

from tests import miniature_meshes
from tests.results_files import result_of
from tests.test_cookbook import CATEGORIES, TABLES
from tests.test_docs import ROOT, succeeds, without_workers

pytestmark = pytest.mark.slow  # a store is made and runs are trained

CAMERA = "02942699"
LIMIT = 24
TRAIN = 'data.splits=["train"]'
VIT = 'data.teachers=["image:vit-b16", "text:clip-b32"]'
SHORT = ("data.num_points=64", "optim.batch_size=8", "optim.epochs=2", "optim.warmup_epochs=1")
GROUPS = ("model.num_group=8", "model.group_size=8")
SMALL = (TRAIN, *SHORT, *GROUPS, "model.width=24", "model.heads=3", "model.depth=1", "model.decoder_depth=1")
PRETRAIN = ("pretrain", "--recipe", "recon-base", "--store", "limited.zarr", "--run")
FINETUNE = ("finetune", "--recipe", "finetune-modelnet40", "--from", "runs/vit", "--store")


def settings(*given: str) -> list[str]:
    return [word for setting in given for word in ("--set", setting)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, clip_config: Path) -> Iterator[Path]:
    """A folder with the store of the first shapes, as `--limit` leaves it: they are all of the training list."""
    folder = tmp_path_factory.mktemp("rehearsal")
    torch.manual_seed(0)
    arguments = {"img_size": 32, "depth": 1}
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **arguments), str(folder / "vit"), model_args=arguments)
    shipped = (ROOT / "data_manifests" / "shapenet55.toml").read_text("utf-8")
    tables = TABLES.format(clip=clip_config, vit=folder / "vit")
    (folder / "manifests").mkdir()
    (folder / "manifests" / "shapenet55.toml").write_text(shipped[: shipped.index("[sample]")] + tables)
    miniature_meshes.build_shapenet55(
        folder / "data",
        train=[f"{synset}-{number:02}a" for number in range(LIMIT // 2 + 1) for synset in CATEGORIES],
        test=[f"{synset}-{number}c" for synset in (*CATEGORIES, CAMERA) for number in range(2)],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("recon.pipeline.flow.manifest.SHIPPED", folder / "manifests")
        without_workers(patch)
        usual = ("all", "--manifest", "shapenet55", "--root", "data", "--store")
        succeeds("recon-pipeline", *usual, "limited.zarr", "--limit", str(LIMIT))
        for name, teachers in (("vit", [VIT]), ("clip", [])):
            succeeds("recon-train", *PRETRAIN, f"runs/{name}", *settings(*SMALL, *teachers))
        yield folder


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "ref 'shapenet55' has no split 'test'; it has train. A store made with --limit may lack one"),
        (["data.splits=train"], """recon-base: data.splits: a list is needed, as ["train"] (got 'train')"""),
        (["data.splits=[train]"], """strings in a list need their quotes, and those the shell's: --set 'data.splits"""),
        ([TRAIN], "data.num_points: 1024 asked for, the store holds 128 a shape; lower it, or raise sample.num"),
        ([TRAIN, "data.num_points=32"], "optim.batch_size 128 is more than the 24 rows there are: lower it or"),
        ([TRAIN, *SHORT, "data.num_points=32"], "model.num_group: 64 is more than the data.num_points 32"),
        ([TRAIN, *SHORT[:3]], "optim: warmup_epochs 10 must be fewer than epochs 2"),
        ([*SMALL, "optim.lrr=1"], "--set optim.lrr=1: [optim]: unknown key 'lrr'; did you mean 'lr'?"),
        ([*SMALL, "data.teachers=vit-b16"], """write "image" or "text", or a teacher's name behind it, "image:NA"""),
        ([*SMALL, VIT.replace("b16", "b17")], "has no teacher 'image:vit-b17'; it has image:clip-b32, image:vit-b16"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_one_line(
    words: list[str], said: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    succeeds("recon-train", *PRETRAIN, "runs/none", *settings(*words), status=1)
    told = capsys.readouterr().err
    assert said in told and told.count("\n") == 1
    assert not Path("runs/none").exists()


def test_from_training_to_a_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str, status: int = 0) -> str:
        capsys.readouterr()
        succeeds("recon-train", *words, status=status)
        shown = capsys.readouterr()
        assert status == 0 or shown.err.count("\n") == 1
        return shown.out if status == 0 else shown.err

    of = ("--run", "runs/vit", "--store")
    # Before anything was measured there is a report, and no table.
    told("report", *of, "limited.zarr")
    assert json.loads(Path("runs/vit/metrics.json").read_text())["results"] == []
    assert "nothing was measured yet" in told("table", "runs/vit", status=1)
    assert "Nothing was measured yet" in told("card", "runs/vit")
    # The part that was made has no test shapes.
    mend = """(--set 'data.splits=["train"]', or --split)"""
    assert mend in told("svm", *of, "limited.zarr", status=1)
    told("svm", *of, "limited.zarr", "--split", "train")
    told("svm", *of, "limited.zarr", "--split", "train")
    assert result_of(Path("runs/vit"), "svm")["num_test"] == LIMIT  # measured again, it took the first one's place
    assert "not two towers of one CLIP" in told("zeroshot", *of, "limited.zarr", "--split", "train", status=1)
    assert "chance 0.5000" in told("zeroshot", "--run", "runs/clip", "--store", "limited.zarr", "--split", "train")
    small = settings(*SHORT, *GROUPS, "data.pool=0")
    assert mend in told(*FINETUNE, "limited.zarr", "--run", "runs/fine", *small, status=1)
    told(*FINETUNE, "limited.zarr", "--run", "runs/fine", "--split", "train", *small)
    assert "split 'val'; it has train" in told(
        "partseg", "--recipe", "partseg", *FINETUNE[3:], "limited.zarr", "--run", "runs/parts", *small, status=1
    )
    # Several runs are no run, and a classifier is no student.
    assert "runs/fine/pretrained/seed-0" in told("svm", "--run", "runs/fine", *of[2:], "limited.zarr", status=1)
    one = ("--run", "runs/fine/pretrained/seed-0", "--store", "limited.zarr")
    assert "a pretrained model is needed here (`recon-train test` takes it)" in told("svm", *one, status=1)
    told("report", *of, "limited.zarr")
    table = told("table", "runs/vit", "runs/clip", "runs/fine")
    for row in ("linear SVM", "zero-shot", "classification"):
        lines = [line for line in table.splitlines() if line.startswith(f"| {row}") and "shapenet55" in line]
        assert lines and all("split train" in line and "trained on these shapes too" in line for line in lines)
    card = told("card", "runs/vit")
    assert "ShapeNet's terms of use" in card and re.search(r"\| image:vit-b16 \| image \| vit-b16", card)


def test_the_whole_store_after_its_part(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    usual = ("all", "--manifest", "shapenet55", "--root", "data", "--store")
    succeeds("recon-pipeline", *usual, "whole.zarr")
    small = settings(*SHORT, *GROUPS, "data.pool=0")
    few = ("--way", "2", "--shot", "2", "--folds", "0-2", *settings("data.queries=1"))
    resumed = [word.replace("limited", "whole") for word in PRETRAIN]
    for words, said in (
        ((*resumed, "runs/vit", "--resume", *settings(*SMALL, VIT)), "num_rows changed since runs/vit began (24 then"),
        ((*PRETRAIN, "runs/vit", "--resume", *settings(*SMALL)),
         "data.teachers was image:vit-b16, text:clip-b32 when runs/vit began, now image, text"),
        (("svm", "--run", "runs/vit", "--store", "whole.zarr"),
         "split 'test' has shapes of camera, of which no shape of train is finished"),
        ((*FINETUNE, "whole.zarr", "--run", "runs/more", *small),
         "split 'test' has shapes of camera, of which no shape of train is finished"),
        (("fewshot", "--recipe", "fewshot", *FINETUNE[3:], "whole.zarr", "--run", "runs/few", *few, *small),
         "'camera' asked for, 0 are finished; see `recon-pipeline stats`"),
        (("partseg", "--recipe", "partseg", *FINETUNE[3:], "whole.zarr", "--run", "runs/parts", *small),
         "name those there are (--set 'data.splits=[\"train\"]', or --split)"),
        (("svm", "--run", "runs/vit", "--store", "whole"), "no feature store at whole (did you mean whole.zarr?)"),
    ):  # fmt: skip
        capsys.readouterr()
        succeeds("recon-train", *words, status=1)
        told = capsys.readouterr().err
        assert said in told and told.count("\n") == 1
    succeeds("recon-train", "zeroshot", "--run", "runs/clip", "--store", "whole.zarr")
