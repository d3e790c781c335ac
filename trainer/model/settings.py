"""The model's settings."""

from __future__ import annotations

from dataclasses import dataclass

from recon.trainer.model.blocks import PATCH_WIDTH
from recon.trainer.model.teaching import Teacher

SIZES: dict[str, dict[str, int]] = {
    "tiny": {"width": 192, "heads": 3},
    "small": {"width": 256, "heads": 4},
    "base": {"width": 384, "heads": 6},
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
    """Share of the groups hidden from the encoder, rounded down to whole groups."""
    mask_type: str = "rand"
    """"rand" hides groups at random, "block" the groups nearest to a random centre."""
    block: str = "released"
    """"released" is the public code's block, "paper" the paper's figure (see `trainer.model.blocks.ReConBlock`)."""
    streams: str = "recon"
    """"recon" joins local tokens and global queries by the block's cross attention. The paper's ablations: "multitask"
    has one stream of both through plain blocks, "two_tower" an encoder that rebuilds and another that learns from the
    teachers (see `trainer.model.encoder`)."""
    stop_gradient: bool = True
    """Of "recon" in pretraining: keep what the queries' losses ask for out of the local tokens."""
    drop_path: float = 0.1
    """Drop path rate of the last block; rises linearly from 0 at the first, in encoder and decoder."""
    teachers: tuple[Teacher, ...] = ()
    """One global query each, behind cls; none is single-modal."""
    reconstruction: str = "cdl2"
    """Chamfer distance of the rebuilt groups: "cdl2" squared, "cdl1" unsquared; "none" trains without a decoder."""
    self_contrastive: bool = False
    """Add the contrast between categories on the cls query; `forward` then needs labels."""
    patch_width: int = PATCH_WIDTH
    """Hidden width of the patch embedding, a multiple of 4; half of it takes a third of the arithmetic."""
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
        if self.patch_width < 4 or self.patch_width % 4:
            raise ValueError(f"model.patch_width: must be a multiple of 4, got {self.patch_width}")
        if not 0.0 <= self.drop_path < 1.0:
            raise ValueError(f"model.drop_path: must lie in [0, 1), got {self.drop_path}")
        # Without a reconstruction nothing has to be hidden.
        if not (self.reconstruction != "none") <= self.num_masked < self.num_group:
            raise ValueError(
                f"model.mask_ratio: {self.mask_ratio} of {self.num_group} groups hides {self.num_masked}; "
                "at least one must be hidden and one left"
            )
        choices = {
            "mask_type": ("rand", "block"),
            "block": ("released", "paper"),
            "streams": ("recon", "multitask", "two_tower"),
            "reconstruction": ("cdl2", "cdl1", "none"),
            "patch_scope": ("all", "visible"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}: must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        if self.streams != "recon" and not self.stop_gradient:
            raise ValueError(f"model.stop_gradient: streams {self.streams!r} have none; leave it at true")
        if self.streams == "two_tower" and self.reconstruction == "none":
            raise ValueError("model.reconstruction: the first of 'two_tower' learns from nothing else; leave it on")
        if self.streams == "two_tower" and self.self_contrastive:
            raise ValueError("model.self_contrastive: streams 'two_tower' have no cls query; leave it out")

    def check_points(self, num_points: int) -> None:
        """ValueError where a cloud of `data.num_points` has fewer points than it has groups or than a group."""
        for name in ("num_group", "group_size"):
            if getattr(self, name) > num_points:
                raise ValueError(f"model.{name}: {getattr(self, name)} is more than the data.num_points {num_points}")

    @property
    def num_masked(self) -> int:
        """Groups hidden from the encoder in pretraining."""
        return int(self.mask_ratio * self.num_group)
