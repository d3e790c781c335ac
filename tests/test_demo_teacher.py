"""The shipped teacher: its files, what it knows, and the command that trained it."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.commands import train_demo
from recon.pipeline.commands.merges import learn_merges
from recon.pipeline.commands.train_demo import Plan, Shapes, contrastive_loss, make_batch
from recon.pipeline.procedural import CATEGORIES, build, shape_seed
from recon.pipeline.rendering.render import RenderConfig, Renderer
from recon.pipeline.store.prompts import class_prompts
from recon.pipeline.teachers import TeacherSpec, load_teacher
from recon.pipeline.teachers.images import Preprocess
from recon.pipeline.teachers.open_clip_teacher import DEMO_CONFIG

PREPROCESS = Preprocess((32, 32), (32, 32), "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)
UNSEEN_SEED = 30_000_000  # neither trained nor judged on


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_teacher(TeacherSpec(name="demo", kind="open_clip", model="demo"))


@pytest.fixture(scope="module")
def toys() -> Shapes:
    """Six one-view shapes of two classes: two pairs share a caption."""
    rng = np.random.default_rng(0)
    captions = [
        ["a red mug"],
        ["a red mug"],
        ["a blue mug", "a blue mug with a lid"],
        ["an oak lamp"],
        ["an oak lamp"],
        ["a steel lamp"],
    ]
    pictures = rng.integers(0, 256, (6, 40, 40, 3), dtype=np.uint8)
    return Shapes(["mug"] * 3 + ["lamp"] * 3, captions, pictures, np.arange(6))


def unit(features: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


def test_the_card_is_of_these_weights(demo: Any) -> None:
    folder = DEMO_CONFIG.parent
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 10e6
    card = (folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert demo.recipe()["weights"] in card
    assert f"{demo.shape[0]} dimensions" in card
    # A card that names this machine's folders would say so here.
    assert str(folder) not in card


def test_open_clip_itself_loads_the_files(demo: Any) -> None:
    model = open_clip.create_model(f"local-dir:{DEMO_CONFIG.parent}").eval()
    tokenizer = open_clip.get_tokenizer(
        f"local-dir:{DEMO_CONFIG.parent}", bpe_path=str(DEMO_CONFIG.parent / train_demo.VOCABULARY)
    )
    with torch.no_grad():
        theirs = model.encode_text(tokenizer(class_prompts("chair")[:32])).numpy()
    assert np.array_equal(demo.embed_texts(class_prompts("chair")[:32]), theirs)


@pytest.mark.slow
def test_classes_are_apart_and_raw_features_of_a_size_to_regress(demo: Any) -> None:
    texts = np.stack([demo.embed_texts(class_prompts(name)) for name in CATEGORIES])
    norms = np.linalg.norm(texts, axis=-1)
    assert norms.min() > 5
    assert norms.max() < 20
    means = unit(unit(texts).mean(1))
    between = means @ means.T - 2 * np.eye(len(means))
    # Every prompt is nearer to its own class than any other class's mean is; but the shipped weights learnt other
    # prompts, none of them a bare name, and of the three that begin with one, a third is nearer to another.
    assert between.max() < 0.9
    own = (unit(texts) @ means.T).argmax(-1) == np.arange(len(means))[:, None]
    assert own[:, 3:].mean() > 0.99
    assert own.mean() > 0.97


@pytest.mark.slow
def test_unseen_shapes_are_recognised(demo: Any) -> None:
    with Renderer(RenderConfig(preset="ring6", resolution=128)) as renderer:
        meshes = [build(name, shape_seed(name, UNSEEN_SEED, index)) for name in CATEGORIES for index in range(3)]
        pictures = np.concatenate([renderer.render(mesh).rgb for mesh in meshes])
    owner = np.repeat(np.arange(len(meshes)), 6)
    shapes = Shapes([mesh.facts["category"] for mesh in meshes], [[] for _ in meshes], pictures, owner)
    assert train_demo.zero_shot(demo, shapes)["shapes"] >= 0.85
    assert train_demo.zero_shot(demo, shapes, list(range(len(owner))))["shapes"] >= 0.75
    features = demo.embed_images(pictures, None)
    assert 5 < np.linalg.norm(features, axis=-1).mean() < 20
    # Shapes of one class are told apart too: a target that held only the class would teach a student nothing more.
    by_shape = features.reshape(len(meshes), 6, -1).mean(1).reshape(len(CATEGORIES), 3, -1)
    assert by_shape.std(1).mean() > 0.1 * by_shape.std((0, 1)).mean()
    # In another order and other company, the same bits.
    order = np.random.default_rng(0).permutation(len(pictures))[:45]
    assert np.array_equal(demo.embed_images(pictures[order], None), features[order])


def test_several_true_captions_count_as_right() -> None:
    images, texts = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).unbind()
    scale = torch.tensor(10.0)
    single = contrastive_loss(images, texts, scale, torch.eye(5, dtype=torch.bool))
    normal = [torch.nn.functional.normalize(x, dim=-1) for x in (images, texts)]
    assert torch.allclose(single, open_clip.ClipLoss()(*normal, scale))
    # A text that is true of no picture is one more wrong answer, and never asked for.
    extra = torch.cat([texts, torch.randn(1, 8, generator=torch.Generator().manual_seed(1))])
    more = contrastive_loss(images, extra, scale, torch.eye(5, 6, dtype=torch.bool))
    assert single < more < single + 1
    # Two equal captions cannot be told apart; with both marked as true, doing as well as possible is no loss but ln 2.
    twice = torch.eye(2, 8).repeat_interleave(2, 0)
    matches = torch.eye(2, dtype=torch.bool).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert torch.allclose(contrastive_loss(twice, twice, torch.tensor(100.0), matches), torch.tensor(2.0).log())


@given(step=st.integers(0, 1000))
def test_a_batch_is_a_function_of_its_step_and_marks_what_is_true(toys: Shapes, step: int) -> None:
    rows = np.array([5, 0, 1, 2, 3, 4])
    batch, again = (make_batch(toys, rows, step, Plan(num_captions=2), PREPROCESS) for _ in range(2))
    assert np.array_equal(batch.pixels, again.pixels)
    assert batch.texts == again.texts
    assert len(set(batch.texts)) == len(batch.texts)
    assert batch.matches.any(1).all()
    # The first pictures' captions are there, whichever was drawn.
    assert batch.matches[:2, 2:].any(1).all()
    for column, text in enumerate(batch.texts):
        for picture, row in enumerate(rows):
            true = toys.category[row] in text if column < 2 else text in toys.captions[row]
            assert bool(batch.matches[picture, column]) is true


@given(texts=st.lists(st.text("abcdef ,", min_size=1, max_size=30), min_size=1, max_size=6), count=st.integers(0, 40))
def test_vocabulary_spells_any_text(tmp_path_factory: pytest.TempPathFactory, texts: list[str], count: int) -> None:
    merges = learn_merges(texts, count)
    assert len(merges) == len(set(merges)) <= count
    folder = tmp_path_factory.mktemp("vocabulary")
    config = train_demo.write_config(folder, texts, Plan())
    tokenizer = open_clip.SimpleTokenizer(str(folder / train_demo.VOCABULARY), context_length=64)
    assert tokenizer.vocab_size == config["text_cfg"]["vocab_size"]
    for text in [*texts, "zebra Ü"]:
        spelt = tokenizer.decode(tokenizer.encode(text))
        assert spelt.replace(" ", "") == text.lower().replace(" ", "")


def test_every_word_seen_often_becomes_one_token() -> None:
    merges = learn_merges(["a red chair, with arms", "a red lamp, with 3 arms, lit"] * 5, 1000)
    joined = {"".join(pair) for pair in merges}
    assert joined >= {"red</w>", "chair</w>", "lamp</w>", "arms</w>"}
    assert not any("," in word for word in joined)


class Here(Executor):
    """Does each job at once, in this process."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def submit(self, job: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(job(*arguments, **named))
        return done


