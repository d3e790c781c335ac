"""A key cannot be filled by another teacher than it names: workers compare the recipe and a probe of fixed inputs."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from recon.pipeline.base.digests import digest_of, row_digest
from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.execution.engine import run_stage
from recon.pipeline.execution.executor import Executor, InProcess, Processes
from recon.pipeline.flow.manifest import load_manifest, origin_of
from recon.pipeline.flow.rows import StageRows
from recon.pipeline.flow.run import Flow
from recon.pipeline.stages.rows import prompt_rows
from recon.pipeline.stages.targets import ImageTargets, finite_block
from recon.pipeline.stages.views import RenderedViews
from recon.pipeline.store import FeatureStore, twins
from recon.pipeline.teachers import probe
from recon.pipeline.teachers.loaded import DRAWN, PROBE, loaded, teacher_of
from recon.pipeline.teachers.probe import NUMBERS, SENTENCES, TOLERANCES, difference, of_features, pictures, sketch
from tests.conftest import MANIFEST
from tests.teacher_models import save_clip, spec

pytestmark = pytest.mark.slow  # models, wheels and processes are made

TOY = """
import numpy as np

SCALE, BAD = 1.0, None

class Mean:
    def __init__(self, spec, device):
        self.shape = (3,)

    def recipe(self):
        return {"kind": "mean/1", "weights": "0", "words": "0"}

    def embed_images(self, images, seeds):
        features = images.mean((1, 2), dtype=np.float32) * SCALE
        return features if BAD is None else np.full_like(features, BAD)

    def text_recipe(self):
        return {"kind": "mean/1", "weights": "0"}

    def embed_texts(self, texts):
        return np.array([[len(text), text.count(" "), 1] for text in texts], np.float32) * SCALE
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of a teacher of one's own."""
    (tmp_path / "mean_teacher.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mean_teacher", raising=False)
    loaded.cache_clear()
    import mean_teacher

    return mean_teacher


@pytest.fixture
def toy_flow(toy: Any, tmp_path: Path) -> Flow:
    """Three shapes, two views, two draws."""
    text = MANIFEST.format(shapes=1, model="mean_teacher:Mean").replace('kind = "open_clip"', 'kind = "python"')
    (tmp_path / "toy.toml").write_text(text)
    return Flow(load_manifest(tmp_path / "toy.toml"), None, FeatureStore.create(tmp_path / "toy.zarr"))


def entry_of(flow: Flow, name: str) -> StageRows:
    return next(entry for entry in flow.stages() if entry.name == name)


def receipts(store: FeatureStore, key: str) -> list[Path]:
    return sorted((store.path / "receipts" / key).glob("*.json"))


# ---- what a worker compares


@pytest.mark.slow
@pytest.mark.parametrize(("name", "executor"), [("targets tiny", Processes(1)), ("text tiny", InProcess())])
def test_weights_swapped_after_the_key_was_made_compute_nothing(
    tmp_path: Path, clip_config: Path, name: str, executor: Executor
) -> None:
    """The parent made the key of one file, the worker loads another: it must not fill the key."""
    shutil.copytree(clip_config.parent, tmp_path / "clip")
    (tmp_path / "m.toml").write_text(MANIFEST.format(shapes=1, model="clip/tiny.json"))
    flow = Flow(load_manifest(tmp_path / "m.toml"), None, FeatureStore.create(tmp_path / "s.zarr"))
    flow.render()
    flow.caption()
    entry = entry_of(flow, name)
    rows = entry.rows
    if name.startswith("text"):
        key = digest_of(entry.stage.recipe)
        flow.store.require_key("text", key, entry.stage.recipe, entry.stage.columns, entry.stage.attributes)
        flow.store.append_prompts(key, ["a chair"])
        rows = prompt_rows(["a chair"])
    state = load_file(tmp_path / "clip" / "tiny.safetensors")
    save_file({field: 3 * value for field, value in state.items()}, tmp_path / "clip" / "tiny.safetensors")
    loaded.cache_clear()
    with executor, pytest.raises(UserError, match=r"teacher 'tiny': the model loaded .* w(eight|ord)s: ") as caught:
        run_stage(flow.store, entry.stage, rows, executor)
    assert "\n" not in str(caught.value)
    assert not receipts(flow.store, digest_of(entry.stage.recipe))


