"""The paper's ablation models as settings of the one model: what reaches what, and what every task makes of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recon.pipeline.base.errors import UserError
from recon.trainer.checkpoints.checkpoint import save_checkpoint
from recon.trainer.checkpoints.export import export
from recon.trainer.checkpoints.loading import load_model
from recon.trainer.config import Config, OptimConfig
from recon.trainer.model.encoder import TwoTowers
from recon.trainer.model.heads import Classifier, Segmenter
from recon.trainer.model.recon import ModelConfig, ReCon
from recon.trainer.model.teaching import Teacher
from recon.trainer.training.optim import build_optimizer, parameter_groups
from recon.trainer.training.side_by_side import Copies

TEACHERS = (Teacher("image", "image", 6), Teacher("text", "text", 6))
CONFIG = ModelConfig(
    width=12, heads=3, depth=2, decoder_depth=1, num_group=8, group_size=8, drop_path=0.2, teachers=TEACHERS
)
FORMS = [{"streams": "recon"}, {"streams": "recon", "stop_gradient": False}, {"streams": "multitask"}]
FORMS += [{"streams": "two_tower"}]


def points(count: int = 4) -> Tensor:
    return torch.randn(count, 64, 3, generator=torch.Generator().manual_seed(0))


def targets(count: int = 4) -> tuple[Tensor, ...]:
    return tuple(torch.randn(count, 6, generator=torch.Generator().manual_seed(place)) for place in (1, 2))


def reached(config: ModelConfig, loss: str) -> set[str]:
    """Names of the parameters that a loss moves."""
    torch.manual_seed(0)
    model = ReCon(config)
    model(points(), targets())[loss].backward()
    return {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


def test_teachers_shape_tokens_unless_a_gradient_stops() -> None:
    tokens = "encoder.blocks.0.attention.qkv.weight"
    assert tokens not in reached(CONFIG, "image")
    assert tokens in reached(replace(CONFIG, stop_gradient=False), "image")
    assert tokens in reached(replace(CONFIG, streams="multitask"), "image")


def test_of_one_stream_every_loss_shapes_all_of_it() -> None:
    config = replace(CONFIG, streams="multitask")
    for loss in ("image", "text", "reconstruction"):
        names = reached(config, loss)
        assert {"encoder.query_token", "encoder.patch_embed.conv1.weight", "encoder.blocks.0.mlp.fc1.weight"} <= names


def test_two_towers_have_nothing_in_common() -> None:
    config = replace(CONFIG, streams="two_tower")
    rebuilt, taught = reached(config, "reconstruction"), reached(config, "image")
    assert rebuilt and taught and not rebuilt & taught
    assert not any(name.startswith("encoder.teaching") for name in rebuilt)
    assert not any(name.startswith("encoder.rebuilding") for name in taught)
    assert any(name.startswith("encoder.teaching.patch_embed") for name in taught)


def test_only_the_teaching_tower_sees_what_is_masked() -> None:
    torch.manual_seed(0)
    model = ReCon(replace(CONFIG, streams="two_tower")).eval()
    groups, centers = model.group(points())
    mask = model.draw_mask(centers)
    visible, masked = model.split(mask)
    moved = groups.clone()
    moved[torch.arange(4)[:, None], masked] += 1
    with torch.inference_mode():
        (queries, tokens), (others, same) = (model.forward_encoder(g, centers, visible) for g in (groups, moved))
    assert torch.equal(tokens, same) and not torch.allclose(queries, others)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_form_takes_any_number_of_teachers(form: dict[str, object], count: int) -> None:
    teachers = tuple(Teacher(f"image:{place}", "image", 6) for place in range(count))
    config = replace(CONFIG, teachers=teachers, **form)  # type: ignore[arg-type]
    if form["streams"] == "two_tower" and not count:
        with pytest.raises(ValueError, match="needs a teacher"):
            ReCon(config)
        return
    model = ReCon(config)
    losses = model(points(), targets()[:1] * count)
    assert set(losses) == {"reconstruction", "total", *(teacher.name for teacher in teachers)}
    width = 36 if form["streams"] == "two_tower" else 24
    assert model.embed(points()).shape == (4, width)
    if count:
        assert model.image_feature(points()).shape == (4, 6)
    assert Classifier(config, 5)(points()).shape == (4, 5)


@pytest.mark.parametrize("form", FORMS[2:], ids=lambda form: str(form["streams"]))
def test_checkpoints_copies_and_groups_take_every_form(form: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, **form)  # type: ignore[arg-type]
    model = ReCon(config).eval()
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05))
    files = save_checkpoint(tmp_path, 1, model, optimizer, Config(model=config), {})
    loaded = load_model(tmp_path / "checkpoints" / next(iter(files)))
    twin = Copies(model, 2).models[1]
    with torch.inference_mode():
        assert isinstance(loaded, ReCon) and torch.equal(loaded.embed(points()), model.embed(points()))
        assert isinstance(twin, ReCon) and torch.equal(twin.embed(points()), model.embed(points()))
    if isinstance(model.encoder, TwoTowers):
        assert isinstance(twin.encoder, TwoTowers) and twin.encoder.teaching is not model.encoder.teaching
    downstream = Classifier(config, 3)
    downstream.encoder.load_state_dict(model.encoder.state_dict())
    optimizer = build_optimizer(downstream, OptimConfig(head_lr=10.0))  # as the downstream recipes have it
    before = [p.detach().clone() for p in downstream.parameters()]
    downstream(points()).square().sum().backward()
    optimizer.step()
    assert any(not torch.equal(p, old) for p, old in zip(downstream.parameters(), before, strict=True))
    with pytest.raises(UserError, match=r"the release has no place for model\.streams"):
        export(tmp_path / "checkpoints" / next(iter(files)), tmp_path / "out.pth")


def test_what_means_nothing_is_refused() -> None:
    for change, said in (
        ({"streams": "two_tower", "self_contrastive": True}, "model.self_contrastive"),
        ({"streams": "two_tower", "stop_gradient": False}, "model.stop_gradient"),
        ({"streams": "two_tower", "reconstruction": "none"}, "model.reconstruction"),
        ({"streams": "multitask", "stop_gradient": False}, "model.stop_gradient"),
        ({"streams": "three"}, "model.streams"),
    ):
        with pytest.raises(ValueError, match=said):
            replace(CONFIG, **change)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="segmentation takes one encoder"):
        Segmenter(replace(CONFIG, streams="two_tower"), 4, 2)
    assert Segmenter(replace(CONFIG, streams="multitask"), 4, 2)(points(), torch.zeros(4, dtype=torch.long)).shape == (
        4, 64, 4,
    )  # fmt: skip
