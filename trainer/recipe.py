"""Settings in files: a TOML recipe plus `section.key=value` overrides, and what a run's folder keeps of them."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from recon.pipeline.base.documents import read_toml
from recon.pipeline.base.errors import UserError
from recon.trainer.config import Config, DataConfig, OptimConfig, RunConfig, TaskConfig
from recon.trainer.model.dense import Dense
from recon.trainer.model.settings import SIZES, ModelConfig
from recon.trainer.model.teaching import Teacher

RECIPES = Path(__file__).parent / "recipes"

_SECTIONS: dict[str, type[Any]] = {
    "task": TaskConfig,
    "model": ModelConfig,
    "data": DataConfig,
    "optim": OptimConfig,
    "run": RunConfig,
}
_ADAPTER = TypeAdapter(Config)


def list_recipes() -> dict[str, str]:
    """Name of every shipped recipe -> its first comment line."""
    heads = {
        path.stem: path.read_text("utf-8").partition("\n")[0]
        for path in sorted(RECIPES.glob("*.toml"), key=lambda path: path.stem)
    }
    return {name: head.lstrip("# ").strip() for name, head in heads.items()}


def load_config(recipe: str, overrides: Sequence[str] = (), model: Mapping[str, Any] | None = None) -> Config:
    """Settings of a run from a shipped recipe's name or a TOML file's path, and `section.key=value` overrides.

    `model` is what a pretrained model's settings are: they hold for what recipe and overrides leave open.

    A value is TOML; what is no TOML value counts as a string, so `model.size=base` works. The model's teachers are
    taken from the store later (`with_teachers`). UserError names the unknown recipe, section or key with its nearest
    neighbour, or the field whose value does not fit.
    """
    data = read_named(recipe, overrides)
    own, pretrains = data.get("model", {}), data.get("task", {}).get("kind", "pretrain") == "pretrain"
    size = own.pop("size", None)
    if size is not None and size not in SIZES:
        raise UserError(f"model.size: {_unknown('size', str(size), SIZES)}")
    for name in ("teachers", "dense"):
        if name in own and pretrains:
            raise UserError(f"{recipe}: model.{name} is taken from the store; name the teachers with data.{name}")
    # Here, and not among the model's own checks: runs and files of before it was said are read as ever.
    if own.get("streams", "recon") != "recon" and own.get("block", "released") != "released":
        raise UserError(
            f"{recipe}: model.block {own['block']!r}: streams {own['streams']!r} have plain blocks, which it does not "
            "change; set model.block=released"
        )
    data["model"] = {**(model or {}), **SIZES.get(size, {}), **own}
    if not pretrains:
        data.setdefault("data", {}).setdefault("teachers", [])
    return config_from_dict(data, recipe)


def read_named(recipe: str, overrides: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """What a recipe and overrides name, section by section, none of it checked but the names. UserError for those."""
    path = _recipe_path(recipe)
    data = read_toml(path, "mend it")
    _check_names(data, str(path))
    for section, values in read_overrides(overrides).items():
        data.setdefault(section, {}).update(values)
    return data


def read_overrides(overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`section.key=value` texts, the last of a key counts, as nested settings. UserError for names that are none."""
    given: dict[str, dict[str, Any]] = {}
    for override in overrides:
        section, key, value = _parse_override(override)
        _check_names({section: {key: value}}, f"--set {override}")
        given.setdefault(section, {})[key] = value
    return given


def config_from_dict(data: Mapping[str, Any], source: str) -> Config:
    """Validate nested settings, such as `config_to_dict` gives back; UserError names `source` and the field."""
    _check_names(data, source)
    for name in {"teachers", "dense"} & {*data.get("data", {})}:
        data = {**data, "data": {**data["data"], name: _teacher_tables(data["data"][name])}}
    try:
        # JSON mode is what lets strict validation build dataclasses and tuples from plain tables and arrays.
        return _ADAPTER.validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        # The model's own checks name their field.
        message = message if message.startswith(f"{where}.") else f"{where}: {message}"
        if first["type"] == "tuple_type":
            message = f"{where}: a list is needed, as {json.dumps([first['input']])}"
        elif first["type"] == "string_pattern_mismatch":
            message = f'{where}: write "image" or "text", or a teacher\'s name behind it, "image:NAME"'
        given = "" if isinstance(first["input"], dict) else f" (got {first['input']!r})"
        raise UserError(f"{source}: {message}{given}") from None


