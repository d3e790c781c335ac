"""From the feature store to batches on the device: a memory-mapped copy of the rows in use, then index arithmetic."""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.store.receipts import digest_of, sync_directory
from trainer.config import DataConfig
from trainer.transforms import normalize, random_bits, random_integers, random_subset, random_uniform, rotate_y, stream

if TYPE_CHECKING:
    from pipeline.store import FeatureStore
    from pipeline.store.records import Points, Targets

CACHE_VERSION = 1
_CRC_BLOCK = 1 << 24


@dataclass(frozen=True)
class Dataset:
    """The rows of some splits that every stage finished, all on one device or memory-mapped."""

    xyz: Tensor
    """[N, P, 3] float32, raw"""
    image: Tensor
    """[K, N, V, Di] float16, raw; draw 0 is the clean picture"""
    text: Tensor
    """[T, Dt] float16, raw"""
    class_prompts: Tensor
    """[num_categories, L] int64, rows of text"""
    captions: Tensor
    """[N, C] int64, rows of text, those a row has first, then -1"""
    category: Tensor
    """[N] int64"""
    row: Tensor
    """[N] int64, the row in the store: what a sample's random draws are derived from"""
    record: dict[str, Any]
    """What the data are: keys and digests of the store, splits, row counts. JSON values."""

    @property
    def image_dim(self) -> int:
        return self.image.shape[-1]

    @property
    def text_dim(self) -> int:
        return self.text.shape[-1]

    def __len__(self) -> int:
        return len(self.row)

    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self._tensors().values())

    def to(self, device: torch.device) -> Dataset:
        return replace(self, **{name: tensor.to(device) for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "record"}


def load_dataset(store: FeatureStore, config: DataConfig) -> Dataset:
    """Rows of `config.splits` that have points and every draw of every view, through the store's cache.

    The first call copies them out of the store shard by shard into `<store>/cache/<digest>/`, keyed by the digests of
    what they hold; later calls check that copy's sums and map it. UserError for an unknown split, for a store without
    a finished row, for non-finite features, and where more points, draws or captions are asked for than there are.
    """
    ref = store.ref(config.ref or None)
    points, targets = store.points(ref), store.targets(config.image_teacher or None, ref)
    text = store.text(config.text_teacher or None, ref)
    registry = store.registry
    in_splits = np.isin(np.array(registry.split), config.splits)
    known = sorted(set(registry.split))
    for split in config.splits:
        if split not in known:
            raise UserError(f"data.splits: {store.path} has no split {split!r}; it has {', '.join(known)}")
    rows = np.flatnonzero(in_splits & points.ok & targets.ok.all(axis=0))
    if not len(rows):
        raise UserError(f"{store.path}: no row of {', '.join(config.splits)} is finished; run `recon-pipeline status`")
    captions = -np.sort(-text.captions[rows], axis=1)
    _check_settings(config, points.xyz.shape[1], targets.feat.shape[0], captions)
    if not np.isfinite(text.feat).all():
        raise UserError(f"{store.path}: text features of {text.teacher!r} are not finite; compute them again")

    record: dict[str, Any] = {
        "ref": ref.name,
        "splits": list(config.splits),
        "num_rows": len(rows),
        "num_rows_in_splits": int(in_splits.sum()),
        "num_rows_without_caption": int((captions < 0).all(axis=1).sum()),
        "rows": digest_of([[registry.uid[row], int(row)] for row in rows]),
        "prompts": digest_of([text.class_prompts.tolist(), registry.category[rows].tolist(), captions.tolist()]),
        "points": {"key": points.key, "digest": store.digest(points.key)},
        "image": {"teacher": targets.teacher, "key": targets.key, "digest": store.digest(targets.key)},
        "text": {"teacher": text.teacher, "key": text.key, "digest": store.digest(text.key)},
    }
    arrays = _cached_arrays(store.path / "cache", record, points, targets, rows)
    return Dataset(
        xyz=torch.from_numpy(arrays["xyz"]),
        image=torch.from_numpy(arrays["image"]),
        text=torch.from_numpy(text.feat),
        class_prompts=torch.from_numpy(text.class_prompts),
        captions=torch.from_numpy(captions),
        category=torch.from_numpy(registry.category[rows]),
        row=torch.from_numpy(rows),
        record=record,
    )


@dataclass(frozen=True)
class Batch:
    """Model inputs on the device."""

    points: Tensor
    """[B, num_points, 3] float32, centred, scaled, rotated"""
    image: Tensor
    """[B, Di] float32"""
    text: Tensor
    """[B, Dt] float32"""
    labels: Tensor
    """[B] int64 category"""

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, stop: int) -> Batch:
        """Samples start to stop."""
        cut = slice(start, stop)
        return Batch(self.points[cut], self.image[cut], self.text[cut], self.labels[cut])


