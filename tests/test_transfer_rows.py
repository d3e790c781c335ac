"""Every command for a published row, from the data set's genuine layout in miniature to its row of the table."""

from __future__ import annotations

from pathlib import Path

import pytest

from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.flow.run import Flow
from recon.pipeline.store import FeatureStore
from tests.cloud_trees import TREES, manifest
from tests.test_docs import SMALL, commands, succeeds

pytestmark = pytest.mark.slow  # stores are made and many runs are trained

PAGE = Path(__file__).resolve().parents[1] / "docs" / "transfer.md"
MODEL = ("model.num_group=4", "model.group_size=8")
TINY = (*SMALL[:2], "optim.batch_size=2", "optim.accumulate=1", "data.num_points=32", "data.pool=0", *MODEL)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, small_manifest: Path, small_store: Path) -> Path:
    """A folder with a store of every data set, by the words that the pretrained runs' teacher embeds."""
    folder = tmp_path_factory.mktemp("rows")
    teachers = load_manifest(small_manifest).features.teachers
    for name in {store for words in rows() for store in words if store.startswith("stores/")}:
        dataset = Path(name).stem
        build, source, _, _ = TREES[dataset]
        build(folder / "data" / dataset)
        shipped = manifest(dataset, **source)
        sample = shipped.sample.model_copy(update={"num_points": 40})
        features = shipped.features.model_copy(update={"teachers": teachers})
        small = shipped.model_copy(update={"sample": sample, "features": features})
        results = Flow(small, folder / "data" / dataset, FeatureStore.create(folder / name)).all()
        assert not any(result.failed for result in results)
    return folder


def rows() -> list[list[str]]:
    """The page's commands that need a published data set or a run on ShapeNet-55."""
    named = ("stores/modelnet", "stores/scanobjectnn", "stores/shapenetpart", "runs/shapenet55")
    return [words[1:] for words in commands(PAGE) if any(word.startswith(named) for word in words)]


def test_every_row_is_made(
    place: Path, small_store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    found = rows()
    for words in found:
        start = next((word for word in words if word.startswith("runs/shapenet55")), "")
        if start and not Path(start).exists():
            form = start.partition("shapenet55-")[2]
            streams = [f"model.streams={form}"] if form in ("multitask", "two_tower") else ["model.patch_width=512"]
            streams.append("model.block=released")
            settings = [each for each in (*SMALL, *MODEL, "data.num_points=32", *streams) for each in ("--set", each)]
            succeeds(
                "recon-train", "pretrain", "--recipe", "demo", "--store", str(small_store), "--run", start, *settings
            )
        file = next((word for word in words if word.startswith("released/") and not Path(word).exists()), "")
        if file:
            succeeds("recon-train", "export", "runs/shapenet55-clip", "-o", file)
        small = [each for each in TINY for each in ("--set", each)]
        trains = words[0] in ("finetune", "fewshot", "partseg")
        more = [*small, *(["--folds", "0-1"] if words[0] == "fewshot" else [])] if trains else []
        more += ["--set", "data.num_points=32", "--set", MODEL[0]] if "-o" in words else []  # of a file
        less = {"10": "2", "30": "2"} if words[0] == "test" else {}  # votes and repetitions
        capsys.readouterr()
        succeeds("recon-train", *(less.get(word, word) for word in words), *more)
    told = capsys.readouterr().out
    assert found[-1][0] == "table"
    for published in ("95.18", "90.63", "94.1", "93.4", "61.7", "86.4"):
        assert published in told
    for run in ("runs/obj_bg", "runs/fewshot-5way-10shot", "runs/shapenetpart", "runs/shapenet55", "results/released"):
        assert run in told
