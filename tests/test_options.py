"""Flags and YAML into one configuration: flags win, unknown keys are errors, each fault is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest
from pydantic import Field, TypeAdapter

from distributed.ingest.options import IngestOptions
from distributed.options import leaves, parse_span
from jobs.cli import COMMANDS
from jobs.options import parse_options
from jobs.score import ScoreOptions
from jobs.select import SelectOptions
from jobs.submit import find_options
from model.errors import InputError

REQUIRED = ["--pool", "p", "--model", "m", "--out", "o"]


def parse_score(*arguments: str) -> ScoreOptions:
    return parse_options(ScoreOptions, [*REQUIRED, *arguments], prog="lossight score")


def test_flags_give_values_and_the_rest_are_defaults() -> None:
    config = parse_score("--batch-size", "8", "--debug")
    assert (config.pool, config.batch_size, config.debug, config.actors) == ("p", 8, True, None)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_choice_that_help_shows_is_taken(command: str) -> None:
    for field in find_options(command).model_fields.values():
        types = [*leaves(field.annotation)]
        choices = [get_args(each) for each in types if get_origin(each) is Literal]
        is_list = any(get_origin(each) is tuple for each in types)
        taken: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, Field(), *field.metadata])
        for value in {value for values in choices for value in values}:
            given = [str(value)] if is_list else str(value)  # as `parse_options` splits it
            assert taken.validate_python(given) in (value, (value,))


def test_flags_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("batch-size: 4\nactors: 3\n")
    config = parse_score("--config", str(tmp_path / "c.yaml"), "--batch-size", "8")
    assert (config.batch_size, config.actors) == (8, "3")


def test_what_the_file_gives_is_not_missing_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("pool: p\nmodel: m\nout: o\n")
    assert parse_options(ScoreOptions, ["--config", str(tmp_path / "c.yaml")], prog="x").pool == "p"


def test_a_resolved_configuration_can_be_given_back_as_a_file(tmp_path: Path) -> None:
    import json

    config = parse_score("--max-error-rate", "0.5")
    (tmp_path / "config.json").write_text(json.dumps({**config.resolved(), "inputs": {"bundle_id": "0"}}))
    again = parse_options(ScoreOptions, ["--config", str(tmp_path / "config.json")], prog="x")
    assert again.resolved() == config.resolved()


@pytest.mark.parametrize(
    ("text", "span"),
    [("1", (1, 1)), ("7", (7, 7)), ("1:4", (1, 4)), ("3:3", (3, 3)), ("2:8", (2, 8)), ("10:200", (10, 200))],
)
def test_a_span_means_the_same_as_a_flag_and_in_a_file(tmp_path: Path, text: str, span: tuple[int, int]) -> None:
    """YAML 1.1 would read 1:4 as a number to the base of 60."""
    (tmp_path / "c.yaml").write_text(f"actors: {text}\n")
    assert parse_score("--actors", text).actors == text
    assert parse_score("--config", str(tmp_path / "c.yaml")).actors == text
    assert parse_span(text) == span


@pytest.mark.parametrize("text", ["0", "-1", "4:2", "0:3", "many", "1:many", ":", ":3", "3:", "1:2:3", "1.5", ""])
def test_what_is_no_span_is_one_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"^--actors: .*expected (N or MIN:MAX|1 <= MIN <= MAX), found "):
        parse_score(f"--actors={text}")
    (tmp_path / "c.yaml").write_text(f'actors: "{text}"\n')
    with pytest.raises(InputError, match=r"^--actors: .*expected (N or MIN:MAX|1 <= MIN <= MAX), found "):
        parse_score("--config", str(tmp_path / "c.yaml"))


def test_an_option_may_be_given_several_times() -> None:
    arguments = ["--scores", "s", "--out", "o", "--budget", "5", "--exclude", "a", "--exclude", "b"]
    assert parse_options(SelectOptions, arguments, prog="x").exclude == ("a", "b")


def test_ingest_takes_its_kind_by_position_and_as_by_name() -> None:
    arguments = ["lsp", "--source", "s", "--out", "o", "--as", "labelled"]
    config = parse_options(IngestOptions, arguments, prog="x")
    assert (config.kind, config.as_) == ("lsp", "labelled")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", "many"], "--batch-size: input should be a valid integer.*found 'many'"),
        (["--batch-size", "0"], "--batch-size: input should be greater than or equal to 1, found '0'"),
        (["--max-error-rate", "7"], "--max-error-rate: .*less than or equal to 1"),
        (["--nonsense", "1"], "unrecognized arguments: --nonsense 1; see lossight score --help"),
        (["--batchsize", "1"], r"unrecognized arguments: --batchsize 1, did you mean 'batch-size'\?; see "),
        (["--actor=1"], r"unrecognized arguments: --actor=1, did you mean 'actors'\?; see lossight score --help"),
    ],
)
def test_a_bad_flag_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        parse_score(*arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batchsize: 4\n", r"unknown option 'batchsize', did you mean 'batch-size'\?$"),
        ("metdata: [camera]\n", r"unknown option 'metdata', did you mean 'metadata'\?$"),
        ("nonsense: 4\n", "unknown option 'nonsense'$"),
        ("- a\n- b\n", "expected keys and values, found list"),
        ("a: [1\n", "not YAML"),
    ],
)
def test_a_bad_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        parse_score("--config", str(tmp_path / "c.yaml"))
    assert "\n" not in str(raised.value)


def test_a_name_that_is_near_an_alias_is_given_as_it_is_written() -> None:
    with pytest.raises(InputError, match=r"did you mean 'as'\?"):
        parse_options(IngestOptions, ["lsp", "--source", "s", "--out", "o", "--ass", "pool"], prog="x")


def test_what_is_unknown_is_said_before_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("pool: p\nmodl: m\nout: o\n")
    with pytest.raises(InputError, match=r"^unknown option 'modl', did you mean 'model'\?$"):
        parse_options(ScoreOptions, ["--config", str(tmp_path / "c.yaml")], prog="x")


def test_a_missing_file_and_a_missing_option_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: expected a YAML file"):
        parse_score("--config", str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="--model: expected a value, found none"):
        parse_options(ScoreOptions, ["--pool", "p", "--out", "o"], prog="x")


@pytest.mark.parametrize("text", ["{a: [", "[" * 2000], ids=["open", "deep"])
def test_yaml_that_is_none_or_too_deep_is_refused_in_a_file_and_in_a_flag(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(InputError, match="not YAML"):
        parse_score("--config", str(tmp_path / "c.yaml"))
    with pytest.raises(InputError, match="argument --fleet: expected YAML, found"):
        parse_options(find_options("simulate"), ["--fleet", text], prog="lossight simulate")
