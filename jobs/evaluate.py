"""`lossight evaluate`: how good a bundle is on labelled rows, and how well its predicted loss finds its failures."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import Field

from jobs.console import ConsoleProgress, number, say, show_table
from jobs.options import JobConfig
from jobs.run import DONE, run_job

_RANKINGS = {"predicted_loss": "predicted loss", "confidence": "heatmap confidence", "oracle": "true loss (oracle)"}


class EvaluateConfig(JobConfig):
    """Measures PCK, and the correlation of predicted with true loss beside plain heatmap confidence."""

    labelled: str = Field(description="the labelled table: a path or an s3:// URI")
    model: str = Field(description="the model bundle")
    selection: str | None = Field(
        None, description="a selection from these rows: its PCK is given beside a random draw's"
    )
    out: str | None = Field(None, description="where the metrics go as JSON; only shown if not given")
    batch_size: int = Field(64, ge=1, description="images of a forward pass")
    gpus: float = Field(0, ge=0, le=1, description="1 computes on the GPU of this machine")
    decode_threads: int = Field(2, ge=1, description="threads that decode images")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(EvaluateConfig, _evaluate, arguments, command="evaluate")


def _evaluate(config: EvaluateConfig) -> int:
    from distributed.evaluation.evaluate import evaluate

    with ConsoleProgress() as progress:
        metrics = evaluate(
            config.labelled,
            model=config.model,
            selection=config.selection,
            out=config.out,
            config=config.resolved(),
            batch_size=config.batch_size,
            device="cuda" if config.gpus else "cpu",
            decode_threads=config.decode_threads,
            progress=progress,
        )
    show(metrics)
    if config.out:
        say(f"{'already there' if metrics.get('was_done') else 'wrote'}: {config.out}")
    return DONE


def show(metrics: dict[str, Any]) -> None:
    """The metrics as tables."""
    pck = f"PCK@{metrics['pck_threshold']} {number(metrics['pck'])}"
    say(f"{metrics['num_rows']} rows, {metrics['num_errors']} unreadable; {pck}")
    show_table(
        "what finds the failures?",
        ["ranked by", "Spearman", "Pearson", f"PCK of the worst {metrics['worst_share']:.0%}"],
        [
            [
                label,
                number(metrics["spearman"].get(name, 1.0)),
                number(metrics["pearson"].get(name, 1.0)),
                number(metrics["pck_of_worst"][name]),
            ]
            for name, label in _RANKINGS.items()
        ],
    )
    if "selection" in metrics:
        show_arms(metrics["selection"])


def show_arms(arms: dict[str, Any]) -> None:
    """What the model selected against random rows, as a table."""
    label = {"control": "control arm", "drawn": "random draw"}[arms["random_arm"]]
    show_table(
        "did the selection find failures?",
        ["images", "number", "PCK", "failures"],
        [
            [
                "selected by the model",
                str(arms["num_selected"]),
                number(arms["pck_selected"]),
                _percent(arms, "selected"),
            ],
            [label, str(arms["num_random"]), number(arms["pck_random"]), _percent(arms, "random")],
        ],
    )
    low, high = arms["pck_difference_interval"]
    say(
        f"lift {number(arms['lift'])}; difference of PCK {number(arms['pck_difference'])}, "
        f"95 % between {number(low)} and {number(high)}"
    )


def _percent(arms: dict[str, Any], name: str) -> str:
    share = arms[f"failures_{name}"]
    return "-" if share is None else f"{share:.1%}"


if __name__ == "__main__":
    sys.exit(main())
