"""The commands as a user meets them: every main runs; bad input is one line, exit code 2, nothing half-written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import WriteTable, assert_one_line
from faulty import DEADLINE_S, until

from distributed.ingest.fleet import row_of
from distributed.training import fitting
from jobs.cli import COMMANDS, main
from jobs.console import say, show_table, tell
from model.synthetic import Sample

CHECKOUT = Path(__file__).parent.parent


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from jobs.cli import main; main(['--help']); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=CHECKOUT)
    assert not any(f"'{name}'" in done.stdout for name in ("torch", "ray", "pyarrow", "numpy", "pydantic"))


def test_help_of_each_command_imports_neither_torch_nor_ray_and_fits_80_columns() -> None:
    code = """
import sys
from jobs.cli import COMMANDS, main
from jobs.console import say, show_table, tell
for command in COMMANDS:
    try:
        main([command, "--help"])
    except SystemExit as ended:
        assert ended.code == 0
    else:
        raise AssertionError(command)
print(*sys.modules, file=sys.stderr)
"""
    environment = {"PYTHONPATH": str(CHECKOUT), "PATH": "", "COLUMNS": "80"}
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)
    assert all(f"usage: lossight {command} " in done.stdout for command in COMMANDS)
    assert not {"torch", "ray", "pyarrow"} & set(done.stderr.split())
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_an_unknown_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("scroe") == 2
    assert "found 'scroe'" in capsys.readouterr().err


def test_score_select_evaluate_without_ray(
    samples: list[Sample],
    model_uri: str,
    write_table: WriteTable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = [row_of(sample) for sample in samples[:20]]
    truth = write_table("truth", rows, is_labelled=True)
    scores, selection = tmp_path / "scores", tmp_path / "selection"
    assert run("score", "--pool", truth, "--model", model_uri, "--out", scores, "--debug") == 0
    assert "20 rows: 20 scored" in capsys.readouterr().out
    assert run("score", "--pool", truth, "--model", model_uri, "--out", scores, "--debug") == 0
    assert "already there" in capsys.readouterr().out
    assert run("select", "--scores", scores, "--out", selection, "--budget", 30, "--min-gap", 0) == 0
    text = capsys.readouterr().out
    assert "leave no more than 20" in text
    assert "warning: not calibrated, so no failures to expect: it takes 50 rows with a PCK" in text
    again = tmp_path / "again"
    assert run("select", "--scores", scores, "--out", again, "--budget", 5, "--min-gap", 0, "--exclude", selection) == 0
    assert "0 selected of 20 scored" in capsys.readouterr().out
    out = tmp_path / "metrics"
    assert run("evaluate", "--labelled", truth, "--model", model_uri, "--selection", selection, "--out", out) == 0
    text = capsys.readouterr().out
    assert "heatmap confidence" in text
    assert "did the selection find failures?" in text


def test_many_unreadable_rows_end_with_exit_code_5(
    samples: list[Sample], model_uri: str, write_table: WriteTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {**row_of(sample), "image": b"" if index % 2 else sample.image} for index, sample in enumerate(samples[:10])
    ]
    pool = write_table("pool", rows)
    arguments = ("score", "--pool", pool, "--model", model_uri, "--debug")
    assert run(*arguments, "--out", tmp_path / "a") == 5
    assert "degraded: 50.0% of the rows have no score" in capsys.readouterr().out
    assert run(*arguments, "--out", tmp_path / "b", "--max-error-rate", 0.5) == 0


def test_a_pool_of_unreadable_rows_is_scored_and_refused_by_select(
    samples: list[Sample], model_uri: str, write_table: WriteTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write_table("pool", [{**row_of(sample), "image": b"no image"} for sample in samples[:4]])
    assert run("score", "--pool", pool, "--model", model_uri, "--out", tmp_path / "scores", "--debug") == 5
    assert run("select", "--scores", tmp_path / "scores", "--out", tmp_path / "s", "--budget", 2) == 2
    assert "expected at least one scored row, found 4 rows with errors" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "--pool", "nowhere", "--model", "{model}", "--out", "{out}", "--debug"), "nowhere: expected a file"),
        (("score", "--pool", "{model}", "--model", "{model}", "--out", "{out}", "--debug"), "expected Parquet files"),
        (("score", "--pool", "x", "--model", "nowhere", "--out", "{out}", "--debug"), "expected a model bundle"),
        (("score", "--pool", "ftp://x", "--model", "{model}", "--out", "{out}", "--debug"), "found scheme 'ftp'"),
        (("select", "--scores", "nowhere", "--out", "{out}", "--budget", "3"), "nowhere: expected scores"),
        (("select", "--scores", "x", "--out", "{out}", "--budget", "0"), "--budget: .* greater than or equal to 1"),
        (("train", "--labelled", "nowhere", "--out", "{out}", "--workers", "0"), "nowhere: expected a file"),
        (("evaluate", "--labelled", "nowhere", "--model", "{model}"), "nowhere: expected a file"),
        (("ingest", "lsp", "--source", "nowhere", "--out", "{out}"), "joints.mat: expected a file, found nothing"),
        (("ingest", "folder", "--source", "nowhere", "--out", "{out}"), "nowhere: expected a file or a folder"),
    ],
)
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    arguments: tuple[str, ...], message: str, model_uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:

    out = tmp_path / "out"
    assert run(*(argument.format(model=model_uri, out=out) for argument in arguments)) == 2
    assert_one_line(capsys, message)
    assert not out.exists()


def test_verbose_shows_where_and_keeps_the_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("select", "--scores", "nowhere", "--out", tmp_path / "out", "--budget", 1, "--verbose") == 2
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert error.splitlines()[-1].startswith("lossight: nowhere: expected scores")


def test_a_fault_of_ours_is_one_line_and_exit_code_3(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(config: object) -> int:
        raise KeyError("num_scored")

    monkeypatch.setattr("jobs.select._select", broken)
    assert run("select", "--scores", "s", "--out", "o", "--budget", 1) == 3
    assert capsys.readouterr().err == "lossight: unexpected KeyError: 'num_scored' (--verbose shows where)\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    "arguments",
    [
        ("score", "--pool", "{truth}", "--model", "{model}", "--out", "{out}", "--debug", "--gpus-per-actor", "1"),
        ("evaluate", "--labelled", "{truth}", "--model", "{model}", "--out", "{out}", "--gpus", "1"),
        ("train", "--labelled", "{truth}", "--out", "{out}", "--workers", "0", "--gpus-per-worker", "1"),
    ],
)
def test_a_gpu_asked_for_and_absent_is_said_before_anything_is_written(
    arguments: tuple[str, ...],
    samples: list[Sample],
    model_uri: str,
    write_table: WriteTable,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    truth = write_table("truth", [row_of(sample) for sample in samples[:4]], is_labelled=True)
    out = tmp_path / "out"
    assert run(*(argument.format(truth=truth, model=model_uri, out=out) for argument in arguments)) == 2
    assert "expected a CUDA device on this machine, found none" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_sigterm_ends_a_training_with_one_line_and_nothing_published(
    samples: list[Sample], write_table: WriteTable, tmp_path: Path
) -> None:
    table = write_table("labelled", [row_of(sample) for sample in samples[:8]], is_labelled=True)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.train", "--labelled", table, "--out", str(out), "--workers", "0"]
    small = ["--estimator", "tiny_poses:tiny", "--batch-size", "4", "--epochs", "10000"]
    with subprocess.Popen([*command, *small], cwd=CHECKOUT, stderr=subprocess.PIPE, text=True) as process:
        until((out / "config.json").exists, process=process)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 143
    assert error.splitlines()[-1].endswith("the same command goes on")
    assert not (out / "run.json").exists()


@pytest.mark.slow
def test_ctrl_c_ends_a_training_with_one_line_and_nothing_published(
    samples: list[Sample],
    write_table: WriteTable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = write_table("labelled", [row_of(sample) for sample in samples[:8]], is_labelled=True)
    out = tmp_path / "out"
    save = fitting.save_checkpoint

    def interrupted(*arguments: Any, **named: Any) -> Any:
        signal.raise_signal(signal.SIGINT)
        return save(*arguments, **named)

    monkeypatch.setattr(fitting, "save_checkpoint", interrupted)
    options = ["--estimator", "tiny_poses:tiny", "--batch-size", "4", "--epochs", "10000", "--workers", "0"]
    assert run("train", "--labelled", table, "--out", str(out), *options) == 130
    assert capsys.readouterr().err.splitlines()[-1].endswith("the same command goes on")
    assert not (out / "run.json").exists()


def test_another_package_named_distributed_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed" / "__init__.py").write_text("raise RuntimeError('Dask')")
    code = "from jobs.score import main; raise SystemExit(main([]))"
    environment = {"PYTHONPATH": f"{tmp_path}:{CHECKOUT}", "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (2, "lossight: --pool: expected a value, found none\n")


def test_the_version_is_that_of_the_checkout(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert (
        capsys.readouterr().out
        == f"lossight {tomllib.loads((CHECKOUT / 'pyproject.toml').read_text())['project']['version']}\n"
    )


def test_with_log_format_json_every_line_is_an_object(
    samples: list[Sample], model_uri: str, write_table: WriteTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pool = write_table("pool", [row_of(sample) for sample in samples[:8]], is_labelled=True)
    arguments = ["--pool", pool, "--model", model_uri, "--out", tmp_path / "scores", "--debug", "--log-format", "json"]
    assert run("score", *arguments) == 0
    assert run("score", *arguments[:-3], "--views", 2, "--log-format=json") == 2
    assert run("evaluate", "--labelled", pool, "--model", model_uri, "--log-format", "json") == 0
    found = capsys.readouterr()
    said = [json.loads(line) for line in (found.out + found.err).splitlines()]
    assert all({"time", "level", "command", "message"} <= line.keys() for line in said)
    assert {line["level"] for line in said if "views" in line["message"]} == {"error"}
    assert [line["exit_code"] for line in said if "exit_code" in line] == [0, 2, 0]
    assert any(line.get("columns", [])[:1] == ["ranked by"] for line in said)
    assert run("score", "--log-format", "xml") == 2
    assert "invalid choice: 'xml'" in capsys.readouterr().err


def test_a_terminal_is_not_told_what_to_do_by_an_id(capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "drive\x1b]0;owned\x07\x9b2J\r"
    say(hostile)
    tell(hostile)
    show_table("ids", ["id", "n"], [[hostile, "1"]])
    written = capsys.readouterr()
    assert written.out.count(r"drive\x1b]0;owned\x07\x9b2J\x0d") == 2
    assert written.err == r"drive\x1b]0;owned\x07\x9b2J\x0d" + "\n"


@pytest.mark.parametrize("log", ["text", "json"])
def test_a_reader_who_leaves_the_pipe_is_no_failure(log: str) -> None:
    program = """
import contextlib, sys
from jobs.console import json_lines, say, show_table
sys.stdin.read()  # until the reader has left
with json_lines("score") if sys.argv[1] == "json" else contextlib.nullcontext():
    show_table("ids", ["id", "n"], [["a", "1"]])
    say("done")
sys.exit(5)
"""
    command = [sys.executable, "-c", program, log]
    pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(command, cwd=CHECKOUT, **pipes) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait() == 5
