"""Trains the shipped teacher, a small open_clip model, on embedded shapes that no data set here holds.

`python -m recon.pipeline.commands.train_demo` renders the pictures, learns a short vocabulary, trains both towers
with a contrastive loss, and writes weights, config, vocabulary and model card into `teachers/demo/`. Same seed, machine
and versions: same bytes.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import multiprocessing
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn import functional

from recon.pipeline.caption.facts import describe
from recon.pipeline.commands.merges import learn_merges
from recon.pipeline.procedural import CATEGORIES, build, shape_seed
from recon.pipeline.rendering.render import RenderConfig, Renderer
from recon.pipeline.store.prompts import CLASS_PROMPTS, class_prompts
from recon.pipeline.teachers import Floats, TeacherSpec
from recon.pipeline.teachers.images import Pictures, Preprocess
from recon.pipeline.teachers.open_clip_teacher import DEMO_CONFIG, OpenClipTeacher

log = logging.getLogger(__name__)

# Manifests draw their shapes from small data-set seeds; these two are for the teacher alone.
TRAIN_SEED = 10_000_000
HELD_OUT_SEED = 20_000_000
NUM_THREADS = 2
EMBED_DIM = 256
CONTEXT_LENGTH = 44
VOCABULARY = "vocabulary.txt.gz"
NUM_MERGES = 1500
# Raw features are the student's Smooth L1 targets: CLIP's own have about this norm.
FEATURE_NORM = 10.0


@dataclass(frozen=True)
class Plan:
    """What one training run costs. The defaults are what `make demo-teacher` ships."""

    shapes_per_category: int = 160
    held_out_per_category: int = 20
    presets: tuple[str, ...] = ("ring6", "ring6", "openshape12")  # shapes take turns
    resolution: int = 128
    # In short trials it took a third of regnetx_002's time a step, and was ahead of it after as many steps.
    backbone: str = "test_byobnet"
    image_size: int = 96
    steps: int = 5000
    batch_size: int = 128
    num_captions: int = 40  # texts a batch beside one prompt a class
    learning_rate: float = 4e-3
    weight_decay: float = 0.05
    augmented_share: float = 0.6  # the store holds clean pictures (draw 0) and augmented ones
    seed: int = 0


@dataclass(frozen=True)
class Shapes:
    """S rendered shapes: category [S] names, captions [S] lists, pictures [P, H, W, 3] uint8, owner [P] shape rows."""

    category: list[str]
    captions: list[list[str]]
    pictures: Pictures
    owner: NDArray[np.int64]


def _render_category(
    category: str, data_seed: int, count: int, plan: Plan
) -> tuple[list[list[str]], list[int], Pictures]:
    renderers = [Renderer(RenderConfig(preset=preset, resolution=plan.resolution)) for preset in plan.presets]
    captions, pictures = [], []
    for index in range(count):
        mesh = build(category, shape_seed(category, data_seed, index))
        captions.append(describe(mesh.facts))
        pictures.append(renderers[index % len(renderers)].render(mesh).rgb)
    for renderer in renderers:
        renderer.close()
    return captions, [len(views) for views in pictures], np.concatenate(pictures)


def render_shapes(data_seed: int, count: int, plan: Plan) -> Shapes:
    """`count` shapes a category of the data-set seed, rendered in worker processes, in order of category."""
    # Spawned, not forked: a child of a process that holds an OpenGL context hangs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(NUM_THREADS, mp_context=context) as pool:
        jobs = [pool.submit(_render_category, name, data_seed, count, plan) for name in CATEGORIES]
        results = [job.result() for job in jobs]
    names = [name for name in CATEGORIES for _ in range(count)]
    captions = [lines for described, _, _ in results for lines in described]
    num_views = [number for _, numbers, _ in results for number in numbers]
    owner = np.repeat(np.arange(len(names)), num_views)
    return Shapes(names, captions, np.concatenate([pictures for _, _, pictures in results]), owner)


def write_config(folder: Path, texts: Sequence[str], plan: Plan) -> dict[str, Any]:
    """Write the vocabulary of `texts` and open_clip_config.json; returns the model config."""
    merges = learn_merges(texts, NUM_MERGES)
    # open_clip skips the first line and takes every other one, an empty last one too, for a merge.
    lines = "\n".join(["#version: demo", *(" ".join(pair) for pair in merges)])
    (folder / VOCABULARY).write_bytes(gzip.compress(lines.encode(), mtime=0))
    config = {
        "embed_dim": EMBED_DIM,
        "vision_cfg": {
            "timm_model_name": plan.backbone,
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": plan.image_size,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": 2 * 256 + len(merges) + 2,
            "width": 128,
            "heads": 4,
            "layers": 2,
            "tokenizer_kwargs": {"bpe_path": VOCABULARY},
        },
    }
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    document = {"model_cfg": config, "preprocess_cfg": preprocess}
    (folder / DEMO_CONFIG.name).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return config


@dataclass(frozen=True)
class Batch:
    """pixels [B, h, w, 3] uint8, texts [T], and matches [B, T] bool: is text j true of picture i?"""

    pixels: Pictures
    texts: list[str]
    matches: torch.Tensor


def make_batch(shapes: Shapes, rows: NDArray[np.int64], step: int, plan: Plan, preprocess: Preprocess) -> Batch:
    """Pictures `rows`, clean or augmented, a prompt of every class, and captions of the first pictures.

    Every draw comes from (seed, step) alone.
    """
    rng = np.random.default_rng([plan.seed, step])
    pixels = np.stack(
        [
            preprocess.pixels(shapes.pictures[row], int(rng.integers(2**62)) if augmented else None)
            for row, augmented in zip(rows, rng.random(len(rows)) < plan.augmented_share, strict=True)
        ]
    )
    owners = shapes.owner[rows]
    names = list(dict.fromkeys(shapes.category))
    prompts = [class_prompts(name)[int(rng.integers(len(CLASS_PROMPTS)))] for name in names]
    captions = [
        shapes.captions[owner][int(rng.integers(len(shapes.captions[owner])))] for owner in owners[: plan.num_captions]
    ]
    # A caption is true of every shape that has the same one: as a negative it would teach to tell equal things apart.
    captions = list(dict.fromkeys(captions))
    matches = torch.tensor(
        [
            [
                *(shapes.category[owner] == name for name in names),
                *(line in shapes.captions[owner] for line in captions),
            ]
            for owner in owners
        ]
    )
    return Batch(pixels, [*prompts, *captions], matches)


def contrastive_loss(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, matches: torch.Tensor
) -> torch.Tensor:
    """CLIP's symmetric cross entropy with several right answers: the target is uniform over all matches.

    images [B, D] and texts [T, D] raw features; matches [B, T] bool with one at least in every row. A text that is
    true of no picture is a negative of all and asks for none.
    """
    logits = scale * functional.normalize(images, dim=-1) @ functional.normalize(texts, dim=-1).T
    asked = matches.any(0)
    by_image = functional.cross_entropy(logits, _uniform(matches))
    by_text = functional.cross_entropy(logits.T[asked], _uniform(matches.T[asked]))
    return (by_image + by_text) / 2


def _uniform(matches: torch.Tensor) -> torch.Tensor:
    return matches / matches.sum(1, keepdim=True)


def _batches(shapes: Shapes, plan: Plan, preprocess: Preprocess) -> Iterator[Batch]:
    """`plan.steps` batches, epoch after epoch, each prepared while the one before is trained on."""
    rng = np.random.default_rng([plan.seed, 2**31])
    order = np.concatenate(
        [rng.permutation(len(shapes.owner)) for _ in range(math.ceil(plan.steps * plan.batch_size / len(shapes.owner)))]
    )
    rows = [order[step * plan.batch_size : (step + 1) * plan.batch_size] for step in range(plan.steps)]
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(make_batch, shapes, rows[0], 0, plan, preprocess)
        for step in range(plan.steps):
            batch = coming.result()
            if step + 1 < plan.steps:
                coming = pool.submit(make_batch, shapes, rows[step + 1], step + 1, plan, preprocess)
            yield batch


def train(shapes: Shapes, folder: Path, plan: Plan) -> None:
    """Train both towers on `shapes` from scratch and write vocabulary, config and weights into `folder`."""
    torch.manual_seed(plan.seed)
    prompts = [prompt for name in CATEGORIES for prompt in class_prompts(name)]
    config = write_config(folder, [*prompts, *(line for lines in shapes.captions for line in lines)], plan)
    model = open_clip.CLIP(**config).train()
    tokenizer = open_clip.SimpleTokenizer(str(folder / VOCABULARY), context_length=CONTEXT_LENGTH)
    size = (plan.image_size, plan.image_size)
    preprocess = Preprocess(size, size, "shortest", "bicubic", (0.5,) * 3, (0.5,) * 3)

    decayed = [p for p in model.parameters() if p.ndim >= 2]
    groups = [
        {"params": decayed, "weight_decay": plan.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=plan.learning_rate)
    warmup = max(1, plan.steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 * (1 + math.cos(math.pi * step / plan.steps)))
    )
    # Twice as fast as the default layout for convolutions on a CPU.
    model.visual.to(memory_format=torch.channels_last)
    started = time.monotonic()
    for step, batch in enumerate(_batches(shapes, plan, preprocess)):
        pixels = preprocess.normalized(batch.pixels).contiguous(memory_format=torch.channels_last)
        images, texts = model.encode_image(pixels), model.encode_text(tokenizer(batch.texts))
        loss = contrastive_loss(images, texts, model.logit_scale.exp().clamp(max=100), batch.matches)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step + 1 == plan.steps:
            log.info("step %d of %d: loss %.3f, %.0f s", step, plan.steps, loss.item(), time.monotonic() - started)
    model.eval()
    _scale_features(model, tokenizer, preprocess, shapes, prompts)
    # Matrices in half precision keep the file small; batch statistics and biases are few and need their range.
    weights = {name: value.half() if value.ndim >= 2 else value for name, value in model.state_dict().items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "open_clip_model.safetensors")


@torch.inference_mode()
def _scale_features(model: Any, tokenizer: Any, preprocess: Preprocess, shapes: Shapes, prompts: list[str]) -> None:
    """Give raw features a mean norm of FEATURE_NORM. The contrastive loss leaves their scale to chance."""
    rows = range(0, len(shapes.owner), max(1, len(shapes.owner) // 512))
    pixels = np.stack([preprocess.pixels(shapes.pictures[row], None) for row in rows])
    images = model.encode_image(preprocess.normalized(pixels))
    texts = model.encode_text(tokenizer(prompts))
    model.visual.head.proj.weight *= FEATURE_NORM / images.norm(dim=-1).mean()
    model.text_projection *= FEATURE_NORM / texts.norm(dim=-1).mean()


def zero_shot(teacher: OpenClipTeacher, shapes: Shapes, seeds: Sequence[int] | None = None) -> dict[str, float]:
    """Share of pictures, and of shapes by the mean over their views, nearest to their class's 60 prompts."""
    names = list(CATEGORIES)
    features = [teacher.embed_texts(class_prompts(name)) for name in names]
    classes = np.stack([_unit(_unit(rows).mean(0)) for rows in features])
    images = _unit(teacher.embed_images(shapes.pictures, seeds))
    truth = np.array([names.index(name) for name in shapes.category])
    by_shape = np.stack([images[shapes.owner == row].mean(0) for row in range(len(truth))])
    return {
        "views": float(((images @ classes.T).argmax(1) == truth[shapes.owner]).mean()),
        "shapes": float(((by_shape @ classes.T).argmax(1) == truth).mean()),
    }


