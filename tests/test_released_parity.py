"""The model against inputs and outputs recorded from the released code, tensor by tensor: ReCon's, then ReCon++'s.

Every folder of tests/golden is checked, and every folder inside the one RECON_GOLDEN_DIR names, if it is set; of
ReCon++ also the one that RECON2_GOLDEN_DIR names, or those inside it.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from recon.trainer.checkpoints.released import from_released, infer_config, load_weights, to_released
from recon.trainer.model.heads import Classifier, Segmenter
from recon.trainer.model.masks import take
from tests import released2_goldens as recon2
from tests.released_goldens import GOLDEN, build_recon, config_of, recorded, weights

INPUTS = {"points", "image_feature", "text_feature", "mask", "partseg.points", "partseg.onehot"}
RTOL, ATOL = 1e-4, 1e-5
# Below this, float32 cannot tell which side of a ReLU's kink an input of size one lies on.
KINK = 1e-6
# The segmentation recordings keep every sixteenth point.
POINT_STRIDE = 16


def golden_folders() -> list[Path]:
    named = [os.environ.get(name) for name in ("RECON_GOLDEN_DIR", "RECON2_GOLDEN_DIR")]
    roots = [GOLDEN, *(Path(extra) for extra in named if extra)]
    configs = [config for root in roots for config in sorted({*root.glob("config.json"), *root.glob("*/config.json")})]
    return [config.parent for config in configs]


FOLDERS = [folder for folder in golden_folders() if "cases" not in config_of(folder)]
FOLDERS2 = [folder for folder in golden_folders() if "cases" in config_of(folder)]


def labels_of(folder: Path) -> Tensor:
    names: list[str] = config_of(folder)["labels"]
    return torch.tensor([sorted(set(names)).index(name) for name in names])


def pretrain_outputs(folder: Path, mode: str) -> dict[str, Tensor]:
    """What the release calls its outputs and losses in `mode`, computed by us stage by stage."""
    model, given = build_recon(folder).train(mode == "train"), recorded(folder)
    with torch.no_grad():
        groups, centers = model.group(given["points"])
        visible, masked = model.split(given["mask"])
        queries, tokens = model.forward_encoder(groups, centers, visible)
        predicted = model.decoder(tokens, take(centers, visible), take(centers, masked))
        losses = model.forward_losses(
            predicted, take(groups, masked), queries, [given["image_feature"], given["text_feature"]], labels_of(folder)
        )
    outputs = {
        "cls_token": queries[:, 0],
        "image_token": queries[:, 1],
        "text_token": queries[:, 2],
        "visible_tokens": tokens,
        "reconstructed_points": predicted.flatten(0, 1),
        "loss_mdm": losses["reconstruction"],
        "loss_csc_img": losses["image"],
        "loss_csc_text": losses["text"],
        "loss_total": losses["total"],
    }
    if "contrast" in losses:
        outputs["loss_smc"] = losses["contrast"]
    return {f"{mode}.{name}": value for name, value in outputs.items()}


def grouping_outputs(folder: Path) -> dict[str, Tensor]:
    groups, centers = build_recon(folder).group(recorded(folder)["points"])
    return {"center": centers, "neighborhood": groups}


def probe_outputs(folder: Path) -> dict[str, Tensor]:
    model, points = build_recon(folder).eval(), recorded(folder)["points"]
    with torch.no_grad():
        queries, _ = model.forward_features(points)
        outputs = {
            "svm.feature": model.svm_feature(points),
            "zeroshot_image.feature": model.teachers[0](queries[:, 1]),
            "zeroshot_text.feature": model.teachers[1](queries[:, 2]),
        }
        if len({teacher.dim for teacher in model.config.teachers}) == 1:
            ratio = config_of(folder)["zeroshot_ratio"]
            outputs["zeroshot_full.feature"] = model.zero_shot_feature(points, text_weight=ratio)
    return outputs


def finetune_outputs(folder: Path) -> dict[str, Tensor]:
    config, outputs = config_of(folder), {}
    for head in ("full", "linear"):
        state = weights(folder, f"finetune_{head}")
        settings = infer_config(
            state, heads=config["num_heads"], num_group=config["num_group"], group_size=config["group_size"]
        )
        model = Classifier(settings, config["num_classes"], head).eval()
        load_weights(model, state)
        with torch.no_grad():
            outputs[f"finetune_{head}.logits"] = model(recorded(folder)["points"])
    return outputs


def partseg_outputs(folder: Path) -> dict[str, Tensor]:
    if "partseg" not in config_of(folder)["state_dict"]:
        return {}
    given, state = recorded(folder), weights(folder, "partseg")
    # The segmentation model was recorded at its published size, whatever the folder's other settings.
    model = Segmenter(infer_config(state, num_group=128, group_size=32), num_parts=50, num_categories=16).eval()
    load_weights(model, state)
    with torch.no_grad():
        logprob = model(given["partseg.points"], given["partseg.onehot"].argmax(dim=1))
    return {"partseg.logprob": logprob[:, ::POINT_STRIDE]}


GROUPS: dict[str, Callable[[Path], dict[str, Tensor]]] = {
    "grouping": grouping_outputs,
    "train": lambda folder: pretrain_outputs(folder, "train"),
    "eval": lambda folder: pretrain_outputs(folder, "eval"),
    "probes": probe_outputs,
    "finetune": finetune_outputs,
    "partseg": partseg_outputs,
}


@functools.cache
def outputs(folder: Path, group: str) -> dict[str, Tensor]:
    return GROUPS[group](folder)


def kinked_gradients(folder: Path, kink: tuple[str, int] | None = None) -> dict[str, Tensor]:
    """Gradients of the training loss under released names; `kink` is one ReLU input to push across zero."""
    model, given = build_recon(folder).train(), recorded(folder)
    if kink is not None:
        layer, index = kink

        def push(module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            flat = output.flatten()
            value = flat[index].detach()
            nudge = torch.zeros_like(flat).index_fill(0, torch.tensor([index]), -2 * float(value))
            return output + nudge.view_as(output)

        model.get_submodule(layer).register_forward_hook(push)
    targets = given["image_feature"], given["text_feature"]
    losses = model(given["points"], targets, labels=labels_of(folder), mask=given["mask"])
    losses["total"].backward()
    # The release recorded zeros for what no loss reaches: the cls query where the contrast is off.
    return to_released(
        {
            name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for name, parameter in model.named_parameters()
        },
        "pretrain",
    )


def kinks(folder: Path) -> list[tuple[str, int]]:
    """ReLU inputs of the patch embedding so near to zero, in float64, that float32 rounding decides their gradient."""
    model, given = build_recon(folder).double().train(), recorded(folder)
    found: list[tuple[str, int]] = []

    def watch(layer: str) -> None:
        def note(module: torch.nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            near = (output.detach().abs().flatten() < KINK).nonzero()[:, 0]
            found.extend((layer, int(index)) for index in near)

        model.get_submodule(layer).register_forward_hook(note)

    for layer in ("encoder.patch_embed.norm1", "encoder.patch_embed.norm2"):
        watch(layer)
    with torch.no_grad():
        model.encoder.patch_embed(model.group(given["points"].double())[0])
    return found


@functools.cache
def gradients(folder: Path) -> dict[str, Tensor]:
    """Our gradients, with at most one ReLU taken on the other side of its kink, if that is where the release's fell.

    In one recording a ReLU's input is 2.4e-7 exactly and -5.2e-7 as the release rounded it. Its gradient jumps there,
    so no tolerance on the gradient would serve; everything else must agree with the input on the release's side.
    """
    plain = kinked_gradients(folder)
    if not gradient_faults(folder, plain):
        return plain
    for kink in kinks(folder):
        pushed = kinked_gradients(folder, kink)
        if not gradient_faults(folder, pushed):
            return pushed
    return plain


def gradient_faults(folder: Path, computed: dict[str, Tensor]) -> list[str]:
    given = recorded(folder)
    faults = []
    for name, gradient in computed.items():
        slack = ATOL + rounding(name, computed)
        if f"grad.{name}" in given:
            faults += fault(f"grad.{name}", gradient, given[f"grad.{name}"], slack)
        norm = torch.tensor(config_of(folder)["grad_norms"][name])
        faults += fault(f"grad_norms {name}", gradient.norm(), norm, slack)
    return faults


def rounding(name: str, computed: dict[str, Tensor]) -> float:
    """Extra tolerance for a bias in front of a batch norm, whose gradient is 0 but for rounding.

    What rounding leaves there scales with the layer's gradient, so it is held to 1e-4 of that.
    """
    before_norm = ("first_conv.0.bias", "first_conv.3.bias", "second_conv.0.bias", "cls_proj.0.bias", "cls_proj.3.bias")
    return 1e-4 * float(computed[name.replace("bias", "weight")].norm()) if name.endswith(before_norm) else 0.0


def fault(name: str, ours: Tensor, theirs: Tensor, atol: float = ATOL) -> list[str]:
    if ours.shape != theirs.shape:
        return [f"{name}: shape {list(ours.shape)}, recorded {list(theirs.shape)}"]
    if torch.allclose(ours, theirs, rtol=RTOL, atol=atol):
        return []
    return [f"{name}: off by up to {float((ours - theirs).abs().max()):.2e}"]


def by_row(groups: Tensor) -> Tensor:
    """Order the points of each group `[..., S, 3]` by their coordinates: the order inside a group has no meaning."""
    points = groups.flatten(0, -3).numpy()
    return torch.from_numpy(np.stack([rows[np.lexsort(rows.T)] for rows in points]))


def slow_if(is_slow: bool) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if is_slow else []


EACH_FOLDER = [pytest.param(folder, id=folder.name, marks=slow_if(folder.name == "base")) for folder in FOLDERS]
EACH_FOLDER_WHOLE = [pytest.param(folder, id=folder.name, marks=slow_if(folder.name != "small")) for folder in FOLDERS]
EACH_GROUP = [
    pytest.param(folder, group, id=f"{folder.name}-{group}", marks=slow_if(folder.name == "base" or group == "partseg"))
    for folder in FOLDERS
    for group in GROUPS
    if group != "partseg" or "partseg" in config_of(folder)["state_dict"]
]


@pytest.mark.parametrize(("folder", "group"), EACH_GROUP)
def test_outputs(folder: Path, group: str) -> None:
    given, computed = recorded(folder), outputs(folder, group)
    names = [name for name in computed if name in given]
    assert names, f"{folder.name} records nothing of {group}"
    faults = []
    for name in names:
        ours, theirs = computed[name], given[name]
        if name == "neighborhood":
            ours, theirs = by_row(ours), by_row(theirs)
        faults += fault(name, ours, theirs)
    assert not faults


@pytest.mark.parametrize("folder", EACH_FOLDER)
def test_gradients(folder: Path) -> None:
    computed = gradients(folder)
    assert set(computed) == set(config_of(folder)["grad_norms"])
    assert not gradient_faults(folder, computed)


@pytest.mark.parametrize("folder", EACH_FOLDER_WHOLE)
def test_every_recorded_tensor_is_compared(folder: Path) -> None:
    compared = {name for group in GROUPS for name in outputs(folder, group)}
    compared |= {f"grad.{name}" for name in config_of(folder)["grad_norms"]}
    assert set(recorded(folder)) - compared - INPUTS == set()


@pytest.mark.parametrize("folder", EACH_FOLDER_WHOLE)
def test_names_go_both_ways(folder: Path) -> None:
    for model, form in (
        ("pretrain", "pretrain"),
        ("finetune_full", "classify"),
        ("finetune_linear", "classify"),
        ("partseg", "segment"),
    ):
        shapes = config_of(folder)["state_dict"].get(model)
        if shapes is None:
            continue
        released = to_released(weights(folder, model), form)
        assert {name: list(value.shape) for name, value in released.items()} == shapes
        again = from_released(released)
        assert again.keys() == weights(folder, model).keys()
        assert all(torch.equal(value, weights(folder, model)[name]) for name, value in again.items())


EACH_CASE = [
    pytest.param(folder, case, id=f"{folder.name}-{case}", marks=slow_if(folder.name != "recon2_small"))
    for folder in FOLDERS2
    for case in recon2.PRETRAIN
    if case in config_of(folder)["cases"]
]
EACH_FOLDER2 = [
    pytest.param(folder, id=folder.name, marks=slow_if(folder.name != "recon2_small")) for folder in FOLDERS2
]
GRADIENTS2 = ("train", "eval_masked", "train.stage.reconstruct", "train.stage.contrast")
INPUTS2 = {"data.raw", "points", "points_color", "image_features", "text_features", "labels"}


def faults2(folder: Path, computed: dict[str, Tensor]) -> list[str]:
    """Of what is recorded; a recording may hold the first channels or groups alone."""
    found = []
    for name in computed.keys() & recorded(folder).keys():
        ours, theirs = computed[name], recorded(folder)[name]
        if "decoder_block" in name:  # of the last block we compute what is read alone
            theirs = theirs[:, -ours.shape[1] :]
        if name.split(".")[1] in ("groups", "groups_first8"):
            ours, theirs = by_row(ours), by_row(theirs)
        if name.endswith("column_mask"):  # the last one's state could not be seen
            theirs = theirs[:-1]
        ours = ours[tuple(slice(0, size) for size in theirs.shape)]
        found += fault(name, ours.double(), theirs.double())
    return found


def gradient_faults2(
    folder: Path,
    prefix: str,
    norms: dict[str, float | None] | None,
    computed: dict[str, Tensor | None],
    slack: dict[str, float] | None = None,
) -> list[str]:
    """Of the norms, where there are any, and of the gradients recorded whole under `prefix`."""
    given, found = recorded(folder), []
    for name, gradient in computed.items():
        atol = ATOL + (slack or {}).get(name, 0.0)
        norm = norms[name] if norms else None
        if norms and (gradient is None) != (norm is None):
            found.append(f"{prefix}{name}: {'no gradient' if gradient is None else 'a gradient, none is recorded'}")
        if gradient is not None and norm is not None:
            found += fault(f"norm of {prefix}{name}", gradient.norm(), torch.tensor(norm), atol)
        if f"{prefix}{name}" in given:
            whole = torch.zeros(()) if gradient is None else gradient
            found += fault(f"{prefix}{name}", whole, given[f"{prefix}{name}"], atol)
    return found


@pytest.mark.parametrize(("folder", "case"), EACH_CASE)
def test_outputs_of_recon2(folder: Path, case: str) -> None:
    assert not faults2(folder, recon2.outputs(folder, case))


@pytest.mark.parametrize(("folder", "case"), EACH_CASE)
def test_gradients_of_recon2_by_stage(folder: Path, case: str) -> None:
    recording, faults = recon2.case_of(folder, case), []
    for kind in GRADIENTS2:
        mode, _, stage = kind.partition(".stage.")
        computed = recon2.gradients(folder, case, stage or "total", mode)
        norms = recording.get(f"{kind.removeprefix('train.') if stage else mode}.grad_norms")
        faults += gradient_faults2(folder, f"{case}.{kind}.grad.", norms, computed)
        if f"stage.{stage}.without_gradient" in recording:
            without = {
                name for name in recording[f"stage.{stage}.without_gradient"] if not name.startswith("model.norm.")
            }
            assert without == {name for name, gradient in computed.items() if gradient is None}
    assert not faults


@pytest.mark.parametrize(("folder", "case"), EACH_CASE)
def test_the_other_stop_gradient_of_recon2(folder: Path, case: str) -> None:
    recording = recon2.case_of(folder, case)
    (key,) = [key for key in recording if key.startswith("train.grad_norms_stop_grad_")]
    assert key.endswith(str(not recon2.built(folder, case).config.stop_gradient))
    assert not gradient_faults2(folder, "", recording[key], recon2.gradients(folder, case, "total", flip=True))
    total = recon2.outputs(folder, case)[f"{case}.train.loss.total"]
    assert not fault("loss_with_stop_grad_flipped", total, torch.tensor(recording["loss_with_stop_grad_flipped"]))


@pytest.mark.parametrize("folder", EACH_FOLDER2)
def test_fine_tuning_of_recon2(folder: Path) -> None:
    recording = recon2.case_of(folder, "finetune")
    for mode in ("train", "eval"):
        assert not faults2(folder, recon2.finetuned(folder, mode)[0])
    computed, slack = recon2.finetuned(folder, "train")[1], recon2.off_float64(folder)
    assert not gradient_faults2(folder, "finetune.train.grad.", recording["train.grad_norms"], computed, slack)


@pytest.mark.parametrize("folder", EACH_FOLDER2)
def test_augmentation_of_recon2(folder: Path) -> None:
    assert not faults2(folder, recon2.augmented(folder))


@pytest.mark.parametrize("folder", EACH_FOLDER2)
def test_every_tensor_of_recon2_is_compared(folder: Path) -> None:
    cases = [case for case in recon2.PRETRAIN if case in config_of(folder)["cases"]]
    compared = {name for case in cases for name in recon2.outputs(folder, case)} | recon2.finetuned(folder, "train")[
        0
    ].keys()
    compared |= recon2.finetuned(folder, "eval")[0].keys() | INPUTS2
    compared |= {f"{case}.{name}" for case in cases for name in ("mask", "zeroshot.class_features")}
    pairs = [(case, theirs) for case in cases for theirs, _ in recon2.names(folder, case)]
    compared |= {f"{case}.{kind}.grad.{name}" for kind in GRADIENTS2 for case, name in pairs}
    assert recorded(folder).keys() <= compared | recon2.augmented(folder).keys()
