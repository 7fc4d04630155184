"""`lossight demo`: the whole loop on a synthetic fleet, on this machine, through the calls of the other commands."""

from __future__ import annotations

import sys
from typing import Annotated, Any

from pydantic import Field

from distributed.options import PLACE, Options
from distributed.scoring.options import ScoreOptions
from distributed.selection.options import SelectOptions
from distributed.training.options import TrainOptions
from jobs.console import ConsoleProgress, counts, number, say, show_table
from jobs.run import DONE, run_job
from jobs.score import score
from jobs.select import select
from jobs.train import train


class DemoOptions(Options):
    """A synthetic fleet: train on its labelled part, score the rest, select what to label, report."""

    out: Annotated[str, PLACE] = Field("demo", description="where everything goes")
    seed: int = Field(0, ge=0, description="seed of the fleet and of the training")
    labelled: int = Field(1500, ge=48, description="labelled images")
    pool: int = Field(3000, ge=48, description="pool images")
    budget: int = Field(60, ge=1, description="images to select")
    epochs: int = Field(6, ge=1, description="passes over the labelled images")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(DemoOptions, _demo, arguments, command="demo")


def _demo(options: DemoOptions) -> int:
    with ConsoleProgress() as progress:
        records, summary = _run_stages(options, progress)
    _show(options, records, summary)
    return DONE


def _run_stages(options: DemoOptions, progress: ConsoleProgress) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The records of all stages and what became of the selection; a stage that is done already is not run again."""
    from distributed.evaluation.review import review_selection
    from distributed.ingest.fleet import write_fleet
    from distributed.reporting.report import write_report

    place = options.out.rstrip("/")
    fleet = write_fleet(
        place, seed=options.seed, num_labelled=options.labelled, num_pool=options.pool, progress=progress
    )
    records = {"make fleet": fleet}
    records["train"] = train(
        TrainOptions(
            labelled=f"{place}/labelled",
            validation=f"{place}/validation",
            out=f"{place}/model",
            estimator="hourglass-small",
            epochs=options.epochs,
            learning_rate=4e-3,
            augmentation="none",
            seed=options.seed,
        ),
        progress,
    )
    records["score"] = score(
        ScoreOptions(
            pool=f"{place}/pool",
            model=f"{place}/model",
            out=f"{place}/scores",
            keypoints=True,
            metadata=("camera", "light"),
        ),
        progress,
    )
    records["select"] = select(
        SelectOptions(
            scores=f"{place}/scores",
            out=f"{place}/selection",
            budget=options.budget,
            exclude=(f"{place}/labelled",),
        )
    )
    summary = review_selection(
        truth=f"{place}/truth",
        model=f"{place}/model",
        selection=f"{place}/selection",
        progress=progress,
    )
    write_report(f"{place}/selection", out=f"{place}/report.html", progress=progress)
    return records, summary


def _show(options: DemoOptions, records: dict[str, dict[str, Any]], summary: dict[str, Any]) -> None:
    scored = records["score"]
    say(f"\nimages scored {scored['num_scored']}, unreadable {counts(scored['errors'])}")
    show_table(
        "stages",
        ["stage", "seconds", "images/s"],
        [
            [stage, f"{record['seconds']:.1f}", f"{record['images_per_second']:.0f}"]
            for stage, record in records.items()
        ],
    )
    show_table(
        f"PCK@0.2 (lower: more failures found), {summary['num_selected']} images",
        ["images", "PCK"],
        [
            ["selected", number(summary["pck_selected"])],
            ["random draw", number(summary["pck_random"])],
            ["whole pool", number(summary["pck_all"])],
        ],
    )
    rho = summary["spearman"]
    say(
        f"Spearman with the true loss: predicted loss {number(rho['predicted_loss'])}, "
        f"heatmap confidence {number(rho['confidence'])}"
    )
    show_table(
        "hard slices",
        ["slice", "share of the pool", "share of the selection"],
        [[name, f"{shares['pool']:.1%}", f"{shares['selection']:.1%}"] for name, shares in summary["slices"].items()],
    )
    for name in (
        "labelled",
        "validation",
        "pool",
        "truth",
        "model",
        "scores",
        "selection",
        "report.html",
    ):
        say(f"  {options.out}/{name}")


if __name__ == "__main__":
    sys.exit(main())
