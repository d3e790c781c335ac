"""Encoders: ReCon's two streams, and the two forms that the paper's ablations set beside it.

All map embedded groups and their centres to global queries and local tokens, so that every task takes any of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recon.trainer.model.blocks import BLOCK_BRANCHES, PLAIN_BRANCHES, DropPath, PatchEmbed, PlainBlock, ReConBlock
from recon.trainer.model.masks import causal_sight, take
from recon.trainer.model.position import position_code, position_mlp
from recon.trainer.model.settings import ModelConfig

Tapped = list[tuple[Tensor, Tensor]]


class Encoder(nn.Module):
    """Patch embedding, positions, the global queries (`ModelConfig.queries`) and the ReCon blocks.

    Of the causal form a start token goes in front and the last group stays out, so that what comes out at a place has
    not seen its group.
    """

    def __init__(self, config: ModelConfig) -> None:
        """ValueError where no query reads the tokens."""
        super().__init__()
        if not config.queries:
            raise ValueError("model.cls_query: without it and without a teacher nothing reads the tokens; leave it on")
        width = config.width
        self.patch_embed = build_patch_embed(config)
        self.position = position_code(config.position, width)
        self.num_queries = len(config.queries)
        self.feature_width = feature_width(config)
        """Of what classification heads read (see `trainer.model.heads.global_feature`)"""
        self.query_token = nn.Parameter(torch.zeros(1, self.num_queries, width))
        # ReCon++'s queries have no position, and a norm of their own.
        positions, norm = nn.Parameter(torch.zeros(1, self.num_queries, width)), nn.LayerNorm(width)
        self.query_position = None if config.block == "recon2" else positions
        self.query_norm = norm if config.block == "recon2" else None
        self.start_token = nn.Parameter(torch.zeros(1, 1, width)) if config.mask_type == "causal" else None
        self.start_position = nn.Parameter(torch.zeros(1, 1, width)) if config.mask_type == "causal" else None
        self.blocks = nn.ModuleList(
            ReConBlock(width, config.heads, config.block, config.mlp_ratio, config.layer_scale)
            for _ in range(config.depth)
        )
        self.drop_path = DropPath(config.drop_path, config.depth, BLOCK_BRANCHES)
        self.norm = nn.LayerNorm(width)
        self.apply(_init_encoder_layer)
        for parameter in (self.query_token, self.query_position, self.start_token, self.start_position):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(
        self,
        tokens: Tensor,
        centers: Tensor,
        stop_gradient: bool = False,
        scales: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode embedded groups `tokens [B, L, C]` at `centers [B, L, 3]`.

        Returns the queries `[B, Q, C]` (as `ModelConfig.queries` names them) and the local tokens `[B, L, C]`, both
        after the final norm.
        `stop_gradient` keeps the queries' losses from shaping the local tokens, as in pretraining. `scales` is what
        `drop_path` draws; it comes from outside so that this graph compiles whole and no draw hides in it. `hidden
        [B, L]` (bool), of the causal form: tokens that no other looks at.
        """
        queries, tokens = self.features(tokens, centers, [len(self.blocks)], stop_gradient, scales, hidden)[0]
        return (self.norm if self.query_norm is None else self.query_norm)(queries), self.norm(tokens)

    def features(
        self,
        tokens: Tensor,
        centers: Tensor,
        taps: Sequence[int],
        stop_gradient: bool = False,
        scales: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> list[tuple[Tensor, Tensor]]:
        """As `forward`, but one (queries, tokens) pair for each of `taps`, blocks counted from 1, and no norm."""
        position, sight = self.position(centers), None
        if self.start_token is not None and self.start_position is not None:
            tokens, position = _led(self.start_token, tokens), _led(self.start_position, position)
            sight = causal_sight(tokens.shape[1], hidden, tokens.device)
        queries = self.query_token.expand(tokens.shape[0], -1, -1)
        tapped = {}
        for index, block in enumerate(self.blocks):
            scale = None if scales is None else scales[index]
            placed = queries if self.query_position is None else queries + self.query_position
            queries, tokens = block(placed, tokens + position, stop_gradient, scale, sight)
            if index + 1 in taps:
                tapped[index + 1] = queries, tokens
        return [tapped[tap] for tap in taps]

    def masked(
        self, groups: Tensor, centers: Tensor, visible: Tensor, config: ModelConfig, scales: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Encode for pretraining: groups `[B, G, S, 3]` at centers `[B, G, 3]` of which `visible [B, V]` are seen.

        Returns queries `[B, Q, C]` and the visible tokens `[B, V, C]`, after the final norm. Of the causal form the
        tokens are `[B, G, C]`: all are there, and those that are not visible are hidden from the others.
        """
        if self.start_token is not None:
            hidden = torch.ones_like(centers[..., 0], dtype=torch.bool).scatter(1, visible, False)
            queries, tokens = self(self.patch_embed(groups), centers, config.stop_gradient, scales, hidden)
            return queries, tokens
        tokens = _embedded(self.patch_embed, groups, visible, config)
        queries, tokens = self(tokens, take(centers, visible), config.stop_gradient, scales)
        return queries, tokens


def _led(start: Tensor, rows: Tensor) -> Tensor:
    """`start [1, 1, C]` in front of all but the last of `rows [B, L, C]`."""
    return torch.cat([start.to(rows.dtype).expand(rows.shape[0], -1, -1), rows[:, :-1]], dim=1)


class OneStream(nn.Module):
    """Queries and tokens in one stream through plain blocks, in which all attend to all.

    The paper's vanilla multi-task model: whatever is learnt shapes all tokens.
    """

    def __init__(self, config: ModelConfig, num_queries: int, position_std: float = 0.02) -> None:
        super().__init__()
        width = config.width
        self.patch_embed = build_patch_embed(config)
        self.position = position_mlp(width)
        self.num_queries = num_queries
        self.feature_width = feature_width(config)
        self.query_token = nn.Parameter(torch.zeros(1, num_queries, width))
        self.query_position = nn.Parameter(torch.zeros(1, num_queries, width))
        self.blocks = nn.ModuleList(PlainBlock(width, config.heads) for _ in range(config.depth))
        self.drop_path = DropPath(config.drop_path, config.depth, PLAIN_BRANCHES)
        self.norm = nn.LayerNorm(width)
        self.apply(_init_encoder_layer)
        nn.init.trunc_normal_(self.query_token, std=0.02)
        nn.init.normal_(self.query_position, std=position_std)

    def forward(
        self, tokens: Tensor, centers: Tensor, stop_gradient: bool = False, scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `Encoder.forward`; there is no gradient to stop."""
        queries, tokens = self.features(tokens, centers, [len(self.blocks)], scales=scales)[0]
        return self.norm(queries), self.norm(tokens)

    def features(
        self,
        tokens: Tensor,
        centers: Tensor,
        taps: Sequence[int],
        stop_gradient: bool = False,
        scales: Tensor | None = None,
    ) -> Tapped:
        """As `Encoder.features`."""
        batch = len(tokens)
        position = torch.cat([self.query_position.expand(batch, -1, -1), self.position(centers)], dim=1)
        x = torch.cat([self.query_token.expand(batch, -1, -1).to(tokens.dtype), tokens], dim=1)
        tapped = {}
        for index, block in enumerate(self.blocks):
            x = block(x + position, None if scales is None else scales[index])
            if index + 1 in taps:
                tapped[index + 1] = x[:, : self.num_queries], x[:, self.num_queries :]
        return [tapped[tap] for tap in taps]

    def masked(
        self, groups: Tensor, centers: Tensor, visible: Tensor, config: ModelConfig, scales: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """As `Encoder.masked`."""
        tokens = _embedded(self.patch_embed, groups, visible, config)
        queries, tokens = self(tokens, take(centers, visible), scales=scales)
        return queries, tokens


class TwoTowers(nn.Module):
    """Two encoders without a weight in common: one rebuilds what is masked, the other learns from the teachers.

    The second sees every group, and has no cls query. Tokens are both towers', side by side along the channels.
    """

    def __init__(self, config: ModelConfig) -> None:
        """ValueError without a teacher."""
        super().__init__()
        if not config.teachers:
            raise ValueError("model.streams: 'two_tower' needs a teacher for its second tower; name one")
        self.num_queries = len(config.queries)
        self.feature_width = feature_width(config) + config.width
        self.rebuilding = OneStream(config, 0)
        self.teaching = OneStream(config, self.num_queries, position_std=1.0)
        self.patch_embed = _BothEmbedded(self)
        self.drop_path = DropPath(config.drop_path, config.depth, 2 * PLAIN_BRANCHES)

    def forward(
        self, tokens: Tensor, centers: Tensor, stop_gradient: bool = False, scales: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Map `tokens [B, L, 2C]` of `patch_embed` to queries `[B, Q, C]` and tokens `[B, L, 2C]`, after the norms."""
        ours, theirs = tokens.chunk(2, dim=-1)
        half, other = (None, None) if scales is None else scales.chunk(2, dim=1)
        _, rebuilding = self.rebuilding(ours, centers, scales=half)
        queries, teaching = self.teaching(theirs, centers, scales=other)
        return queries, torch.cat([rebuilding, teaching], dim=-1)

    def masked(
        self, groups: Tensor, centers: Tensor, visible: Tensor, config: ModelConfig, scales: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The queries' tower sees all groups, the other the visible ones, whose tokens `[B, V, C]` come back."""
        half, other = (None, None) if scales is None else scales.chunk(2, dim=1)
        _, tokens = self.rebuilding.masked(groups, centers, visible, config, half)
        queries, _ = self.teaching(self.teaching.patch_embed(groups), centers, scales=other)
        return queries, tokens


class _BothEmbedded(nn.Module):
    """Both towers' embeddings of groups, side by side; holds no weights of its own."""

    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self._embeddings = [towers.rebuilding.patch_embed, towers.teaching.patch_embed]  # a list: no submodules

    def forward(self, groups: Tensor) -> Tensor:
        """groups `[B, G, S, 3]` -> `[B, G, 2C]`."""
        return torch.cat([embed(groups) for embed in self._embeddings], dim=-1)


AnyEncoder = Encoder | OneStream | TwoTowers


def build_encoder(config: ModelConfig) -> AnyEncoder:
    """By `config.streams`."""
    if config.streams == "two_tower":
        return TwoTowers(config)
    return OneStream(config, len(config.queries)) if config.streams == "multitask" else Encoder(config)


def build_patch_embed(config: ModelConfig) -> PatchEmbed:
    """Of the settings' widths and points."""
    return PatchEmbed(config.width, config.patch_width, config.channels, config.patch_layers)


def feature_width(config: ModelConfig) -> int:
    """Of what classification heads read of one stream: cls, a teacher's queries, and the tokens, each as one."""
    return (int(config.has_cls) + len(config.teachers) + 1) * config.width


def _embedded(embed: PatchEmbed, groups: Tensor, visible: Tensor, config: ModelConfig) -> Tensor:
    """The visible groups' embeddings, by `config.patch_scope`."""
    tokens: Tensor = embed(take(groups, visible)) if config.patch_scope == "visible" else embed(groups, visible)
    return tokens


def _init_encoder_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