class Batches:
    """Batches as a pure function of the step, so a run can start at any of them.

    An epoch is a permutation of all rows; `rank` of `world_size` takes every world_size-th sample of each batch, so
    together they see what one process would. What is drawn of a sample depends on (seed, epoch, row in the store).
    """

    def __init__(
        self,
        dataset: Dataset,
        config: DataConfig,
        batch_size: int,
        seed: int,
        device: torch.device,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """batch_size counts the samples of all ranks. UserError if not one batch comes of the data."""
        count = len(dataset) / batch_size
        self.steps_per_epoch = math.floor(count) if config.drop_last else math.ceil(count)
        if self.steps_per_epoch == 0:
            raise UserError(
                f"optim.batch_size {batch_size} is more than the {len(dataset)} rows there are: "
                "lower it or set data.drop_last=false"
            )
        self.resident = device.type == "cpu" or _fits(dataset, config, device)
        self.dataset = dataset.to(device) if self.resident else dataset
        self.config, self.batch_size, self.seed, self.device = config, batch_size, seed, device
        self.rank, self.world_size = rank, world_size
        self._order = lru_cache(maxsize=2)(self._shuffle)

    def batch(self, step: int) -> Batch:
        """The batch of a step counted from 0 over all epochs."""
        epoch, index = divmod(step, self.steps_per_epoch)
        data, config = self.dataset, self.config
        samples = self._order(epoch)[index * self.batch_size : (index + 1) * self.batch_size]
        samples = samples[self.rank :: self.world_size]
        row = data.row[samples]

        def bits(name: str) -> Tensor:
            return random_bits(stream(self.seed, name, epoch), row)

        subset = random_subset(bits("points"), data.xyz.shape[1], config.num_points)
        choices = torch.tensor(config.draws or range(data.image.shape[0]), device=row.device)
        draw = choices[random_integers(bits("draw"), len(choices))]
        view = random_integers(bits("view"), data.image.shape[2])
        points = normalize(self._to_device(data.xyz[samples[:, None], subset]))
        if config.rotate:
            points = rotate_y(points, self._to_device(random_uniform(bits("angle")) * (2 * math.pi)))
        return Batch(
            points=points,
            image=self._to_device(data.image[draw, samples, view]).float(),
            text=self._to_device(data.text[self._prompts(samples, bits)]).float(),
            labels=self._to_device(data.category[samples]),
        )

    def iterate(self, start: int, stop: int) -> Iterator[Batch]:
        """Batches of steps start to stop; those gathered on the host are prepared one ahead."""
        if self.resident:
            yield from map(self.batch, range(start, stop))
            return
        with ThreadPoolExecutor(max_workers=1) as pool:
            ahead = pool.submit(self.batch, start)
            for step in range(start + 1, stop + 1):
                ready = ahead.result()
                if step < stop:
                    ahead = pool.submit(self.batch, step)
                yield ready

    def _shuffle(self, epoch: int) -> Tensor:
        return random_bits(stream(self.seed, "order", epoch), self.dataset.row).argsort()

    def _prompts(self, samples: Tensor, bits: Callable[[str], Tensor]) -> Tensor:
        """[B] rows of the text features, one for each sample."""
        data = self.dataset
        choice = bits("prompt")
        own = data.captions[samples]
        num_own = (own >= 0).sum(dim=1)
        by_class = data.class_prompts[data.category[samples], random_integers(choice, data.class_prompts.shape[1])]
        if self.config.captions == "class":
            return by_class
        by_shape = own.gather(1, random_integers(choice, num_own.clamp_min(1))[:, None])[:, 0]
        take_own = num_own > 0
        if self.config.captions == "both":
            take_own &= random_integers(bits("caption"), 2) == 1
        return torch.where(take_own, by_shape, by_class)

    def _to_device(self, tensor: Tensor) -> Tensor:
        if tensor.device == self.device or self.resident:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)


