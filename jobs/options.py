"""From flags and a YAML file to one validated configuration: each option is defined once, in a job's pydantic model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from model.errors import InputError


class JobConfig(BaseModel):
    """What every job takes. Flags win over the file; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    config: str | None = Field(None, description="YAML file with options of this command; flags win over it")
    verbose: bool = Field(False, description="show tracebacks")

    def resolved(self) -> dict[str, Any]:
        """The configuration as it is kept beside an output."""
        return self.model_dump(mode="json", by_alias=True, exclude={"config", "verbose"})


Config = TypeVar("Config", bound=JobConfig)


def parse_options(config_class: type[Config], arguments: list[str], *, prog: str) -> Config:
    """The configuration from the flags and, where --config names one, a YAML file.

    Raises:
        InputError: a flag or key is unknown, or a value is missing or not what its option takes.
        SystemExit: help was asked for and printed.
    """
    flags = _parse_flags(config_class, arguments, prog=prog)
    values = {**_read_file(flags["config"]), **flags} if flags.get("config") else flags
    try:
        return config_class.model_validate(values)
    except ValidationError as error:
        raise InputError(_explain(error)) from error


def _parse_flags(config_class: type[Config], arguments: list[str], *, prog: str) -> dict[str, Any]:
    settings = SettingsConfigDict(
        cli_prog_name=prog, cli_kebab_case=True, cli_implicit_flags=True, cli_hide_none_type=True, cli_avoid_json=True
    )
    # The settings class exists only for the command line: no environment variable is ever read as an option.
    bases = (config_class, BaseSettings)
    with_flags = type(config_class.__name__, bases, {"model_config": settings, "__doc__": config_class.__doc__})
    try:
        return dict(CliSettingsSource(with_flags, cli_parse_args=arguments, cli_exit_on_error=False)())
    except SettingsError as error:
        message = str(error).removeprefix("error parsing CLI: ")
        raise InputError(f"{prog}: {message}; see {prog} --help") from error


def _read_file(path: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: expected a YAML file, found none: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected keys and values, found {type(values).__name__}")
    # A run's config.json may be given back; its "inputs" are what the run met, and are met anew.
    return {str(key).replace("-", "_"): value for key, value in values.items() if key != "inputs"}


def _explain(error: ValidationError) -> str:
    """The first fault as one line."""
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"][:1]).replace("_", "-")
    if first["type"] == "extra_forbidden":
        return f"unknown option {name!r}"
    if first["type"] == "missing":
        return f"--{name}: expected a value, found none"
    return f"--{name}: {first['msg'][0].lower()}{first['msg'][1:]}, found {first['input']!r}"
