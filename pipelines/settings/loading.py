"""Reading the settings, and saying what is wrong with one and where it was set."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from pipelines.boundary.mistakes import FileFormat, Lines, path_of
from pipelines.boundary.toml import did_you_mean, exists, format_problems, key_lines, line_of, parse_toml, read_toml
from pipelines.errors import ConfigurationError
from pipelines.settings.model import Settings

_ENVIRONMENT_PREFIX = "KARMALAKE_"
_CONFIG_VARIABLE = "KARMALAKE_CONFIG"


def load_settings(environment: dict[str, str] | None = None, working_dir: Path | None = None) -> Settings:
    """Read the settings from the environment and the configuration file.

    Raises ConfigurationError with the source of each unknown key and invalid value.
    """
    environment = dict(os.environ) if environment is None else environment
    values, sources, lines = _from_file(environment, working_dir or Path.cwd())
    for name, value in environment.items():
        if name.startswith(_ENVIRONMENT_PREFIX) and name != _CONFIG_VARIABLE and value:
            _set(values, sources, name, value)
    _add_sources_folder(values, _config_path(environment, working_dir or Path.cwd()).parent)
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigurationError(_format(error, sources, lines)) from None


def _from_file(environment: dict[str, str], working_dir: Path) -> tuple[dict[str, Any], dict[str, str], Lines]:
    """Return the values of the configuration file, the file as the source of every key, and the line of each."""
    path = _config_path(environment, working_dir)
    if not exists(path):
        if environment.get(_CONFIG_VARIABLE):
            raise ConfigurationError(f"{_CONFIG_VARIABLE} names {path}, which does not exist")
        return {}, {}, {}
    text = read_toml(path, ConfigurationError)
    return parse_toml(text, str(path), ConfigurationError, float), {"": str(path)}, key_lines(text)


def _config_path(environment: dict[str, str], working_dir: Path) -> Path:
    """Return where the configuration file is, or would be."""
    named = environment.get(_CONFIG_VARIABLE)
    return Path(named) if named else working_dir / "karmalake.toml"


def _add_sources_folder(values: dict[str, Any], beside: Path) -> None:
    """Set the default of `sources.folder`, if there is such a folder."""
    section, folder = values.setdefault("sources", {}), beside / "sources"
    if isinstance(section, dict) and "folder" not in section and folder.is_dir():
        section["folder"] = folder


def _set(values: dict[str, Any], sources: dict[str, str], name: str, value: str) -> None:
    """Set the value of an environment variable, and its name as the source of the key."""
    key = name.removeprefix(_ENVIRONMENT_PREFIX).lower()
    section, _, field = key.partition("_")
    if section not in Settings.model_fields or not field:
        values[key], sources[key] = value, name
    elif isinstance(inner := values.setdefault(section, {}), dict):
        inner[field], sources[f"{section}.{field}"] = value, name


def _format(error: ValidationError, sources: dict[str, str], lines: Lines) -> str:
    """Return the sentences about mistakes, each with the variable or the line; values may be secrets."""
    problems = error.errors(include_input=False, include_url=False)
    return format_problems((_sentence(each, sources, lines) for each in problems), len(problems))


def _sentence(problem: ErrorDetails, sources: dict[str, str], lines: Lines) -> str:
    path = path_of(problem)
    key = ".".join(path)
    variable, file, line = sources.get(key), sources.get(""), line_of(path, lines)
    if problem["type"] == "model_type":
        remedy = "is a section of settings, not one setting"
    elif variable and problem["type"] == "extra_forbidden":
        remedy = f"is not a setting{_closest(variable) or ': remove it'}"
    else:
        remedy = FileFormat(Settings, "settings", unknown="is not a setting").remedy(problem, path)
    place = variable or (f"{file}:{line}" if file and line else file) or "the settings"
    return ": ".join(part for part in (place, key, remedy) if part)


def _closest(variable: str) -> str:
    """Return the end of a message that asks for the most similar variable, or an empty string."""
    known = [name.replace(".", "_").upper() for name in _setting_names()]
    meant = did_you_mean(variable.removeprefix(_ENVIRONMENT_PREFIX), known)
    return meant.replace("'", f"'{_ENVIRONMENT_PREFIX}", 1)


def _setting_names() -> Iterator[str]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            yield from (f"{name}.{inner}" for inner in section.model_fields)
        else:
            yield name
