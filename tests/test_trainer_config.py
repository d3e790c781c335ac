"""Recipes, overrides, and what a mistake in either says."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recon.pipeline.base.errors import UserError
from recon.trainer import config as settings_module
from recon.trainer.config import DataConfig, OptimConfig, RunConfig, TaskConfig, TeacherConfig
from recon.trainer.model.recon import SIZES, ModelConfig
from recon.trainer.model.teaching import Teacher
from recon.trainer.recipe import (
    config_from_dict,
    config_to_dict,
    config_to_toml,
    list_recipes,
    load_config,
    with_teachers,
)

GUIDE = Path(__file__).parent.parent / "docs" / "training.md"


@pytest.mark.parametrize("recipe", sorted(list_recipes()))
def test_every_shipped_recipe_loads_and_says_what_it_is(recipe: str) -> None:
    config = load_config(recipe)
    assert config_from_dict(config_to_dict(config), recipe) == config
    assert len(list_recipes()[recipe]) > 20


def test_the_paper_recipe_is_the_papers() -> None:
    config = load_config("recon-base")
    assert config.model == ModelConfig()
    assert config.optim == OptimConfig(300, 128, 1, 5e-4, 1e-6, 1e-6, 10, 0.05, 0.0)
    # The release pretrains on both lists of ShapeNet-55, 52,470 shapes.
    assert config.data == DataConfig(splits=("train", "test"))
    for name, width, heads in (("recon-small", 256, 4), ("recon-tiny", 192, 3)):
        other = load_config(name)
        assert (other.model.width, other.model.heads) == (width, heads)
        assert dataclasses.replace(other, model=config.model) == config


@pytest.mark.parametrize(
    ("size", "lr", "start"),
    [
        ("small", 5e-5, "timm:vit_small_patch14_dinov2.lvd142m"),
        ("base", 1e-4, "timm:vit_base_patch32_clip_384.openai_ft_in12k_in1k"),
        ("large", 5e-5, "timm:eva_large_patch14_336.in22k_ft_in22k_in1k"),
    ],
)
def test_the_recon2_recipes_are_the_releases_but_for_what_they_mend(size: str, lr: float, start: str) -> None:
    config = load_config(f"recon2-{size}")
    assert config.task == TaskConfig(start=start)
    assert config.model == ModelConfig(
        **SIZES[f"recon2-{size}"], layer_scale="dinov2" in start, num_group=512, mask_ratio=0.7, color=True,
        color_drop=0.5, stop_gradient=False, cls_query=False, reconstruction="mdm",
    )  # fmt: skip
    assert config.optim == OptimConfig(batch_size=512, lr=lr)
    # The release adds up a process's 64 clouds and multiplies by 5; here the mean over clouds has a factor.
    teacher = TeacherConfig(loss="matched", weight=5.0 * 512 / 8, targets="all")
    assert config.data == DataConfig(
        teachers=(dataclasses.replace(teacher, queries=13), dataclasses.replace(teacher, teacher="text", queries=3)),
        num_points=10000, captions="shape", tilt=0.06, scale=(0.8, 1.25), scale_axes="together", translate=0.1,
        loader="stream",
    )  # fmt: skip
    assert (config.run.keep_best, config.run.probe_every) == ("", 0)


def test_overrides_are_toml_or_a_bare_word() -> None:
    config = load_config(
        "recon-base",
        ["model.size=tiny", "optim.lr=1e-3", "data.draws=[0, 2]", 'data.ref="a=b"', "run.compile=true", "run.seed= 7 "],
    )
    assert (config.model.width, config.model.heads) == (192, 3)
    assert (config.optim.lr, config.data.draws, config.data.ref) == (1e-3, (0, 2), "a=b")
    assert (config.run.compile, config.run.seed) == (True, 7)


def test_a_size_gives_way_to_what_is_said_beside_it() -> None:
    assert load_config("recon-base", ["model.width=96"]).model.width == 96
    assert load_config("recon-base", ["model.width=96"]).model.heads == 6


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optim.lrr=1", r"unknown key 'lrr'; did you mean 'lr'\?"),
        ("optmi.lr=1", r"unknown section 'optmi'; did you mean 'optim'\?"),
        ("run.zzzzzzzz=1", r"unknown key 'zzzzzzzz'; known: compile, keep_best, keep_last"),
        ("model.size=bsae", r"model\.size: unknown size 'bsae'; did you mean 'base'\?"),
        ("model.width=100", r"model\.heads: must divide width 100, got 6"),
        ("model.mask_type=blok", r"model\.mask_type: must be one of"),
        ("optim.lr=fast", r"optim\.lr: .*number \(got 'fast'\)"),
        ("optim.lr=0", r"optim\.lr: .*greater than 0 \(got 0\)"),
        ("optim.lr=inf", r"optim\.lr: "),
        ("optim.epochs=2.5", r"optim\.epochs: .*\(got 2\.5\)"),
        ("optim.epochs=true", r"optim\.epochs: "),
        ("optim.epochs=5", r"optim: warmup_epochs 10 must be fewer than epochs 5"),
        ("optim.accumulate=3", r"optim: accumulate 3 does not divide batch_size 128"),
        ("run.compile=yes", r"run\.compile: .*boolean \(got 'yes'\)"),
        ("run.seed=-1", r"run\.seed: .*\(got -1\)"),
        ("data.splits=[]", r"data\.splits: "),
        ("data.captions=classes", r"data\.captions: .*'class'"),
        ("data.draws=[-1]", r"data\.draws\.0: "),
        ("lr=1", r"write it as section\.key=value"),
        ("optim.lr", r"write it as section\.key=value"),
        ("optim.lr=", r"write it as section\.key=value"),
        ("optim.lr.x=1", r"unknown key 'lr\.x'"),
    ],
)
def test_a_wrong_override_is_one_line_that_names_it(override: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        load_config("recon-base", [override])
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("streams", ["multitask", "two_tower"])
def test_a_block_that_the_streams_do_not_have_is_named(streams: str) -> None:
    with pytest.raises(UserError, match=rf"^demo: model\.block 'paper': streams '{streams}' .*model\.block=released$"):
        load_config("demo", [f"model.streams={streams}"])
    config = load_config("demo", [f"model.streams={streams}", "model.block=released"])
    # What was trained before it was said is read as ever, and is a start for what comes after.
    earlier = {**dataclasses.asdict(config.model), "block": "paper"}
    assert config_from_dict({"model": earlier}, "").model.block == "paper"
    assert load_config("demo-finetune", model=earlier).model.streams == streams


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[model\n", "not valid TOML"),
        ("[modle]\n", r"unknown section 'modle'; did you mean 'model'\?"),
        ("seed = 1\n", "unknown section 'seed'"),
        ("run = 1\n", "run is a section"),
        ("[run]\nseed = 2024-01-01\n", r"run\.seed"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(UserError, match=told) as raised:
        load_config(str(path))
    assert "mine.toml" in str(raised.value)


def test_an_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'recon-bse'; did you mean 'recon-base'\?"):
        load_config("recon-bse")
    with pytest.raises(UserError, match=r"absent\.toml: no such file"):
        load_config("absent.toml")


def test_the_models_teachers_come_from_the_store() -> None:
    image, text = Teacher("image", "image", 16), Teacher("text", "text", 8)
    config = with_teachers(load_config("recon-base"), (image, text))
    assert config.model.teachers == (image, text)
    with pytest.raises(UserError, match=r"image of width 16 and text of width 8 asked for, the store gives .* width 9"):
        with_teachers(config, (image, Teacher("text", "text", 9)))
    with pytest.raises(UserError, match=r"model\.teachers is taken from the store; name the teachers with data\.teach"):
        load_config("recon-base", ["model.teachers=[]"])
    with pytest.raises(UserError, match=r"nothing to learn from.*data\.teachers"):
        with_teachers(load_config("recon-base", ["model.reconstruction=none", "data.teachers=[]"]), ())


@pytest.mark.parametrize(
    ("value", "teachers"),
    [
        ("image", (TeacherConfig("image"),)),
        ("text:clip", (TeacherConfig("text:clip"),)),
        ('["image:vit", "text"]', (TeacherConfig("image:vit"), TeacherConfig("text"))),
        ('{teacher="image", loss="cosine", weight=2.0}', (TeacherConfig("image", "cosine", 2.0),)),
        ('["image", {teacher="text:a:b", loss="infonce"}]', (TeacherConfig(), TeacherConfig("text:a:b", "infonce"))),
        ("[]", ()),
    ],
)
def test_teachers_are_written_short_or_whole(value: str, teachers: tuple[TeacherConfig, ...]) -> None:
    config = load_config("recon-base", [f"data.teachers={value}"])
    assert config.data.teachers == teachers
    assert config_from_dict(config_to_dict(config), "again") == config
    assert [teacher.stored_name for teacher in teachers] == [each.teacher.partition(":")[2] for each in teachers]


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ('["picture"]', "data.teachers.0.teacher.*image"),
        ('["image:"]', "data.teachers.0.teacher"),
        ('["image", "image"]', "'image' stands there twice"),
        ('[{teacher="image", loss="l2"}]', "data.teachers.0.loss.*'infonce'"),
        ('[{teacher="image", weight=0}]', "data.teachers.0.weight"),
        ("3", "data.teachers"),
    ],
)
def test_teachers_that_cannot_be_are_named(value: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        load_config("recon-base", [f"data.teachers={value}"])
    assert "\n" not in str(raised.value)


optims = st.builds(
    OptimConfig,
    epochs=st.integers(11, 1000),
    lr=st.floats(1e-9, 1e3),
    weight_decay=st.floats(0, 1),
    clip_grad=st.floats(0, 100),
)
runs = st.builds(RunConfig, seed=st.integers(0, 2**63 - 1), compile=st.booleans(), keep_last=st.integers(1, 9))
teachers = st.builds(
    TeacherConfig,
    st.sampled_from(["image", "text", "image:vit", "text:a:b"]),
    st.sampled_from(["smooth_l1", "cosine", "infonce", "multi_positive"]),
    st.floats(1e-9, 1e9),
)
datas = st.builds(
    DataConfig,
    ref=st.text(),
    draws=st.lists(st.integers(0, 9)).map(tuple),
    teachers=st.lists(teachers, unique_by=lambda each: each.teacher).map(tuple),
)


@settings(max_examples=30)
@given(optim=optims, run=runs, data=datas)
def test_settings_survive_the_way_through_json(optim: OptimConfig, run: RunConfig, data: DataConfig) -> None:
    # A resumed run compares its settings with those it wrote down, so no bit of a float may get lost.
    config = dataclasses.replace(load_config("recon-base"), optim=optim, run=run, data=data)
    assert config_from_dict(config_to_dict(config), "json") == config


@settings(max_examples=30)
@given(optim=optims, run=runs, data=datas)
def test_settings_survive_the_way_through_toml(
    tmp_path_factory: pytest.TempPathFactory, optim: OptimConfig, run: RunConfig, data: DataConfig
) -> None:
    config = dataclasses.replace(load_config("recon-base"), optim=optim, run=run, data=data)
    path = tmp_path_factory.getbasetemp() / "whole.toml"
    path.write_text(config_to_toml(config), "utf-8")
    assert load_config(str(path)) == config


def test_every_field_has_its_line_in_the_source_and_in_the_guide() -> None:
    tree = ast.parse(inspect.getsource(settings_module))
    classes = {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
    guide = GUIDE.read_text("utf-8")
    for section in (TaskConfig, TeacherConfig, DataConfig, OptimConfig, RunConfig):
        body = classes[section.__name__]
        documented = {
            field.target.id
            for field, text in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
        }
        names = {field.name for field in dataclasses.fields(section)}
        assert documented == names
        assert all(f"| `{name}` |" in guide for name in names)
    for field in dataclasses.fields(ModelConfig):
        assert f"| `{field.name}` |" in guide or field.name == "teachers", field.name  # which data.teachers decides
