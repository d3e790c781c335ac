"""ReCon: a point-cloud transformer that rebuilds masked groups while global queries learn from frozen teachers.

One encoder (`trainer.model.encoder`) serves every task. `ReCon` adds what pretraining needs: points -> groups ->
masking -> encoder -> decoder -> losses. The heads of the downstream tasks are in `trainer.model.heads`, the names of
the released checkpoints in `trainer.checkpoints.released`.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recon.kernels import group_points, knn_gather, knn_points, sample_farthest_points
from recon.trainer.model.blocks import PLAIN_BRANCHES, DropPath, PlainBlock
from recon.trainer.model.clouds import colored, framed
from recon.trainer.model.dense import DenseHead, dense_losses
from recon.trainer.model.encoder import AnyEncoder, build_encoder
from recon.trainer.model.losses import category_contrast_loss, reconstruction_loss
from recon.trainer.model.masks import block_mask, causal_mask, causal_sight, chain_order, chain_steps, random_mask, take
from recon.trainer.model.position import position_code
from recon.trainer.model.settings import SIZES as SIZES
from recon.trainer.model.settings import ModelConfig as ModelConfig
from recon.trainer.model.teaching import Kind, TeacherHead, contrast_mlp, init_projection_layer
from recon.trainer.training.distributed import of_batch


class Decoder(nn.Module):
    """Rebuilds the points of masked groups from the visible tokens and the masked groups' centres.

    Of the causal form there is no mask token: what the encoder gives at each place rebuilds that place's group.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.channels = config.rebuilt_channels
        self.mask_token = None if config.mask_type == "causal" else nn.Parameter(torch.zeros(1, 1, width))
        self.position = position_code(config.position, width)
        self.blocks = nn.ModuleList(
            PlainBlock(width, config.heads, bias=config.block == "recon2") for _ in range(config.decoder_depth)
        )
        self.drop_path = DropPath(config.drop_path, config.decoder_depth, PLAIN_BRANCHES)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.channels * config.group_size)
        if self.mask_token is not None:
            nn.init.trunc_normal_(self.mask_token, std=0.02)
        # The release starts the decoder's blocks unlike the encoder's, and its position MLP and head as torch does.
        self.blocks.apply(_init_decoder_layer)

    def forward(
        self, tokens: Tensor, visible_centers: Tensor, masked_centers: Tensor, scales: Tensor | None = None
    ) -> Tensor:
        """Map `tokens [B, V, C]`, `visible_centers [B, V, 3]` and `masked_centers [B, M, 3]` to points `[B, M, S, 3]`.

        The points are relative to their group's centre, and `[B, M, S, 6]` where colours are rebuilt. `scales` is what
        `drop_path` draws.
        """
        assert self.mask_token is not None
        batch, num_masked, _ = masked_centers.shape
        mask_tokens = self.mask_token.to(tokens.dtype).expand(batch, num_masked, -1)
        x = torch.cat([tokens, mask_tokens], dim=1)
        position = self.position(torch.cat([visible_centers, masked_centers], dim=1))
        for index, block in enumerate(self.blocks):
            # Of the last block's output only the masked groups are read.
            last = num_masked if index + 1 == len(self.blocks) else None
            x = block(x + position, None if scales is None else scales[index], last)
        return self._points(x)

    def causal(
        self, tokens: Tensor, centers: Tensor, hidden: Tensor | None = None, scales: Tensor | None = None
    ) -> Tensor:
        """Map `tokens [B, G, C]` of the causal form, of groups at `centers [B, G, 3]`, to points `[B, G, S, 3]`.

        Each is told where its group lies from the one before, not where it is. `hidden` as `Encoder.forward` takes it.
        """
        x, position = tokens, self.position(chain_steps(centers))
        sight = causal_sight(tokens.shape[1], hidden, tokens.device)
        for index, block in enumerate(self.blocks):
            x = block(x + position, None if scales is None else scales[index], None, sight)
        return self._points(x)

    def _points(self, x: Tensor) -> Tensor:
        points: Tensor = self.head(self.norm(x))
        return points.view(*x.shape[:2], -1, self.channels)


