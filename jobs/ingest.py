"""`lossight ingest`: raw data into pool or labelled tables that keep the contract."""

from __future__ import annotations

import sys

from distributed.ingest.options import IngestOptions
from jobs.console import ConsoleProgress, counts, say
from jobs.run import DEGRADED, DONE, run_job

_MOST_NAMES = 5  # of a fault, on a terminal
_FAULTS = {
    "twice": "left out, for the export has them twice",
    "disagree": "left out, for annotators disagree",
    "other_size": "left out, for the image that was annotated has another size than the pool's",
    "other_id": "left out, for the image's name is of another row",
    "unclear": "left out, for it is not clear what was meant",
    "not_in_pool": "left out, for the pool does not have them any more",
    "not_selected": "left out, for they were never selected",
    "annotators_disagree": "annotators placed keypoints apart",
}


def main(arguments: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    return run_job(IngestOptions, _ingest, arguments, command="ingest")


def _ingest(options: IngestOptions) -> int:
    return _take_labels(options) if options.selection else _read_raw(options)


def _take_labels(options: IngestOptions) -> int:
    from distributed.reporting.labels import take_labels

    with ConsoleProgress() as progress:
        record = take_labels(options, progress=progress)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {record['num_rows']} labelled rows, {options.out}")
    say(f"of {record['num_selected']} selected rows: {counts(record['outcomes'])}")
    if record["rejected"]:
        say(f"rejected because: {counts(record['rejected'])}")
    if confirmed := record["outcomes"].get("confirmed"):
        seconds = record.get("confirmed_seconds")
        opened = "" if seconds is None else f", open for {seconds:.3g} s each (median)"
        say(f"submitted as predicted, no keypoint moved: {confirmed}{opened}")
    if record["keypoints_outside"]:
        say(f"{record['keypoints_outside']} keypoints lay outside their image and count as not labelled")
    for note in record["notes"]:
        say(note)
    for fault, names in record["faults"].items():
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        shown = (name if name.isprintable() else repr(name) for name in names[:_MOST_NAMES])
        say(f"{_FAULTS[fault]}: {', '.join(shown)}{more}")
    return DEGRADED if record["faults"].keys() - {"annotators_disagree"} else DONE


def _read_raw(options: IngestOptions) -> int:
    from distributed.ingest.ingest import ingest

    with ConsoleProgress() as progress:
        record = ingest(options, progress=progress)
    outside = record.get("keypoints_outside", 0)
    say(f"{'already there' if record.get('was_done') else 'wrote'}: {record['num_rows']} rows, {options.out}")
    if record["num_rows"] > record["images"]:
        say(f"{record['num_rows']} persons in {record['images']} images; each row has its image's bytes")
    if skipped := record.get("skipped"):
        say(f"{'files passed over' if options.kind == 'folder' else 'persons left out'}: {counts(skipped)}")
    for note in record.get("notes", ()):
        say(note)
    if record.get("unreadable"):
        say(f"{record['unreadable']} images can't be read; they are kept, and scoring says why")
    if record.get("more_pages"):
        say(f"{record['more_pages']} images have further pages or frames: only the first counts")
    if options.as_ == "labelled" and outside:
        say(f"{outside} keypoints lay outside their image and count as not labelled")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
