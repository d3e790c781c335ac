"""ReCon's pretraining in the public release's way, for benchmarks/pretrain.py to time ours beside.

Written from the facts of what the release computes and how, not from its source. The function is ours (the tests hold
both to the same losses); the way is not: every group embedded by 1x1 convolutions over the concatenated global and
local features, attention written out as softmax(q k^T) v, drop path drawn in every branch, the decoder's last block on
all tokens, grouping by a loop in plain torch, masks and turns by Python loops over the batch, float32 throughout.
Parameters have the release's names.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recon.trainer.model.recon import ModelConfig


def plain_groups(points: Tensor, num_group: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Groups `[B, G, S, 3]`, relative to their centres `[B, G, 3]`, of `points [B, N, 3]`."""
    batch, num_points, _ = points.shape
    rows = torch.arange(batch, device=points.device)
    index = torch.zeros(batch, num_group, dtype=torch.int64, device=points.device)
    distance = torch.full((batch, num_points), 1e10, device=points.device)
    farthest = torch.zeros(batch, dtype=torch.int64, device=points.device)
    for g in range(num_group):
        index[:, g] = farthest
        distance = torch.minimum(distance, ((points - points[rows, farthest][:, None]) ** 2).sum(-1))
        farthest = distance.max(-1)[1]
    centers = points[rows[:, None], index]
    product = torch.matmul(centers, points.transpose(1, 2))
    squares = (centers**2).sum(-1)[:, :, None] - 2 * product + (points**2).sum(-1)[:, None]
    near = squares.topk(group_size, dim=-1, largest=False, sorted=False)[1]
    return points[rows[:, None, None], near] - centers[:, :, None], centers


