"""What ReCon++ adds to the model: its block, masks and positions, colours, and many queries a teacher."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.checkpoints.portable import save_program
from recon.trainer.checkpoints.released2 import RELEASED2_TEACHERS
from recon.trainer.model.blocks import ReConBlock
from recon.trainer.model.clouds import colored, framed
from recon.trainer.model.heads import Classifier, Segmenter
from recon.trainer.model.losses import matched_loss, mdm_losses, reconstruction_loss
from recon.trainer.model.masks import CAUSAL_PREFIX, causal_mask, causal_sight, chain_order
from recon.trainer.model.position import SinePosition
from recon.trainer.model.recon import SIZES, ModelConfig, ReCon
from recon.trainer.model.teaching import Teacher
from recon.trainer.show.attention import attend
from recon.trainer.show.measured import model_words
from recon.trainer.show.reconstruction import rebuild
from recon.trainer.training import tasks
from tests import released2_goldens as goldens
from tests.released_goldens import GOLDEN, config_of

TEACHERS = (Teacher("image", "image", 7, "matched", 2.0, 4), Teacher("text", "text", 5, "matched", 1.0, 2))
RAND = ModelConfig(
    width=24, heads=3, depth=2, decoder_depth=2, num_group=16, group_size=8, drop_path=0.0, block="recon2",
    teachers=TEACHERS, cls_query=False, reconstruction="mdm", color=True, stop_gradient=False,
)  # fmt: skip
CAUSAL = dataclasses.replace(
    RAND, mask_type="causal", position="sine", color=False, patch_layers=3, patch_width=64, layer_scale=True,
    stop_gradient=True, mask_ratio=0.7,
)  # fmt: skip
BOTH = pytest.mark.parametrize("config", [RAND, CAUSAL], ids=["rand", "causal"])


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def clouds(config: ModelConfig, batch: int = 4) -> Tensor:
    points = torch.randn(batch, 96, 3, generator=generator(0))
    return torch.cat([points, torch.rand(batch, 96, 3, generator=generator(1))], dim=-1)[..., : config.channels]


def targets() -> tuple[list[Tensor], list[Tensor | None]]:
    features = [
        torch.randn(4, count, each.dim, generator=generator(2)) for each, count in zip(TEACHERS, (5, 3), strict=True)
    ]
    return features, [torch.rand(4, 5, generator=generator(3)) < 0.6, None]


def build(config: ModelConfig) -> ReCon:
    torch.manual_seed(0)
    return ReCon(config)


@pytest.mark.parametrize("stop_gradient", [True, False])
def test_the_block_is_a_plain_one_and_queries_that_read_it_through_their_norm(stop_gradient: bool) -> None:
    torch.manual_seed(0)
    block = ReConBlock(24, 3, "recon2").double()
    queries, tokens = torch.randn(2, 5, 24).double(), torch.randn(2, 6, 24).double().requires_grad_()
    x = tokens + block.attention(block.norm1(tokens))
    x = x + block.mlp(block.norm2(x))
    q = queries + block.cross_attention(block.query_norm1(queries), block.query_norm1(x))
    q = q + block.query_mlp(block.query_norm2(q))
    ours = block(queries, tokens, stop_gradient)
    torch.testing.assert_close(ours, (q, x))
    ours[0].sum().backward()
    assert (tokens.grad is None) == stop_gradient
    assert block.query_norm1.weight.grad is not None  # which stands behind the stop


@torch.no_grad()
def test_few_queries_read_alike_with_biases_and_without_gradients() -> None:
    torch.manual_seed(0)
    layer = ReConBlock(24, 3, "recon2").cross_attention
    for parameter in layer.parameters():
        parameter.normal_()
    queries, tokens = torch.randn(2, 3, 24), torch.randn(2, 9, 24)
    with torch.enable_grad():
        expected = layer(queries, tokens)
    torch.testing.assert_close(layer(queries, tokens), expected, rtol=1e-4, atol=1e-4)


@BOTH
def test_a_step_learns_and_is_one_of_its_seed(config: ModelConfig) -> None:
    model, (features, present) = build(dataclasses.replace(config, drop_path=0.3, color_drop=0.5)), targets()
    first, second = (model(clouds(config), features, generator=generator(5), present=present) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    parts = first["reconstruction"] + 2 * first["image"] + first["text"]
    assert float(first["total"].detach()) == pytest.approx(float(parts.detach()))
    first["total"].backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert not still and all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


def test_a_causal_token_sees_what_is_before_its_group_alone() -> None:
    model = build(CAUSAL).eval()
    tokens = torch.randn(1, 16, 24, generator=generator(0)).requires_grad_()
    centers = torch.randn(1, 16, 3, generator=generator(1))
    hidden = torch.zeros(1, 16, dtype=torch.bool)
    hidden[0, 12] = True
    _, out = model.encoder(tokens, centers, hidden=hidden)
    (reach,) = torch.autograd.grad(out[0, 14, :12].sum(), tokens)
    # Place 14 holds group 13, behind the start token; hidden place 12 holds group 11.
    assert reach[0].abs().sum(dim=-1).nonzero()[:, 0].tolist() == [*range(11), 12, 13]


def test_causal_masks_spare_the_beginning_and_are_one_a_batch() -> None:
    centers = torch.zeros(3, 30, 3)
    masks = [causal_mask(centers, 14, generator(seed)) for seed in range(200)]
    assert all(torch.equal(mask, mask[:1].expand(3, -1)) and int(mask[0].sum()) == 14 for mask in masks)
    often = torch.stack([mask[0] for mask in masks]).float().mean(dim=0)
    assert often[:CAUSAL_PREFIX].sum() == 0 and (often[CAUSAL_PREFIX:] - 0.7).abs().max() < 0.15
    sight = causal_sight(4, torch.tensor([[False, True, False, False]]), torch.device("cpu"))
    assert sight[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]


def test_the_chain_goes_to_the_nearest_that_is_left() -> None:
    centers = torch.randn(3, 20, 3, generator=generator(4))
    for cloud, order in zip(centers, chain_order(centers).tolist(), strict=True):
        walk, left = [0], {*range(1, 20)}
        while left:
            walk.append(min(left, key=lambda place: float((cloud[place] - cloud[walk[-1]]).square().sum())))
            left.remove(walk[-1])
        assert order == walk


def test_sine_positions_repeat_one_frequency_and_leave_the_rest_zero() -> None:
    code = SinePosition(22)(torch.tensor([[0.25, 0.0, -0.5]]))
    expected = [1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 0, -1, 0, -1, 0, -1, 0, 0, 0, 0]
    torch.testing.assert_close(code, torch.tensor([expected], dtype=torch.float32), atol=1e-6, rtol=0)


def test_colours_stay_as_they_are_and_a_cloud_without_has_the_default() -> None:
    model, points = build(RAND), clouds(RAND)
    groups, centers = model.group(points)
    place = groups[..., :3] + centers[:, :, None]
    nearest = torch.cdist(place.flatten(1, 2), points[..., :3]).argmin(dim=-1)
    found = points[..., 3:].gather(1, nearest[..., None].expand(-1, -1, 3)).view_as(groups[..., 3:])
    assert torch.equal(groups[..., 3:], found)
    model.eval()
    grey = colored(points, RAND.default_color, torch.ones(4, dtype=torch.bool))
    assert (grey[..., 3:] == 0.4).all()
    with torch.no_grad():
        assert torch.equal(model.embed(points[..., :3]), model.embed(grey))
        assert not torch.equal(model.embed(points), model.embed(grey))
        # The frame moves the places alone.
        moved = torch.cat([3 * points[..., :3] + 1, points[..., 3:]], dim=-1)
        torch.testing.assert_close(model.embed(moved), model.embed(points), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="points: must have 3 or 6 channels, got 5"):
        model.group(points[..., :5])
    with pytest.raises(ValueError, match=r"points: of 6 channels, but model\.color is off"):
        build(CAUSAL).group(points)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda points: points * torch.tensor([1.0, 1, 1, 255, 255, 255]), r"to 25\d\S*, .*0 to 1; divide them by 255"),
        (lambda points: 2 * points - 1, r"colours go from -0\.\S* to 0\.\S*, and must be sRGB from 0 to 1$"),
        (lambda points: points.masked_fill(torch.arange(6) == 4, torch.inf), "to inf, and must be sRGB from 0 to 1$"),
        (lambda points: points.masked_fill(torch.arange(6) == 4, torch.nan), "colours go from nan to nan"),
        (lambda points: points[0], r"must be \[clouds, points, 3\], or 6 with colours, got \[60, 6\]"),
    ],
    ids=["bytes", "below 0", "infinite", "no numbers", "one cloud"],
)
def test_clouds_of_one_s_own_that_can_be_none_are_told(change: Any, said: str) -> None:
    """Of everything that takes clouds in any frame: nobody has looked at them before."""
    points = change(torch.rand(2, 60, 6, generator=generator(0)))
    model = build(RAND).eval()
    for takes in (model.embed, model.svm_feature, model.describe, model.image_feature):
        with pytest.raises(ValueError, match=said) as caught:
            takes(points)
        assert "\n" not in str(caught.value)


def test_clouds_that_are_right_are_looked_at_without_a_trace() -> None:
    """Where an input asks for a gradient, too, and where torch.func maps, whose values nobody can look at."""
    points = torch.rand(2, 60, 6, generator=generator(0)).requires_grad_()
    framed(points).sum().backward()
    mapped = torch.func.vmap(framed)(points.detach()[:, None])
    torch.testing.assert_close(mapped[:, 0], framed(points.detach()))


def test_the_reconstruction_is_both_distances_and_the_colour_of_the_nearest() -> None:
    predicted, truth = (torch.rand(6, 8, 6, generator=generator(seed)) for seed in (0, 1))
    distance = torch.cdist(predicted[..., :3], truth[..., :3])
    there, back = distance.min(dim=2), distance.min(dim=1)
    color = truth[..., 3:].gather(1, there.indices[..., None].expand(-1, -1, 3))
    expected = {
        "cdl2": (there.values**2).mean() + (back.values**2).mean(),
        "cdl1": (there.values.mean() + back.values.mean()) / 2,
        "color": F.smooth_l1_loss(predicted[..., 3:], color),
    }
    torch.testing.assert_close(mdm_losses(predicted, truth), expected)
    torch.testing.assert_close(reconstruction_loss(predicted, truth, "mdm"), sum(expected.values()))
    exact = truth[..., :3].clone().requires_grad_()
    reconstruction_loss(exact, truth[..., :3], "mdm").backward()
    assert exact.grad is not None and torch.isfinite(exact.grad).all()


def test_the_matched_loss_is_the_releases_cloud_by_cloud() -> None:
    predicted = F.normalize(torch.randn(5, 4, 9, generator=generator(0)), dim=-1).requires_grad_()
    target, present = torch.randn(5, 6, 9, generator=generator(1)), torch.rand(5, 6, generator=generator(2)) < 0.7
    present[3] = False
    clouds = []
    for own, features, there in zip(predicted, target, present, strict=True):
        kept = F.normalize(features[there], dim=-1)
        rows, columns = linear_sum_assignment(-(own @ kept.T).detach().numpy())
        clouds += [F.smooth_l1_loss(own[rows], kept[columns])] if len(rows) else []
    torch.testing.assert_close(matched_loss(predicted, target, present, summed=True), sum(clouds))
    torch.testing.assert_close(matched_loss(predicted, target, present), torch.stack(clouds).mean())
    none = matched_loss(predicted, target, torch.zeros_like(present))
    none.backward()
    assert float(none.detach()) == 0 and predicted.grad is not None and (predicted.grad == 0).all()
    with pytest.raises(ValueError, match=r"teacher target: shape \(5, 9\)"):
        matched_loss(predicted, target[:, 0], present)


@BOTH
def test_queries_are_named_and_the_classifier_has_its_own(config: ModelConfig, tmp_path: Path) -> None:
    assert config.queries == ("image 1", "image 2", "image 3", "image 4", "text 1", "text 2")
    pretrained, classifier = build(config).eval(), Classifier(config, 3).eval()
    assert classifier.config.queries[0] == "cls" and classifier.head.layers[0].in_features == 4 * config.width
    with torch.no_grad():
        assert classifier(clouds(config)).shape == (4, 3)
        image = pretrained.image_feature(clouds(config))
        queries, _ = pretrained.forward_features(clouds(config))
    assert image.shape == (4, 7) and queries.shape == (4, 6, 24)
    assert (torch.linalg.vector_norm(pretrained.teachers[0](queries[:, :4]), dim=-1) - 1).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mlp_ratio": 0.01}, r"model\.mlp_ratio"),
        ({"patch_layers": 4}, r"model\.patch_layers"),
        ({"patch_layers": 3, "patch_width": 12}, r"model\.patch_width: must be a multiple of 8"),
        ({"position": "rope"}, r"model\.position"),
        ({"default_color": 102.0}, r"model\.default_color: must lie in \[0, 1\]"),
        ({"streams": "multitask", "stop_gradient": True}, r"model\.block: streams 'multitask'"),
        ({"self_contrastive": True}, r"model\.self_contrastive: needs model\.cls_query"),
        ({"mask_type": "causal", "patch_scope": "visible"}, r"model\.patch_scope"),
    ],
)
def test_a_setting_that_cannot_work_is_named(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(RAND, **change)


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(
        ValueError, match="queries of 'x' must be 1, or more with loss matched, infonce or multi_positive, got 2"
    ):
        Teacher("x", "image", 3, queries=2)
    with pytest.raises(ValueError, match=r"model\.cls_query: without it and without a teacher"):
        ReCon(dataclasses.replace(RAND, teachers=()))
    with pytest.raises(ValueError, match="segmentation needs each group's own token"):
        Segmenter(CAUSAL, 4, 2)
    with pytest.raises(ValueError, match="only a causal model rebuilds"):
        Classifier(RAND, 3, rebuilds=True)


@BOTH
def test_pages_show_it(config: ModelConfig) -> None:
    model, points = build(config).eval(), clouds(config, 2)
    (first, _) = attend(model, ["a", "b"], points)
    assert first.queries == config.queries and first.cross.shape == (2, 3, 6, 16)
    if config is CAUSAL:
        assert not np.triu(first.local, 1).any()
    (rebuilt, _) = rebuild(Path("x"), model, ["a", "b"], points, seed=0)
    assert rebuilt.predicted.shape[1:] == (8, 3) and np.isfinite(rebuilt.chamfer).all()


def test_sizes_and_their_names() -> None:
    widths = {
        name: (size["width"], size.get("depth", 12), size["heads"]) for name, size in SIZES.items() if "-" in name
    }
    assert widths == {
        "recon2-small": (384, 12, 6), "recon2-base": (768, 12, 12), "recon2-large": (1024, 24, 16),
        "recon2-giant": (1408, 40, 16),
    }  # fmt: skip
    for name, words in (("base", "ReCon"), ("recon2-small", "ReCon++-Small"), ("recon2-giant", "ReCon++-Giant")):
        model = {**dataclasses.asdict(ModelConfig()), **SIZES[name], "teachers": [1]}
        assert model_words({"model": model}) == words


def released_file(folder: Path, case: str) -> Path:
    state = goldens.released_weights(GOLDEN / "recon2_small", case)
    torch.save({"base_model": {f"module.{k}": v for k, v in state.items()}, "epoch": 0}, folder / f"{case}.pth")
    return folder / f"{case}.pth"


@pytest.mark.parametrize("case", ["rand", "causal", "layerscale", "finetune"])
def test_a_released_file_loads_once_what_it_does_not_tell_is_named(case: str, tmp_path: Path) -> None:
    path, told = released_file(tmp_path, case), config_of(GOLDEN / "recon2_small")["cases"][case]["model"]
    with pytest.raises(UserError, match=r"model\.num_group: no shape"):
        load_model(path)
    with pytest.raises(UserError, match=r"model\.teachers: the checkpoint has 6 queries.*queries=13"):  # and cls
        load_model(path, num_group=16)
    teachers = tuple(
        dataclasses.replace(each, queries=count) for each, count in zip(RELEASED2_TEACHERS, (4, 2), strict=True)
    )
    with pytest.raises(UserError, match=r"model\.heads: no size of the release has width 96"):
        load_model(path, num_group=16, teachers=teachers)
    with pytest.raises(UserError, match=r"model\.teachers: the checkpoint has 6 queries, and 13 and 3 are named$"):
        load_model(path, num_group=16, heads=4, group_size=8, teachers=RELEASED2_TEACHERS)
    # Projections and queries go by their places: named in another order one would give the other's answers.
    for others in (teachers[::-1], (teachers[0], dataclasses.replace(teachers[0], name="other", queries=2))):
        with pytest.raises(UserError, match=r"model\.teachers: the release's queries are of one teacher of pictures"):
            load_model(path, num_group=16, heads=4, group_size=8, teachers=others)
    with pytest.raises(UserError) as caught:
        load_model(path, num_group=16, heads=5, group_size=8, teachers=teachers)
    assert str(caught.value) == f"{path}: model.heads: must divide width 96, got 5"  # the file once
    model = load_model(path, num_group=16, heads=4, group_size=8, teachers=teachers)
    assert model.config.color == told["with_color"] and model.config.depth == told["depth"]
    assert isinstance(model, Classifier if case == "finetune" else ReCon)


def test_a_pretrained_model_without_cls_is_fine_tuned_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = build(CAUSAL)
    monkeypatch.setattr(tasks, "read_any", lambda path, untold: (pretrained, None))
    classifier = Classifier(CAUSAL, 3)
    cls = classifier.encoder.query_token[:, :1].detach().clone()
    tasks.load_pretrained(classifier, "runs/some")
    assert torch.equal(classifier.encoder.query_token[:, :1], cls)
    assert torch.equal(classifier.encoder.query_token[:, 1:], pretrained.encoder.query_token)
    assert torch.equal(classifier.encoder.blocks[1].mlp.fc1.weight, pretrained.encoder.blocks[1].mlp.fc1.weight)


@pytest.mark.slow
@BOTH
def test_a_step_compiles_without_a_break(config: ModelConfig) -> None:
    model, (features, present) = build(dataclasses.replace(config, depth=1, decoder_depth=1, color_drop=0.5)), targets()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    taught = []
    for form in (compiled, model):
        torch.manual_seed(0)  # of mask and colours
        losses = form(clouds(config), features, present=present)
        losses["total"].backward()
        taught.append((losses, [parameter.grad.clone() for parameter in model.parameters()]))
        model.zero_grad()
    torch.testing.assert_close(taught[0], taught[1], rtol=1e-3, atol=1e-4)


@BOTH
def test_half_precision_keeps_the_losses_in_float32(config: ModelConfig) -> None:
    model, (features, present) = build(config), targets()
    mask = model.draw_mask(model.group(clouds(config))[1], generator(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(clouds(config), features, mask=mask, present=present)
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    whole = model(clouds(config), features, mask=mask, present=present)
    for name in losses:
        assert float(losses[name].detach()) == pytest.approx(float(whole[name].detach()), rel=0.1)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")
@pytest.mark.slow
@BOTH
def test_a_program_of_it_takes_any_number_of_clouds(config: ModelConfig, tmp_path: Path) -> None:
    model = build(config).eval()
    save_program(model, tmp_path / "model.pt2", "a run")
    points = clouds(config, 3)
    with torch.no_grad():
        found = torch.export.load(tmp_path / "model.pt2").module()(points)
        expected = model.describe(points)
    found = list(found.values()) if isinstance(found, dict) else list(found)
    torch.testing.assert_close(found, [expected[0], *expected[1]], rtol=1e-3, atol=1e-4)