FEW = {name: CATEGORIES[name] for name in ("chair", "lamp", "mug")}


@pytest.mark.slow
def test_training_twice_gives_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("NUM_THREADS", torch.get_num_threads()), ("CATEGORIES", FEW), ("NUM_MERGES", 50)):
        monkeypatch.setattr(train_demo, name, value)
    plan = Plan(
        shapes_per_category=1,
        held_out_per_category=1,
        presets=("ring1",),
        resolution=32,
        image_size=32,
        backbone="test_resnet",
        steps=3,
        batch_size=3,
        num_captions=4,
    )
    train_demo.main(tmp_path / "first", plan)
    monkeypatch.setattr(train_demo, "ProcessPoolExecutor", Here)  # and whoever renders
    train_demo.main(tmp_path / "second", plan)
    files = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert files == ["MODEL_CARD.md", "open_clip_config.json", "open_clip_model.safetensors", "vocabulary.txt.gz"]
    for file in files[1:]:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    teacher = load_teacher(TeacherSpec(name="t", kind="open_clip", model=str(tmp_path / "first" / DEMO_CONFIG.name)))
    card = (tmp_path / "first" / "MODEL_CARD.md").read_text()
    assert teacher.recipe()["weights"] in card and json.dumps(plan.batch_size) in card


def test_a_training_cut_short_leaves_the_old_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is written before the weights exist: together with old weights it would spell nonsense."""

    def stop(shapes: Shapes, folder: Path, plan: Plan) -> None:
        train_demo.write_config(folder, ["a new vocabulary"], plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(train_demo, "NUM_THREADS", torch.get_num_threads())
    monkeypatch.setattr(train_demo, "render_shapes", lambda seed, count, plan: Shapes([], [], np.empty(0), np.empty(0)))
    monkeypatch.setattr(train_demo, "train", stop)
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / train_demo.VOCABULARY).write_text("the old one")
    with pytest.raises(KeyboardInterrupt):
        train_demo.main(tmp_path / "demo")
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [train_demo.VOCABULARY]
    assert (tmp_path / "demo" / train_demo.VOCABULARY).read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]
