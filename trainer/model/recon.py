"""ReCon: a point-cloud transformer that rebuilds masked groups while global queries learn from frozen teachers.

`Encoder` serves every task. `ReCon` adds what pretraining needs: points -> groups -> masking -> encoder -> decoder ->
losses. The heads of the downstream tasks are in `trainer.model.heads`, the names of the released checkpoints in
`trainer.checkpoints.released`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from recon.kernels import group_points
from recon.trainer.data.transforms import normalize
from recon.trainer.model.blocks import (
    BLOCK_BRANCHES,
    PATCH_WIDTH,
    PLAIN_BRANCHES,
    DropPath,
    PatchEmbed,
    PlainBlock,
    ReConBlock,
    block_mask,
    position_mlp,
    random_mask,
    take,
)
from recon.trainer.model.losses import category_contrast_loss, reconstruction_loss
from recon.trainer.model.teaching import Kind, Teacher, TeacherHead, contrast_mlp, init_projection_layer

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
            "reconstruction": ("cdl2", "cdl1", "none"),
            "patch_scope": ("all", "visible"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name}: must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    @property
    def num_masked(self) -> int:
        """Groups hidden from the encoder in pretraining."""
        return int(self.mask_ratio * self.num_group)


class Encoder(nn.Module):
    """Patch embedding, positions, the global queries (cls, then one a teacher) and the ReCon blocks."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.patch_embed = PatchEmbed(width, config.patch_width)
        self.position = position_mlp(width)
        self.num_queries = 1 + len(config.teachers)
        self.query_token = nn.Parameter(torch.zeros(1, self.num_queries, width))
        self.query_position = nn.Parameter(torch.zeros(1, self.num_queries, width))
        self.blocks = nn.ModuleList(ReConBlock(width, config.heads, config.block) for _ in range(config.depth))
        self.drop_path = DropPath(config.drop_path, config.depth, BLOCK_BRANCHES)
        self.norm = nn.LayerNorm(width)
        self.apply(_init_encoder_layer)
        for parameter in (self.query_token, self.query_position):
            nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self, tokens: Tensor, centers: Tensor, stop_gradient: bool = False, scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode embedded groups `tokens [B, L, C]` at `centers [B, L, 3]`.

        Returns the queries `[B, 1 + T, C]` (cls, then the teachers') and the local tokens `[B, L, C]`, both after the
        final norm.
        `stop_gradient` keeps the queries' losses from shaping the local tokens, as in pretraining. `scales` is what
        `drop_path` draws; it comes from outside so that this graph compiles whole and no draw hides in it.
        """
        queries, tokens = self.features(tokens, centers, [len(self.blocks)], stop_gradient, scales)[0]
        return self.norm(queries), self.norm(tokens)

    def features(
        self,
        tokens: Tensor,
        centers: Tensor,
        taps: Sequence[int],
        stop_gradient: bool = False,
        scales: Tensor | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """As `forward`, but one (queries, tokens) pair for each of `taps`, blocks counted from 1, and no norm."""
        position = self.position(centers)
        queries = self.query_token.expand(tokens.shape[0], -1, -1)
        tapped = {}
        for index, block in enumerate(self.blocks):
            scale = None if scales is None else scales[index]
            queries, tokens = block(queries + self.query_position, tokens + position, stop_gradient, scale)
            if index + 1 in taps:
                tapped[index + 1] = queries, tokens
        return [tapped[tap] for tap in taps]


class Decoder(nn.Module):
    """Rebuilds the points of masked groups from the visible tokens and the masked groups' centres."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = position_mlp(width)
        self.blocks = nn.ModuleList(PlainBlock(width, config.heads) for _ in range(config.decoder_depth))
        self.drop_path = DropPath(config.drop_path, config.decoder_depth, PLAIN_BRANCHES)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 3 * config.group_size)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        # The release starts the decoder's blocks unlike the encoder's, and its position MLP and head as torch does.
        self.blocks.apply(_init_decoder_layer)

    def forward(
        self, tokens: Tensor, visible_centers: Tensor, masked_centers: Tensor, scales: Tensor | None = None
    ) -> Tensor:
        """Map `tokens [B, V, C]`, `visible_centers [B, V, 3]` and `masked_centers [B, M, 3]` to points `[B, M, S, 3]`.

        The points are relative to their group's centre. `scales` is what `drop_path` draws.
        """
        batch, num_masked, _ = masked_centers.shape
        mask_tokens = self.mask_token.to(tokens.dtype).expand(batch, num_masked, -1)
        x = torch.cat([tokens, mask_tokens], dim=1)
        position = self.position(torch.cat([visible_centers, masked_centers], dim=1))
        for index, block in enumerate(self.blocks):
            # Of the last block's output only the masked groups are read.
            last = num_masked if index + 1 == len(self.blocks) else None
            x = block(x + position, None if scales is None else scales[index], last)
        points: Tensor = self.head(self.norm(x))
        return points.view(batch, num_masked, -1, 3)