def _fits(dataset: Dataset, config: DataConfig, device: torch.device) -> bool:
    if config.device_resident != "auto":
        return config.device_resident == "always"
    free, _ = torch.cuda.mem_get_info(device)
    return dataset.num_bytes() * 2 < free


def _check_settings(config: DataConfig, num_points: int, num_draws: int, captions: NDArray[np.int64]) -> None:
    if config.num_points > num_points:
        raise UserError(f"data.num_points: {config.num_points} asked for, the store holds {num_points} a shape")
    if config.draws and max(config.draws) >= num_draws:
        raise UserError(f"data.draws: no draw {max(config.draws)}; the store holds 0 to {num_draws - 1}")
    if config.captions != "class" and not (captions >= 0).any():
        raise UserError(f'data.captions: no shape has a caption of its own for {config.captions!r}; use "class"')


def _cached_arrays(
    root: Path, record: dict[str, Any], points: Points, targets: Targets, rows: NDArray[np.int64]
) -> dict[str, NDArray[Any]]:
    """Map xyz [N, P, 3] and image [K, N, V, D] of the rows, copied out of the store unless a sound copy is there."""
    folder = root / digest_of([CACHE_VERSION, record["rows"], record["points"], record["image"]])
    if not _is_sound(folder):
        try:
            _write_cache(folder, points, targets, rows)
        except OSError as error:
            raise UserError(f"{folder}: cannot write a copy of the store's rows: {error.strerror or error}") from error
    # Copy-on-write maps: torch wants memory it could write to, and the files stay as they are.
    return {name: np.load(folder / f"{name}.npy", mmap_mode="c") for name in ("xyz", "image")}


def _write_cache(folder: Path, points: Points, targets: Targets, rows: NDArray[np.int64]) -> None:
    folder.parent.mkdir(exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".writing-"))
    try:
        num_draws, _, num_views, dim = targets.feat.shape
        xyz = _new_array(temporary / "xyz.npy", (len(rows), *points.xyz.shape[1:]), "<f4")
        _copy_rows(points.xyz, (), rows, xyz, "points")
        image = _new_array(temporary / "image.npy", (num_draws, len(rows), num_views, dim), "<f2")
        for draw in range(num_draws):
            _copy_rows(targets.feat, (draw,), rows, image[draw], f"image features of {targets.teacher!r}")
        for array in (xyz, image):
            array.flush()
        sums = {path.name: _crc(path) for path in sorted(temporary.iterdir())}
        (temporary / "sums.json").write_text(json.dumps(sums), "utf-8")
        for path in (*temporary.iterdir(), temporary):
            sync_directory(path)  # on a file it does the same
        # What stands in the way failed its check; a run that wrote the same copy meanwhile is as good as this one.
        if folder.exists() and not _is_sound(folder):
            shutil.rmtree(folder)
        if not folder.exists():
            temporary.rename(folder)
            sync_directory(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _new_array(path: Path, shape: tuple[int, ...], dtype: str) -> np.memmap[Any, Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=np.dtype(dtype), shape=shape)


def _copy_rows(source: Any, lead: tuple[int, ...], rows: NDArray[np.int64], out: NDArray[Any], what: str) -> None:
    """Copy rows (ascending) of a Zarr array, behind leading indices, one shard at a time."""
    axis = len(lead)
    block = (source.shards or source.chunks)[axis]
    done = 0
    for start in range(0, source.shape[axis], block):
        wanted = rows[(rows >= start) & (rows < start + block)]
        if not len(wanted):
            continue
        values = source[(*lead, slice(start, start + block))][wanted - start]
        if not np.isfinite(values).all():
            raise UserError(f"{what}: not finite in the store's rows from {start} on; compute them again")
        out[done : done + len(wanted)] = values
        done += len(wanted)
    assert done == len(rows), (done, len(rows))


def _is_sound(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "sums.json").read_text("utf-8"))
        return set(sums) == {"xyz.npy", "image.npy"} and all(_crc(folder / n) == s for n, s in sums.items())
    except (OSError, ValueError):
        return False


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_CRC_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc
