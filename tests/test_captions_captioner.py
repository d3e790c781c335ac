"""The captioner: one picture's caption hangs on nothing but picture, seed and weights, and no pickle is ever read."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="the extra `captioner` is not installed")

import torch

from recon.pipeline.base.digests import canonical_json
from recon.pipeline.base.errors import MachineError, UserError
from recon.pipeline.caption.captioner import CaptionerTable, ModelCaptions, captioner_of
from recon.pipeline.caption.image_to_text import CPU_BATCH, TOP_P, Captioner, _Draw
from recon.pipeline.flow.manifest import load_manifest
from recon.pipeline.store import FeatureStore
from recon.pipeline.teachers.batches import BatchSize
from recon.pipeline.teachers.probe import NUMBERS, difference
from tests.miniature_meshes import message
from tests.tiny_captioner import save_captioner

PICTURES = np.random.default_rng(0).integers(0, 255, (11, 40, 40, 3), dtype=np.uint8)
SEEDS = list(range(11))


def table(model: Path | str, prompt: str = "") -> CaptionerTable:
    return CaptionerTable(kind="captioner", model=str(model), prompt=prompt, max_new_tokens=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioner(tmp_path_factory.mktemp("blip"))


@pytest.mark.slow
def test_captions_equal_the_librarys_own(folder: Path) -> None:
    """The beam search is the library's: nothing of ours may come between."""
    from transformers import BlipForConditionalGeneration, BlipProcessor

    model, processor = BlipForConditionalGeneration.from_pretrained(folder), BlipProcessor.from_pretrained(folder)
    inputs = processor(images=list(PICTURES), return_tensors="pt")
    tokens = model.generate(**inputs, num_beams=3, max_new_tokens=6, do_sample=False)
    assert Captioner(table(folder)).write(PICTURES, None) == processor.batch_decode(tokens, skip_special_tokens=True)


@pytest.mark.slow
def test_a_probe_tells_captioners_apart(folder: Path, tmp_path: Path) -> None:
    """Other weights, another prompt, other pictures out of the processor; not the same model loaded again."""
    captioner = Captioner(table(folder))
    assert np.array(captioner.probe["features"]).shape == (4, NUMBERS)
    assert not difference(captioner.probe, Captioner(table(folder)).probe, "fp32")
    others = [Captioner(table(save_captioner(tmp_path / "other", seed=1))), Captioner(table(folder, "a picture of"))]
    blurred = Captioner(table(folder))
    blurred._processor.image_processor.resample = 0
    for other in (*others, blurred):
        assert "of their length" in difference(captioner.probe, other.probe, "fp32")


def test_a_captioner_that_is_not_the_keys_writes_nothing(folder: Path, tmp_path: Path) -> None:
    views: Any = SimpleNamespace(num_views=2, recipe={"stage": "views"})
    recipe = canonical_json(Captioner(table(folder)).recipe())
    other = save_captioner(tmp_path / "other", seed=1)
    stage = ModelCaptions(table(other), views, recipe)
    store = FeatureStore.create(tmp_path / "s.zarr")
    store.require_key("captions", "k", {}, [])
    with pytest.raises(MachineError, match="captions 'captioner': the model loaded here is not the one that the key"):
        stage._checked(store, "k")
    store.require_key("captions", "same", {}, [], {"probe": Captioner(table(folder)).probe})
    assert ModelCaptions(table(folder), views, recipe)._checked(store, "same").digest
    swapped = ModelCaptions(table(other), views, canonical_json(captioner_of(table(other)).recipe()))
    with pytest.raises(MachineError, match="captions 'captioner': it has the recipe of captions/same"):
        swapped._checked(store, "same")