class Student(nn.Module):
    """What all the models have: an encoder over the groups of a cloud, and what it says of the cloud."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.frozen = False
        """Whether the encoder stays in eval mode; see `recon.trainer.model.tuning.freeze_encoder`"""

    def train(self, mode: bool = True) -> Self:
        """As of any module, but for a frozen encoder."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def group(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Split `points [B, N, 3]` into centre-relative groups `[B, G, S, 3]` and their centres `[B, G, 3]`."""
        groups, centers = group_points(points, self.config.num_group, self.config.group_size)
        return groups, centers

    def forward_features(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole clouds `[B, N, 3]`: queries `[B, 1 + T, C]` (cls, then the teachers') and tokens `[B, G, C]`."""
        groups, centers = self.group(points)
        queries, tokens = self.encoder(self.encoder.patch_embed(groups), centers)
        return queries, tokens

    def svm_feature(self, points: Tensor) -> Tensor:
        """Feature of the linear SVM probe, `[B, 2C]`: max over the queries; max plus mean over the local tokens."""
        queries, tokens = self.forward_features(points)
        return torch.cat([queries.amax(dim=1), tokens.amax(dim=1) + tokens.mean(dim=1)], dim=1)

    def embed(self, points: Tensor) -> Tensor:
        """Describe clouds `[B, N, 3]` in any frame and scale by `svm_feature`, `[B, 2C]`."""
        return self.svm_feature(normalize(points))


class ReCon(Student):
    """The pretraining model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.decoder = Decoder(config) if config.reconstruction != "none" else None
        self.teachers = nn.ModuleList(TeacherHead(config.width, teacher) for teacher in config.teachers)
        self.contrast_projection = contrast_mlp(config.width) if config.self_contrastive else None
        for module in (self.teachers, self.contrast_projection):
            if module is not None:
                module.apply(init_projection_layer)

    def forward(
        self,
        points: Tensor,
        targets: Sequence[Tensor] = (),
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """Compute the pretraining losses of a batch.

        points: `[B, N, 3]`, centred and scaled to the unit sphere.
        targets: the teachers' raw features, `[B, D]` each, in the order of `config.teachers`.
        labels: `[B]` int category ids, needed by the contrast only.
        mask: `[B, G]` bool, True where hidden; drawn from `generator` when not given.
        generator: source of the mask and of drop path; torch's global one when not given.

        Returns scalars: "reconstruction" unless it is "none", one under each teacher's name, with `self_contrastive`
        "contrast", and "total", their sum with the teachers' weights.
        """
        if len(targets) != len(self.teachers):
            raise ValueError(f"targets: {len(targets)} given, the model has {len(self.teachers)} teachers")
        groups, centers = self.group(points)
        if mask is None:
            mask = self.draw_mask(centers, generator)
        else:
            _check_mask(mask, centers, self.config.num_masked)
        visible, masked = self.split(mask)
        scales = self.encoder.drop_path(len(points), generator)
        decoder_scales = None if self.decoder is None else self.decoder.drop_path(len(points), generator)
        queries, tokens = self.forward_encoder(groups, centers, visible, scales)
        if self.decoder is None:
            return self.forward_losses(None, None, queries, targets, labels)
        predicted = self.decoder(tokens, take(centers, visible), take(centers, masked), decoder_scales)
        return self.forward_losses(predicted, take(groups, masked), queries, targets, labels)

    def draw_mask(self, centers: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw `[B, G]` bool, True where hidden, with the same count in every row."""
        if self.config.mask_type == "rand":
            return random_mask(centers, self.config.num_masked, generator)
        return block_mask(centers, self.config.num_masked, generator)

    def split(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a mask `[B, G]` into the indices of its visible `[B, G - M]` and masked `[B, M]` groups, ascending."""
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        num_visible = self.config.num_group - self.config.num_masked
        return order[:, :num_visible], order[:, num_visible:]

    def forward_encoder(
        self, groups: Tensor, centers: Tensor, visible: Tensor, scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode the visible groups: queries `[B, 1 + T, C]` and tokens `[B, V, C]`, with the stop-gradient between."""
        if self.config.patch_scope == "visible":
            tokens = self.encoder.patch_embed(take(groups, visible))
        else:
            tokens = self.encoder.patch_embed(groups, visible)
        queries, tokens = self.encoder(tokens, take(centers, visible), stop_gradient=True, scales=scales)
        return queries, tokens

    def forward_losses(
        self,
        predicted: Tensor | None,
        groups: Tensor | None,
        queries: Tensor,
        targets: Sequence[Tensor],
        labels: Tensor | None,
    ) -> dict[str, Tensor]:
        """Compare `predicted [B, M, S, 3]` with `groups`, where something was rebuilt; and `queries [B, 1 + T, C]` with
        the teachers' features `[B, D]` and, for cls, with each other.
        """
        losses: dict[str, Tensor] = {}
        if predicted is not None and groups is not None:
            losses["reconstruction"] = reconstruction_loss(predicted, groups, self.config.reconstruction)
        weight = {}
        for place, (teacher, head) in enumerate(zip(self.config.teachers, self.teachers, strict=True)):
            assert isinstance(head, TeacherHead)
            losses[teacher.name] = head.loss(queries[:, 1 + place], targets[place])
            weight[teacher.name] = teacher.weight
        if self.contrast_projection is not None:
            if labels is None:
                raise ValueError("labels: needed by model.self_contrastive, give the category id of every cloud")
            # Early in training clouds differ by less than bfloat16 resolves, and the batch norms magnify what is left.
            with torch.autocast(queries.device.type, enabled=False):
                embedding = self.contrast_projection(queries[:, 0].to(self.encoder.query_token.dtype))
            losses["contrast"] = category_contrast_loss(embedding, labels)
        weighted = [loss * weight[name] if weight.get(name, 1.0) != 1.0 else loss for name, loss in losses.items()]
        return losses | {"total": torch.stack(weighted).sum()}

    def zero_shot_feature(
        self, points: Tensor, image: str | None = None, text: str | None = None, text_weight: float = 0.25
    ) -> Tensor:
        """Feature in the teachers' shared space, `[B, D]`, raw: text_weight * text projection + image projection.

        `image` and `text` name two of the model's teachers; without a name, the first of that kind. Raises ValueError
        where there is none, and when the two spaces differ in width, which then cannot be one space.
        """
        seeing, reading = self._place("image", image), self._place("text", text)
        widths = [self.config.teachers[place].dim for place in (seeing, reading)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"zero-shot needs image and text features of one space; this model was trained on "
                f"{widths[0]}-d images and {widths[1]}-d text"
            )
        queries, _ = self.forward_features(points)
        predicted = [self.teachers[place](queries[:, 1 + place]) for place in (seeing, reading)]
        feature: Tensor = text_weight * predicted[1] + predicted[0]
        return feature

    def image_feature(self, points: Tensor, teacher: str | None = None) -> Tensor:
        """Predict an image teacher's raw feature of clouds `[B, N, 3]` in any frame and scale: `[B, D]`.

        `teacher` names one of the model's; without it the first of pictures. ValueError where there is none.
        """
        return self._predict(points, self._place("image", teacher))

    def text_feature(self, points: Tensor, teacher: str | None = None) -> Tensor:
        """As `image_feature`, of a text teacher."""
        return self._predict(points, self._place("text", teacher))

    def _predict(self, points: Tensor, place: int) -> Tensor:
        queries, _ = self.forward_features(normalize(points))
        predicted: Tensor = self.teachers[place](queries[:, 1 + place])
        return predicted

    def _place(self, kind: Kind, name: str | None) -> int:
        for place, teacher in enumerate(self.config.teachers):
            if teacher.kind == kind and name in (None, teacher.name):
                return place
        has = ", ".join(teacher.name for teacher in self.config.teachers) or "none"
        raise ValueError(f"no {kind} teacher{f' {name!r}' if name else ''} among the model's: {has}")

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters the released recipe does not decay: 1-D ones, biases and tokens."""
        return no_weight_decay(self)


def no_weight_decay(module: nn.Module) -> set[str]:
    """Names of `module`'s parameters that are 1-D (biases and norms), scalars or tokens; learned positions do decay."""
    return {name for name, p in module.named_parameters() if p.ndim <= 1 or name.endswith("_token")}


def _check_mask(mask: Tensor, centers: Tensor, num_masked: int) -> None:
    # Every row must hide as many groups as the config says, or rows would exchange hidden and visible groups unseen.
    if mask.dtype != torch.bool or mask.shape != centers.shape[:2] or bool((mask.sum(dim=1) != num_masked).any()):
        raise ValueError(f"mask: must be bool {list(centers.shape[:2])} with {num_masked} groups hidden in every row")


def _init_encoder_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _init_decoder_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
