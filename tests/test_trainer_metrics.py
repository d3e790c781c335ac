"""What a run measures of the machine: waiting for data, operations against the peak, memory; and where lines go."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recon.pipeline.base.errors import UserError
from recon.pipeline.store import FeatureStore
from recon.trainer.data.dataset import Dataset, load_dataset
from recon.trainer.model import flops
from recon.trainer.model.flops import count_flops, measured_peak, named_peak
from recon.trainer.training import metrics, writers
from recon.trainer.training.metrics import Metrics, read_lines
from recon.trainer.training.pretraining import pretrain
from tests import trainer_store as tiny
from tests.test_trainer_loop import CONFIG, CPU, QUIET, assert_same_run, trainer_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.make_store(tmp_path_factory.mktemp("stores") / "tiny.zarr").path


@pytest.fixture(scope="module")
def data(store: Path) -> Dataset:
    return load_dataset(FeatureStore.open(store), CONFIG.data)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """One number: what time.monotonic says to the metrics."""
    now = [100.0]
    monkeypatch.setattr(metrics, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_shares_are_of_the_time_since_the_last_line(tmp_path: Path, clock: list[float]) -> None:
    def batches() -> Iterator[int]:
        for number in range(4):
            clock[0] += 0.5
            yield number

    measured = Metrics(tmp_path, log_every=2, batch_size=8, device=CPU)
    measured.use_of_peak = 0.01
    measured.begin(0)
    for step, _ in enumerate(measured.waiting(batches()), start=1):
        clock[0] += 1.5 if step <= 2 else 4.5
        measured.add({"total": torch.tensor(float(step)), "grad_norm": torch.tensor(1.0)})
        if step == 2:
            with measured.paused():
                clock[0] += 1000
        if step % 2 == 0:
            measured.log(step, 0, 1e-3, measured.means(step), 0.0)
    first, second = read_lines(tmp_path)
    assert (first["data_wait"], first["samples_per_second"], first["mfu"]) == (0.25, 4.0, 0.04)
    assert (second["data_wait"], second["samples_per_second"], second["mfu"]) == (0.1, 1.6, 0.016)
    assert (first["total"], second["total"]) == (1.5, 3.5)
    assert 0 < first["peak_memory_gb"] < 1000


def test_without_a_known_peak_there_is_no_mfu(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recon.trainer.training.loop.peak_flops", lambda *_: 0.0)
    trainer_of(data, tmp_path).train(QUIET)
    assert all("mfu" not in line and "data_wait" in line for line in read_lines(tmp_path))


def test_counting_changes_nothing(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer_of(data, tmp_path / "counted").train(QUIET)
    assert all(0 < line["mfu"] < 1 for line in read_lines(tmp_path / "counted"))
    monkeypatch.setattr("recon.trainer.training.loop.peak_flops", lambda *_: 0.0)
    trainer_of(data, tmp_path / "plain").train(QUIET)
    assert_same_run(tmp_path / "counted", tmp_path / "plain")


def test_operations_are_counted_forward_and_backward() -> None:
    layer, x = nn.Linear(5, 7, bias=False), torch.ones(11, 5, requires_grad=True)
    before = torch.get_rng_state()
    # The product, the gradient of the weights and that of the input.
    assert count_flops(layer, lambda twin: twin(x).sum().backward()) == 3 * 2 * 5 * 7 * 11
    assert layer.weight.grad is None and torch.equal(torch.get_rng_state(), before)


def test_attention_s_own_products_are_counted() -> None:
    x = torch.ones(2, 3, 16, 8)
    attention = lambda _: nn.functional.scaled_dot_product_attention(x, x, x)  # noqa: E731
    assert count_flops(nn.Identity(), attention) == 2 * (2 * 2 * 3 * 16 * 16 * 8)


def test_a_step_is_counted_the_same_whatever_the_batch(data: Dataset, tmp_path: Path) -> None:
    trainer = trainer_of(data, tmp_path)
    whole = trainer.batches.batch(0)
    counted = trainer._sample_flops(whole)
    step = count_flops(trainer.model, lambda twin: trainer._part(twin, whole, len(whole), torch.Generator()))
    assert counted == pytest.approx(step / len(whole), rel=1e-3)
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989e12),
        ("NVIDIA H100 PCIe", "bfloat16", 756e12),
        ("NVIDIA A100-SXM4-80GB", "float32", 19.5e12),
        ("NVIDIA A10G", "bfloat16", 70e12),
        ("NVIDIA L4", "bfloat16", 121e12),
        ("NVIDIA L40S", "bfloat16", 362e12),
        ("NVIDIA GeForce RTX 4090", "float32", 82.6e12),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "float32", 0.0),
        ("Somebody's Accelerator", "bfloat16", 0.0),
    ],
)
def test_a_gpu_s_peak_goes_by_its_name(name: str, precision: Any, peak: float) -> None:
    assert named_peak(name, precision) == peak


def test_a_processor_s_peak_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "MEASURED_SECONDS", 0.02)
    found = measured_peak(1, "float32")
    assert 1e8 < found < 1e14
    assert measured_peak(1, "float32") == found


class FakeEvents:
    """What torch.utils.tensorboard's writer takes."""

    def __init__(self, folder: str, **options: Any) -> None:
        self.folder, self.options, self.scalars, self.closed = folder, options, [], False
        FakeEvents.made.append(self)

    made: list[FakeEvents]

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake_tensorboard(monkeypatch: pytest.MonkeyPatch) -> type[FakeEvents]:
    FakeEvents.made = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeEvents  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(writers, "check_writers", lambda names: None)
    monkeypatch.setattr("recon.trainer.training.loop.check_writers", lambda names: None)
    return FakeEvents


