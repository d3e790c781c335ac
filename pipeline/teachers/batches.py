"""Pictures and words through a model in batches of one size: as many as fit on a GPU, a fixed number on a CPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from recon.pipeline.base.devices import preparing_threads
from recon.pipeline.base.errors import MachineError
from recon.pipeline.base.provenance import note
from recon.pipeline.base.watch import getting_on
from recon.pipeline.teachers.images import Pictures, Preprocess

CPU_BATCH = 32
GPU_BATCH = 256
READ = 256
"""Pictures that are read together where batches are smaller."""

Encode = Callable[[torch.Tensor], torch.Tensor]
Prepare = Callable[[int, int], Any]
"""(start, rows) -> exactly so many rows, in a tensor, list or range."""
Read = Callable[[int, int], Pictures]
"""(start, stop) -> those of a run of pictures, [stop - start, H, W, 3]. Called in several threads for a GPU."""
Result = TypeVar("Result")


class BatchSize:
    """How many rows one forward pass takes.

    A matrix product may round differently for another number of rows, so every pass gets exactly `rows`, filled up
    where there are fewer. On a CPU they never change: a picture has the same bits in any company. On a GPU they start
    large, and whenever its memory does not hold them they are halved for good: bits stay the same while the same GPU
    has as much memory to spare, and may differ in the last place of float32 (mostly lost again in a store's float16)
    where it had less. The number is in no key, as neither is the processor that rounds.
    """

    def __init__(self, device: torch.device, cpu: int = CPU_BATCH, gpu: int = GPU_BATCH) -> None:
        """`gpu`, the most to begin with, is a power of two: what is left of a batch fills its halves."""
        self.rows = gpu if device.type == "cuda" else cpu
        self.ahead = 0 if device.type == "cpu" else preparing_threads()
        self.seconds = 0.0
        """What the last pass took."""
        self._device = device

    @property
    def device_name(self) -> str:
        """The GPU's own name, or the sort of device."""
        return torch.cuda.get_device_name(self._device) if self.on_gpu else self._device.type

    @property
    def on_gpu(self) -> bool:
        """Whether it is a GPU of torch's that is there."""
        return self._device.type == "cuda" and torch.cuda.is_available()

    def halve(self, whose: str, error: RuntimeError) -> None:
        """Go on with half as many; MachineError when a single row is too much, the error itself on a CPU."""
        if self._device.type == "cpu":
            raise error
        if self.rows == 1:
            raise MachineError(
                f"{whose}: {self._device} has no memory left for a single picture: free some, or use a smaller model "
                'or, for a teacher, precision = "bf16"'
            ) from error
        self.rows //= 2


def embed(name: str, count: int, size: BatchSize, prepare: Prepare, encode: Encode) -> NDArray[np.float32]:
    """[count, ...] float32: `encode` of what `prepare` gives; see `in_batches`."""
    rows = in_batches(f"teacher {name!r}", count, size, prepare, lambda batch: encode(batch).float().cpu().numpy())
    return np.stack(rows)


def in_batches(
    whose: str, count: int, size: BatchSize, prepare: Prepare, run: Callable[[Any], Iterable[Result]]
) -> list[Result]:
    """What `run` gives for each of `count` rows; it always gets `size.rows` of those that `prepare` makes.

    `whose` begins the MachineError for a GPU that has no memory for one row.
    """
    note("device", size.device_name)
    results: list[Result] = []
    getting_on(size.seconds)
    for start, batch in _prepared(count, size, prepare):
        began = time.monotonic()
        results += _forward(whose, batch, min(len(batch), count - start), size, run)
        size.seconds = time.monotonic() - began
        getting_on(size.seconds)
    return results


def _prepared(count: int, size: BatchSize, prepare: Prepare) -> Iterator[tuple[int, Any]]:
    """Batches by their first row. For a GPU threads prepare the next ones meanwhile; their errors are raised here.

    On a CPU there is nothing to gain: workers fill every core, and the threads would wait for each other.
    """
    rows = size.rows
    starts = iter(range(0, count, rows))
    if not size.ahead:
        yield from ((start, prepare(start, rows)) for start in starts)
        return
    with ThreadPoolExecutor(size.ahead) as threads:
        submit = lambda start: (start, threads.submit(lambda: _pinned(prepare(start, rows), size)))  # noqa: E731
        coming: deque[tuple[int, Future[Any]]] = deque(map(submit, islice(starts, size.ahead)))
        try:
            while coming:
                start, batch = coming[0][0], coming.popleft()[1].result()
                coming.extend(map(submit, islice(starts, 1)))
                yield start, batch
        finally:
            for _, future in coming:
                future.cancel()


def _pinned(batch: Any, size: BatchSize) -> Any:
    """A tensor where a GPU fetches it by itself, while the next pass is being asked for."""
    return batch.pin_memory() if size.on_gpu and isinstance(batch, torch.Tensor) else batch


def _forward(
    whose: str, batch: Any, wanted: int, size: BatchSize, run: Callable[[Any], Iterable[Result]]
) -> list[Result]:
    """The first `wanted` rows' results. A batch that does not fit is done again from its beginning, in halves."""
    while True:
        try:
            rows = size.rows  # another thread may halve it meanwhile
            with torch.inference_mode():
                parts = [run(batch[at : at + rows]) for at in range(0, wanted, rows)]
            return [result for part in parts for result in part][:wanted]
        except RuntimeError as error:
            if not _out_of_memory(error):
                raise
            size.halve(whose, error)
        # Not among the lines above: until the exception is gone, its frames hold what did not fit.
        torch.cuda.empty_cache()


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


def embed_pictures(
    name: str, images: Pictures, seeds: Sequence[int] | None, preprocess: Preprocess, size: BatchSize, encode: Encode
) -> NDArray[np.float32]:
    """[B, H, W, 3] -> [B, ...] float32 through `encode`: [rows, 3, h, w] -> [rows, ...]; filled up with black."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"pictures must be uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
    if seeds is not None and len(seeds) != len(images):
        raise ValueError(f"{len(seeds)} augmentation seeds for {len(images)} pictures")
    if not len(images):
        raise ValueError("no pictures to embed")
    return embed_read(name, len(images), lambda start, stop: images[start:stop], seeds, preprocess, size, encode)


def embed_read(
    name: str,
    count: int,
    read: Read,
    seeds: Sequence[int] | None,
    preprocess: Preprocess,
    size: BatchSize,
    encode: Encode,
) -> NDArray[np.float32]:
    """`embed_pictures` of `count` pictures that are read as they are needed: for a GPU ahead of its batches."""
    part = read if size.ahead else _in_blocks(count, read)

    def prepare(start: int, rows: int) -> torch.Tensor:
        batch = np.zeros((rows, *preprocess.size, 3), np.uint8)
        for row, image in enumerate(part(start, min(start + rows, count))):
            batch[row] = preprocess.pixels(image, None if seeds is None else seeds[start + row])
        return preprocess.normalized(batch)

    return embed(name, count, size, prepare, encode)


def _in_blocks(count: int, read: Read) -> Read:
    """`read` that keeps what it has read READ pictures ahead: those of one row lie together in the store."""
    first, held = 0, read(0, min(READ, count))

    def part(start: int, stop: int) -> Pictures:
        nonlocal first, held
        if start < first or stop > first + len(held):
            first, held = start, read(start, min(start + READ, count))
        return held[start - first : stop - first]

    return part


def embed_texts(
    name: str, texts: Sequence[str], tokenize: Callable[[list[str]], torch.Tensor], size: BatchSize, encode: Encode
) -> NDArray[np.float32]:
    """[B] strings -> [B, D] float32 through `encode`: [rows, L] tokens -> [rows, D]; filled up with empty strings."""
    if not len(texts):
        raise ValueError("no texts to embed")

    def prepare(start: int, rows: int) -> torch.Tensor:
        chunk = list(texts[start : start + rows])
        return tokenize([*chunk, *[""] * (rows - len(chunk))])

    return embed(name, len(texts), size, prepare, encode)
