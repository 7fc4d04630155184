"""From flags and a YAML file to one validated configuration: each option is defined once, in a job's pydantic model."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
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


def parse_span(text: str, *, least: int = 1) -> tuple[int, int]:
    """Fewest and most of `N` or `MIN:MAX`; `N` may be as small as `least`.

    Raises:
        ValueError: it is neither.
    """
    low, colon, high = text.partition(":")
    try:
        span = int(low), int(high if colon else low)
    except ValueError:
        raise ValueError("expected N or MIN:MAX") from None
    if not (1 if colon else least) <= span[0] <= span[1]:
        raise ValueError(f"expected 1 <= MIN <= MAX{'' if least else ', or 0'}")
    return span


def _check_span(text: str) -> str:
    parse_span(text)
    return text


def _check_workers(text: str) -> str:
    parse_span(text, least=0)
    return text


Span = Annotated[str, BeforeValidator(str), AfterValidator(_check_span)]  # N or MIN:MAX
SpanOrNone = Annotated[str, BeforeValidator(str), AfterValidator(_check_workers)]  # the same, or 0


def parse_budget(text: str) -> int | Fraction:
    """The rows of `N`, or the share of `P%`, exactly.

    Raises:
        ValueError: it is neither.
    """
    share = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,9})?) ?%", text)
    if share and 0 < Fraction(share[1]) <= 100:
        return Fraction(share[1]) / 100
    if re.fullmatch(r"[0-9]{1,9}", text) and int(text):
        return int(text)
    raise ValueError("expected a number greater than or equal to 1, or a share over 0% up to 100%")


def _read_budget(value: object) -> int | str:
    found = parse_budget(str(value).strip())
    return found if isinstance(found, int) else str(value).strip()


Budget = Annotated[int | str, BeforeValidator(_read_budget)]  # N or P%


def as_sequence(value: object) -> object:
    """A single text as a sequence of one; anything else as it is."""
    return (value,) if isinstance(value, str) else value


Locations = Annotated[tuple[str, ...], BeforeValidator(as_sequence)]  # one or several; the flag may be repeated


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
        raise InputError(_explain(error, config_class)) from error


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
        unknown = re.match(r"unrecognized arguments: --([^\s=]+)", message)
        hint = _nearest(unknown[1], config_class) if unknown else ""
        raise InputError(f"{prog}: {message}{hint}; see {prog} --help") from error


class _Loader(yaml.SafeLoader):
    """Reads 1:4 as text: YAML 1.1 takes it for a number to the base of 60, and makes 64 of it."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [("tag:yaml.org,2002:str", re.compile(r"[0-9:]*:[0-9:]*$")), *others]
        for first, others in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _read_file(path: str) -> dict[str, Any]:
    try:
        values = _Loader(Path(path).read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: expected a YAML file, found none: {error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"--config {path}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected keys and values, found {type(values).__name__}")
    # A run's config.json may be given back; its "inputs" are what the run met, and are met anew.
    return {str(key).replace("-", "_"): value for key, value in values.items() if key != "inputs"}


def _explain(error: ValidationError, config_class: type[Config]) -> str:
    """One fault as one line: an unknown name first, since what is then said to be missing may be what was meant."""
    faults = error.errors()
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    name = _as_written(str(part) for part in first["loc"][:1])
    if first["type"] == "extra_forbidden":
        return f"unknown option {name!r}{_nearest(name, config_class)}"
    if first["type"] == "missing":
        return f"--{name}: expected a value, found none"
    message = first["msg"].removeprefix("Value error, ")
    if not name:  # about several options together
        return message
    return f"--{name}: {message[0].lower()}{message[1:]}, found {first['input']!r}"


def _nearest(name: str, config_class: type[Config]) -> str:
    """The option that was probably meant, as the end of a sentence; empty where none is near."""
    options = [_as_written([key.rstrip("_")]) for key in config_class.model_fields]  # one is a keyword of Python's
    near = difflib.get_close_matches(_as_written([name]), options, n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _as_written(names: Iterable[str]) -> str:
    return ".".join(names).replace("_", "-")