def plain_chamfer(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared distance to the nearest point, both directions added; x and y `[B, S, 3]`."""
    squares = ((x[:, :, None] - y[:, None]) ** 2).sum(-1)
    return squares.min(dim=2)[0].mean() + squares.min(dim=1)[0].mean()


def loop_masks(batch: int, num_group: int, num_masked: int, rng: np.random.Generator) -> Tensor:
    """`[B, G]` bool, True where hidden: one permutation a cloud, drawn on the host."""
    masks = np.zeros((batch, num_group), bool)
    for cloud in range(batch):
        mask = np.hstack([np.zeros(num_group - num_masked, bool), np.ones(num_masked, bool)])
        rng.shuffle(mask)
        masks[cloud] = mask
    return torch.from_numpy(masks)


def loop_points(stored: list[NDArray[np.float32]], num_points: int, rng: np.random.Generator) -> Tensor:
    """A random subset of each cloud `[P, 3]`, centred and divided by its largest norm: `[B, num_points, 3]`."""
    clouds = []
    for cloud in stored:
        order = np.arange(len(cloud))
        rng.shuffle(order)
        points = cloud[order[:num_points]]
        points = points - points.mean(axis=0)
        clouds.append(torch.from_numpy(points / np.sqrt((points**2).sum(axis=1)).max()))
    return torch.stack(clouds)


def loop_turns(points: Tensor, rng: np.random.Generator) -> Tensor:
    """Each cloud of `points [B, N, 3]` turned by an angle of its own about y, in place."""
    for cloud in range(len(points)):
        angle = rng.uniform() * 2 * math.pi
        cos, sin = math.cos(angle), math.sin(angle)
        matrix = torch.tensor([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]], device=points.device)
        points[cloud] = points[cloud] @ matrix
    return points


class DropPath(nn.Module):
    """One residual branch's drop path."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.rate)
        return x * kept.div_(1 - self.rate)


class PatchEmbed(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        quarter, half = hidden // 4, hidden // 2
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, quarter, 1), nn.BatchNorm1d(quarter), nn.ReLU(inplace=True), nn.Conv1d(quarter, half, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(hidden, hidden, 1), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Conv1d(hidden, width, 1)
        )

    def forward(self, groups: Tensor) -> Tensor:
        batch, num_group, group_size, _ = groups.shape
        local = self.first_conv(groups.reshape(batch * num_group, group_size, 3).transpose(2, 1))
        pooled = local.max(dim=2, keepdim=True)[0]
        both = torch.cat([pooled.expand(-1, -1, group_size), local], dim=1)
        tokens: Tensor = self.second_conv(both).max(dim=2)[0]
        return tokens.reshape(batch, num_group, -1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of `[B, H, L, D]`, heads side by side again: `[B, L, H D]`."""
    weights = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    return (weights.softmax(dim=-1) @ v).transpose(1, 2).reshape(len(q), q.shape[2], -1)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(attend(qkv[0], qkv[1], qkv[2]))
        return mixed


class CrossAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q = self.q(queries).reshape(batch, -1, self.heads, width // self.heads).permute(0, 2, 1, 3)
        kv = self.kv(x).reshape(batch, length, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(attend(q, kv[0], kv[1]))
        return mixed


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class PlainBlock(nn.Module):
    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x)))
        return out


class ReConBlock(PlainBlock):
    def __init__(self, width: int, heads: int, drop_path: float) -> None:
        super().__init__(width, heads, drop_path)
        self.norm1_contrast = nn.LayerNorm(width)
        self.attn_contrast = CrossAttention(width, heads)
        self.norm2_contrast = nn.LayerNorm(width)
        self.mlp_contrast = Mlp(width)

    def forward_both(self, q: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        q, x = self.norm1_contrast(q), self.norm1(x)
        q = q + self.drop_path(self.attn_contrast(q, x.detach()))
        x = x + self.drop_path(self.attn(x))
        q, x = self.norm2_contrast(q), self.norm2(x)
        return q + self.drop_path(self.mlp_contrast(q)), x + self.drop_path(self.mlp(x))


class Blocks(nn.Module):
    """A stack of blocks whose drop path rises linearly."""

    def __init__(self, kind: type[PlainBlock], config: ModelConfig, depth: int) -> None:
        super().__init__()
        rates = torch.linspace(0, config.drop_path, depth).tolist()
        self.blocks = nn.ModuleList(kind(config.width, config.heads, rate) for rate in rates)


class Encoder(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.encoder = PatchEmbed(config.width, config.patch_width)
        self.pos_embed = position_mlp(config.width)
        for name in ("cls_token", "img_token", "text_token", "cls_pos", "img_pos", "text_pos"):
            self.register_parameter(name, nn.Parameter(0.02 * torch.randn(1, 1, config.width)))
        self.blocks = Blocks(ReConBlock, config, config.depth)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
        position = self.pos_embed(centers)
        batch = len(tokens)
        q = torch.cat([token.expand(batch, -1, -1) for token in (self.cls_token, self.img_token, self.text_token)], 1)
        at = torch.cat([place.expand(batch, -1, -1) for place in (self.cls_pos, self.img_pos, self.text_pos)], 1)
        for block in self.blocks.blocks:
            q, tokens = block.forward_both(q + at, tokens + position)
        return self.norm(q), self.norm(tokens)


class Decoder(Blocks):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__(PlainBlock, config, config.decoder_depth)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x: Tensor, position: Tensor, num_masked: int) -> Tensor:
        for block in self.blocks:
            x = block(x + position)
        out: Tensor = self.norm(x[:, -num_masked:])
        return out


def position_mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, width))


class ReleasedReCon(nn.Module):
    """The pretraining model without the contrast; settings that say how and not what are the release's own."""

    def __init__(self, config: ModelConfig, image_dim: int, text_dim: int) -> None:
        super().__init__()
        self.config = config
        self.MAE_encoder = Encoder(config)
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, config.width))
        self.decoder_pos_embed = position_mlp(config.width)
        self.MAE_decoder = Decoder(config)
        self.increase_dim = nn.Sequential(nn.Conv1d(config.width, 3 * config.group_size, 1))
        self.img_proj = nn.Linear(config.width, image_dim)
        self.text_proj = nn.Linear(config.width, text_dim)

    def forward(self, points: Tensor, image: Tensor, text: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Losses of `points [B, N, 3]` under `mask [B, G]`, True where hidden: three parts and "total", their sum."""
        groups, centers = self.group(points)
        tokens = self.embed(groups)
        queries, tokens = self.encode(tokens[~mask].reshape(len(points), -1, tokens.shape[-1]), centers, mask)
        predicted = self.decode(tokens, centers, mask)
        return self.forward_losses(predicted, groups[mask], queries, image, text)

    def group(self, points: Tensor) -> tuple[Tensor, Tensor]:
        return plain_groups(points, self.config.num_group, self.config.group_size)

    def embed(self, groups: Tensor) -> Tensor:
        """Tokens of all groups, hidden ones too."""
        tokens: Tensor = self.MAE_encoder.encoder(groups)
        return tokens

    def encode(self, tokens: Tensor, centers: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        queries, tokens = self.MAE_encoder(tokens, centers[~mask].reshape(len(tokens), -1, 3))
        return queries, tokens

    def decode(self, tokens: Tensor, centers: Tensor, mask: Tensor) -> Tensor:
        """Points of the hidden groups, `[B M, S, 3]`."""
        batch = len(tokens)
        visible = self.decoder_pos_embed(centers[~mask].reshape(batch, -1, 3))
        masked = self.decoder_pos_embed(centers[mask].reshape(batch, -1, 3))
        hidden = self.mask_token.expand(batch, masked.shape[1], -1)
        both, position = torch.cat([tokens, hidden], dim=1), torch.cat([visible, masked], dim=1)
        rebuilt = self.MAE_decoder(both, position, masked.shape[1])
        points: Tensor = self.increase_dim(rebuilt.transpose(1, 2)).transpose(1, 2)
        return points.reshape(batch * masked.shape[1], -1, 3)

    def forward_losses(
        self, predicted: Tensor, groups: Tensor, queries: Tensor, image: Tensor, text: Tensor
    ) -> dict[str, Tensor]:
        losses = {
            "reconstruction": plain_chamfer(predicted, groups),
            "image": F.smooth_l1_loss(self.img_proj(queries[:, 1]), image),
            "text": F.smooth_l1_loss(self.text_proj(queries[:, 2]), text),
        }
        return losses | {"total": losses["reconstruction"] + losses["image"] + losses["text"]}
