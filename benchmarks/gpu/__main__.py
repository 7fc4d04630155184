"""This machine's GPU in one command: checks, rates, a profile, and scores compared with a CPU's.

`python -m benchmarks.gpu` writes a Markdown file of results, and beside it a line of JSON a measurement. Called again,
with the same --out, it goes on. `--device cpu --tiny` tries every piece within minutes on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from benchmarks.gpu.journal import Journal
from benchmarks.gpu.machine import describe, missing, slug
from benchmarks.gpu.plan import FULL, MODES, PIECES, TINY, Measurement, Setting, plan
from benchmarks.gpu.report import write_report

_RESULTS = Path(__file__).parents[1] / "results"
_ABORTED = 3  # exit code: go on by the same command, in a new process


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures what is not measured yet; 2: can't begin, 3: the device failed and needs a new process."""
    options = _parse(arguments)
    device = options.device or ("cuda" if torch.cuda.is_available() else None)
    if device is None:
        print(f"No CUDA device on this machine (torch {torch.__version__}): nothing is measured.")
        print("To try every piece on the CPU, with a small network: --device cpu --tiny")
        return 0
    if device.startswith("cuda") and not torch.cuda.is_available():
        print(f"--device: expected a CUDA device on this machine, found none (torch {torch.__version__})")
        return 2
    if device == "cuda":  # some of PyTorch's functions ask for a number
        device = f"cuda:{torch.cuda.current_device()}"
    machine = describe(device)
    print("\n".join(f"{name}: {value}" for name, value in machine.items()))
    for name, effect in missing().items():
        print(f"{name} is missing: {effect}")
    out = options.out or _RESULTS / f"{datetime.now(UTC):%Y-%m-%d}_{slug(machine)}_gpu.md"
    images = "JPEGs of a folder" if options.images else "frames of the synthetic fleet"
    header = {"device": machine["device"], "torch": machine["torch"], "tiny": options.tiny, "images": images}
    try:
        journal = Journal(out.with_suffix(".jsonl"), header)
        setting = Setting(
            device=torch.device(device),
            sizes=TINY if options.tiny else FULL,
            is_tiny=options.tiny,
            modes=tuple(options.modes),
            workers=options.workers,
            folder=options.images,
            bundle=options.model,
        )
        todo = plan(setting, options.only)
    except ValueError as error:
        print(error)
        return 2

    def write() -> int:
        """Writes the report, and returns how many measurements of the plan are left."""
        left = sum(each.name not in journal.results for each in todo)
        write_report(out, journal, machine=machine, setting=setting, command=_command(arguments), num_left=left)
        return left

    is_usable = _measure(todo, journal, write, minutes=options.max_minutes, device=setting.device)
    left = write()
    done = len(todo) - left
    print(f"{done} of {len(todo)} measurements are done{'' if done == len(todo) else ': the same command goes on'}")
    print(f"{out.name} and {out.with_suffix('.jsonl').name} are written")
    return 0 if is_usable else _ABORTED


def _measure(
    todo: Sequence[Measurement], journal: Journal, write: Callable[[], int], *, minutes: float, device: torch.device
) -> bool:
    """Measures and writes until all is done or the time is over; False once the device answers no more."""
    stop = time.monotonic() + 60 * minutes
    for number, (name, run) in enumerate(todo, start=1):
        if name in journal.results:
            continue
        piece = name.partition(":")[0]
        longest = max((s for of, s in journal.seconds.items() if of.startswith(piece)), default=0.0)
        if time.monotonic() + longest >= stop:
            print(f"--max-minutes {minutes:g}: no time is left for {name!r}")
            return True
        print(f"[{number}/{len(todo)}] {name}", end="", flush=True)
        result = journal.measure(name, run)
        print(f": {result['error']}" if "error" in result else f": {journal.seconds[name]:.1f} s", flush=True)
        write()  # whoever is killed in the next one has this one
        if device.type == "cuda":
            try:
                torch.cuda.synchronize(device)
            except RuntimeError as error:  # after a fault of a kernel everything fails in this process
                print(f"{device}: {str(error).partition(chr(10))[0]}")
                return False
            torch.cuda.empty_cache()
    return True


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="cuda, cuda:1, cpu; default: cuda where there is one")
    parser.add_argument("--tiny", action="store_true", help="a small network and few images: a trial of the command")
    parser.add_argument("--out", type=Path, help="the Markdown file of results; its name ends in .md")
    parser.add_argument("--max-minutes", type=float, default=float("inf"), help="begin nothing that would end later")
    parser.add_argument("--only", nargs="+", choices=PIECES, default=list(PIECES), help="pieces to measure")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="of the model; graphs with each")
    parser.add_argument("--images", help="a folder of JPEGs to decode; default: frames of the synthetic fleet")
    parser.add_argument("--model", help="a folder with a model bundle whose scores are compared with a CPU's")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads and processes that decode")
    return parser.parse_args(arguments)


def _command(arguments: Sequence[str] | None) -> str:
    """The command as the report quotes it, without places of this machine."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name in ("--out", "--images", "--model"):
        if name in given:
            at = given.index(name) + 1
            given[at] = Path(given[at]).name
    return " ".join(["python -m benchmarks.gpu", *given])


if __name__ == "__main__":
    sys.exit(main())
