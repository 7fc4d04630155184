"""`lossight simulate`: active-learning cycles on labelled rows, to see which strategy is worth its labels."""

from __future__ import annotations

import sys

from distributed.simulation.options import SimulateOptions
from jobs.console import ConsoleProgress, say
from jobs.run import DONE, run_job, stopping_in_order


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(SimulateOptions, _simulate, arguments, command="simulate")


def _simulate(options: SimulateOptions) -> int:
    from distributed.simulation.simulate import simulate

    with ConsoleProgress() as progress, stopping_in_order() as stop:
        record = simulate(options, progress=progress, should_stop=stop.is_asked)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {options.out}")
    say(f"{record['num_stages']} stages; tables in {options.out}/{record['report']}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