class Student(nn.Module):
    """What all the models have: an encoder over the groups of a cloud, and what it says of the cloud."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder: AnyEncoder = build_encoder(config)
        self.frozen = False
        """Whether the encoder stays in eval mode; see `recon.trainer.model.tuning.freeze_encoder`"""

    def train(self, mode: bool = True) -> Self:
        """As of any module, but for a frozen encoder."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def group(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Split `points [B, N, 3]` into centre-relative groups `[B, G, S, 3]` and their centres `[B, G, 3]`.

        With colours `[B, N, 6]` into groups `[B, G, S, 6]`; a model of colours gives those of the default colour to
        `[B, N, 3]`, another ValueError for `[B, N, 6]`. Of the causal form in the order of its walk.
        """
        groups, centers = self.cut(points)
        if self.config.mask_type == "causal":
            order = chain_order(centers)
            groups, centers = take(groups, order), take(centers, order)
        return groups, centers

    def cut(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """As `group`, in the order in which the centres are found."""
        config = self.config
        if not config.color:
            if points.shape[-1] != 3:
                raise ValueError(f"points: of {points.shape[-1]} channels, but model.color is off, which takes 3")
            groups, centers = group_points(points, config.num_group, config.group_size)
            return groups, centers
        points = colored(points, config.default_color)
        place = points[..., :3].contiguous()
        centers, _ = sample_farthest_points(place, K=config.num_group)
        near = knn_gather(points, knn_points(centers, place, K=config.group_size).idx)
        return torch.cat([near[..., :3] - centers[:, :, None], near[..., 3:]], dim=-1), centers

    def forward_features(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Encode whole clouds `[B, N, 3]`: queries `[B, Q, C]` (see `ModelConfig.queries`) and tokens `[B, G, C]`.

        The clouds are taken as they are: centred and scaled to the unit sphere, as `forward` takes them. Of two towers
        tokens `[B, G, 2C]`.
        """
        groups, centers = self.group(points)
        queries, tokens = self.encoder(self.encoder.patch_embed(groups), centers)
        return queries, tokens

    def svm_feature(self, points: Tensor) -> Tensor:
        """Feature of the linear SVM probe, `[B, 2C]`: max over the queries; max plus mean over the local tokens.

        Of clouds `[B, N, 3]` in any frame and scale. Of two towers `[B, 3C]`.
        """
        return pooled(*self.forward_features(framed(points)))

    def embed(self, points: Tensor) -> Tensor:
        """Describe clouds `[B, N, 3]` in any frame and scale by `svm_feature`, `[B, 2C]`."""
        return self.svm_feature(points)


def pooled(queries: Tensor, tokens: Tensor) -> Tensor:
    """A feature `[B, 2C]`: the largest of `queries [B, Q, C]`; of `tokens [B, G, C]` the largest plus the mean."""
    return torch.cat([queries.amax(dim=1), tokens.amax(dim=1) + tokens.mean(dim=1)], dim=1)


