"""Command line and YAML file to validated options: flags win over the file, each fault is one line."""

from __future__ import annotations

import argparse
import datetime
import difflib
import re
import textwrap
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from distributed.options import PLACE, Options, Shown, leaves, mark_of
from model.errors import InputError

Kind = TypeVar("Kind", bound=Options)

_HEADINGS = ("what", "how", "machine")
_PLACEHOLDERS = {int: "N", float: "X", datetime.date: "YYYY-MM-DD"}
_LONGEST_CHOICES = 40  # characters beside a flag; longer ones go into its text


def parse_options(kind: type[Kind], arguments: list[str], *, prog: str) -> Kind:
    """The options from the flags and, where --config names one, a YAML file.

    Raises:
        InputError: a flag or key is unknown, or a value is missing or not what its option takes.
        SystemExit: help was asked for and printed.
    """
    flags = parse_flags(kind, arguments, prog=prog)
    path = flags.pop("config", None)
    try:
        return kind.model_validate({**_read_file(path), **flags} if path else flags)
    except ValidationError as error:
        raise InputError(_explain(error, kind)) from error


def parse_flags(kind: type[Options], arguments: list[str], *, prog: str) -> dict[str, Any]:
    """The flags that are given, as text, by the names of their options; "config" is the YAML file's path.

    Raises:
        InputError: a flag is unknown, or has no value.
        SystemExit: help was asked for and printed.
    """
    given, unknown = _parser(kind, prog).parse_known_args(arguments)
    if unknown:
        name = re.match(r"--([^\s=]+)", unknown[0])
        hint = _nearest(name[1], kind) if name else ""
        raise InputError(f"{prog}: unrecognized arguments: {' '.join(unknown)}{hint}; see {prog} --help")
    return {name: value for name, value in vars(given).items() if name not in ("verbose", "log_format")}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}; see {self.prog} --help")


def _parser(kind: type[Options], prog: str) -> argparse.ArgumentParser:
    fields = sorted(kind.model_fields.items(), key=lambda item: not item[1].is_required())
    parser = _Parser(
        prog=prog,
        usage=_usage(prog, fields),
        description=" ".join((kind.__doc__ or "").split()),
        add_help=False,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    groups = {name: parser.add_argument_group(name) for name in _HEADINGS}
    for name, field in fields:
        _add(groups[mark_of(field).group], name, field)
    common = parser.add_argument_group("all commands")
    common.add_argument("--config", metavar="FILE", help="YAML file with options of this command; flags win over it")
    common.add_argument(
        "--log-format", choices=("text", "json"), help="json: an object a line, with time, level, command and message"
    )
    common.add_argument("--verbose", action="store_true", help="show tracebacks")
    common.add_argument("-h", "--help", action="help", help="show this help")
    return parser


def _usage(prog: str, fields: list[tuple[str, FieldInfo]]) -> str:
    words = [prog]
    for name, field in fields:
        if mark_of(field).is_positional:
            words.append(_as_written(name).upper() if field.is_required() else f"[{_as_written(name).upper()}]")
        elif field.is_required():
            words.append(f"--{_as_written(name)} {_placeholder(field)}")
    usage = textwrap.fill(" ".join([*words, "[options]"]), 72, subsequent_indent=" " * 11, break_on_hyphens=False)
    return usage.replace("%", "%%")


def _add(group: argparse._ArgumentGroup, name: str, field: FieldInfo) -> None:
    types, flag = list(leaves(field.annotation)), f"--{_as_written(name)}"
    text = _help(field).replace("%", "%%")
    if mark_of(field).is_positional:
        group.add_argument(name, nargs="?", metavar=_as_written(name).upper(), help=text)
    elif bool in types and field.default is None:
        group.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, help=text)
    elif bool in types:  # the value that is not the default is shown; the other is there for files that say otherwise
        for value, words in ((True, flag), (False, f"--no-{_as_written(name)}")):
            group.add_argument(
                words,
                dest=name,
                action="store_const",
                const=value,
                help=argparse.SUPPRESS if value == field.default else text,
            )
    elif any(get_origin(each) is tuple for each in types):
        metavar = _placeholder(field)
        group.add_argument(flag, dest=name, type=_split, action="extend", metavar=metavar, help=f"{text}; repeatable")
    else:
        nested = next((each for each in types if isinstance(each, type) and issubclass(each, BaseModel)), None)
        group.add_argument(flag, dest=name, type=_load_flag if nested else str, metavar=_placeholder(field), help=text)


