"""The `lossight` command: finds the job by its name. Imports nothing heavy, so that help is quick."""

from __future__ import annotations

import importlib
import sys
import tomllib
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


def main(arguments: list[str] | None = None) -> int:
    """Runs `lossight COMMAND …` and returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
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
    return exit_code


def _version() -> str:
    project = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    return str(project["project"]["version"])


def _help() -> str:
    lines = [f"  {name:<10}{summary}" for name, summary in COMMANDS.items()]
    usage = "usage: lossight COMMAND [options]      (lossight COMMAND --help lists them; lossight --version)"
    purpose = "Finds, in a pool of unlabelled images, the ones a pose model is about to get wrong."
    return "\n".join([usage, "", purpose, "", *lines, ""])


if __name__ == "__main__":
    sys.exit(main())
