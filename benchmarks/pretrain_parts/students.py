"""The contestants' steps: data, teachers where they run online, losses, backward, AdamW."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pretrain_parts.clock import STEP, Watch
from pretrain_parts.released_step import ReleasedReCon, loop_masks, loop_points, loop_turns
from pretrain_parts.teachers import Teachers
from torch import Tensor

from recon.trainer.checkpoints.released import to_released
from recon.trainer.data.transforms import (
    normalize,
    random_bits,
    random_integers,
    random_subset,
    random_uniform,
    rotate_y,
    stream,
)
from recon.trainer.model.recon import ModelConfig, ReCon, no_weight_decay
from recon.trainer.model.teaching import Teacher

SEED = 0
RUN = 16  # neighbouring points drawn together, as `trainer.data.batches` draws them
LEARNING_RATE, WEIGHT_DECAY = 5e-4, 0.05


@dataclass(frozen=True)
class Size:
    """How large the model, its batch and a stored shape are."""

    batch: int
    model: dict[str, int]
    """Settings of `ModelConfig` that are not its defaults."""
    image_dim: int = 768
    text_dim: int = 512
    num_points: int = 1024
    num_stored: int = 8192


class Map:
    """A tiny data set on the device: raw points, and features of 2 draws and 12 views and of 60 prompts."""

    def __init__(self, size: Size, device: torch.device) -> None:
        source = torch.Generator().manual_seed(stream(SEED, "map") % 2**63)
        self.size, self.num_rows = size, 2 * size.batch
        self.xyz = torch.randn(self.num_rows, size.num_stored, 3, generator=source).to(device)
        self.image = torch.randn(2, self.num_rows, 12, size.image_dim, generator=source).half().to(device)
        self.text = torch.randn(60, size.text_dim, generator=source).half().to(device)
        self.on_host = self.xyz.cpu().numpy()
        self.row = torch.arange(self.num_rows, device=device)

    def batch(self, step: int) -> tuple[Tensor, Tensor, Tensor]:
        """Points, image and text features of a step, drawn on the device as `trainer.data.batches` does."""
        size = self.size
        rows = random_bits(stream(SEED, "order", step), self.row).argsort()[: size.batch]
        bits = [random_bits(stream(SEED, name, step), rows) for name in ("points", "angle", "draw", "view", "prompt")]
        runs = random_subset(bits[0], size.num_stored // RUN, size.num_points // RUN)
        runs = runs + rows[:, None] * (size.num_stored // RUN)
        points = self.xyz.view(-1, 3 * RUN)[runs.flatten()].view(size.batch, size.num_points, 3)
        points = rotate_y(normalize(points), random_uniform(bits[1]) * (2 * math.pi))
        image = self.image[random_integers(bits[2], 2), rows, random_integers(bits[3], 12)]
        return points, image.float(), self.text[random_integers(bits[4], 60)].float()


class Ours:
    """The trainer's step. With `graph` "default" the model is compiled, with "reduce-overhead" into CUDA graphs too."""

    def __init__(self, data: Map, device: torch.device, dtype: torch.dtype, scope: str, graph: str | None) -> None:
        torch.manual_seed(SEED)
        self.data, self.device, self.dtype, self.graph, self.number = data, device, dtype, graph, 0
        self.model = ReCon(settings(data.size, scope)).to(device).train()
        self.forward: Callable[..., Any] = self.model
        if graph:
            self.forward = torch.compile(self.model, fullgraph=True, mode=None if graph == "default" else graph)
        spared = no_weight_decay(self.model)
        named = list(self.model.named_parameters())
        groups = [
            {"params": [value for name, value in named if name in spared], "weight_decay": 0.0},
            {"params": [value for name, value in named if name not in spared], "weight_decay": WEIGHT_DECAY},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)

    def losses(self, points: Tensor, image: Tensor, text: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """The model's losses by name."""
        found: dict[str, Tensor] = self.forward(points, (image, text), mask=mask)
        return found

    def step(self, watch: Watch, teachers: Teachers | None) -> None:
        """Update the weights once; spans of `watch` are the step and its parts."""
        with watch.span(STEP):
            torch.manual_seed(self.number)
            with watch.span("data"):
                points, image, text = self.data.batch(self.number)
            if teachers:
                with watch.span("teachers"):
                    image, text = teachers.features(image, text, self.dtype)
            if self.graph == "reduce-overhead":
                torch.compiler.cudagraph_mark_step_begin()
            with (
                watch.span("model, one graph") if self.graph else nullcontext(),
                torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16),
            ):
                loss = self.losses(points, image, text)["total"]
            with watch.span("backward"):
                loss.backward()
            with watch.span("optimiser"):
                torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        self.number += 1

    def watch_parts(self, watch: Watch) -> None:
        """Have the parts of the forward pass be spans too, which those of a compiled model cannot."""
        for owner, method, part in (
            (self.model, "group", "grouping"),
            (self.model.encoder.patch_embed, "forward", "embedding"),
            (self.model.encoder, "forward", "encoder"),
            (self.model.decoder, "forward", "decoder"),
            (self.model, "forward_losses", "losses"),
        ):
            watch.around(owner, method, part)


