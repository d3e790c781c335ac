"""Teachers as a set: which mixes train, what the model predicts of them, and what cannot be."""

import pytest
import torch

from recon.trainer.data.transforms import normalize
from recon.trainer.model.heads import Classifier
from recon.trainer.model.losses import INFONCE_MAX_LOG_SCALE
from recon.trainer.model.teaching import Teacher, TeacherHead
from tests.test_model import build, clouds, generator, targets, taught

MIXES = {
    "single-modal": taught(self_contrastive=True),
    "reconstruction alone": taught(),
    "distillation alone": taught(Teacher("image", "image", 7), reconstruction="none", mask_ratio=0.0),
    "four teachers": taught(
        Teacher("image:a", "image", 7),
        Teacher("image:b", "image", 3, "cosine"),
        Teacher("text:c", "text", 5, "infonce"),
        Teacher("text:d", "text", 7, weight=0.25),
        self_contrastive=True,
    ),
}


@pytest.mark.parametrize("mix", MIXES)
def test_any_mix_of_teachers_trains(mix: str) -> None:
    config, labels = MIXES[mix], torch.tensor([0, 1, 0, 2])
    model = build(config)
    losses = model(clouds(), targets(config=config), labels, generator=generator(0))
    expected = ["reconstruction"] * (config.reconstruction != "none") + [teacher.name for teacher in config.teachers]
    assert list(losses) == [*expected, *["contrast"] * config.self_contrastive, "total"]
    weight = {teacher.name: teacher.weight for teacher in config.teachers}
    total = sum(weight.get(name, 1.0) * loss.item() for name, loss in losses.items() if name != "total")
    assert losses["total"].item() == pytest.approx(total)
    losses["total"].backward()
    num_queries = 1 + len(config.teachers)
    queries, _ = model.eval().forward_features(clouds())
    assert queries.shape == (4, num_queries, 24)
    assert model.embed(clouds()).shape == (4, 48)
    head = Classifier(config, 5, "linear")
    assert head(clouds()).shape == (4, 5) and head.head.layers[0].in_features == (num_queries + 1) * 24
    # Each query that has a loss learns by itself alone: no gradient reaches another's token but through the blocks.
    if config.teachers:
        assert all(teacher.projection.weight.grad.abs().sum() > 0 for teacher in model.teachers)


def test_the_wrong_number_of_targets_is_told() -> None:
    with pytest.raises(ValueError, match="targets: 1 given, the model has 2 teachers"):
        build()(clouds(), targets()[:1])


def test_a_cloud_is_embedded_in_any_frame_and_scale() -> None:
    model = build().eval()
    moved = clouds() * 40 + torch.tensor([3.0, -200.0, 5.0])
    for function in (model.embed, model.image_feature, model.text_feature):
        torch.testing.assert_close(function(moved), function(clouds()), atol=2e-3, rtol=2e-3)
    queries, _ = model.forward_features(normalize(clouds()))
    assert torch.equal(model.text_feature(clouds()), model.teachers[1](queries[:, 2]))
    assert torch.equal(model.text_feature(clouds(), "text"), model.text_feature(clouds()))
    with pytest.raises(ValueError, match="no image teacher 'vit' among the model's: image, text"):
        model.image_feature(clouds(), "vit")
    with pytest.raises(ValueError, match="no text teacher among the model's: none"):
        build(taught(self_contrastive=True)).text_feature(clouds())


@pytest.mark.parametrize(
    ("teacher", "told"),
    [
        ({"kind": "sound"}, "kind of 'x' must be image or text"),
        ({"loss": "l2"}, "loss of 'x' must be one of smooth_l1, cosine, infonce"),
        ({"dim": 0}, "width of 'x' must be at least 1"),
    ],
)
def test_a_teacher_that_cannot_be_is_named(teacher: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.teachers: {told}"):
        Teacher(**{"name": "x", "kind": "image", "dim": 3, **teacher})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"model\.teachers: two of one name"):
        taught(Teacher("x", "image", 3), Teacher("x", "text", 3))


def test_a_learned_scale_comes_back_from_its_limit() -> None:
    torch.manual_seed(0)
    head = TeacherHead(6, Teacher("x", "image", 5, "infonce"))
    assert head.log_scale is not None
    optimizer = torch.optim.SGD([head.log_scale], lr=1.0)
    query, target = torch.randn(8, 6), torch.randn(8, 5)
    with torch.no_grad():
        head.log_scale.fill_(INFONCE_MAX_LOG_SCALE + 3)  # as far as a step may throw it
    # Predictions that say nothing of the targets: at so large a scale the loss asks for a smaller one.
    for _ in range(2):
        optimizer.zero_grad()
        head.loss(query[:, None], target).backward()
        optimizer.step()
    assert head.log_scale.item() < INFONCE_MAX_LOG_SCALE
