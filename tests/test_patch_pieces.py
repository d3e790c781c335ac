"""The faster forms of the model's layers beside their plain ones: tokens, gradients, batch statistics."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import gradcheck

from recon.trainer.model import patch_pieces
from recon.trainer.model.blocks import CrossAttention, PatchEmbed, _constant
from recon.trainer.model.patch_pieces import _Local, _max, _Wide
from recon.trainer.model.tuning import LoraLinear


def embedding(hidden: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> PatchEmbed:
    torch.manual_seed(seed)
    layers = PatchEmbed(12, hidden)
    with torch.no_grad():
        for norm in (layers.norm1, layers.norm2):
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_()
    return layers.to(dtype).train()


def taught(layers: PatchEmbed, groups: Tensor, kept: Tensor | None, plain: bool) -> dict[str, Tensor]:
    """Tokens, the gradients of a fixed sum of them, and the running statistics after."""
    layers = copy.deepcopy(layers)
    if plain:
        layers.norm1.register_forward_hook(lambda *_: None)  # the faster form is not for layers with hooks
    assert layers._in_pieces(groups) != plain
    tokens = layers(groups, kept)
    slope = torch.linspace(-1, 1, tokens.numel(), dtype=tokens.dtype).view_as(tokens).sin()
    (tokens * slope).sum().backward()
    gradients = {name: parameter.grad for name, parameter in layers.named_parameters() if parameter.grad is not None}
    return {"tokens": tokens.detach(), **gradients, **dict(layers.named_buffers())}


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 3),
    num_group=st.integers(1, 9),
    size=st.integers(1, 20),
    hidden=st.sampled_from([4, 12, 32]),
    share=st.floats(0.1, 1),
    piece=st.sampled_from([1, 30, 2048]),
    seed=st.integers(0, 999),
)
def test_the_faster_form_is_the_plain_one(
    batch: int, num_group: int, size: int, hidden: int, share: float, piece: int, seed: int
) -> None:
    layers = embedding(hidden, seed)
    # Two clouds' worth at least: a batch norm of a single point is an error.
    groups = torch.randn(batch + 1, num_group, size, 3, dtype=torch.float64)
    kept = None
    if share < 1:
        num_kept = max(1, int(share * num_group))
        kept = torch.stack([torch.randperm(num_group)[:num_kept] for _ in range(batch + 1)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patch_pieces, "PIECE", piece)
        ours, plain = taught(layers, groups, kept, False), taught(layers, groups, kept, True)
    assert set(ours) == set(plain)
    torch.testing.assert_close(ours, plain, rtol=1e-7, atol=1e-7)


def test_float32_rounds_no_worse_than_the_plain_form() -> None:
    layers = embedding(64, dtype=torch.float32)
    groups = torch.randn(4, 16, 32, 3) / 10
    kept = torch.stack([torch.randperm(16)[:7] for _ in range(4)])
    exact = taught(copy.deepcopy(layers).double(), groups.double(), kept, True)["tokens"]
    ours, plain = (taught(layers, groups, kept, plain)["tokens"] for plain in (False, True))
    assert (ours - exact).abs().max() < 2 * (plain - exact).abs().max()
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_gradients_of_each_half() -> None:
    torch.manual_seed(0)
    size, num_group = 4, 3

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    points = torch.randn(num_group * size, 3, dtype=torch.float64)
    weights = drawn(5, 3), drawn(5), drawn(6, 5), drawn(6)
    assert gradcheck(lambda *given: _Local.apply(points, *given, size, 2 * size), weights)
    given = drawn(num_group * size, 6), drawn(num_group, 8), drawn(8, 6), drawn(7, 8), drawn(7)
    assert gradcheck(lambda *given: _Wide.apply(*given, size), given)


@pytest.mark.parametrize("size", [1, 32, 255, 256, 300])
def test_the_first_of_the_largest_wins(size: int) -> None:
    x = torch.randint(3, (5, size, 7)).float()
    largest, place = _max(x)
    assert torch.equal(largest, x.amax(dim=1))
    first = (x == largest.unsqueeze(1)).int().argmax(dim=1)
    assert torch.equal(place, first)


def test_what_is_not_finite_is_seen_in_the_gradient() -> None:
    layers, groups = embedding(12, dtype=torch.float32), torch.randn(2, 3, 4, 3)
    groups[0, 0, 0, 0] = torch.nan
    assert taught(layers, groups, None, False)["conv1.weight"].isnan().any()


def test_the_same_bits_twice() -> None:
    layers, groups = embedding(32, dtype=torch.float32), torch.randn(3, 8, 16, 3)
    once, again = (taught(layers, groups, torch.tensor([[1, 4]] * 3), False) for _ in range(2))
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_where_the_plain_form_stays() -> None:
    layers, groups = embedding(12), torch.randn(2, 3, 4, 3, dtype=torch.float64)
    assert layers._in_pieces(groups)
    assert not layers._in_pieces(groups.clone().requires_grad_())
    with torch.autocast("cpu", torch.bfloat16):
        assert not layers._in_pieces(groups)
    layers.eval()
    assert not layers._in_pieces(groups)
    layers.train()

    class Gathered(nn.BatchNorm1d):
        pass

    layers.norm1 = Gathered(3).double()
    assert not layers._in_pieces(groups)


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3),
    num_group=st.integers(1, 9),
    size=st.integers(1, 20),
    hidden=st.sampled_from([4, 12, 32]),
    piece=st.sampled_from([1, 30, 2048]),
    seed=st.integers(0, 999),
)
def test_in_eval_mode_too(batch: int, num_group: int, size: int, hidden: int, piece: int, seed: int) -> None:
    layers = embedding(hidden, seed).eval()
    for norm in (layers.norm1, layers.norm2):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    groups = torch.randn(batch, num_group, size, 3, dtype=torch.float64)
    kept = torch.arange(num_group).expand(batch, -1)[:, : 1 + num_group // 2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patch_pieces, "PIECE", piece)
        for given_kept in (None, kept):
            plain = layers(groups, given_kept)  # gradients are asked for
            with torch.no_grad():
                torch.testing.assert_close(layers(groups, given_kept), plain.detach(), rtol=1e-10, atol=1e-10)
    assert plain.requires_grad


@settings(max_examples=20, deadline=None)
@given(
    batch=st.integers(1, 3), num_query=st.integers(1, 4), length=st.integers(1, 9), heads=st.sampled_from([1, 3]),
    seed=st.integers(0, 999),
)  # fmt: skip
def test_few_queries_need_no_keys(batch: int, num_query: int, length: int, heads: int, seed: int) -> None:
    torch.manual_seed(seed)
    layer = CrossAttention(15, heads).double()
    queries, tokens = torch.randn(batch, num_query, 15).double(), torch.randn(batch, length, 15).double()
    with torch.no_grad():
        assert _constant(layer, queries, tokens)
        found = layer(queries, tokens)
    torch.testing.assert_close(found, layer(queries, tokens).detach(), rtol=1e-10, atol=1e-10)


def test_where_gradients_or_other_layers_are_the_plain_form_stays() -> None:
    layer, x = CrossAttention(12, 3), torch.randn(2, 3, 12)
    assert not _constant(layer, x)
    with torch.no_grad():
        assert _constant(layer, x)
        assert not _constant(layer, x, x.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert not _constant(layer, x)
        hook = layer.kv.register_forward_hook(lambda *_: None)
        assert not _constant(layer, x)
        hook.remove()
        LoraLinear.add_to(layer.kv, 1, torch.Generator().manual_seed(0))
        assert not _constant(layer, x)
        start = layer(x, x)
        layer.kv.lora_b.fill_(1)
        assert not torch.allclose(layer(x, x), start)
