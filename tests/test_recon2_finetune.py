"""Fine-tuning from ReCon++'s weights: what a file does not tell, what stays as drawn, and the decoder that is kept."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.checkpoint import read_record
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.checkpoints.released2 import RELEASED2_TEACHERS
from recon.trainer.config import TaskConfig
from recon.trainer.data.batches import Batch
from recon.trainer.model.heads import Classifier
from recon.trainer.model.losses import mdm_losses
from recon.trainer.model.recon import ModelConfig
from recon.trainer.recipe import load_config
from recon.trainer.training import tasks
from recon.trainer.transfer import starting_model
from tests import released2_goldens as goldens
from tests import trainer_store as tiny
from tests.released_goldens import GOLDEN
from tests.test_recon2_model import released_file
from tests.test_trainer_cli import run_main
from tests.test_trainer_loop import metrics

RECIPE = """
[task]
kind = "classify"
rebuild = 3.0
[model]
num_group = 16
group_size = 8
mask_type = "causal"
position = "sine"
drop_path = 0.0
[data]
num_points = 64
normalize = "cloud"
[optim]
epochs = 3
batch_size = 8
accumulate = 2
warmup_epochs = 1
lr = 1e-6
warmup_lr = 1e-6
[run]
log_every = 1
save_every = 4
precision = "float32"
"""
QUERIES = [
    f'{{name="{each.name}", kind="{each.kind}", dim=1280, loss="matched_sum", queries={count}}}'
    for each, count in zip(RELEASED2_TEACHERS, (4, 2), strict=True)
]
UNTOLD = ["model.heads=4", f"model.teachers=[{', '.join(QUERIES)}]"]


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    (tmp_path / "causal.toml").write_text(RECIPE)
    return str(tmp_path / "causal.toml")


def classifier(source: Path, recipe: str, *more: str) -> Classifier:
    settings = [*UNTOLD, *more]
    config = load_config(recipe, settings, starting_model(source, recipe, settings))
    torch.manual_seed(0)
    return Classifier(config.model, 3, rebuilds=config.task.rebuild > 0)


@pytest.mark.parametrize("missing", [0, 1])
def test_what_no_shape_tells_is_asked_for_by_name(missing: int, tmp_path: Path, recipe: str) -> None:
    source, given = released_file(tmp_path, "causal"), [each for place, each in enumerate(UNTOLD) if place != missing]
    with pytest.raises(UserError, match=(r"model\.heads: no size", r"model\.teachers: the checkpoint has 6")[missing]):
        starting_model(source, recipe, given)


@pytest.mark.parametrize("case", ["causal", "finetune"])
def test_encoder_and_decoder_are_the_files(case: str, tmp_path: Path, recipe: str) -> None:
    source = released_file(tmp_path, case)
    model, theirs = classifier(source, recipe), goldens.built(GOLDEN / "recon2_small", case).state_dict()
    cls = model.encoder.query_token[:, :1].detach().clone()
    assert tasks.load_pretrained(model, str(source)) == ""
    ours = model.state_dict()
    inherited = {name for name in ours if name.startswith(("encoder.", "decoder."))}
    for name in inherited - {"encoder.query_token"}:
        assert torch.equal(ours[name], theirs[name]), name
    queries = theirs["encoder.query_token"]
    expected = queries if case == "finetune" else torch.cat([cls, queries], dim=1)
    assert torch.equal(ours["encoder.query_token"], expected) and model.config.queries[0] == "cls"


def test_zero_shot_weights_leave_what_only_the_causal_form_has_as_drawn(tmp_path: Path, recipe: str) -> None:
    source = released_file(tmp_path, "rand")
    model = classifier(source, recipe)
    assert model.config.color and model.config.patch_layers == 2
    start = model.encoder.start_token.detach().clone()
    assert tasks.load_pretrained(model, str(source)) == (
        "task.pretrained: encoder.start_position, encoder.start_token as drawn; "
        "decoder.mask_token, decoder.position, encoder.position left out"
    )
    assert torch.equal(model.encoder.start_token, start)
    theirs = goldens.built(GOLDEN / "recon2_small", "rand").state_dict()
    assert torch.equal(model.decoder.head.weight, theirs["decoder.head.weight"])
    # In its own form a classifier takes all of it, but for the decoder, which has nothing to rebuild.
    own = classifier(source, recipe, "model.mask_type=rand", "model.position=mlp", "task.rebuild=0")
    assert tasks.load_pretrained(own, str(source)) == "" and own.decoder is None
    without = classifier(source, recipe, "model.color=false")
    with pytest.raises(UserError, match=r"conv1\.weight of \[128, 6\], which should be \[128, 3\]") as raised:
        tasks.load_pretrained(without, str(source))
    assert "\n" not in str(raised.value)


def test_a_decoder_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(
        width=12, heads=3, depth=1, decoder_depth=1, num_group=16, group_size=8, block="recon2", mask_type="causal"
    )
    plain, model = Classifier(config, 3), Classifier(config, 3, rebuilds=True)
    monkeypatch.setattr(tasks, "read_any", lambda path, untold: (plain, None))
    assert tasks.load_pretrained(model, "runs/some") == "task.pretrained: decoder as drawn"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["task.protocol=linear"], 'rebuild: goes with kind "classify" and protocol "full"'),
        (["task.rebuild=-1"], r"task\.rebuild"),
    ],
)
def test_what_cannot_rebuild_is_named(settings: list[str], told: str, recipe: str) -> None:
    with pytest.raises(UserError, match=told):
        load_config(recipe, settings)
    with pytest.raises(ValueError, match=r'model\.reconstruction: "none" rebuilds nothing; set task\.rebuild=0'):
        Classifier(dataclasses.replace(load_config(recipe).model, reconstruction="none"), 3, rebuilds=True)
    assert TaskConfig(kind="classify").rebuild == 0


@pytest.mark.parametrize("name", ["finetune-scanobjectnn", "finetune-modelnet40", "finetune-modelnet40-8k"])
def test_a_recipe_is_the_releases_with_a_factor(name: str) -> None:
    causal = {"mask_type": "causal", "position": "sine", "block": "recon2", "reconstruction": "mdm"}
    plain, config = load_config(name, model=causal), load_config(name, ["task.rebuild=3"], causal)
    assert config.model.mask_type == "causal" and config.model.drop_path == 0.2
    assert dataclasses.replace(config, task=plain.task) == plain and config.task.rebuild == 3
    groups = {"finetune-scanobjectnn": 128, "finetune-modelnet40": 64, "finetune-modelnet40-8k": 512}
    assert config.model.num_group == groups[name]
    Classifier(dataclasses.replace(config.model, depth=1, decoder_depth=1), 3, rebuilds=True)


@pytest.mark.parametrize("factor", [0.0, 3.0])
def test_the_loss_is_the_releases(factor: float) -> None:
    folder = GOLDEN / "recon2_small"
    model = goldens.built(folder, "finetune")
    assert isinstance(model, Classifier)
    points = goldens.points_of(folder, model)
    labels = torch.arange(len(points)) % 5
    losses = tasks.classification_losses(model.eval(), Batch(points, (), labels, labels), None, factor)
    with torch.no_grad():
        groups, centers = model.group(points)
        tokens = model.encoder(model.encoder.patch_embed(groups), centers)[1]
        assert model.decoder is not None
        rebuilt = mdm_losses(model.decoder.causal(tokens, centers).flatten(0, 1), groups.flatten(0, 1))
        entropy = torch.nn.functional.cross_entropy(model(points), labels)
    expected = entropy + factor * (rebuilt["cdl1"] + rebuilt["cdl2"])
    torch.testing.assert_close(losses["total"], expected)
    assert ("reconstruction" in losses) == (factor > 0)


@pytest.mark.slow  # whole runs are trained
def test_a_released_file_is_fine_tuned_and_tested(
    tmp_path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store, source = tiny.make_store(tmp_path / "tiny.zarr").path, released_file(tmp_path, "causal")
    words = ["--store", str(store), "--from", str(source), "--recipe", recipe, "--run", str(tmp_path / "out")]
    given = [word for setting in UNTOLD for word in ("--set", setting)]

    def call(*more: str) -> int:
        return run_main(monkeypatch, "finetune", *words, *more, "--device", "cpu")

    assert call() == 1
    told = capsys.readouterr().err
    assert "model.teachers: the checkpoint has 6 queries" in told and told.count("\n") == 1
    assert call(*given) == 0
    run = tmp_path / "out" / "pretrained" / "seed-0"
    lines = metrics(run)
    for line in lines:
        assert line["total"] == pytest.approx(line["cross_entropy"] + 3 * line["reconstruction"], rel=1e-4)
    assert lines and read_record(run)["config"]["task"]["rebuild"] == 3
    theirs = goldens.built(GOLDEN / "recon2_small", "causal").state_dict()
    ended = load_file(run / "checkpoints" / "step-00000009.safetensors")
    for name in ("encoder.blocks.1.mlp.fc1.weight", "decoder.blocks.0.mlp.fc1.weight"):
        assert not torch.equal(ended[name], theirs[name])
        torch.testing.assert_close(ended[name], theirs[name], atol=1e-4, rtol=0)
    model = load_model(run)
    assert isinstance(model, Classifier) and model.decoder is not None
    capsys.readouterr()
    assert run_main(monkeypatch, "test", str(run), "--store", str(store), "--device", "cpu", "--json") == 0
    summary: dict[str, Any] = json.loads((tmp_path / "out" / "summary.json").read_text())
    tested = json.loads(capsys.readouterr().out)
    assert tested["accuracy"] == summary["arms"]["pretrained"]["accuracy"]["values"]["0"]
    assert call(*given) == 0 and "done before" in capsys.readouterr().err
    # And a fine-tuned run is a start too, in its own settings.
    again = [str(run) if word == str(source) else word for word in words]
    again[-1] = str(tmp_path / "next")
    assert run_main(monkeypatch, "finetune", *again, "--device", "cpu") == 0