def _split(text: str) -> list[str]:
    return text.split(",")


def _choices(field: FieldInfo) -> list[str]:
    types = leaves(field.annotation)
    return next(([str(value) for value in get_args(each)] for each in types if get_origin(each) is Literal), [])


def _placeholder(field: FieldInfo) -> str:
    types = [*leaves(field.annotation), *field.metadata]
    if shown := next((each for each in types if isinstance(each, Shown)), None):
        return shown.text
    choices = ",".join(_choices(field))
    if choices:
        return f"{{{choices}}}" if len(choices) <= _LONGEST_CHOICES else "NAME"
    if mark_of(field) is PLACE:
        return "URI"
    return next((text for kind, text in _PLACEHOLDERS.items() if kind in types), "TEXT")


def _help(field: FieldInfo) -> str:
    text, choices, default = field.description or "", _choices(field), field.default
    if choices and (_placeholder(field) == "NAME" or mark_of(field).is_positional):
        text += f": {', '.join(choices)}"
    if field.is_required():
        return f"{text} (required)"
    if default is None or isinstance(default, bool) or default in ("", ()):
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
    return f"{text} (default: {shown})"


def _load(text: str) -> Any:
    """The value that a YAML text stands for. YAML is imported only where there is one.

    Raises:
        ValueError: it stands for none, or nests deeper than Python can follow.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Reads 1:4 as text: YAML 1.1 takes it for a number to the base of 60, and makes 64 of it."""

        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [("tag:yaml.org,2002:str", re.compile(r"[0-9:]*:[0-9:]*$")), *others]
            for first, others in yaml.SafeLoader.yaml_implicit_resolvers.items()
        }

    try:
        return Loader(text).get_single_data()
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def _load_flag(text: str) -> Any:
    try:
        return _load(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected YAML, found {text[:100]!r}") from None


def _read_file(path: str) -> dict[str, Any]:
    try:
        values = _load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: expected a YAML file, found none: {error}") from error
    except ValueError as error:
        raise InputError(f"--config {path}: not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"--config {path}: expected keys and values, found {type(values).__name__}")
    # A run's config.json may be given back; its "inputs" are what the run met, and are met anew.
    return {str(key).replace("-", "_"): value for key, value in values.items() if key != "inputs"}


def _explain(error: ValidationError, kind: type[Options]) -> str:
    """One fault as one line: an unknown name first, since what is then said to be missing may be what was meant."""
    faults = error.errors()
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    name = _as_written(str(first["loc"][0])) if first["loc"] else ""
    if first["type"] == "extra_forbidden":
        name = ".".join(_as_written(str(part)) for part in first["loc"])
        return f"unknown option {name!r}{_nearest(name, kind)}"
    if first["type"] == "missing":
        return f"--{name}: expected a value, found none"
    message = first["msg"].removeprefix("Value error, ")
    if not name:  # about several options together
        return message
    return f"--{name}: {message[0].lower()}{message[1:]}, found {first['input']!r}"


def _nearest(name: str, kind: type[Options]) -> str:
    """The option that was probably meant, as the end of a sentence; empty where none is near."""
    near = difflib.get_close_matches(_as_written(name), map(_as_written, kind.model_fields), n=1)
    return f", did you mean {near[0]!r}?" if near else ""


def _as_written(name: str) -> str:
    """Name as in flags; an underscore at the end keeps it from being a keyword of Python's."""
    return name.rstrip("_").replace("_", "-")
