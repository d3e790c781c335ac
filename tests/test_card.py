"""`recon-train card`: what it says of pretrained and downstream runs, that the recipe in it is one, and no markup."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from recon.pipeline.base.errors import UserError
from recon.trainer.config import Config, TaskConfig
from recon.trainer.recipe import config_from_dict, load_config
from recon.trainer.show.card import make_card
from tests import trainer_store as tiny
from tests.test_table import DIGEST, HOSTILE, add_result, make_run, settings, summary, voting
from tests.test_trainer_cli import run_main

TEACHER = {"kind": "image", "teacher": "vit", "key": "tk", "digest": "td", "recipe": {"weights": "sha-of-teacher"}}


def fenced(card: str, language: str) -> str:
    (found,) = re.findall(rf"^```{language}\n(.*?)^```$", card, re.DOTALL | re.MULTILINE)
    return str(found)


def section(card: str, name: str) -> str:
    return card.split(f"\n## {name}\n")[1].split("\n## ")[0]


def settings_of(record: Path) -> Config:
    return config_from_dict(json.loads(record.read_text())["config"], str(record))


def record_data(run: Path, **data: Any) -> None:
    record = json.loads((run / "config.json").read_text())
    record["data"] |= data
    (run / "config.json").write_text(json.dumps(record))


def test_the_card_of_a_pretrained_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "my_run", settings(), versions={"torch": "9.9"}, git_commit="c0ffee-dirty")
    record_data(run, teachers={"image": TEACHER})
    add_result(run, "svm", "modelnet40_fps", svm_accuracy=0.931, num_train=9843)
    add_result(run, "zeroshot", "shapenet55", zero_shot_accuracy=0.5, digests={"points": DIGEST})
    card = make_card(run)
    assert card.startswith("# my_run\n") and "shapenet55, 8 shapes of split train" in card
    assert "| linear SVM | ModelNet40 | ReCon, single-modal | overall accuracy | 93.10 | this run |" in card
    assert "arXiv" not in card
    licences = section(card, "Data and licences")
    assert "* shapenet55: ShapeNet's terms of use" in licences and "* modelnet40\\_fps:" not in licences
    assert "* modelnet40_fps: research use only" in licences
    assert "| image | image | vit | sha-of-teacher | tk | td |" in section(card, "Teachers")
    made = section(card, "Made with")
    assert "c0ffee-dirty" in made and "torch 9.9" in made
    again = "recon-train zeroshot --run runs/my_run --store stores/shapenet55.zarr --split test"
    assert fenced(card, "sh").splitlines()[-1] == again
    assert "one seed" in section(card, "Limits") and "no commit holds" in section(card, "Limits")
    assert "Zero-shot on its own data set" in section(card, "Limits")


def test_the_card_as_a_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "my_run", settings(), versions={"torch": "9.9"})
    record_data(run, teachers={"image": TEACHER})
    add_result(run, "svm", "modelnet40_fps", svm_accuracy=0.931, num_train=9843)
    assert run_main(monkeypatch, "card", str(run), "--json", "-o", str(tmp_path / "card.md")) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["run"], told["model"], told["task"]) == ("my_run", "ReCon, single-modal", "pretrain")
    (score,) = told["scores"]
    assert (score["data"], score["mean"], score["published"]) == ("ModelNet40", 93.1, False)
    assert told["data"]["teachers"] == {"image": TEACHER} and told["versions"] == {"torch": "9.9"}
    assert told["licences"].keys() == {"shapenet55", "modelnet40_fps"}
    assert config_from_dict(told["config"], "card") == settings_of(run / "config.json")
    assert (tmp_path / "card.md").read_text() == make_card(run)
    assert run_main(monkeypatch, "card", str(tmp_path), "--json") == 1


def test_the_recipe_in_it_trains_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings("recon-small", "optim.ema=0.999", 'data.ref="a```b\\n```"'))
    (tmp_path / "recipe.toml").write_text(fenced(make_card(run), "toml"))
    assert load_config(str(tmp_path / "recipe.toml")) == settings_of(run / "config.json")


def test_the_card_of_several_stores_names_all(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", settings("recon-small", "data.shares=[3,1]"))
    first = json.loads((run / "config.json").read_text())["data"]
    record_data(run, shares=[3, 1], stores=[first, first | {"ref": "objaverse", "num_rows": 7}])
    card = make_card(run)
    assert f"Trained on {first['ref']}, objaverse, " in card
    assert "| trained on | objaverse | train | 7 |" in section(card, "Data and licences")
    assert "* objaverse: " in section(card, "Data and licences")
    stores = f"--store stores/{first['ref']}.zarr --store stores/objaverse.zarr"
    assert f"recon-train pretrain {stores} --run " in fenced(card, "sh")


def test_the_card_of_a_downstream_run_has_the_spread_of_its_seeds(tmp_path: Path) -> None:
    config = settings("finetune-modelnet40", "task.pretrained=/somewhere/private", "task.selection=test", "run.seed=1")
    arms = {"pretrained": {"accuracy": [0.9, 0.94]}, "scratch": {"accuracy": [0.5, 0.6]}}
    told = {"ref": "modelnet40_fps", "num_train": 9843, "num_test": 2468, "selection": "test"}
    folder = summary(tmp_path / "fine", config, arms, **told)
    run = make_run(folder / "pretrained" / "seed-1", config, "modelnet40_fps")
    record_data(run, pretrained={"step": 3, "sha256": "base-sum"}, category_names=["chair", "lamp"])
    add_result(run, "full", "modelnet40_fps", accuracy=0.94, num_train=9843, selection="test", seed=1)
    card = make_card(run)
    assert card.startswith("# fine/pretrained/seed-1\n") and "| categories | chair, lamp |" in card
    scores = section(card, "Scores")
    assert "| 92.00 ± 2.83 | all its seeds |" in scores and "| 94.00 | this run |" in scores and "50.00" not in scores
    assert "/somewhere/private" not in card and "base-sum" in card
    assert "see their card" in section(card, "Data and licences")
    command, wanted = fenced(card, "sh").splitlines()[-1], "--recipe recipe.toml --seeds 1 --split test"
    usual = "recon-train finetune --store stores/modelnet40_fps.zarr --from PRETRAINED --run runs/fine"
    assert command == f"{usual} {wanted}"
    assert "optimistic" in section(card, "Limits") and "one seed" not in section(card, "Limits")
    add_result(run, "full_10votes", "modelnet40_mine", accuracy=0.9, selection="test", voting=voting(0.9, 0.91), seed=1)
    *_, again, plain, voted = ["", *fenced(make_card(run), "sh").splitlines()]
    tested = "recon-train test runs/fine/pretrained/seed-1 --store stores/modelnet40_mine.zarr --split test"
    assert (again, voted, plain) == (command, f"{tested} --votes 10 --repeats 2", tested)
    (tmp_path / "recipe.toml").write_text(fenced(card, "toml"))
    assert load_config(str(tmp_path / "recipe.toml")).task == TaskConfig("classify", selection="test")


def test_folds_are_made_again_by_fewshot(tmp_path: Path) -> None:
    config = settings("fewshot", "data.way=5", "data.fold=3")
    run = make_run(tmp_path / "few" / "scratch" / "5way-10shot" / "fold-3", config, "demo")
    command = fenced(make_card(run), "sh").splitlines()[-1]
    assert (
        command.endswith("--run runs/few --recipe recipe.toml --way 5 --shot 10 --folds 3") and "--from" not in command
    )
    config = settings("fewshot", 'data.splits=["fold4-train"]')
    run = make_run(tmp_path / "few" / "scratch" / "modelnet_fewshot" / "fold-4", config, "modelnet_fewshot")
    command = fenced(make_card(run), "sh").splitlines()[-1]
    assert command.endswith("--run runs/few --recipe recipe.toml --folds 4")
    config = settings("partseg")
    run = make_run(tmp_path / "seg" / "scratch" / "seed-0", config, "shapenetpart")
    assert "recon-train partseg --store stores/shapenetpart.zarr" in fenced(make_card(run), "sh")


def test_the_pretraining_of_a_run_is_told_where_it_still_lies(tmp_path: Path) -> None:
    base = make_run(tmp_path / "base", settings(), "my-shapes")
    record_data(base, teachers={"image": TEACHER})
    (base / "checkpoints").mkdir()
    pointer = {"step": 2, "files": {"step-00000002.safetensors": "base-sum"}}
    (base / "checkpoints" / "last.json").write_text(json.dumps(pointer))
    run = make_run(tmp_path / "run", settings("finetune-modelnet40", f"task.pretrained={base}"), "modelnet40_fps")
    record_data(run, pretrained={"step": 2, "sha256": "base-sum"})
    card = make_card(run)
    assert "| pretrained on | my-shapes |" in card and "sha-of-teacher" in section(card, "Teachers")
    assert "* my-shapes: no licence is recorded" in card
    # Trained on since: what it is now did not make this run.
    record_data(run, pretrained={"step": 1, "sha256": "earlier"})
    card = make_card(run)
    assert "my-shapes" not in card and "Labels alone taught this run." in card


def test_names_are_no_markup(tmp_path: Path) -> None:
    plain = make_card(make_run(tmp_path / "run", settings()))
    run = make_run(tmp_path / "a`|\n# b<i>", settings(), HOSTILE, versions={HOSTILE: HOSTILE}, git_commit=HOSTILE)
    teacher = dict.fromkeys(("kind", "teacher", "key", "digest"), HOSTILE) | {"recipe": {"weights": HOSTILE}}
    record_data(run, teachers={HOSTILE: teacher}, splits=[HOSTILE], category_names=[HOSTILE])
    card = make_card(run)
    assert re.findall(r"^#+ ", card, re.MULTILINE) == re.findall(r"^#+ ", plain, re.MULTILINE)
    prose = re.sub(r"^```.*?^```$", "", card, flags=re.DOTALL | re.MULTILINE)
    assert not re.search(r"[<$\x1b]|(?<!\\)\[", prose)
    assert len(fenced(card, "sh").splitlines()) == len(fenced(plain, "sh").splitlines())
    words = shlex.split(fenced(card, "sh").splitlines()[-1])
    assert words[:3] == ["recon-train", "pretrain", "--store"] and len(words) == 8


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run there"):
        make_card(tmp_path)
    (tmp_path / "summary.json").write_text("{}")
    with pytest.raises(UserError, match="a card is of one of its runs"):
        make_card(tmp_path)
    run = make_run(tmp_path / "run", settings())
    record_data(run, points=None)
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        make_card(run)


@pytest.mark.slow
def test_from_training_to_table_and_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tiny.make_store(tmp_path / "tiny.zarr", text_dim=tiny.IMAGE_DIM).path)
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    downstream = (
        '[task]\nkind = "classify"\n[data]\nnum_points = 64\n[optim]\nepochs = 2\nbatch_size = 8\nwarmup_epochs = 1\n'
    )
    (tmp_path / "fine.toml").write_text(downstream)
    run, usual = str(tmp_path / "run"), ["--store", store, "--device", "cpu"]
    assert run_main(monkeypatch, "pretrain", *usual, "--run", run, "--recipe", str(tmp_path / "tiny.toml")) == 0
    assert run_main(monkeypatch, "svm", *usual, "--run", run) == 0
    assert run_main(monkeypatch, "zeroshot", *usual, "--run", run) == 0
    fine = ["--run", str(tmp_path / "fine"), "--recipe", str(tmp_path / "fine.toml"), "--from", run, "--seeds", "0,1"]
    assert run_main(monkeypatch, "finetune", *usual, *fine, "--scratch") == 0
    capsys.readouterr()
    assert run_main(monkeypatch, "table", run, str(tmp_path / "fine"), "--format", "csv") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.partition(",")[0] for line in lines] == ["linear SVM"] * 2 + ["zero-shot"] * 3 + ["classification"] * 2
    assert sum("from scratch" in line for line in lines) == 1 and all(",tiny," in line for line in lines)
    assert run_main(monkeypatch, "card", run) == 0
    card = capsys.readouterr().out
    made = load_config(str(write(tmp_path / "again.toml", fenced(card, "toml"))))
    assert made.optim == load_config(str(tmp_path / "tiny.toml")).optim
    assert re.search(r"\| weights \| \d\.\d\d M values, step 6, sha256 [0-9a-f]{64} \|", card)
    seed = tmp_path / "fine" / "pretrained" / "seed-1"
    assert run_main(monkeypatch, "card", str(seed), "-o", str(tmp_path / "CARD.md")) == 0
    assert run_main(monkeypatch, "test", str(seed), *usual, "--votes", "2", "--repeats", "2") == 0
    capsys.readouterr()
    assert run_main(monkeypatch, "table", str(seed), "--format", "csv") == 0
    told = [line.rpartition("; ")[2] for line in capsys.readouterr().out.splitlines()[1:]]
    assert told == ["no voting", "mean of 2 repetitions of 2 votes", "best on these shapes of 2 repetitions of 2 votes"]
    card = (tmp_path / "CARD.md").read_text()
    assert "| all its seeds |" in card and "| pretrained on | tiny |" in card and str(tmp_path) not in card


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
