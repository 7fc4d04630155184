"""`lossight evaluate`: how good a bundle is on labelled rows, and how well its predicted loss finds its failures."""

from __future__ import annotations

import sys
from typing import Any

from distributed.evaluation.options import EvaluateOptions
from jobs.console import ConsoleProgress, counts, number, percent, say, show_table
from jobs.run import DONE, run_job

_RANKINGS = {
    "predicted_loss": "predicted loss",
    "confidence": "heatmap confidence",
    "random": "random",
    "oracle": "true loss (oracle)",
}
_CALIBRATED = {"true_loss": ("true loss", 5), "pck": ("PCK", 3), "failure_share": ("failures", 3)}  # label, digits
_HOLDS = {True: "holds", False: "does not hold", None: "-"}
_MOST_SLICES = 40  # on a terminal


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(EvaluateOptions, _evaluate, arguments, command="evaluate")


def _evaluate(options: EvaluateOptions) -> int:
    from distributed.evaluation.evaluate import evaluate

    with ConsoleProgress() as progress:
        metrics = evaluate(options, progress=progress)
    show(metrics)
    if options.out:
        say(f"{'already there' if metrics.get('was_done') else 'wrote'}: {options.out}")
    return DONE


def show(metrics: dict[str, Any]) -> None:
    """The metrics as tables."""
    judged = f"{metrics['num_evaluated']} with a true loss, {metrics['num_judged']} with a PCK"
    say(f"{metrics['num_rows']} rows, unreadable: {counts(metrics['errors'])}; {judged}")
    for path, reason in metrics["bad_files"].items():
        say(f"file not read: {path}: {reason}")
    if metrics["is_training_data"]:
        say("these are the rows that the bundle was trained on: it looks better on them than it is")
    if metrics["is_validation_data"]:
        say("these are the rows that its calibration was fitted to: it looks more reliable on them than it is")
    _show_rankings(metrics)
    _show_keypoints(metrics)
    _show_slices(metrics)
    _show_reliability(metrics["reliability"])
    if "selection" in metrics:
        show_arms(metrics["selection"])


def _show_rankings(metrics: dict[str, Any]) -> None:
    curve, areas = metrics["failure_curve"], metrics["aurc"]
    show_table(
        "what finds the failures?",
        ["ranked by", "Spearman", "Pearson", "Kendall", "AURC true loss", "AURC 1 - PCK"],
        [
            [
                label,
                *(number(metrics[measure].get(name)) for measure in ("spearman", "pearson", "kendall")),
                number(areas["true_loss"][name], 5),
                number(areas["pck"][name]),
            ]
            for name, label in _RANKINGS.items()
        ],
    )
    shares = [share for share in curve["share"] if share < 1]  # there all are the same
    show_table(
        f"PCK@{metrics['pck_threshold']} of the images ranked worst (lower: more failures found)",
        ["ranked by", *(f"{share:.0%}" for share in shares)],
        [[label, *map(number, curve[name][: len(shares)])] for name, label in _RANKINGS.items()],
    )


def _show_keypoints(metrics: dict[str, Any]) -> None:
    rows = [
        [name, number(metrics["pck_per_keypoint"][name]), number(metrics["pckh_per_keypoint"][name])]
        for name in metrics["keypoints"]
    ]
    means = [
        [label, number(metrics[f"pck{key}"]), number(metrics[f"pckh{key}"])]
        for label, key in (("all keypoints", ""), ("mean of images", "_per_image"))
    ]
    columns = ["keypoint", f"PCK@{metrics['pck_threshold']}", f"PCKh@{metrics['pckh_threshold']}"]
    show_table("where is the model right?", columns, [*rows, *means])


def _show_slices(metrics: dict[str, Any]) -> None:
    groups = metrics["groups"]
    rows = [_slice_row(f"{each['column']}: {each['value'] or 'none'}", each) for each in metrics["slices"]]
    columns = ["rows", "PCK", "true loss", "share of rows", "of the worst", "of those ranked worst"]
    worst = f"worst: {metrics['worst_share']:.0%}, by true and by predicted loss"
    if rows:
        show_table(f"where does it fail? ({worst})", ["slice", *columns], rows[:_MOST_SLICES])
    if len(rows) > _MOST_SLICES:
        say(f"and {len(rows) - _MOST_SLICES} more slices")
    for name, reason in metrics["slices_left_out"].items():
        say(f"not sliced by {name}: {reason}")
    if groups["worst"]:
        title = f"which of {groups['num_groups']} groups hold most of the worst?"
        show_table(title, ["group", *columns], [_slice_row(each["value"], each) for each in groups["worst"]])


def _slice_row(label: str, measured: dict[str, Any]) -> list[str]:
    return [
        label,
        str(measured["num_rows"]),
        number(measured["pck"]),
        number(measured["mean_true_loss"], 5),
        *(percent(measured[f"share_of_{name}"]) for name in ("rows", "worst_true", "worst_predicted")),
    ]


def _show_reliability(reliability: dict[str, Any] | None) -> None:
    if reliability is None:
        say("\nno reliability table: the bundle is not calibrated (train with --validation)")
        return
    show_table(
        "does the calibration hold? (tenths by predicted loss, from its lowest on; expected / observed)",
        ["predicted", "images", *(label for label, _ in _CALIBRATED.values())],
        [
            [
                number(each["lowest"]),
                str(each["num_images"]),
                *(
                    f"{number(each[name]['expected'], digits)} / {number(each[name]['observed'], digits)}"
                    for name, (_, digits) in _CALIBRATED.items()
                ),
            ]
            for each in reliability["bins"]
        ],
    )
    errors = reliability["expected_calibration_error"]
    distances = (f"{label} {number(errors[name], digits)}" for name, (label, digits) in _CALIBRATED.items())
    say(f"expected calibration error: {', '.join(distances)}")


def show_arms(arms: dict[str, Any]) -> None:
    """A table of the model's picks against random rows."""
    label = {"control": "control arm", "drawn": "random draw", "none": "no control arm"}[arms["random_arm"]]
    named = {"selected": "selected by the model", "random": label}
    show_table(
        "did the selection find failures?",
        ["images", "number", "PCK", "failures", "expected", "calibration"],
        [
            [
                name,
                str(arms[f"num_{arm}"]),
                number(arms[f"pck_{arm}"]),
                percent(arms[f"failures_{arm}"]),
                percent(arms[f"expected_failures_{arm}"]),
                _HOLDS[arms[f"calibration_holds_{arm}"]],
            ]
            for arm, name in named.items()
        ],
    )
    if arms["random_arm"] == "none":
        say("no lift: all labelled rows were selected; select with --control-share to have rows to compare with")
    else:
        say(
            f"lift {number(arms['lift'])}, {_between(arms['lift_interval'])}; difference of PCK "
            f"{number(arms['pck_difference'])}, {_between(arms['pck_difference_interval'])}"
        )
    if arms["num_not_labelled"]:
        say(f"{arms['num_not_labelled']} selected rows have no labels, and are in neither arm")
    for arm, outcomes in arms.get("outcomes", {}).items():
        if outcomes:
            say(f"came back, {named.get(arm, label)}: {counts(outcomes)}")
    if arms.get("rejected"):
        say(f"rejected because: {counts(arms['rejected'])}")


def _between(interval: list[float | None]) -> str:
    low, high = interval
    return f"95 % between {number(low)} and {number(high)}"


if __name__ == "__main__":
    sys.exit(main())