@pytest.mark.slow
@pytest.mark.parametrize("prompt", ["", "a picture of"])
@pytest.mark.parametrize("seeds", [None, SEEDS])
def test_company_does_not_matter(folder: Path, prompt: str, seeds: list[int] | None) -> None:
    captioner = Captioner(table(folder, prompt))
    together = captioner.write(PICTURES, seeds)
    assert len(set(together)) > 5
    assert all(line.startswith(prompt) for line in together)
    torch.manual_seed(1)  # nor does what else was drawn
    for at in (0, 4, 10):
        assert captioner.write(PICTURES[at : at + 1], None if seeds is None else [seeds[at]]) == [together[at]]
    assert captioner.write(PICTURES[::-1], None if seeds is None else seeds[::-1]) == together[::-1]


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [None, SEEDS])
def test_what_does_not_fit_on_a_gpu_is_halved(
    folder: Path, seeds: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No batch shows in the captions: not one too large at first, nor the size that is left."""
    captioner, fits, passes = Captioner(table(folder)), 2, list[int]()
    expected, forward = captioner.write(PICTURES, seeds), captioner._pass

    def run(pictures: list[np.ndarray], numbers: list[int] | None) -> list[str]:
        passes.append(len(pictures))
        if len(pictures) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand a long story")
        return forward(pictures, numbers)

    monkeypatch.setattr(captioner, "_pass", run)
    captioner._batch = BatchSize(torch.device("cuda"), CPU_BATCH, 8)  # a name here: nothing is moved there
    assert captioner.write(PICTURES, seeds) == expected
    assert passes == [8, 4, 2, 2, 2, 2, 2, 2]
    fits = 0
    said = message(lambda: captioner.write(PICTURES, seeds))
    assert said.startswith("captions 'captioner': cuda has no memory left for a single picture")


@pytest.mark.slow
def test_other_seeds_other_captions(folder: Path) -> None:
    captioner = Captioner(table(folder))
    drawn = [captioner.write(PICTURES[:1], [seed])[0] for seed in range(12)]
    assert len(set(drawn)) > 6


def test_draws_follow_the_models_probabilities() -> None:
    """Noise on a row's logits and their largest: a draw, as often as the probability says, none from the tail."""
    probabilities = torch.tensor([0.5, 0.05, 0.3, 0.11, 0.04])
    count = 4000
    tokens = torch.zeros((count, 3), dtype=torch.long)
    drawn = _Draw(list(range(count)))(tokens, probabilities.log().repeat(count, 1)).argmax(-1)
    share = torch.bincount(drawn, minlength=5) / count
    kept = torch.tensor([0.5, 0, 0.3, 0.11, 0])  # the fewest likeliest that make up nine tenths
    assert float(kept.sum()) >= TOP_P > 0.8
    assert torch.allclose(share, kept / kept.sum(), atol=0.03)


@pytest.mark.slow
def test_the_recipe_is_of_the_contents(folder: Path, tmp_path: Path) -> None:
    """A renamed folder is the same model; other weights, another prompt are not."""
    moved = save_captioner(tmp_path / "elsewhere")
    assert Captioner(table(moved)).recipe() == Captioner(table(folder)).recipe()
    assert str(folder) not in str(Captioner(table(folder)).recipe())
    other = save_captioner(tmp_path / "other", seed=1)
    assert Captioner(table(other)).recipe() != Captioner(table(folder)).recipe()
    assert Captioner(table(folder, "a")).recipe() != Captioner(table(folder)).recipe()


def test_pickled_weights_are_never_read(folder: Path, tmp_path: Path) -> None:
    model = save_captioner(tmp_path / "model")
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "run").encode() + b"'\ntR.")
    with pytest.raises(UserError, match=r"holds no \.safetensors weights"):
        Captioner(table(model))
    (model / "stray.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="cannot load the captioner saved in"):
        Captioner(table(model))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda model: (model / "model.safetensors").write_bytes(b"torn"), "cannot load the captioner saved in"),
        (lambda model: (model / "config.json").unlink(), "cannot load the captioner saved in"),
        (lambda model: (model / "config.json").write_text("{"), "cannot load the captioner saved in"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(damage: object, told: str, tmp_path: Path) -> None:
    model = save_captioner(tmp_path / "model")
    damage(model)  # type: ignore[operator]
    assert told in message(lambda: Captioner(table(model)))


def test_without_the_library_the_extra_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install recon\[captioner\]"):
        Captioner(table(folder))


def test_a_folder_is_found_beside_the_manifest(small_manifest: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "blip").symlink_to(folder)
    text = small_manifest.read_text() + '[[captions]]\nkind = "captioner"\nmodel = "{}"\n'
    for name, found in (("blip", str(tmp_path / "m" / "blip")), ("owner/blip", "owner/blip")):
        (tmp_path / "m" / "m.toml").write_text(text.replace("{}", name))
        captions = load_manifest(tmp_path / "m" / "m.toml").captions
        assert captions is not None
        assert captions[0].model == found  # type: ignore[union-attr]