class Released:
    """A step in the release's way, in float32; of `ours` it has the weights."""

    graph = None

    def __init__(self, data: Map, device: torch.device, ours: Ours) -> None:
        self.data, self.device = data, device
        self.rng = np.random.default_rng(SEED)
        config = ours.model.config
        self.model = ReleasedReCon(config, data.size.image_dim, data.size.text_dim)
        self.model.load_state_dict(to_released(ours.model.state_dict(), "pretrain"))
        self.model.to(device).train()
        named = list(self.model.named_parameters())
        spared = [name for name, value in named if value.ndim == 1 or name.endswith(("bias", "token"))]
        groups = [
            {"params": [value for name, value in named if name in spared], "weight_decay": 0.0},
            {"params": [value for name, value in named if name not in spared], "weight_decay": WEIGHT_DECAY},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)

    def losses(self, points: Tensor, image: Tensor, text: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """The model's losses by name."""
        found: dict[str, Tensor] = self.model(points, image, text, mask)
        return found

    def step(self, watch: Watch, teachers: Teachers | None) -> None:
        """As `Ours.step`."""
        data, config = self.data, self.model.config
        with watch.span(STEP):
            with watch.span("data"):
                rows = self.rng.permutation(data.num_rows)[: data.size.batch]
                points = loop_points([data.on_host[row] for row in rows], data.size.num_points, self.rng)
                points = loop_turns(points.to(self.device), self.rng)
                mask = loop_masks(len(points), config.num_group, config.num_masked, self.rng).to(self.device)
                at = torch.from_numpy(rows).to(self.device)
                image, text = data.image[0, at, 0].float(), data.text[at % 60].float()
            if teachers:
                with watch.span("teachers"):
                    image, text = teachers.features(image, text, torch.float32)
            loss = self.losses(points, image, text, mask)["total"]
            with watch.span("backward"):
                loss.backward()
            with watch.span("optimiser"):
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
                loss.item()

    def watch_parts(self, watch: Watch) -> None:
        """As `Ours.watch_parts`."""
        for method, part in (
            ("group", "grouping"),
            ("embed", "embedding"),
            ("encode", "encoder"),
            ("decode", "decoder"),
            ("forward_losses", "losses"),
        ):
            watch.around(self.model, method, part)


Student = Ours | Released


def settings(size: Size, scope: str) -> ModelConfig:
    """The model of a size, whose patch embedding sees "all" or the "visible" groups."""
    teachers = (Teacher("image", "image", size.image_dim), Teacher("text", "text", size.text_dim))
    return ModelConfig(teachers=teachers, patch_scope=scope, **size.model)


def own_bytes(student: Student) -> int:
    """Of the weights, their buffers and the optimiser's state."""
    state = [value for held in student.optimizer.state.values() for value in held.values()]
    held = [*student.model.parameters(), *student.model.buffers(), *(v for v in state if isinstance(v, Tensor))]
    return sum(value.numel() * value.element_size() for value in held)
