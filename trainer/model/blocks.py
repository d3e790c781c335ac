"""The layers ReCon is made of: patch embedding, attention, and the block in its three forms.

Every layer takes its random numbers (drop path) as an argument, so that a training step is a function of its inputs,
its weights and one seed.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recon.trainer.model.masks import take
from recon.trainer.model.patch_pieces import embed_constant, embed_in_pieces
from recon.trainer.training.distributed import of_batch

PATCH_WIDTH = 512  # the release's hidden width of the patch embedding
MLP_RATIO = 4
BLOCK_BRANCHES = 4  # residual branches of a ReCon block, in the order of its `scales`
PLAIN_BRANCHES = 2


class PatchEmbed(nn.Module):
    """A small PointNet: one token a group, whatever the order of the points inside it.

    The release's 1x1 convolutions are linear layers here, over rows of points: the same function with a quarter fewer
    multiplications. `conv3` sees the group's maximum in its first half of columns and the point's own feature in the
    second; as W [g ; x] = Wg g + Wx x, the first product is formed once a group, not once a point.

    `hidden` is the width once both halves stand side by side, a multiple of 4; the layers before have a quarter of it
    and a half. ReCon++'s large embedding has three `layers` there, of an eighth, a quarter and a half. `channels` are a
    point's: 3, or 6 with its colour.
    """

    def __init__(self, width: int, hidden: int = PATCH_WIDTH, channels: int = 3, layers: int = 2) -> None:
        super().__init__()
        self.width, self.hidden, self.local, self.layers = width, hidden, hidden // 2, layers
        first = hidden // 2**layers
        self.conv1 = nn.Linear(channels, first)
        self.norm1 = nn.BatchNorm1d(first)
        third = (nn.Linear(first, hidden // 4), nn.BatchNorm1d(hidden // 4), nn.ReLU()) if layers == 3 else ()
        self.between = nn.Sequential(*third)
        self.conv2 = nn.Linear(hidden // 4, self.local)
        self.conv3 = nn.Linear(hidden, hidden)
        self.norm2 = nn.BatchNorm1d(hidden)
        self.conv4 = nn.Linear(hidden, width)

    def forward(self, groups: Tensor, kept: Tensor | None = None) -> Tensor:
        """Embed `groups [B, G, S, 3]` centre-relative, or with colours `[B, G, S, 6]`, as tokens `[B, G, C]`; or
        those of `kept [B, V]` alone, `[B, V, C]`.

        In training mode the batch statistics run over every point given, so they depend on which groups are given; the
        groups that are not kept have no other part in the tokens.
        """
        if kept is not None and not self.training:
            groups, kept = take(groups, kept), None
        if self._in_pieces(groups):
            return embed_in_pieces(self, groups, kept)
        if not self.training and self._foldable() and _constant(self, groups):
            return embed_constant(self, groups)
        batch, num_group, group_size, _ = groups.shape
        points = groups.reshape(-1, groups.shape[-1])
        local = self.conv2(self.between(F.relu(self.norm1(self.conv1(points)), inplace=True)))
        pooled = local.view(-1, group_size, self.local).max(dim=1).values

        weight = self.conv3.weight
        wide = F.linear(local, weight[:, self.local :]).view(-1, group_size, self.hidden)
        wide = wide + F.linear(pooled, weight[:, : self.local], self.conv3.bias).unsqueeze(1)
        wide = self.norm2(wide.view(-1, self.hidden)).view(-1, group_size, self.hidden)
        if kept is not None:
            # By whole rows: a gradient by `take`, if it is to be the same twice, is sorted by element on a GPU.
            rows = kept + torch.arange(0, batch * num_group, num_group, device=kept.device).unsqueeze(1)
            wide = wide.index_select(0, rows.flatten())
        tokens: Tensor = self.conv4(F.relu(wide, inplace=True)).max(dim=1).values
        return tokens.view(batch, -1, self.width)

    def _in_pieces(self, groups: Tensor) -> bool:
        """Whether this is a training step in full precision on a CPU, which has a faster form.

        That form calls none of the layers, so it is not for layers with hooks, nor for batch norms of another class,
        which gather their statistics from elsewhere too.
        """
        return (
            self.training
            and groups.device.type == "cpu"
            and not groups.requires_grad
            and not torch.is_autocast_enabled("cpu")
            and not torch.compiler.is_compiling()
            and self._foldable()
            and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.children())
        )

    def _foldable(self) -> bool:
        """Whether these are the layers that the faster forms are of."""
        return self.layers == 2 and type(self.norm1) is nn.BatchNorm1d


class Attention(nn.Module):
    """Multi-head self attention over `[B, L, C]`."""

    def __init__(self, width: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, last: int | None = None, sight: Tensor | None = None) -> Tensor:
        """Mix `x [B, L, C]`; with `last`, compute and return the last that many tokens only.

        `sight` is bool `[B or 1, 1, L, L]`, True where a token may look; None where all may look at all.
        """
        width = x.shape[-1]
        if last is None or last == x.shape[1]:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x[:, -last:], weight[:width], None if bias is None else bias[:width])
            k, v = F.linear(x, weight[width:], None if bias is None else bias[width:]).chunk(2, dim=-1)
        projected: Tensor = self.proj(_attend(q, k, v, self.heads, sight))
        return projected

    def weights(self, x: Tensor, sight: Tensor | None = None) -> Tensor:
        """How much each of `x [B, L, C]` takes of each, by head: `[B, heads, L, L]`, every row adding up to 1."""
        q, k, _ = self.qkv(x).chunk(3, dim=-1)
        return _weights(q, k, self.heads, sight)


class CrossAttention(nn.Module):
    """Multi-head attention of queries `[B, Q, C]` over tokens `[B, L, C]`."""

    def __init__(self, width: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=bias)
        self.kv = nn.Linear(width, 2 * width, bias=bias)
        self.proj = nn.Linear(width, width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """queries `[B, Q, C]`, tokens `[B, L, C]` -> `[B, Q, C]`."""
        if self.heads * queries.shape[1] < queries.shape[2] and _constant(self, queries, tokens):
            return self._of_few(queries, tokens)
        k, v = self.kv(tokens).chunk(2, dim=-1)
        projected: Tensor = self.proj(_attend(self.q(queries), k, v, self.heads))
        return projected

    def weights(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """How much each of `queries [B, Q, C]` takes of each of `tokens [B, L, C]`, by head: `[B, heads, Q, L]`."""
        return _weights(self.q(queries), self.kv(tokens).chunk(2, dim=-1)[0], self.heads)

    def _of_few(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """As `forward`, without a key or a value of any token.

        q . (Wk x) = (Wk^T q) . x and sum a (Wv x) = Wv (sum a x): a head's weights meet its few queries, not its many
        tokens. A bias of the keys is one number for all tokens, which softmax does not see, and the weights a of a bias
        of the values add up to 1.
        """
        batch, num_query, width = queries.shape
        heads, each = self.heads, width // self.heads
        to_key, to_value = self.kv.weight.view(2, heads, each, width)
        q = self.q(queries).view(batch * num_query, heads, each).transpose(0, 1)
        asked = (q @ to_key).view(heads, batch, num_query, width).transpose(0, 1).reshape(batch, -1, width)
        attention = (asked @ tokens.transpose(1, 2)).mul_(each**-0.5).softmax(dim=-1)
        mixed = (attention @ tokens).view(batch, heads, num_query, width).transpose(0, 1)
        heard = (mixed.reshape(heads, -1, width) @ to_value.transpose(1, 2)).transpose(0, 1)
        heard = heard.reshape(batch, num_query, width)
        projected: Tensor = self.proj(heard if self.kv.bias is None else heard + self.kv.bias[width:])
        return projected


class Mlp(nn.Module):
    """Two linear layers with a GELU between, `ratio` times as wide inside, rounded down."""

    def __init__(self, width: int, ratio: float = MLP_RATIO) -> None:
        super().__init__()
        hidden = int(ratio * width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., C]` -> `[..., C]`."""
        out: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return out