def _unit(features: Floats) -> Floats:
    unit: Floats = features / np.linalg.norm(features, axis=-1, keepdims=True)
    return unit


def write_card(
    folder: Path,
    plan: Plan,
    recipe: Mapping[str, Any],
    accuracy: Mapping[str, Mapping[str, float]],
    seconds: Mapping[str, float],
) -> None:
    """MODEL_CARD.md beside the weights: what made them, on what, how good they are, and what they are not."""
    clean, augmented = accuracy["clean"], accuracy["augmented"]
    size = sum(path.stat().st_size for path in folder.iterdir() if path.suffix in (".safetensors", ".gz", ".json"))
    num_train = plan.shapes_per_category * len(CATEGORIES)
    num_held_out = plan.held_out_per_category * len(CATEGORIES)
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "open_clip_torch", "timm", "numpy", "pillow"))
    (folder / "MODEL_CARD.md").write_text(
        f"""# The demo teacher

A small open_clip model, image and text tower with one space of {recipe["dim"]} dimensions, that lets the whole pipeline
run without a download. Written by `make demo-teacher` (`python -m recon.pipeline.commands.train_demo`); do not edit.

| | |
| --- | --- |
| files | `open_clip_config.json`, `open_clip_model.safetensors`, `vocabulary.txt.gz`: {size / 1e6:.1f} MB in all |
| weights | sha256 of the tensors: `{recipe["weights"]}` |
| image tower | timm's {plan.backbone} from scratch, {plan.image_size} px |
| text tower | transformer, 2 layers of width 128, {CONTEXT_LENGTH} tokens, vocabulary from its captions |
| words | the release's {len(CLASS_PROMPTS)} class prompts, and captions |
| augmentation | `{recipe["augmentation"]}` |
| trained on | {num_train} embedded shapes of seed {TRAIN_SEED}, cameras {" and ".join(dict.fromkeys(plan.presets))} |
| judged on | {num_held_out} embedded shapes of seed {HELD_OUT_SEED}, same cameras; chance {1 / len(CATEGORIES):.3f} |
| zero-shot, clean | {clean["shapes"]:.3f} of shapes (mean over views), {clean["views"]:.3f} of single views |
| zero-shot, augmented | {augmented["shapes"]:.3f} of shapes, {augmented["views"]:.3f} of single views |
| time | {seconds["rendering"] / 3600:.2f} h rendering, {seconds["training"] / 3600:.2f} h training |
| machine | {platform.machine()}, {NUM_THREADS} threads, no GPU; Python {platform.python_version()} |
| packages | {packages} |
| licence | MIT, weights and training data alike: the shapes are drawn by this repository |

Settings: `{json.dumps(asdict(plan))}`

The loss is CLIP's, with every text that is true of a picture counted as right: a batch holds one prompt of every class
and {plan.num_captions} captions (material, structure); {plan.augmented_share:.0%} of the pictures are augmented as the
feature store augments them. Both projections are then scaled so that raw features have a mean norm of {FEATURE_NORM:g},
since raw features are what a student regresses. The accuracies are of the shipped files, loaded as any teacher is.

It is no general image encoder: it has seen renderings of embedded shapes on white and nothing else, knows only the
words of their captions, and says nothing about photographs, scanned objects or other categories. Numbers of students
taught by it show that the system works, and compare with no published ones. Other processors round differently, so the
command gives the same bytes only on the same machine and versions.
""",
        encoding="utf-8",
    )