def with_teachers(config: Config, teachers: Sequence[Teacher], dense: Sequence[Dense] = ()) -> Config:
    """The settings for the teachers that `data.teachers` and `data.dense` stand for in a store.

    UserError if the settings name others, and where nothing is left to learn from.
    """
    model = config.model
    for name, held, given in (("teachers", model.teachers, teachers), ("dense", model.dense, dense)):
        if held not in ((), tuple(given)):
            was, now = (" and ".join(f"{each.name} of width {each.dim}" for each in them) for them in (held, given))
            raise UserError(f"model.{name}: {was} asked for, the store gives {now or 'none'}")
    if not teachers and not dense and not model.self_contrastive and model.reconstruction == "none":
        raise UserError(
            "nothing to learn from: name a teacher in data.teachers, set model.self_contrastive=true, or a "
            "model.reconstruction"
        )
    return dataclasses.replace(config, model=dataclasses.replace(model, teachers=tuple(teachers), dense=tuple(dense)))


def config_to_dict(config: Config) -> dict[str, Any]:
    """Settings as JSON values, sections first."""
    values: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return values


def config_to_toml(config: Config) -> str:
    """All settings as a recipe, which `load_config` reads back to the same; the model's teachers are the store's."""
    values = config_to_dict(config)
    del values["model"]["teachers"], values["model"]["dense"]
    sections = values.items()
    return "\n".join(
        f"[{section}]\n" + "".join(f"{key} = {_toml(value)}\n" for key, value in values.items())
        for section, values in sections
    )


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's strings, numbers and booleans are TOML's, but for one character that JSON leaves bare.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _recipe_path(recipe: str) -> Path:
    path = Path(recipe)
    if path.suffix == ".toml" or len(path.parts) > 1:
        if not path.is_file():
            raise UserError(f"--recipe {recipe}: no such file")
        return path
    known = list_recipes()
    if recipe not in known:
        raise UserError(_unknown("recipe", recipe, known))
    return RECIPES / f"{recipe}.toml"


def _parse_override(override: str) -> tuple[str, str, Any]:
    name, equals, text = override.partition("=")
    section, dot, key = name.strip().partition(".")
    if not (equals and dot and section and key and text.strip()):
        raise UserError(f"--set {override}: write it as section.key=value, e.g. optim.lr=1e-3")
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        if text.strip()[0] in "[{":  # a shell took the quotes away
            listed = '{name = "..."}' if text.strip()[0] == "{" else '["..."]'
            raise UserError(
                f"--set {override}: strings in a list need their quotes, and those the shell's: --set '{name}={listed}'"
            ) from None
        return section, key, text.strip()
    return section, key, parsed["value"] if len(parsed) == 1 else text


def _teacher_tables(given: Any) -> Any:
    """A teacher may be written as its name alone, and a single one without the list."""
    listed = [given] if isinstance(given, str | Mapping) else given
    if not isinstance(listed, list | tuple):
        return given  # for validation to refuse
    return [{"teacher": each} if isinstance(each, str) else each for each in listed]


def _check_names(data: Mapping[str, Any], source: str) -> None:
    for section, values in data.items():
        if section not in _SECTIONS:
            raise UserError(f"{source}: {_unknown('section', section, _SECTIONS)}")
        if not isinstance(values, Mapping):
            raise UserError(f"{source}: {section} is a section: write [{section}] and its keys below it")
        known = [item.name for item in dataclasses.fields(_SECTIONS[section])]
        if section == "model":
            known.append("size")
        for key in values:
            if key not in known:
                raise UserError(f"{source}: [{section}]: {_unknown('key', key, known)}")


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names)}"
    return f"unknown {kind} {name!r}; {hint}"