class PlainBlock(nn.Module):
    """A pre-norm transformer block, as the decoder uses it."""

    def __init__(self, width: int, heads: int, bias: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(
        self, x: Tensor, scales: Tensor | None = None, last: int | None = None, sight: Tensor | None = None
    ) -> Tensor:
        """Map `x [B, L, C]`; `scales [2, B, 1, 1]` multiply the branches' outputs (drop path), None leaves them.

        With `last`, only the last that many tokens are computed, from all of them: `[B, last, C]`. `sight` as
        `Attention` takes it.
        """
        mixed = _scaled(self.attention(self.norm1(x), last, sight), scales, 0)
        x = (x if last is None else x[:, -last:]) + mixed
        return x + _scaled(self.mlp(self.norm2(x)), scales, 1)


class LayerScale(nn.Module):
    """Learned factors of a branch's channels, which begin as nearly nothing (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """x `[..., C]` -> `[..., C]`."""
        return x * self.gamma


class ReConBlock(nn.Module):
    """One block over two streams: local tokens X, and the global queries Q that read X but are never read by it.

    "released" is what the public code computes, and every published number with it: the norms replace the residual
    streams themselves, and both streams' attention sees the same normed X. "paper" is what the paper's figure states: a
    pre-norm block on X, then one on Q that reads the updated X. "recon2" is ReCon++'s: as "paper", but Q reads X after
    its MLP, and through the norm that Q goes through; its attention has biases. All three hold their parameters under
    the same names.
    """

    def __init__(
        self, width: int, heads: int, form: str, mlp_ratio: float = MLP_RATIO, layer_scale: bool = False
    ) -> None:
        super().__init__()
        self.form = form
        bias = form == "recon2"
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio)
        self.query_norm1 = nn.LayerNorm(width)
        self.cross_attention = CrossAttention(width, heads, bias)
        self.query_norm2 = nn.LayerNorm(width)
        self.query_mlp = Mlp(width, mlp_ratio)
        self.layer_scale = layer_scale
        # In the order of `scales`: cross attention, attention, the queries' MLP, the tokens'.
        self.layer_scales = nn.ModuleList(LayerScale(width) for _ in range(BLOCK_BRANCHES if layer_scale else 0))

    def forward(
        self,
        queries: Tensor,
        tokens: Tensor,
        stop_gradient: bool,
        scales: Tensor | None = None,
        sight: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Map `queries [B, Q, C]` and `tokens [B, L, C]`.

        `stop_gradient` keeps what the queries' losses ask for out of the local stream (pretraining only).
        `scales [4, B, 1, 1]` multiply the branches' outputs (drop path), None leaves them. `sight` is whom a token may
        look at (see `Attention`); the queries look at all.
        """
        form = {"released": self._released, "paper": self._paper, "recon2": self._recon2}[self.form]
        return form(queries, tokens, stop_gradient, scales, sight)

    def _released(
        self, q: Tensor, x: Tensor, stop_gradient: bool, s: Tensor | None, sight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        q, x = self.query_norm1(q), self.norm1(x)
        q = q + self._branch(self.cross_attention(q, x.detach() if stop_gradient else x), s, 0)
        x = x + self._branch(self.attention(x, None, sight), s, 1)
        q, x = self.query_norm2(q), self.norm2(x)
        q = q + self._branch(self.query_mlp(q), s, 2)
        x = x + self._branch(self.mlp(x), s, 3)
        return q, x

    def _paper(
        self, q: Tensor, x: Tensor, stop_gradient: bool, s: Tensor | None, sight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = x + self._branch(self.attention(self.norm1(x), None, sight), s, 1)
        q = q + self._branch(self.cross_attention(self.query_norm1(q), x.detach() if stop_gradient else x), s, 0)
        x = x + self._branch(self.mlp(self.norm2(x)), s, 3)
        q = q + self._branch(self.query_mlp(self.query_norm2(q)), s, 2)
        return q, x

    def _recon2(
        self, q: Tensor, x: Tensor, stop_gradient: bool, s: Tensor | None, sight: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x = x + self._branch(self.attention(self.norm1(x), None, sight), s, 1)
        x = x + self._branch(self.mlp(self.norm2(x)), s, 3)
        # The stop lies before the norm, which learns from both.
        read = self.query_norm1(x.detach() if stop_gradient else x)
        q = q + self._branch(self.cross_attention(self.query_norm1(q), read), s, 0)
        q = q + self._branch(self.query_mlp(self.query_norm2(q)), s, 2)
        return q, x

    def _branch(self, out: Tensor, scales: Tensor | None, index: int) -> Tensor:
        return _scaled(self.layer_scales[index](out) if self.layer_scale else out, scales, index)


class DropPath(nn.Module):
    """Draws which residual branches of a stack of blocks each sample skips, for the whole stack at once.

    One draw a step, from one generator, instead of one a branch: the same distribution as a layer in every branch, and
    nothing random is left inside the blocks.
    """

    keep: Tensor

    def __init__(self, rate: float, depth: int, num_branches: int) -> None:
        super().__init__()
        self.num_branches = num_branches
        self.active = rate > 0.0
        # Not part of the weights: a checkpoint must load under another rate, as fine-tuning does.
        self.register_buffer("keep", 1.0 - torch.linspace(0.0, rate, depth), persistent=False)

    def forward(self, batch: int, generator: torch.Generator | None = None) -> Tensor | None:
        """Draw `[depth, num_branches, B, 1, 1]`, each 0 or 1 / keep; None when nothing is dropped."""
        if not (self.training and self.active):
            return None
        keep = self.keep.view(-1, 1, 1, 1, 1)

        def draw(count: int) -> Tensor:
            shape = (len(self.keep), self.num_branches, count, 1, 1)
            return torch.rand(shape, generator=generator, device=self.keep.device)

        return (of_batch(draw, batch, dim=2) < keep) / keep


def _attend(q: Tensor, k: Tensor, v: Tensor, heads: int, sight: Tensor | None = None) -> Tensor:
    """Attention of `q [B, Q, C]` over `k, v [B, L, C]`, each head on its share of the channels: `[B, Q, C]`."""
    q, k, v = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, sight).transpose(1, 2).flatten(2)


def _weights(q: Tensor, k: Tensor, heads: int, sight: Tensor | None = None) -> Tensor:
    """What `_attend` weighs values by: `q [B, Q, C]`, `k [B, L, C]` -> `[B, heads, Q, L]`."""
    q, k = (part.view(*part.shape[:2], heads, -1).transpose(1, 2) for part in (q, k))
    logits = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    weights: Tensor = (logits if sight is None else logits.masked_fill(~sight, -torch.inf)).softmax(dim=-1)
    return weights


def _constant(module: nn.Module, *inputs: Tensor) -> bool:
    """Whether `module(*inputs)` is for no gradient, in full precision on a CPU: there are faster forms of that.

    They take the weights of its layers and call none of them, so they are not for layers with hooks or of other classes
    (low-rank updates).
    """
    return (
        all(x.device.type == "cpu" and torch.finfo(x.dtype).bits >= 32 for x in inputs)
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.is_grad_enabled()
        and not any(layer._forward_hooks or layer._forward_pre_hooks for layer in module.children())
        and not any(isinstance(layer, nn.Linear) and type(layer) is not nn.Linear for layer in module.children())
    )


def _scaled(branch: Tensor, scales: Tensor | None, index: int) -> Tensor:
    return branch if scales is None else branch * scales[index].to(branch.dtype)
