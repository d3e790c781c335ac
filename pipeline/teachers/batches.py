"""Pictures and words through a model in batches of one size: as many as fit on a GPU, a fixed number on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from recon.pipeline.base.errors import MachineError
from recon.pipeline.base.provenance import note
from recon.pipeline.teachers.images import Pictures, Preprocess

CPU_BATCH = 32
GPU_BATCH = 256

Encode = Callable[[torch.Tensor], torch.Tensor]
Prepare = Callable[[int, int], Any]
"""(start, rows) -> exactly so many rows, in a tensor, list or range."""
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
        self.prepare_ahead = device.type != "cpu"
        self._device = device

    @property
    def device_name(self) -> str:
        """The GPU's own name, or the sort of device."""
        device = self._device
        named = device.type == "cuda" and torch.cuda.is_available()
        return torch.cuda.get_device_name(device) if named else device.type

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
    for start, batch in _prepared(count, size, prepare):
        results += _forward(whose, batch, min(len(batch), count - start), size, run)
    return results


def _prepared(count: int, size: BatchSize, prepare: Prepare) -> Iterator[tuple[int, Any]]:
    """Batches by their first row. For a GPU a thread prepares the next one meanwhile; its errors are raised here.

    On a CPU there is nothing to gain: workers fill every core, and the two threads would wait for each other.
    """
    rows = size.rows
    starts = range(0, count, rows)
    if not size.prepare_ahead:
        yield from ((start, prepare(start, rows)) for start in starts)
        return
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(prepare, 0, rows)
        for start in starts:
            batch = coming.result()
            if start + rows < count:
                coming = thread.submit(prepare, start + rows, rows)
            yield start, batch


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

    def prepare(start: int, rows: int) -> torch.Tensor:
        batch = np.zeros((rows, *preprocess.size, 3), np.uint8)
        for row, index in enumerate(range(start, min(start + rows, len(images)))):
            batch[row] = preprocess.pixels(images[index], None if seeds is None else seeds[index])
        return preprocess.normalized(batch)

    return embed(name, len(images), size, prepare, encode)


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
