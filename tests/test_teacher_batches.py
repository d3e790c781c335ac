"""Batches of one size: no picture's bits depend on its company, and what does not fit on a GPU is halved."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.pipeline.teachers import batches
from recon.pipeline.teachers.batches import (
    CPU_BATCH,
    GPU_BATCH,
    BatchSize,
    embed,
    embed_pictures,
    embed_read,
    in_batches,
)
from recon.pipeline.teachers.images import Preprocess

PREPROCESS = Preprocess((24, 24), (24, 24), "squash", "bicubic", (0.48, 0.45, 0.4), (0.27, 0.26, 0.28))
CPU, GPU = torch.device("cpu"), torch.device("cuda")  # the second is a name here: nothing is moved there


def noise(count: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (count, 30, 30, 3), dtype=np.uint8)


def small(device: torch.device, rows: int) -> BatchSize:
    size = BatchSize(device)
    size.rows = rows
    return size


@pytest.mark.parametrize("device", [CPU, GPU])
def test_no_bits_depend_on_the_company(device: torch.device) -> None:
    layer = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 5, stride=3), torch.nn.GELU(), torch.nn.Flatten(), torch.nn.Linear(8 * 7 * 7, 33)
    )
    size = small(device, CPU_BATCH)
    images = noise(CPU_BATCH + 9)
    seeds = list(range(len(images)))
    whole = embed_pictures("t", images, seeds, PREPROCESS, size, layer)
    assert whole.shape == (len(images), 33)
    assert whole.dtype == np.float32
    for rows in ([0], [5, 3], list(range(len(images)))[::-1]):
        some = embed_pictures("t", images[rows], [seeds[row] for row in rows], PREPROCESS, size, layer)
        assert np.array_equal(some, whole[rows])


@given(count=st.integers(1, 70), fits=st.sampled_from([1, 2, 4, 8, 16, 64]), first=st.sampled_from([1, 4, 32, 64]))
def test_what_does_not_fit_is_halved_and_remembered(count: int, fits: int, first: int) -> None:
    """Every row comes out once and in its place, whatever fits, and no pass after the first fit is too large."""
    size, passes = small(GPU, first), list[int]()

    def encode(batch: torch.Tensor) -> torch.Tensor:
        passes.append(len(batch))
        if len(batch) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nand a long story")
        return batch[:, None] * 2

    def prepare(start: int, rows: int) -> torch.Tensor:
        return torch.arange(start, start + rows).float()

    for _ in range(2):
        found = embed("t", count, size, prepare, encode)
        assert np.array_equal(found[:, 0], np.arange(count) * 2)
    assert size.rows == min(first, fits)
    kept = passes[passes.index(size.rows) :]
    assert set(kept) == {size.rows}


def test_a_single_picture_that_does_not_fit_is_one_line() -> None:
    def encode(batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")

    with pytest.raises(
        UserError, match="teacher 't': cuda has no memory left for a single picture: free some"
    ) as caught:
        embed_pictures("t", noise(1), None, PREPROCESS, small(GPU, 8), encode)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("out of memory"), RuntimeError("shapes do not match")])
def test_other_errors_are_no_matter_of_size(error: RuntimeError) -> None:
    """A CPU's batch never changes, or bits would; and a model's own fault must not be tried again eight times."""
    size, tries = BatchSize(CPU if isinstance(error, torch.OutOfMemoryError) else GPU), list[int]()

    def encode(batch: torch.Tensor) -> torch.Tensor:
        tries.append(len(batch))
        raise error

    before = size.rows
    with pytest.raises(type(error), match=str(error)):
        embed_pictures("t", noise(1), None, PREPROCESS, size, encode)
    assert tries == [before] == [size.rows]


def test_what_is_run_need_be_no_tensor() -> None:
    """Rows of a range and lines of text, as a captioner has them; in halves each line still has its place."""
    size, passes = BatchSize(GPU, cpu=4, gpu=16), list[int]()

    def run(rows: range) -> list[str]:
        passes.append(len(rows))
        if len(rows) > 4:
            raise torch.OutOfMemoryError("out of memory")
        assert torch.is_inference_mode_enabled()
        return [str(row) for row in rows]

    found = in_batches("captions 'c'", 21, size, lambda start, rows: range(start, start + rows), run)
    assert found == [str(row) for row in range(21)]
    assert passes == [16, 8, 4, 4, 4, 4, 4, 4]
    assert in_batches("captions 'c'", 0, size, lambda start, rows: range(start, start + rows), run) == []


def test_a_gpu_starts_large() -> None:
    assert (BatchSize(CPU).rows, BatchSize(GPU).rows) == (CPU_BATCH, GPU_BATCH)
    assert (BatchSize(CPU, 8, 64).rows, BatchSize(GPU, 8, 64).rows) == (8, 64)
    assert GPU_BATCH > CPU_BATCH


def test_the_next_batch_is_prepared_while_a_gpu_has_this_one() -> None:
    """The model waits for the next batch's preparation to begin, which it never would in one thread."""
    begun = [threading.Event() for _ in range(3)]

    def prepare(start: int, rows: int) -> torch.Tensor:
        begun[start // rows].set()
        return torch.full((rows,), float(start))

    def encode(batch: torch.Tensor) -> torch.Tensor:
        following = int(batch[0]) // 4 + 1
        assert following == 3 or begun[following].wait(10)
        return batch[:, None]

    assert len(embed("t", 12, small(GPU, 4), prepare, encode)) == 12


@pytest.mark.parametrize("device", [CPU, GPU])
def test_an_error_of_preparing_is_raised(device: torch.device) -> None:
    def prepare(start: int, rows: int) -> torch.Tensor:
        if start:
            raise ValueError("a picture of another kind")
        return torch.zeros(rows)

    with pytest.raises(ValueError, match="another kind"):
        embed("t", 12, small(device, 4), prepare, lambda batch: batch[:, None])


@pytest.mark.parametrize(
    ("batch", "seeds", "message"),
    [
        (np.zeros((2, 8, 8, 3), np.float32), None, "uint8"),
        (np.zeros((8, 8, 3), np.uint8), None, "uint8"),
        (np.zeros((2, 8, 8, 3), np.uint8), [1], "1 augmentation seeds"),
        (np.zeros((0, 8, 8, 3), np.uint8), None, "no p"),
    ],
)
def test_wrong_pictures_are_refused(batch: Any, seeds: list[int] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed_pictures("t", batch, seeds, PREPROCESS, BatchSize(CPU), lambda pictures: pictures.flatten(1))


@pytest.mark.parametrize("device", [CPU, GPU])
def test_pictures_are_read_as_they_are_needed(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bits of reading them all at once; on a CPU a block at a time, for a GPU a batch."""
    images, asked = noise(21), list[tuple[int, int]]()
    monkeypatch.setattr(batches, "READ", 8)

    def read(start: int, stop: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        asked.append((start, stop))
        return images[start:stop]

    def encode(batch: torch.Tensor) -> torch.Tensor:
        return batch.flatten(1)[:, :50] * 3

    size, seeds = small(device, 4), list(range(21))
    found = embed_read("t", 21, read, seeds, PREPROCESS, size, encode)
    assert np.array_equal(found, embed_pictures("t", images, seeds, PREPROCESS, size, encode))
    parts = [(start, min(start + (8 if device is CPU else 4), 21)) for start in range(0, 21, 8 if device is CPU else 4)]
    assert sorted(asked) == parts


def test_no_more_is_prepared_than_the_threads_hold() -> None:
    """The model stands still at its second batch: `ahead` further ones are prepared meanwhile, and no more."""
    size, prepared, counts = small(GPU, 1), list[int](), list[int]()
    size.ahead = 3

    def prepare(start: int, rows: int) -> torch.Tensor:
        prepared.append(start)
        return torch.full((1,), float(start))

    def encode(batch: torch.Tensor) -> torch.Tensor:
        if batch.item() == 1:
            deadline = time.monotonic() + 10
            while len(prepared) < 5 and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.1)
            counts.append(len(prepared))
        return batch[:, None]

    found = embed("t", 20, size, prepare, encode)
    assert found[:, 0].tolist() == list(range(20))
    assert counts == [5]
