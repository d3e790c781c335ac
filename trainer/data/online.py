"""Teachers that run on every step, as the release's do: the honest baseline of features that were computed once.

They are those of the store's keys (`trainer.data.frozen`), and see the store's pictures and prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.pipeline.base.machine import cores
from recon.pipeline.store.shards import read_rows
from recon.pipeline.teachers import TeacherSpec
from recon.pipeline.teachers.batches import BatchSize
from recon.pipeline.teachers.loaded import LoadedTeacher
from recon.trainer.config import DataConfig
from recon.trainer.data.batches import Samples, in_threads, pinned
from recon.trainer.data.dataset import Dataset
from recon.trainer.data.frozen import ONLINE, check_frozen, load_frozen, spec_of
from recon.trainer.data.targets import CLEAN

if TYPE_CHECKING:
    import zarr


class OnlineTeachers:
    """Puts features in the place of what samples say the teachers are to be given: the `teach` of a data set.

    It takes as many samples together as fill a teacher's batch, and embeds them in threads ahead of the step. There
    torch computes an operation in one thread, as in the pipeline, so a CPU's features are the pipeline's to the bit.
    """

    def __init__(self, dataset: Dataset, config: DataConfig, device: torch.device) -> None:
        """Loads the teachers of a data set of `data.online` on the device.

        UserError for one whose files are not at hand, MachineError for one that is not what the store's key says.
        """
        self._device, self._teachers = device, dataset.online
        loaded: dict[TeacherSpec, LoadedTeacher] = {}
        self._models: list[LoadedTeacher] = []
        for teacher in self._teachers:
            spec = spec_of(teacher, Path(config.weights), ONLINE)
            if spec not in loaded:  # one that reads words too is loaded once
                loaded[spec] = load_frozen(teacher, spec, device, ONLINE)
            check_frozen(teacher, loaded[spec], any(config.draws or [1]), ONLINE)
            self._models.append(loaded[spec])
        views = max((target.shape(config)[0] // 2 for target in dataset.targets), default=0)
        self._together = BatchSize(device).rows // max(views, 1)
        # A class of one's own may not bear several threads.
        self._threads = 1 if any(spec.kind == "python" for spec in loaded) else cores()

    def __call__(self, samples: Iterator[Samples]) -> Iterator[Samples]:
        """The same samples, their targets [B, D] float32, raw."""
        for taught in in_threads(self._embed, self._grouped(samples), self._threads):
            yield from taught

    def _grouped(self, samples: Iterator[Samples]) -> Iterator[list[Samples]]:
        """As many steps' samples together as a teacher's batch has room for, one step's at the least."""
        group: list[Samples] = []
        for each in samples:
            if group and sum(map(len, group)) + len(each) > self._together:
                yield group
                group = []
            group.append(each)
        if group:
            yield group

    def _embed(self, group: list[Samples]) -> list[Samples]:
        lengths = [len(each) for each in group]
        rows = torch.cat([each.rows for each in group]).numpy()
        features: list[Sequence[Tensor]] = []
        for place, (teacher, model) in enumerate(zip(self._teachers, self._models, strict=True)):
            given = torch.cat([each.targets[place] for each in group]).numpy()
            if isinstance(teacher.inputs, list):
                found = _of_prompts(model, teacher.inputs, given[:, 0])
            else:
                found = _of_views(model, teacher.inputs, rows, given)
            if not np.isfinite(found).all():
                raise UserError(
                    f"data.online: {model.name} gives features that are not finite; mend it, {ONLINE.otherwise}"
                )
            features.append(torch.split(torch.from_numpy(found), lengths))
        return [
            pinned(replace(each, targets=tuple(part[number] for part in features)), self._device)
            for number, each in enumerate(group)
        ]


def _of_prompts(model: LoadedTeacher, prompts: list[str], numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """[B, D] features of prompts [B], each different one embedded once."""
    distinct, place = np.unique(numbers, return_inverse=True)
    return model.reader.embed_texts([prompts[number] for number in distinct])[place]


def _of_views(
    model: LoadedTeacher, rgb: zarr.Array[Any], rows: NDArray[np.int64], given: NDArray[np.int64]
) -> NDArray[np.float32]:
    """[B, D] mean features of some views of rows [B]; `given` [B, 2 n] is what `ViewTargets` draws."""
    views, seeds = np.split(given, 2, axis=1)
    pictures = np.concatenate([read_rows(rgb, [row])[0][view] for row, view in zip(rows, views, strict=True)])
    seed = seeds.reshape(-1)
    features = np.empty((len(seed), *model.teacher.shape), np.float32)
    for where in (seed == CLEAN, seed != CLEAN):
        if where.any():
            chosen = None if seed[where][0] == CLEAN else seed[where].tolist()
            features[where] = model.teacher.embed_images(pictures[where], chosen)
    mean: NDArray[np.float32] = features.reshape(*views.shape, -1).mean(axis=1)
    return mean