def main(folder: Path = DEMO_CONFIG.parent, plan: Plan | None = None) -> None:
    """Render, train, judge the files that were written, and write the card beside them.

    They replace what lies in `folder` at the end only: an interrupted training leaves the teacher there as it was.
    """
    log.addHandler(logging.StreamHandler())
    log.setLevel(logging.INFO)
    log.propagate = False  # open_clip gives the root logger a handler of its own
    torch.set_num_threads(NUM_THREADS)
    # One thread a worker process for Mesa's rasteriser; read when the children start.
    os.environ.setdefault("LP_NUM_THREADS", "1")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".demo-") as unfinished:
        make_teacher(Path(unfinished), plan or Plan())
        for path in sorted(Path(unfinished).iterdir()):
            path.replace(folder / path.name)


def make_teacher(folder: Path, plan: Plan) -> None:
    """Write a trained teacher's files and card into an empty folder."""
    started = time.monotonic()
    shapes = render_shapes(TRAIN_SEED, plan.shapes_per_category, plan)
    held_out = render_shapes(HELD_OUT_SEED, plan.held_out_per_category, plan)
    rendered = time.monotonic()
    log.info("%d pictures of %d shapes in %.0f s", len(shapes.owner), len(shapes.category), rendered - started)
    train(shapes, folder, plan)
    trained = time.monotonic()
    teacher = OpenClipTeacher(TeacherSpec(name="demo", kind="open_clip", model=str(folder / DEMO_CONFIG.name)))
    clean = zero_shot(teacher, held_out)
    augmented = zero_shot(teacher, held_out, list(range(len(held_out.owner))))
    log.info("held out: clean %s, augmented %s", clean, augmented)
    accuracy = {"clean": clean, "augmented": augmented}
    seconds = {"rendering": rendered - started, "training": trained - rendered}
    write_card(folder, plan, teacher.recipe(), accuracy, seconds)


if __name__ == "__main__":
    main()
