"""Facts and tables of a report: honest about what was measured, what is expected, and what is not known."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc

from distributed.reporting.origin import EVALUATION, Origin
from distributed.reporting.rows import Metadata, Totals
from model.calibration import FAILURE_PCK

NONE = "–"  # noqa: RUF001 - a dash, for a number that is not known
_SHOWN_VALUES = 12  # of a metadata column


class Fact(NamedTuple):
    """A number in large type, what it is, and what one should know about it."""

    value: str
    label: str
    note: str = ""


class Arm(NamedTuple):
    """The rows of one reason."""

    reason: str
    number: str
    loss: str
    pck: str
    failures: str


def facts(origin: Origin, evaluation: Mapping[str, Any] | None) -> list[Fact]:
    """Facts at the head of the page: images, failures among them, and the lift over chance."""
    record = origin.record
    passed_over = record.get("num_passed_over")
    note = f"; {passed_over:,} show the same moment as a better one, and are passed over" if passed_over else ""
    first = Fact(
        f"{record['num_selected']:,}",
        "images to label",
        f"of {record['num_scored']:,} scored; by {record['strategy']}, budget {record['budget']:,}{note}",
    )
    found = [*_measured(evaluation)] if evaluation else []
    if record.get("expected_failures") is not None:
        found += _expected(record, origin)
    elif not found:
        found.append(
            Fact(
                "not known",
                "how many of them fail",
                "The bundle is not calibrated: ranks say which images are worse, not how bad they are. "
                "Train with validation rows to get expected failures.",
            )
        )
    return [first, *found, _unreadable(origin)]


def _expected(record: Mapping[str, Any], origin: Origin) -> list[Fact]:
    failures, at_random = record["expected_failures"], record["expected_failures_at_random"]
    calibration = origin.calibration
    images = f" on {calibration.num_images:,} images" if calibration else ""
    note = f"PCK under {FAILURE_PCK:g}. Expected by the bundle's calibration{images}, not measured."
    if at_random < 0.05:
        ratio = Fact(NONE, "times a random draw", "A random draw of as many would hold next to none.")
    else:
        ratio = Fact(
            multiple(failures / at_random),
            "as many as a random draw",
            f"A random draw of as many is expected to hold {at_random:,.0f}.",
        )
    return [Fact(f"≈ {failures:,.0f}", "expected failures", note), ratio]


def _measured(evaluation: Mapping[str, Any]) -> list[Fact]:
    """Facts from labels that have come back."""
    arms = evaluation["selection"]
    against = {"control": "the control arm", "drawn": "a random draw", "none": "no control arm"}[arms["random_arm"]]
    facts = [
        Fact(
            percent(arms["failures_selected"]),
            "of the selected fail: measured",
            f"{arms['num_selected']:,} labelled images; {percent(arms['failures_random'])} of {against} "
            f"({arms['num_random']:,} images).{_calibration_held(arms)}",
        )
    ]
    lift = arms["lift"]
    value = NONE if lift is None else multiple(lift)
    note = (
        f"Measured; 95 % interval {_span(arms.get('lift_interval'), '.2f')}. PCK differs by "
        f"{_number(arms['pck_difference'])}; 95 % interval {_span(arms['pck_difference_interval'], '+.3f')}."
    )
    facts.append(Fact(value, f"the failures of {against}", note))
    left_out = arms.get("num_not_labelled")
    if left_out:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in arms.get("rejected", {}).items())
        facts.append(
            Fact(
                f"{left_out:,}",
                "came back without labels",
                f"Rejected by annotators: {reasons}." if reasons else "None of them was rejected.",
            )
        )
    return facts


def night(row: Mapping[str, Any], evaluation: Mapping[str, Any] | None) -> list[str]:
    """A night of the history for a table: date, rows, share without a score, selected, drift, and the measured lift."""
    arms = evaluation["selection"] if evaluation else {}
    lift = arms.get("lift")
    return [
        str(row["night"]),
        f"{row['num_rows']:,}",
        percent(row["error_rate"]),
        f"{row['num_selected']:,}",
        f"{len(row['drift'])} found" if row["drift"] else "none" if row["psi"] is not None else NONE,
        NONE if lift is None else f"{multiple(lift)} ({_span(arms.get('lift_interval'), '.2f')})",
    ]


def next_steps(origin: Origin) -> list[tuple[str, str]]:
    """The steps from this selection to the next bundle, each with its command; words in capitals are the reader's."""
    selection, (table, *_) = origin.location.uri, origin.tables
    measured = origin.night.join(EVALUATION).uri if origin.night else "EVALUATION"
    shown = ["--run", origin.night.uri] if origin.night else ["--run", selection, "--evaluation", measured]
    steps = {
        "Export it; coco, cvat, fiftyone and csv likewise": [
            *("export", "label-studio", "--selection", selection, "--pool", table.pool.uri, "--out", "EXPORT")
        ],
        "Once labelled, take the labels back by id": [
            *("ingest", "label-studio", "--selection", selection, "--source", "FROM_TOOL", "--out", "LABELS")
        ],
        "Measure what was found": [
            *("evaluate", "--selection", selection, "--labelled", "LABELS", "--model", table.model.uri),
            *("--out", measured),
        ],
        "Show it on this page": ["report", *shown],
        "Train on all labels but the newest, and compare": [
            *("promote", "--champion", "POINTER", "--challenger", "NEW_BUNDLE", "--on", "HELD_OUT"),
            *("--selection", "LABELS"),
        ],
    }
    return [(text, shlex.join(["lossight", *command])) for text, command in steps.items()]