@pytest.mark.slow
def test_a_class_whose_code_changed_under_its_recipe_stops_the_next_run(toy_flow: Flow, toy: Any) -> None:
    first = toy_flow.features()
    assert {result.kind: len(result.failed) for result in first}["targets"] == 0
    store = toy_flow.store
    before = np.asarray(store.targets("tiny").feat[:])
    manifest = toy_flow.manifest
    source = manifest.source.model_copy(update={"shapes_per_category": 2})
    more = Flow(manifest.model_copy(update={"source": source}), None, store)
    toy.SCALE = 1.1
    loaded.cache_clear()
    with pytest.raises(MachineError, match=r"'tiny': it has the recipe of targets/\w+ .* by 0\.1 .*`kind`"):
        more.features()
    assert np.array_equal(store.targets("tiny").feat[:, : before.shape[1]], before)
    toy.SCALE = 1 + TOLERANCES["fp32"] / 5  # as another machine's last bits
    loaded.cache_clear()
    assert not more.features()[-1].failed


def test_other_tokens_stop_the_run(clip_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(spec(model=str(clip_config)))
    held = model.text_probe
    assert len(held["tokens"]) == len(SENTENCES) == len(set(held["tokens"]))
    teacher: Any = teacher_of(spec(model=str(clip_config)))
    tokenizer = teacher._tokenizer
    monkeypatch.setattr(teacher, "_tokenizer", lambda texts: tokenizer([text.replace("_", " ") for text in texts]))
    loaded.cache_clear()
    monkeypatch.setattr("recon.pipeline.teachers.loaded.load_teacher", lambda spec, device: teacher)
    own = loaded(spec(model=str(clip_config))).text_probe
    assert difference(held, own, "bf16").startswith("other tokens of 'flower_pot")
    loaded.cache_clear()


def test_probes_stand_beside_the_recipe_and_not_in_the_key(small_store: Path) -> None:
    store = FeatureStore.open(small_store)
    keys = {"targets": store.targets().key, "text": store.text().key}
    attributes: dict[str, Any] = {kind: store.kind_group(kind, key).attrs.asdict() for kind, key in keys.items()}
    assert {PROBE, DRAWN} <= set(attributes["targets"])
    assert "tokens" in attributes["text"][PROBE]
    for kind, held in attributes.items():
        assert digest_of(held["recipe"]) == keys[kind]
        assert "probe" not in str(held["recipe"])


def test_a_key_of_before_gets_its_probe_and_keeps_it(tmp_path: Path) -> None:
    store = FeatureStore.create(tmp_path / "s.zarr")
    recipe = {"stage": "targets"}
    store.require_key("targets", "k", recipe, [], {"teacher": {"name": "t"}})
    store.require_key("targets", "k", recipe, [], {"teacher": {"name": "other"}, PROBE: {"version": 1}})
    store.require_key("targets", "k", recipe, [], {PROBE: {"version": 2}})
    held = FeatureStore.open(store.path).kind_group("targets", "k").attrs.asdict()
    assert (held["teacher"], held[PROBE], held["recipe"]) == ({"name": "t"}, {"version": 1}, recipe)
    assert not twins.check(store.path)


@pytest.mark.slow
def test_views_of_a_key_whose_teacher_did_something_else_are_not_taken_over(toy_flow: Flow, toy: Any) -> None:
    toy_flow.features()
    before = toy_flow.store.targets("tiny")
    render = toy_flow.manifest.render.__class__(preset="ring2", resolution=32, normals=True)
    toy.SCALE = 2.0
    loaded.cache_clear()
    flow = Flow(toy_flow.manifest.model_copy(update={"render": render}), None, toy_flow.store)
    flow.render()
    entry = entry_of(flow, "targets tiny")
    run_stage(toy_flow.store, entry.stage, entry.rows, InProcess())
    after: Any = toy_flow.store.kind_group("targets", digest_of(entry.stage.recipe))["feat"]
    assert np.allclose(after[0], 2 * np.asarray(before.feat[0], np.float32), rtol=1e-2)


# ---- a model that gives no numbers


def test_a_teacher_that_gives_nan_for_everything_sets_no_shape_aside(toy_flow: Flow, toy: Any) -> None:
    toy.BAD = np.nan
    with pytest.raises(MachineError, match=r"teacher 'tiny': its features are not finite.*\"fp32\" or \"bf16\""):
        toy_flow.features()
    assert not [path for path in toy_flow.store.path.glob("receipts/*/*.json") if '"failed":{"' in path.read_text()]
    toy.BAD = None
    loaded.cache_clear()
    mended = Flow(toy_flow.manifest, None, toy_flow.store).features()
    assert not any(result.failed for result in mended)


def test_a_teacher_that_cannot_see_is_named(toy_flow: Flow, toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no kernel image\nand a long story")

    monkeypatch.setattr(toy.Mean, "embed_images", fail)
    with pytest.raises(MachineError, match=r"teacher 'tiny': it cannot embed pictures of 32 px: RuntimeError: no ker"):
        toy_flow.features()


def test_one_row_of_several_that_is_not_finite_is_set_aside() -> None:
    feat = np.ones((3, 2, 4), np.float32)
    feat[1, 0, 0] = np.nan
    assert list(finite_block(spec(model="demo"), feat).failed) == [1]
    assert list(finite_block(spec(model="demo"), feat[1:2]).failed) == [0]
    with pytest.raises(MachineError, match="not finite"):
        finite_block(spec(model="demo"), np.full((2, 3), np.inf, np.float32))
    with pytest.raises(MachineError, match="too large for float16"):
        finite_block(spec(model="demo"), np.full((2, 3), 1e6, np.float32))


# ---- the probe itself


def test_the_inputs_and_the_sketch_are_those_of_this_version() -> None:
    """Stored probes are compared with new ones: a change here raises probe.VERSION."""
    assert (probe.VERSION, digest_of(list(SENTENCES))) == (1, "c2a4e5aeed56d976")
    assert row_digest([pictures(96, 96)]) == "32dd17f3c7a396c6"
    assert digest_of(sketch(np.arange(100.0))) == "f9c24da01f95a79f"
    for size in (1, 2, 37):
        assert pictures(size, size).shape == (4, size, size, 3)
    shown = pictures(96, 96)
    assert len({image.tobytes() for image in shown}) == 4


@given(st.integers(0, 2**32 - 1), st.integers(NUMBERS, 3000), st.sampled_from(sorted(TOLERANCES)))
def test_last_bits_pass_and_changes_do_not(seed: int, width: int, precision: str) -> None:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((4, width)) * 10.0 ** rng.integers(-3, 4)
    noise = rng.standard_normal((4, width))
    noise *= np.linalg.norm(features, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    held, allowed = of_features("t", features), TOLERANCES[precision]
    assert not difference(held, of_features("t", features + allowed / 3 * noise), precision)
    for other in (features + 3 * allowed * noise, features[::-1]):
        assert "of their length" in difference(held, of_features("t", other), precision)


def test_probes_of_another_version_or_count_are_told_apart() -> None:
    held = of_features("t", np.ones((4, 8)))
    assert not difference({**held, "version": 0, "features": []}, held, "fp32")
    assert difference({**held, "features": held["features"][:2]}, held, "fp32") == "4 features where 2 are held"
    assert not difference(of_features("t", np.zeros((4, 8))), of_features("t", np.zeros((4, 8))), "fp32")


def test_tokens_of_a_patch_tap_are_probed_too(tmp_path: Path) -> None:
    folder = save_clip(tmp_path / "clip")
    model = loaded(spec(model=str(folder / "open_clip_config.json"), tap="patch"))
    assert np.array(model.image_probe(64, False)["features"]).shape == (4, NUMBERS)
    assert model.image_probe(64, False) != model.image_probe(64, True)


def test_a_seed_that_draws_nothing_is_in_no_key(small_manifest: Path) -> None:
    manifest = load_manifest(small_manifest)
    views = RenderedViews(origin_of(manifest, None), manifest.render)

    def key(draws: int, seed: int) -> str:
        return digest_of(ImageTargets(spec(model="demo"), views, draws, seed, (8,), '{"weights":"0"}').recipe)

    assert key(1, 0) == key(1, 7) == key(2, 0)  # the last as ever
    assert key(2, 7) not in (key(2, 0), key(2, 8))


def test_errors_of_the_machine_are_the_users_to_mend() -> None:
    assert issubclass(MachineError, UserError)
