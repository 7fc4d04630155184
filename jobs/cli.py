"""The `lossight` command: finds the job by its name. Imports nothing heavy, so that help is quick."""

from __future__ import annotations

import atexit
import gc
import importlib
import os
import sys
import time
from pathlib import Path

COMMANDS = {
    "demo": "a synthetic fleet on this machine: train, score, select, look",
    "ingest": "raw data into pool or labelled tables",
    "train": "fit a pose model and its loss head: a model bundle",
    "score": "predict each image's loss over a pool: a scores table",
    "select": "what to label under a budget: a selection",
    "triage": "the new nights of a pool: score, select, compare, hand on; run it every night",
    "evaluate": "how good a bundle is on labelled rows, and its predicted loss",
    "promote": "a bundle becomes the champion that triage follows, unless it may be worse",
    "simulate": "active-learning cycles on labelled rows: which strategy is worth its labels",
    "report": "a selection as one HTML file that opens without network",
    "export": "a selection for a labelling tool, predicted poses to correct",
    "doctor": "is this machine, a cluster, a store fit for runs, and what to fix",
    "submit": "run one of these on a cluster, follow its log, end with its exit code",
    "status": "what is submitted to a cluster, and how it does",
}


_IMPORTED = time.monotonic()
_WITHOUT_PANDAS = frozenset({"select", "report", "export"})  # the others may start Ray Data, which needs it
_TIMED = frozenset(COMMANDS) - {"doctor", "submit", "status"}
_finished: list[str] = []  # the command, once it has
# Imports leave many objects for good; to look through them after every 700 new ones is 7 % of a `select`.
_GARBAGE_AFTER = 50_000


def main(arguments: list[str] | None = None) -> int:
    """Runs `lossight COMMAND …` and returns the exit code. As a process, it ends with a line of how long it took."""
    if arguments is None:
        arguments = sys.argv[1:]
        gc.set_threshold(_GARBAGE_AFTER)
        # pydantic looks for plugins in all packages that are installed: 2 % of the CPU of a `select`.
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
        atexit.register(gc.freeze)  # at the very end: what lives on goes with the process, and is not looked through
        atexit.register(_say_seconds)  # before Ray is imported, so that it comes after Ray has left
        if arguments and arguments[0] in _WITHOUT_PANDAS and not {"-h", "--help"} & set(arguments):
            from distributed.imports import leave_pandas_out

            leave_pandas_out()
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        sys.stdout.write(_help())
        return 0
    if arguments[0] == "--version":
        sys.stdout.write(f"lossight {_version()}\n")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        sys.stderr.write(f"lossight: expected a command ({', '.join(COMMANDS)}), found {command!r}\n")
        return 2
    try:
        job = importlib.import_module(f"jobs.{command}")
    except ModuleNotFoundError as error:  # such as on a cluster whose `python` is not the one with our packages
        sys.stderr.write(
            f"lossight: {sys.executable}: expected the packages of requirements.lock, found no {error.name}\n"
        )
        return 2
    exit_code: int = job.main(rest)
    if exit_code in {0, 5}:  # see `jobs.run`, which is not to be imported for help alone
        _finished.append(command)
    return exit_code


def _say_seconds() -> None:
    """The seconds that a person has waited: Python's own start is among them where Linux tells when it was."""
    if not _finished or _finished[-1] not in _TIMED:
        return
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        seconds = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        seconds = time.monotonic() - _IMPORTED
    from jobs.console import say

    say(f"{_finished[-1]}: {seconds:.1f} s in all")


def _version() -> str:
    import tomllib

    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    return str(project["project"]["version"])


def _help() -> str:
    lines = [f"  {name:<10}{summary}" for name, summary in COMMANDS.items()]
    usage = "usage: lossight COMMAND [options]      (lossight COMMAND --help lists them; lossight --version)"
    purpose = "Finds, in a pool of unlabelled images, the ones a pose model is about to get wrong."
    return "\n".join([usage, "", purpose, "", *lines, ""])


if __name__ == "__main__":
    sys.exit(main())