def _span(interval: Sequence[float | None] | None, digits: str) -> str:
    low, high = interval or (None, None)
    return NONE if low is None else f"{low:{digits}} and more" if high is None else f"{low:{digits}} to {high:{digits}}"


def _calibration_held(arms: Mapping[str, Any]) -> str:
    """A sentence on what the calibration expected of the selected rows; empty where there is none."""
    expected, holds = arms.get("expected_failures_selected"), arms.get("calibration_holds_selected")
    if expected is None:
        return ""
    return f" The calibration expected {percent(expected)}: {'it holds' if holds else 'it does not hold here'}."


def _unreadable(origin: Origin) -> Fact:
    records = [table.record for table in origin.tables]
    failed = sum(record["num_rows"] - record["num_scored"] for record in records)
    total = sum(record["num_rows"] for record in records)
    files = sum(len(record.get("bad_files", {})) for record in records)
    return Fact(
        f"{failed:,}",
        "images could not be read",
        f"{percent(failed / max(total, 1))} of {total:,}" + (f"; and {files} files" if files else ""),
    )


def arms(origin: Origin) -> list[Arm]:
    """The selected rows by reason."""
    found = []
    for reason in sorted(set(origin.selected["reason"].to_pylist()) - {None}):
        rows = origin.selected.filter(pc.equal(origin.selected["reason"], reason))
        losses = rows["predicted_loss"].to_numpy()
        pck = rows["expected_pck"].drop_null().to_numpy()
        failures = None if origin.calibration is None else float(origin.calibration.failure_probability(losses).sum())
        found.append(
            Arm(
                reason,
                f"{len(rows):,}",
                f"{np.median(losses):.3g}",
                f"{pck.mean():.2f}" if len(pck) else NONE,
                NONE if failures is None else f"{failures:,.0f} ({percent(failures / len(rows))})",
            )
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Share:
    """One value of a metadata column, and its shares of pool and selection."""

    value: str
    pool: float
    selection: float


def compare(totals: Totals, selected: Metadata, *, num_selected: int) -> dict[str, list[Share]]:
    """Shares of the pool and of the selection of each column's values, those that the selection favours first.

    Columns with too many values, or with one alone, say nothing.
    """
    found = {}
    for name, pool in totals.counts.items():
        picked = Counter(word for words in selected.get(name, {}).values() for word in words)
        shares = [
            Share(
                value=value, pool=pool[value] / max(totals.num_rows, 1), selection=picked[value] / max(num_selected, 1)
            )
            for value in pool | picked
        ]
        if len(shares) > 1:
            shares.sort(key=lambda share: (-share.selection, -share.pool, share.value))
            found[name] = shares[:_SHOWN_VALUES]
    return found


def errors(origin: Origin) -> list[dict[str, str]]:
    """Reasons why rows have no score, the most frequent first, with ids; files that could not be read."""
    counts: dict[str, int] = {}
    examples: dict[str, list[str]] = {}
    for table in origin.tables:
        for reason, number in table.record.get("errors", {}).items():
            counts[reason] = counts.get(reason, 0) + number
            examples.setdefault(reason, []).extend(table.record.get("error_examples", {}).get(reason, []))
    rows = [
        {"reason": reason, "number": f"{counts[reason]:,}", "examples": ", ".join(examples[reason][:3])}
        for reason in sorted(counts, key=lambda reason: (-counts[reason], reason))
    ]
    files = {path: why for table in origin.tables for path, why in table.record.get("bad_files", {}).items()}
    return [*rows, *({"reason": f"file: {why}", "number": NONE, "examples": path} for path, why in files.items())]


def throughput(origin: Origin) -> list[tuple[str, str]]:
    """Throughput of scoring, and of the model alone, with its arithmetic where the bundle says that of an image."""
    found = []
    flops = origin.described.training.get("flops_per_image") if origin.described else None
    for table in origin.tables:
        record, config = table.record, table.config
        if not record.get("num_new_rows"):
            continue
        stages = record.get("stage_seconds", {})
        found += [
            ("scored in the last run", f"{record['num_new_rows']:,} of {record['num_rows']:,} rows"),
            ("rate", f"{record['images_per_second']:,.0f} images/s over {record['seconds']:,.1f} s, start included"),
            ("seconds of all processes", ", ".join(f"{name} {value:,.1f}" for name, value in stages.items()) or NONE),
            ("actors", f"{config.get('actors', NONE)}, GPUs each {config.get('gpus_per_actor', 0):g}"),
            ("processes lost and started again", f"{record.get('num_restarts', 0)}"),
        ]
        if stages.get("compute"):
            rate = record["num_new_rows"] / stages["compute"]
            found.append(("model alone", f"{rate:,.0f} images/s of one process while it computes"))
            if flops is not None:
                words = f"{rate * flops / 1e9:,.0f} GFLOP/s of one process, at {flops / 1e9:.2g} GFLOP an image"
                found.append(("arithmetic", f"{words}; `lossight score --plan` measures what the device allows"))
    return found or [("rate", "the last run of these scores had nothing new to score")]


def provenance(origin: Origin) -> list[tuple[str, str]]:
    """Bundle, pool and versions that made the selection, and where they lie."""
    record = origin.record
    found = [
        ("selection", f"{origin.location.uri}, made {record['finished_at']}"),
        ("bundle", record["bundle_id"]),
        ("pool fingerprint", record["pool_fingerprint"]),
    ]
    for table in origin.tables:
        found += [
            ("scores", f"{table.location.uri}, published {table.record['finished_at']}"),
            ("pool", table.pool.uri),
            ("model", table.model.uri),
        ]
    versions = {"python": record["python"], **{name: value for name, value in record["versions"].items() if value}}
    return [*found, ("versions", ", ".join(f"{name} {value}" for name, value in versions.items()))]


def commands(origin: Origin) -> list[str]:
    """The commands that made it, options that were not given left out.

    Of a night that is the triage: `score` and `select` by themselves would write into its outputs, without its lease.
    """
    if origin.triage is not None:
        return [_command("triage", origin.triage)]
    return [
        *(_command("score", table.config) for table in origin.tables),
        _command("select", origin.config),
    ]


def _command(name: str, config: Mapping[str, Any]) -> str:
    words = ["lossight", name]
    for key, value in config.items():
        flag = f"--{key.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list | tuple):
            words += [word for item in value for word in (flag, str(item))]
        elif value is not None and value is not False:
            words += [flag, str(value)]
    return shlex.join(words)


def percent(share: float | None) -> str:
    """A share for people."""
    return NONE if share is None else f"{share:.1%}" if share < 0.995 else f"{share:.0%}"


def multiple(times: float) -> str:
    """A ratio for people to read."""
    return f"{times:.1f}×"  # noqa: RUF001


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:+.3f}"
