"""The model's settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from recon.trainer.model.blocks import MLP_RATIO, PATCH_WIDTH
from recon.trainer.model.dense import Dense
from recon.trainer.model.masks import CAUSAL_PREFIX
from recon.trainer.model.teaching import Teacher

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 192, "heads": 3},
    "small": {"width": 256, "heads": 4},
    "base": {"width": 384, "heads": 6},
    "recon2-small": {"block": "recon2", "width": 384, "heads": 6},
    "recon2-base": {"block": "recon2", "width": 768, "heads": 12},
    "recon2-large": {"block": "recon2", "width": 1024, "heads": 16, "depth": 24},
    "recon2-giant": {"block": "recon2", "width": 1408, "heads": 16, "depth": 40, "mlp_ratio": 48 / 11},
}
"""ReCon's, and ReCon++'s, which are others under the same names."""


CHOICES = {
    "mask_type": ("rand", "block", "causal"),
    "block": ("released", "paper", "recon2"),
    "position": ("mlp", "sine"),
    "streams": ("recon", "multitask", "two_tower"),
    "reconstruction": ("cdl2", "cdl1", "mdm", "none"),
    "patch_scope": ("all", "visible"),
}


@dataclass(frozen=True)
class ModelConfig:
    """The model's settings. A value that cannot work raises ValueError naming its field."""

    width: int = 384
    """Channels of a token."""
    heads: int = 6
    """Attention heads; must divide `width`."""
    depth: int = 12
    """Blocks of the encoder."""
    decoder_depth: int = 4
    """Blocks of the decoder."""
    num_group: int = 64
    """Groups a cloud; 64 for 1024 points, 128 for 2048."""
    group_size: int = 32
    """Points a group."""
    mask_ratio: float = 0.6
    """Share of the groups hidden from the encoder, in whole groups; of "causal" of those behind the first 10."""
    mask_type: str = "rand"
    """"rand" hides groups at random, "block" the groups nearest to a random centre. "causal" is ReCon++'s for transfer:
    a group sees those before it on a walk from neighbour to neighbour, but for hidden ones, and what comes out at each
    rebuilds the next; it is so downstream too, with nothing hidden."""
    block: str = "released"
    """"released" is the public code's block, "paper" the paper's figure, "recon2" the block of ReCon++ (see
    `trainer.model.blocks.ReConBlock`)."""
    mlp_ratio: float = float(MLP_RATIO)  # as a recipe writes it
    """Hidden width of the encoder's MLPs over `width`, rounded down to whole channels."""
    layer_scale: bool = False
    """Learned factors behind the branches of the encoder's blocks, as ViTs of DINOv2 have them."""
    position: str = "mlp"
    """Code of a group's centre: "mlp" learns it, "sine" is ReCon++'s for transfer, without weights."""
    color: bool = False
    """Points are `[B, N, 6]`, with red, green and blue in 0..1 behind x, y and z."""
    default_color: float = 0.4
    """Of "color": all three, of a cloud that has none."""
    color_drop: float = 0.0
    """Of "color" in pretraining: probability that a cloud loses its colour for the default."""
    streams: str = "recon"
    """"recon" joins local tokens and global queries by the block's cross attention. The paper's ablations: "multitask"
    has one stream of both through plain blocks, "two_tower" an encoder that rebuilds and another that learns from the
    teachers (see `trainer.model.encoder`)."""
    stop_gradient: bool = True
    """Of "recon" in pretraining: keep what the queries' losses ask for out of the local tokens."""
    drop_path: float = 0.1
    """Drop path rate of the last block; rises linearly from 0 at the first, in encoder and decoder."""
    teachers: tuple[Teacher, ...] = ()
    """One global query each, or several, behind cls; none is single-modal."""
    dense: tuple[Dense, ...] = ()
    """What the local tokens learn besides, each a teacher's features of points."""
    cls_query: bool = True
    """A query without a teacher, for the contrast and for classifying. ReCon++ pretrains without; a classifier has it
    all the same."""
    reconstruction: str = "cdl2"
    """Chamfer distance of the rebuilt groups: "cdl2" squared, "cdl1" unsquared; "mdm" the sum of both and, with
    "color", of the colours' distance; "none" trains without a decoder."""
    self_contrastive: bool = False
    """Add the contrast between categories on the cls query; `forward` then needs labels."""
    patch_width: int = PATCH_WIDTH
    """Hidden width of the patch embedding, a multiple of 4; half of it takes a third of the arithmetic."""
    patch_layers: int = 2
    """Layers of the patch embedding before a group's maximum, 2 or 3. ReCon++'s large embedding has 3 and
    `patch_width` 2048."""
    patch_scope: str = "all"
    """"all" embeds every group and drops the masked ones after, as the release does; "visible" embeds only what
    the encoder sees. Equal in eval mode; in training the batch statistics then come from the visible groups alone."""

    def __post_init__(self) -> None:
        for name in ("width", "heads", "depth", "decoder_depth", "num_group", "group_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name}: must be at least 1, got {getattr(self, name)}")
        names = [teacher.name for teacher in self.teachers]
        if len({*names}) < len(names):
            raise ValueError(f"model.teachers: two of one name among {', '.join(names)}")
        if self.width % self.heads:
            raise ValueError(f"model.heads: must divide width {self.width}, got {self.heads}")
        if self.patch_layers not in (2, 3):
            raise ValueError(f"model.patch_layers: must be 2 or 3, got {self.patch_layers}")
        if self.patch_width < 1 or self.patch_width % 2**self.patch_layers:
            raise ValueError(f"model.patch_width: must be a multiple of {2**self.patch_layers}, got {self.patch_width}")
        if not self.mlp_ratio * self.width >= 1:
            raise ValueError(f"model.mlp_ratio: {self.mlp_ratio} of width {self.width} leaves no channel")
        for name in ("default_color", "color_drop"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"model.{name}: must lie in [0, 1], got {getattr(self, name)}")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"model.drop_path: must lie in [0, 1), got {self.drop_path}")
        # Without a reconstruction nothing has to be hidden; the causal form rebuilds what it sees, too.
        if not (self.reconstruction != "none" and self.mask_type != "causal") <= self.num_masked < self.num_group:
            raise ValueError(
                f"model.mask_ratio: {self.mask_ratio} of {self.num_group} groups hides {self.num_masked}; "
                "at least one must be hidden and one left"
            )
        if self.dense and self.mask_type == "causal":
            raise ValueError('model.dense: of mask_type "causal" a token knows the groups before its own; use "rand"')
        self._check_choices()

    def _check_choices(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}: must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.streams != "recon" and not self.stop_gradient:
            raise ValueError(f"model.stop_gradient: streams {self.streams!r} have none; leave it at true")
        if self.streams == "two_tower" and self.reconstruction == "none":
            raise ValueError("model.reconstruction: the first of 'two_tower' learns from nothing else; leave it on")
        if self.self_contrastive and self.streams == "two_tower":
            raise ValueError("model.self_contrastive: streams 'two_tower' have no cls query; leave it out")
        if self.self_contrastive and not self.cls_query:
            raise ValueError("model.self_contrastive: needs model.cls_query")
        if self.streams != "recon":
            plain = ModelConfig()
            for name in ("block", "mlp_ratio", "layer_scale", "position", "cls_query"):
                if getattr(self, name) not in (getattr(plain, name), "paper"):
                    raise ValueError(f"model.{name}: streams {self.streams!r} have one form of it; leave it out")
            if self.mask_type == "causal":
                raise ValueError(f'model.mask_type: streams {self.streams!r} hide groups by "rand" or "block"')
        if self.mask_type == "causal" and self.patch_scope == "visible":
            raise ValueError('model.patch_scope: the causal form embeds all groups; leave it at "all"')

    def check_points(self, num_points: int) -> None:
        """ValueError where a cloud of `data.num_points` has fewer points than it has groups or than a group."""
        for name in ("num_group", "group_size"):
            if getattr(self, name) > num_points:
                raise ValueError(f"model.{name}: {getattr(self, name)} is more than the data.num_points {num_points}")

    @property
    def num_masked(self) -> int:
        """Groups hidden from the encoder in pretraining."""
        hideable = self.num_group - CAUSAL_PREFIX if self.mask_type == "causal" else self.num_group
        return int(self.mask_ratio * max(hideable, 0))

    @property
    def queries(self) -> tuple[str, ...]:
        """What the global queries are called, in their order: "cls", then the teachers' names, numbered where there
        are several of one teacher.
        """
        names = ["cls"] if self.has_cls else []
        for teacher in self.teachers:
            several = range(1, teacher.queries + 1) if teacher.queries > 1 else ()
            names += [f"{teacher.name} {number}" for number in several] or [teacher.name]
        return tuple(names)

    @property
    def has_cls(self) -> bool:
        """Whether the first query is cls."""
        return self.cls_query and self.streams != "two_tower"

    @property
    def teacher_queries(self) -> tuple[slice, ...]:
        """Where each teacher's queries stand among all."""
        spans, start = [], int(self.has_cls)
        for teacher in self.teachers:
            spans.append(slice(start, start + teacher.queries))
            start += teacher.queries
        return tuple(spans)

    @property
    def channels(self) -> int:
        """Numbers of a point: its place, and its colour where it has one."""
        return 6 if self.color else 3

    @property
    def rebuilt_channels(self) -> int:
        """Of a rebuilt point; without a loss for its colour none is predicted."""
        return self.channels if self.reconstruction == "mdm" else 3