class ReCon(Student):
    """The pretraining model."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.spans = config.teacher_queries
        self.decoder = Decoder(config) if config.reconstruction != "none" else None
        self.teachers = nn.ModuleList(TeacherHead(config.width, teacher) for teacher in config.teachers)
        self.contrast_projection = contrast_mlp(config.width) if config.self_contrastive else None
        for module in (self.teachers, self.contrast_projection):
            if module is not None:
                module.apply(init_projection_layer)
        self.dense = nn.ModuleList(DenseHead(config.width, dense) for dense in config.dense)  # last: it draws weights

    def forward(
        self,
        points: Tensor,
        targets: Sequence[Tensor] = (),
        labels: Tensor | None = None,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        present: Sequence[Tensor | None] | None = None,
        dense: Sequence[Tensor] = (),
    ) -> dict[str, Tensor]:
        """Compute the pretraining losses of a batch.

        points: `[B, N, 3]`, or `[B, N, 6]` with colours, centred and scaled to the unit sphere.
        targets: the teachers' raw features, `[B, D]` each, in the order of `config.teachers`; `[B, T, D]`, several a
        cloud, of those with a loss of `trainer.model.teaching.SEVERAL`.
        present: beside `targets`, bool `[B, T]`: which of several are there; all, where there is None.
        labels: `[B]` int category ids, needed by the contrast only.
        mask: `[B, G]` bool, True where hidden; drawn from `generator` when not given.
        generator: source of the mask and of drop path; torch's global one when not given.
        dense: features of the points, `[B, N, D]` each, in the order of `config.dense`; zero where there is none.

        Returns scalars: "reconstruction" unless it is "none", one under each teacher's name, those of `dense` too, with
        `self_contrastive` "contrast", and "total", their sum with the teachers' weights.
        """
        if len(dense) != len(self.dense):
            raise ValueError(f"dense: {len(dense)} given, the model has {len(self.dense)}")
        if len(targets) != len(self.teachers):
            raise ValueError(f"targets: {len(targets)} given, the model has {len(self.teachers)} teachers")
        if self.config.color and self.config.color_drop:
            points = colored(points, self.config.default_color, self._lost_colors(points, generator))
        groups, centers = self.group(points)
        if mask is None:
            mask = self.draw_mask(centers, generator)
        else:
            _check_mask(mask, centers, self.config.num_masked)
        scales = self.encoder.drop_path(len(points), generator)
        decoder_scales = None if self.decoder is None else self.decoder.drop_path(len(points), generator)
        queries, tokens, predicted, place = self.rebuild(groups, centers, mask, scales, decoder_scales)
        truth = None if predicted is None else take(groups, place)
        local = None
        if self.dense:
            seen = take(centers, self.split(mask)[0])
            local = dense_losses(self.dense, tokens, points[..., :3], seen, dense, self.config.group_size)
        return self.forward_losses(predicted, truth, queries, targets, labels, present, local)

    def _lost_colors(self, points: Tensor, generator: torch.Generator | None) -> Tensor:
        draw = of_batch(lambda count: torch.rand(count, generator=generator, device=points.device), len(points))
        return draw < self.config.color_drop

    def rebuild(
        self,
        groups: Tensor,
        centers: Tensor,
        mask: Tensor,
        scales: Tensor | None = None,
        decoder_scales: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Encode groups `[B, G, S, 3]` at centers `[B, G, 3]` behind `mask [B, G]`, and rebuild what it asks for.

        Returns the queries `[B, Q, C]`, the tokens of `forward_encoder`, the rebuilt points `[B, M, S, 3]` (None
        without a decoder) and which groups they are, `[B, M]`: the masked ones, of the causal form all.
        """
        visible, masked = self.split(mask)
        queries, tokens = self.forward_encoder(groups, centers, visible, scales)
        if self.config.mask_type == "causal":
            everything = torch.arange(groups.shape[1], device=groups.device).expand(groups.shape[0], -1)
            predicted = None if self.decoder is None else self.decoder.causal(tokens, centers, mask, decoder_scales)
            return queries, tokens, predicted, everything
        if self.decoder is None:
            return queries, tokens, None, masked
        predicted = self.decoder(tokens, take(centers, visible), take(centers, masked), decoder_scales)
        return queries, tokens, predicted, masked

    def draw_mask(self, centers: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw `[B, G]` bool, True where hidden, with the same count in every row."""
        draw = {"rand": random_mask, "block": block_mask, "causal": causal_mask}[self.config.mask_type]
        return draw(centers, self.config.num_masked, generator)

    def split(self, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Turn a mask `[B, G]` into the indices of its visible `[B, G - M]` and masked `[B, M]` groups, ascending."""
        order = mask.to(torch.uint8).argsort(dim=1, stable=True)
        num_visible = self.config.num_group - self.config.num_masked
        return order[:, :num_visible], order[:, num_visible:]

    def forward_encoder(
        self, groups: Tensor, centers: Tensor, visible: Tensor, scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode the visible groups: queries `[B, Q, C]` and tokens `[B, V, C]` (of the causal form `[B, G, C]`), with
        the stop-gradient between.
        """
        queries, tokens = self.encoder.masked(groups, centers, visible, self.config, scales)
        return queries, tokens

    def forward_losses(
        self,
        predicted: Tensor | None,
        groups: Tensor | None,
        queries: Tensor,
        targets: Sequence[Tensor],
        labels: Tensor | None,
        present: Sequence[Tensor | None] | None = None,
        local: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Compare `predicted [B, M, S, 3]` with `groups`, where something was rebuilt; and `queries [B, Q, C]` with the
        teachers' features (see `forward`) and, for cls, with each other; beside what is lost at the tokens, `local`.
        """
        losses: dict[str, Tensor] = {}
        if predicted is not None and groups is not None:
            truth = groups[..., : predicted.shape[-1]]
            losses["reconstruction"] = reconstruction_loss(predicted, truth, self.config.reconstruction)
        losses |= local or {}
        weight = {dense.name: dense.weight for dense in self.config.dense}
        for place, (teacher, head) in enumerate(zip(self.config.teachers, self.teachers, strict=True)):
            assert isinstance(head, TeacherHead)
            there = None if present is None else present[place]
            losses[teacher.name] = head.loss(queries[:, self.spans[place]], targets[place], there)
            weight[teacher.name] = teacher.weight
        if self.contrast_projection is not None:
            if labels is None:
                raise ValueError("labels: needed by model.self_contrastive, give the category id of every cloud")
            # Early in training clouds differ by less than bfloat16 resolves, and the batch norms magnify what is left.
            with torch.autocast(queries.device.type, enabled=False):
                weights = next(self.contrast_projection.parameters())
                embedding = self.contrast_projection(queries[:, 0].to(weights.dtype))
            losses["contrast"] = category_contrast_loss(embedding, labels)
        weighted = [loss * weight[name] if weight.get(name, 1.0) != 1.0 else loss for name, loss in losses.items()]
        return losses | {"total": torch.stack(weighted).sum()}

    def zero_shot_feature(
        self, points: Tensor, image: str | None = None, text: str | None = None, text_weight: float = 0.25,
        unit: bool = False,
    ) -> Tensor:  # fmt: skip
        """Feature in the teachers' shared space, `[B, D]`, raw: text_weight * text projection + image projection.

        Of clouds `[B, N, 3]` in any frame and scale. `image` and `text` name two of the model's teachers; without a
        name, the first of that kind. With `unit` what each query predicts is normalised first, as ReCon++ does. Raises
        ValueError where there is none, and when the two spaces differ in width, which then cannot be one space.
        """
        seeing, reading = self._place("image", image), self._place("text", text)
        widths = [self.config.teachers[place].dim for place in (seeing, reading)]
        if widths[0] != widths[1]:
            raise ValueError(
                f"zero-shot needs image and text features of one space; this model was trained on "
                f"{widths[0]}-d images and {widths[1]}-d text"
            )
        queries, _ = self.forward_features(framed(points))
        predicted = [self._feature(queries, place, unit) for place in (seeing, reading)]
        feature: Tensor = text_weight * predicted[1] + predicted[0]
        return feature

    def describe(self, points: Tensor) -> tuple[Tensor, list[Tensor]]:
        """All that one pass says of clouds `[B, N, 3]` in any frame and scale: `embed`'s feature `[B, 2C]`, and each
        teacher's raw feature as its query predicts it, `[B, D]`, in the order of `config.teachers`.
        """
        queries, tokens = self.forward_features(framed(points))
        predicted = [self._feature(queries, place) for place in range(len(self.teachers))]
        return pooled(queries, tokens), predicted

    def image_feature(self, points: Tensor, teacher: str | None = None) -> Tensor:
        """Predict an image teacher's raw feature of clouds `[B, N, 3]` in any frame and scale: `[B, D]`.

        `teacher` names one of the model's; without it the first of pictures. ValueError where there is none.
        """
        return self._predict(points, self._place("image", teacher))

    def text_feature(self, points: Tensor, teacher: str | None = None) -> Tensor:
        """As `image_feature`, of a text teacher."""
        return self._predict(points, self._place("text", teacher))

    def _predict(self, points: Tensor, place: int) -> Tensor:
        queries, _ = self.forward_features(framed(points))
        return self._feature(queries, place)

    def _feature(self, queries: Tensor, place: int, unit: bool = False) -> Tensor:
        head, its = self.teachers[place], queries[:, self.spans[place]]
        assert isinstance(head, TeacherHead)
        return F.normalize(head(its).float(), dim=-1).mean(dim=1) if unit else head.feature(its)

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


def _init_decoder_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