def test_tensorboard_takes_the_lines_of_the_file(
    store: Path, tmp_path: Path, fake_tensorboard: type[FakeEvents]
) -> None:
    run, recipe = tmp_path / "run", tmp_path / "tiny.toml"
    recipe.write_text(tiny.RECIPE)
    assert pretrain(QUIET, store, run, str(recipe), ['run.log_to=["tensorboard"]']) == 0
    (events,) = fake_tensorboard.made
    assert (events.folder, events.options, events.closed) == (str(run / "tensorboard"), {}, True)
    lines = read_lines(run)
    assert events.scalars == [
        (name, value, line["step"]) for line in lines for name, value in line.items() if name != "step"
    ]
    assert pretrain(QUIET, store, run, None, resume=True) == 0
    assert fake_tensorboard.made[1].options == {"purge_step": 7}


class FakeWandb(types.ModuleType):
    """What the wandb package offers of a run."""

    class Error(Exception):
        """Its own."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.finished = self.refuses = False

    def init(self, **options: Any) -> FakeWandb:
        if self.refuses:
            raise self.Error("no API key")
        self.begun.append(options)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, line: dict[str, Any]) -> None:
        self.logged.append(line)

    def finish(self) -> None:
        self.finished = True


def test_wandb_takes_the_lines_of_the_file_and_goes_on_with_the_run(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setattr("recon.trainer.training.loop.check_writers", lambda names: None)
    trainer_of(data, tmp_path / "run", run__log_to=("wandb",)).train(QUIET)
    assert wandb.logged == read_lines(tmp_path / "run") and wandb.finished
    (begun,) = wandb.begun
    assert (begun["name"], begun["resume"], begun["config"]["run"]["log_to"]) == ("run", "allow", ["wandb"])
    again = trainer_of(data, tmp_path / "run", run__log_to=("wandb",))
    again.resume()
    again.train(QUIET)
    trainer_of(data, tmp_path / "run", run__log_to=("wandb",)).train(QUIET)
    first, resumed, anew = (options["id"] for options in wandb.begun)
    assert first == resumed != anew
    wandb.refuses = True
    with pytest.raises(UserError, match=r"run\.log_to: wandb does not start: no API key"):
        trainer_of(data, tmp_path / "run", run__log_to=("wandb",)).train(QUIET)


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_missing_is_told_before_anything(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(writers.importlib.util, "find_spec", lambda module: None)
    (tmp_path / "tiny.toml").write_text(tiny.RECIPE)
    with pytest.raises(
        UserError, match=rf"log_to: {name} is not installed; run `pip install .recon-pointcloud\[{name}"
    ):
        pretrain(QUIET, store, tmp_path / "run", str(tmp_path / "tiny.toml"), [f'run.log_to=["{name}"]'])
    assert not (tmp_path / "run").exists()


def test_real_event_files(data: Dataset, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer_of(data, tmp_path, run__log_to=("tensorboard",)).train(QUIET)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("total")] == [
        (line["step"], pytest.approx(line["total"], rel=1e-6)) for line in read_lines(tmp_path)
    ]
