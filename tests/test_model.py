"""The model's own promises: block forms, stop-gradient, masks, determinism, and the forms that must be equal."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from recon.trainer.checkpoints.released import infer_config, load_weights
from recon.trainer.model.blocks import DropPath, PatchEmbed, ReConBlock
from recon.trainer.model.heads import Classifier, Segmenter
from recon.trainer.model.masks import block_mask, random_mask
from recon.trainer.model.recon import SIZES, ModelConfig, ReCon
from recon.trainer.model.teaching import RELEASED_TEACHERS, Teacher

CONFIG = ModelConfig(
    width=24, heads=3, depth=3, decoder_depth=2, num_group=10, group_size=8, drop_path=0.0,
    teachers=(Teacher("image", "image", 7), Teacher("text", "text", 7)),
)  # fmt: skip


def taught(*teachers: Teacher, **settings: object) -> ModelConfig:
    return dataclasses.replace(CONFIG, teachers=teachers, **settings)  # type: ignore[arg-type]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clouds(batch: int = 4, num_points: int = 96, seed: int = 0) -> Tensor:
    return torch.randn(batch, num_points, 3, generator=generator(seed))


def targets(batch: int = 4, config: ModelConfig = CONFIG) -> tuple[Tensor, ...]:
    dims = [teacher.dim for teacher in config.teachers]
    return torch.randn(batch, sum(dims), generator=generator(1)).split(dims, dim=1)


def build(config: ModelConfig = CONFIG, seed: int = 0) -> ReCon:
    torch.manual_seed(seed)
    return ReCon(config)


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention head by head, as the definition has it."""
    size = q.shape[-1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[..., part] @ k[..., part].transpose(-1, -2) / size**0.5
        mixed.append(scores.softmax(dim=-1) @ v[..., part])
    return torch.cat(mixed, dim=-1)


def restated(block: ReConBlock, q: Tensor, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Both columns of the method's table, from the block's weights and nothing else of its code."""

    def mhsa(x: Tensor) -> Tensor:
        return block.attention.proj(attend(*block.attention.qkv(x).chunk(3, dim=-1), heads))

    def mhca(q: Tensor, x: Tensor) -> Tensor:
        k, v = block.cross_attention.kv(x).chunk(2, dim=-1)
        return block.cross_attention.proj(attend(block.cross_attention.q(q), k, v, heads))

    def ffn(mlp: nn.Module, x: Tensor) -> Tensor:
        hidden = mlp.fc1(x)
        return mlp.fc2(hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5)))

    if block.form == "paper":
        x = mhsa(block.norm1(x)) + x
        q = mhca(block.query_norm1(q), x) + q
        x = ffn(block.mlp, block.norm2(x)) + x
        return ffn(block.query_mlp, block.query_norm2(q)) + q, x
    q, x = block.query_norm1(q), block.norm1(x)
    q, x = q + mhca(q, x), x + mhsa(x)
    q, x = block.query_norm2(q), block.norm2(x)
    return q + ffn(block.query_mlp, q), x + ffn(block.mlp, x)


@pytest.mark.parametrize("form", ["released", "paper"])
@pytest.mark.parametrize("stop_gradient", [True, False])
def test_block_is_what_the_table_says(form: str, stop_gradient: bool) -> None:
    torch.manual_seed(0)
    block = ReConBlock(24, 3, form).double()
    q = torch.randn(2, 3, 24, dtype=torch.float64)
    x = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    ours, theirs = block(q, x, stop_gradient), restated(block, q, x, heads=3)
    torch.testing.assert_close(ours, theirs)
    (reach,) = torch.autograd.grad(ours[0].sum(), x, allow_unused=True)
    assert (reach is None) == stop_gradient


def test_block_forms_differ_on_the_same_weights() -> None:
    model = build()
    paper = build(dataclasses.replace(CONFIG, block="paper"))
    load_weights(paper, model.state_dict())
    released, other = model.eval().svm_feature(clouds()), paper.eval().svm_feature(clouds())
    assert (released - other).abs().max() > 0.1


@pytest.mark.parametrize("form", ["released", "paper"])
def test_teachers_do_not_reach_the_local_stream_in_pretraining(form: str) -> None:
    model = build(dataclasses.replace(CONFIG, block=form))
    losses = model(clouds(), targets(), generator=generator(0))
    (losses["image"] + losses["text"]).backward()
    for name, parameter in model.encoder.named_parameters():
        stream = ("patch_embed", "position.", "norm1", "norm2", "attention", "mlp")
        local = name.removeprefix("blocks.").lstrip("0123456789.").startswith(stream)
        reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        assert reached != local or name.startswith("cls_"), name


def test_the_head_reaches_the_patch_embedding_in_fine_tuning() -> None:
    torch.manual_seed(0)
    model = Classifier(CONFIG, num_classes=3)
    # Through the queries alone, which a stop-gradient would cut off.
    with torch.no_grad():
        model.head.layers[0].weight[:, 3 * CONFIG.width :] = 0
    F.cross_entropy(model(clouds()), torch.tensor([0, 1, 2, 0])).backward()
    assert model.encoder.patch_embed.conv1.weight.grad.abs().sum() > 0


@settings(max_examples=40)
@given(
    batch=st.integers(1, 5), num_group=st.integers(2, 40), share=st.floats(0.05, 0.95), seed=st.integers(0, 2**32 - 1)
)
def test_masks_hide_the_same_count_everywhere(batch: int, num_group: int, share: float, seed: int) -> None:
    num_masked = min(max(1, int(share * num_group)), num_group - 1)
    centers = clouds(batch, num_group, seed % 1000)
    for draw in (random_mask, block_mask):
        mask = draw(centers, num_masked, generator(seed))
        assert mask.dtype == torch.bool
        assert mask.sum(dim=1).tolist() == [num_masked] * batch
        assert torch.equal(mask, draw(centers, num_masked, generator(seed)))


@settings(max_examples=40)
@given(num_group=st.integers(2, 40), share=st.floats(0.05, 0.95), seed=st.integers(0, 1000))
def test_block_mask_is_the_nearest_groups_of_one_center(num_group: int, share: float, seed: int) -> None:
    num_masked = min(max(1, int(share * num_group)), num_group - 1)
    centers = clouds(3, num_group, seed)
    mask = block_mask(centers, num_masked, generator(seed))
    for cloud, hidden in zip(centers, mask, strict=True):
        distance = torch.cdist(cloud, cloud)
        nearest = distance.argsort(dim=1)[:, :num_masked]
        assert any(set(row.tolist()) == set(hidden.nonzero()[:, 0].tolist()) for row in nearest)


def test_random_mask_hides_every_group_equally_often() -> None:
    mask = random_mask(torch.zeros(20_000, 10, 3), 6, generator(0))
    # Five standard deviations of a share of 0.6 over 20,000 draws
    assert (mask.double().mean(dim=0) - 0.6).abs().max() < 5 * (0.24 / 20_000) ** 0.5


def test_split_lists_each_group_once_in_order() -> None:
    model = build()
    mask = model.draw_mask(clouds(4, 10), generator(3))
    visible, masked = model.split(mask)
    for row, seen, hidden in zip(mask, visible, masked, strict=True):
        assert seen.tolist() == (~row).nonzero()[:, 0].tolist()
        assert hidden.tolist() == row.nonzero()[:, 0].tolist()


def test_a_mask_with_another_count_is_refused() -> None:
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[:, :6] = True
    mask[0, 6] = True
    with pytest.raises(ValueError, match="mask: must be bool"):
        build()(clouds(), targets(), mask=mask)


def test_points_of_a_group_have_no_order() -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(24).double()
    groups = torch.randn(2, 5, 8, 3, dtype=torch.float64)
    torch.testing.assert_close(embed(groups[:, :, torch.randperm(8)]), embed(groups))


@pytest.mark.parametrize("training", [True, False])
def test_split_convolution_is_the_plain_one(training: bool) -> None:
    torch.manual_seed(0)
    embed = PatchEmbed(24).double().train(training)
    groups = torch.randn(2, 5, 8, 3, dtype=torch.float64)

    def conv(layer: nn.Linear, x: Tensor) -> Tensor:
        return F.conv1d(x, layer.weight[:, :, None], layer.bias)

    x = groups.flatten(0, 1).transpose(1, 2)
    x = conv(embed.conv2, embed.norm1(conv(embed.conv1, x)).relu())
    x = torch.cat([x.amax(dim=2, keepdim=True).expand_as(x), x], dim=1)
    x = conv(embed.conv4, embed.norm2(conv(embed.conv3, x)).relu())
    torch.testing.assert_close(embed(groups), x.amax(dim=2).view(2, 5, 24))


def test_visible_scope_changes_training_statistics_only() -> None:
    everything, visible_only = build(), build(dataclasses.replace(CONFIG, patch_scope="visible"))
    load_weights(visible_only, everything.state_dict())
    mask = everything.draw_mask(clouds(4, 10), generator(0))
    losses = [m.eval()(clouds(), targets(), mask=mask)["total"] for m in (everything, visible_only)]
    torch.testing.assert_close(losses[0], losses[1])
    losses = [m.train()(clouds(), targets(), mask=mask)["total"] for m in (everything, visible_only)]
    assert not torch.isclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize("mask_type", ["rand", "block"])
def test_one_seed_gives_one_step(mask_type: str) -> None:
    config = dataclasses.replace(CONFIG, mask_type=mask_type, drop_path=0.5)

    def step(seed: int) -> tuple[float, list[Tensor]]:
        model = build(config)
        # The global generator must not matter once one is given.
        torch.manual_seed(torch.initial_seed() + 1)
        loss = model(clouds(), targets(), generator=generator(seed))["total"]
        loss.backward()
        return loss.item(), [p.grad for p in model.parameters() if p.grad is not None]

    (first, grads), (again, same), (other, _) = step(0), step(0), step(1)
    assert first == again != other
    assert all(torch.equal(a, b) for a, b in zip(grads, same, strict=True))


def test_drop_path_drops_more_with_depth_and_keeps_the_mean() -> None:
    drop = DropPath(0.4, depth=3, num_branches=2)
    scales = drop(20_000, generator(0))
    assert scales.shape == (3, 2, 20_000, 1, 1)
    dropped = (scales == 0).double().mean(dim=(1, 2, 3, 4))
    torch.testing.assert_close(dropped, torch.tensor([0.0, 0.2, 0.4], dtype=torch.float64), atol=0.01, rtol=0)
    torch.testing.assert_close(scales.mean(dim=(1, 2, 3, 4)), torch.ones(3), atol=0.02, rtol=0)
    assert drop.eval()(4) is None


@pytest.mark.parametrize("scope", ["all", "visible"])
def test_bfloat16_autocast_stays_finite_and_near(scope: str) -> None:
    config = dataclasses.replace(CONFIG, self_contrastive=True, patch_scope=scope)
    labels = torch.tensor([0, 1, 0, 2])
    exact = build(config)(clouds(), targets(), labels=labels, generator=generator(0))
    model = build(config)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model(clouds(), targets(), labels=labels, generator=generator(0))
    losses["total"].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        # Untrained clouds differ by little more than bfloat16 resolves, and the contrast's batch norms magnify it.
        near = 0.5 if name == "contrast" else 0.05
        assert loss.item() == pytest.approx(exact[name].item(), rel=near), name


def test_losses_and_their_sum() -> None:
    losses = build()(clouds(), targets(), generator=generator(0))
    assert set(losses) == {"reconstruction", "image", "text", "total"}
    assert losses["total"].item() == pytest.approx(sum(v.item() for k, v in losses.items() if k != "total"))
    with pytest.raises(ValueError, match="labels: needed"):
        build(dataclasses.replace(CONFIG, self_contrastive=True))(clouds(), targets())


def test_weights_start_as_the_release_starts_them() -> None:
    model = build(
        ModelConfig(**SIZES["tiny"], depth=2, decoder_depth=2, self_contrastive=True, teachers=RELEASED_TEACHERS)
    )
    for projection in (*(head.projection for head in model.teachers), model.contrast_projection[0]):
        assert projection.weight.mean().item() == pytest.approx(0.02, abs=1e-3)
        assert projection.weight.std().item() == pytest.approx(0.01, abs=1e-3)
    for weight in (model.encoder.blocks[1].mlp.fc1.weight, model.encoder.patch_embed.conv3.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    # Xavier: uniform within sqrt(6 / (in + out))
    bound = (6 / (192 + 4 * 192)) ** 0.5
    assert model.decoder.blocks[0].mlp.fc1.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert model.encoder.query_token.std().item() == pytest.approx(0.02, rel=0.2)
    for name, value in model.named_parameters():
        if name.startswith("encoder.") and name.endswith("bias"):
            assert not value.any(), name


def test_no_weight_decay_names_vectors_and_tokens() -> None:
    model = build()
    named, spared = dict(model.named_parameters()), model.no_weight_decay()
    assert {"decoder.mask_token", "encoder.query_token", "encoder.norm.weight", "teachers.0.projection.bias"} <= spared
    # As in the release, where only names with 'token' are spared: learned positions decay.
    assert not spared & {"encoder.query_position", "encoder.blocks.0.attention.qkv.weight"}
    assert all(named[name].ndim == 1 or name.endswith("token") for name in spared)


def test_features_have_the_documented_shapes() -> None:
    model = build().eval()
    queries, tokens = model.forward_features(clouds())
    assert queries.shape == (4, 3, 24)
    assert tokens.shape == (4, 10, 24)
    assert model.svm_feature(clouds()).shape == (4, 48)
    assert model.zero_shot_feature(clouds()).shape == (4, 7)
    with pytest.raises(ValueError, match="one space"):
        build(taught(Teacher("image", "image", 7), Teacher("text", "text", 5))).zero_shot_feature(clouds())


def test_heads_take_the_pretrained_encoder() -> None:
    recon = build()
    for model in (Classifier(CONFIG, 5, "linear"), Segmenter(CONFIG, num_parts=6, num_categories=2)):
        model.encoder.load_state_dict(recon.encoder.state_dict())
    segmenter = Segmenter(CONFIG, num_parts=6, num_categories=2)
    parts = segmenter(clouds(), torch.tensor([0, 1, 1, 0]))
    assert parts.shape == (4, 96, 6)
    torch.testing.assert_close(parts.exp().sum(dim=-1), torch.ones(4, 96))
    with pytest.raises(ValueError, match="head: must be one of"):
        Classifier(CONFIG, 5, "mlp2")
    for depth, taps in {1: [1, 1, 1], 2: [1, 1, 2], 3: [1, 2, 3], 4: [1, 2, 4], 12: [4, 8, 12]}.items():
        assert Segmenter(dataclasses.replace(CONFIG, depth=depth), num_parts=6, num_categories=2).taps == taps


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("heads", 5),
        ("depth", 0),
        ("mask_ratio", 0.0),
        ("mask_ratio", 1.0),
        ("mask_type", "random"),
        ("block", "slide"),
        ("drop_path", 1.0),
        ("reconstruction", "l2"),
        ("patch_scope", "none"),
    ],
)
def test_a_setting_that_cannot_work_is_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"model\.{field}"):
        dataclasses.replace(CONFIG, **{field: value})


@pytest.mark.parametrize("self_contrastive", [True, False])
def test_settings_are_read_off_the_weights(self_contrastive: bool) -> None:
    config = dataclasses.replace(CONFIG, self_contrastive=self_contrastive)
    state = ReCon(config).state_dict()
    assert infer_config(state, heads=3, num_group=10, drop_path=0.0) == config


@pytest.mark.slow
@pytest.mark.parametrize("scope", ["all", "visible"])
def test_a_step_compiles_from_grouping_to_loss_without_a_break(scope: str) -> None:
    # What is traced, run as it is: a C++ compiler takes minutes, and not every machine has one.
    model = build(dataclasses.replace(CONFIG, depth=1, decoder_depth=1, drop_path=0.2, patch_scope=scope))
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    taught = []
    for form in (compiled, model):
        torch.manual_seed(0)  # of mask and drop path
        losses = form(clouds(), targets())
        losses["total"].backward()
        taught.append((losses, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
        model.zero_grad()
    torch.testing.assert_close(taught[0], taught[1], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_the_model_needs_torch_and_numpy_only() -> None:
    # The speed benchmarks run it on machines without the pipeline's dependencies.
    foreign = "{'pydantic', 'zarr', 'timm', 'open_clip', 'sklearn', 'safetensors', 'recon.pipeline.store'}"
    code = "import sys, recon.trainer.model.recon, recon.trainer.model.heads, recon.trainer.checkpoints.released; "
    code += f"assert not {foreign} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
