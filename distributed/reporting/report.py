"""A selection as one HTML file that opens without network: what was found, why, and where it came from.

Template, style and script of this package go into the file. The template escapes all texts, what is marked as markup
is made by `charts`, and the page's own policy lets no other script or style run.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from distributed.reporting import words
from distributed.reporting.charts import as_image, draw_calibration, draw_scores, times_bar
from distributed.reporting.gallery import Gallery, make_gallery, page_data
from distributed.reporting.origin import EVALUATION, Origin, read_evaluation, read_nights, read_origin
from distributed.reporting.rows import (
    Metadata,
    Missing,
    Pool,
    Poses,
    affordable_rows,
    count_pool,
    count_scores,
    metadata_of,
    read_rows,
    read_scored_rows,
)
from distributed.runs.progress import Progress
from distributed.runs.record import RUN_FILE
from distributed.storage.location import Location, locate, read_versioned, write_bytes
from distributed.tables.history import Row, nights_before, read_history
from distributed.tables.scores_reader import ReadablePart
from model.errors import InputError

_MARK = b'<!doctype html>\n<html lang="en" data-lossight="report">'  # how every report begins
_MOST_NIGHTS = 14  # that a chart can show
_NO_BUNDLE = "No pose is drawn: the bundle that made the scores is gone, or another lies in its place."


def write_report(
    selection: str, *, out: str, history: str | None = None, evaluation: str | None = None, progress: Progress
) -> dict[str, Any]:
    """Writes the report of a selection and returns what it holds; the same inputs give the same bytes.

    Images that are not found in the pool any more have a placeholder: `num_missing`, and `missing` by reason. Poses are
    those of the scores where they have keypoints; else the bundle that scored predicts them, for as many of the first
    ranks as take minutes.

    Args:
        selection: location of a selection.
        out: location of the HTML file; an earlier report there is replaced.
        history: location of a history table; None: that of the triage that made the selection, if one did.
        evaluation: location of an evaluation of this selection, whose labels have come back; None: that in the
            folder `evaluation` of the night that made the selection, if there is one.
        progress: told of every batch of images.

    Raises:
        InputError: an input can't be used, or something else than a report lies at `out`.
        RunFailedError: the store failed.
    """
    target = locate(out)
    _check_target(target)
    origin = read_origin(selection)
    measured = _read_evaluation(evaluation, origin)
    known = locate(history) if history else origin.history
    nights, drift = _read_history(known, origin) if known else ([], None)
    parts = origin.read_parts()
    scored = read_scored_rows(parts, origin.selected)
    missing = Missing()
    spec = origin.described.spec if origin.described else None
    stored = scored.keypoints if spec else {}  # without its skeleton a pose can't be drawn
    bundle = None if stored else origin.load_bundle()
    poses = Poses(stored, bundle=bundle, num_rows=affordable_rows(bundle) if bundle else None)
    gallery = make_gallery(
        read_rows(_pools(origin), origin.selected, missing=missing, progress=progress),
        poses=poses,
        missing=missing,
        margin=spec.crop_margin if spec else None,
        num_rows=len(origin.selected),
    )
    metadata = {**gallery.metadata, **scored.metadata}
    context = _context(
        origin,
        gallery=gallery,
        poses=poses,
        missing=missing,
        metadata=metadata,
        parts=parts,
        nights=nights,
        drift=drift,
        evaluation=measured,
    )
    page = _render(context, page_data(gallery, origin.selected, metadata=metadata, spec=spec, key=origin.fingerprint))
    write_bytes(target, page)
    return {
        "report": out,
        "num_bytes": len(page),
        "num_selected": len(origin.selected),
        "num_pictures": len(gallery.pictures),
        "num_poses": gallery.num_poses,
        "poses": poses.source,
        "num_missing": len(missing.reasons),
        "missing": missing.counts(),
    }


def _check_target(target: Location) -> None:
    earlier = read_versioned(target) if target.stat() else None
    if earlier is not None and not earlier[0].startswith(_MARK):
        raise InputError(f"{target.uri}: expected no file or an earlier report, found another file")
    if earlier is None and target.exists:
        raise InputError(f"{target.uri}: expected the name of a file, found a folder")


def _read_evaluation(evaluation: str | None, origin: Origin) -> dict[str, Any] | None:
    place = locate(evaluation) if evaluation else origin.night and origin.night.join(EVALUATION)
    if not evaluation and not (place and place.join(RUN_FILE).exists):
        return None
    return place and read_evaluation(place, fingerprint=origin.fingerprint)


def _read_history(location: Location, origin: Origin) -> tuple[list[Row], Sequence[str] | None]:
    """The nights up to the selection's own, and the drift of that night; None if the history does not have it."""
    if not location.exists:
        raise InputError(f"{location.uri}: expected a history table, found nothing")
    rows, name = read_history(location), origin.record.get("night")
    night = name and datetime.date.fromisoformat(name)
    drift = next((row["drift"] or () for row in rows if row["night"] == night), None)
    return [row for row in rows if night is None or row["night"] <= night], drift


def _pools(origin: Origin) -> list[Pool]:
    """The pools of all scores, each once."""
    found: dict[str, Pool] = {}
    for table in origin.tables:
        earlier = found[table.pool.path].footers if table.pool.path in found else {}
        footers = {**earlier, **table.footers}
        found[table.pool.path] = Pool(location=table.pool, image_root=table.image_root, footers=footers)
    return [*found.values()]


def _context(
    origin: Origin,
    *,
    gallery: Gallery,
    poses: Poses,
    missing: Missing,
    metadata: Metadata,
    parts: list[ReadablePart],
    nights: list[Row],
    drift: Sequence[str] | None,
    evaluation: dict[str, Any] | None,
) -> dict[str, Any]:
    """The values of the template; texts are escaped there, and markup of ours is marked as such.

    Args:
        origin: the selection.
        gallery: its images.
        poses: of them.
        missing: images that were not found.
        metadata: of the selected rows.
        parts: of the scores.
        nights: rows of the history.
        drift: of this night; None: it is in no history.
        evaluation: record of what was measured, if anything.
    """
    slices, slices_remark = _slices(origin, parts, metadata)
    return {
        **_charts(origin, nights),
        "title": _title(origin.location),
        "lede": f"{origin.location.uri} · {origin.record['finished_at']} · bundle {origin.bundle_id}",
        "facts": words.facts(origin, evaluation),
        "warnings": [*(drift or ()), *_warnings(origin, missing)],
        "pictures_remark": _pictures_remark(gallery, poses, len(origin.selected)),
        "scores_remark": "Only the order means something; the higher, the worse the pose is expected to be. "
        "Shares of all scored images and of the selected ones.",
        "arms": words.arms(origin),
        "drift": drift,
        "nights": _nights(origin, nights[-_MOST_NIGHTS:]),
        "calibration_remark": _calibration_remark(origin),
        "slices": slices,
        "slices_remark": slices_remark,
        "errors": (errors := words.errors(origin)),
        "errors_remark": "By reason, with the first ids." if errors else "Every image of the pool could be read.",
        "throughput": words.throughput(origin),
        "provenance": words.provenance(origin),
        "commands": words.commands(origin),
        "next_steps": words.next_steps(origin),
    }


def _charts(origin: Origin, nights: list[Row]) -> dict[str, Any]:
    """The charts, and the number of nights that one of them shows beside."""
    losses = origin.selected["predicted_loss"].to_numpy().astype(np.float64)
    quantiles = [np.array(table.record.get("loss_quantiles", ()), np.float64) for table in origin.tables]
    night = origin.record.get("night") and datetime.date.fromisoformat(origin.record["night"])
    alike = [row for row in nights_before(nights, night, bundle_id=origin.bundle_id) if row["loss_quantiles"]]
    earlier = [np.array(row["loss_quantiles"]) for row in alike[-_MOST_NIGHTS:]]
    scores = draw_scores(np.concatenate(quantiles), losses, earlier)
    calibration = draw_calibration(origin.calibration, losses) if origin.calibration else None
    return {
        "scores_chart": as_image(scores, title="Distribution of the predicted losses"),
        "num_nights": len(earlier),
        "calibration_chart": as_image(calibration, title="Calibration of the predicted loss"),
    }


def _nights(origin: Origin, rows: list[Row]) -> list[list[str]]:
    """The nights of a triage for a table, the newest first; none for a selection of no triage."""
    if origin.night is None:
        return []
    found = read_nights(locate(origin.record["triage"]), [str(row["night"]) for row in rows])
    return [words.night(row, evaluation) for row, evaluation in zip(rows, found, strict=True)][::-1]


def _title(location: Location) -> str:
    """The name of the run: of a folder that is only called selection, the one above."""
    *_, above, own = ["", *location.path.split("/")]
    return f"Selection of {above}" if own == "selection" and above else f"Selection {own}"


def _warnings(origin: Origin, missing: Missing) -> list[str]:
    found = [f"{line[0].upper()}{line[1:]}." for line in origin.record.get("warnings", ())]
    if missing.reasons:
        number = len(missing.reasons)
        reason = next(iter(missing.counts()))
        found.append(f"{number:,} selected images are not in the pool as they were scored, for example {reason}")
    if origin.record["pool_fingerprint"] not in _joined(origin):
        found.append("The scores have changed since this selection was made: counts below are those of now.")
    if origin.record["num_selected"] < origin.record["budget"]:
        found.append(f"The budget of {origin.record['budget']:,} was not filled: no more rows could be selected.")
    return found


def _joined(origin: Origin) -> str:
    return ",".join(sorted({table.record["pool_fingerprint"] for table in origin.tables}))


def _pictures_remark(gallery: Gallery, poses: Poses, count: int) -> str:
    pictures = "" if len(gallery.pictures) == count else f"{len(gallery.pictures):,} of {count:,} have a picture. "
    if poses.source == "none":
        return pictures + _NO_BUNDLE
    source = {"scores": "as the scores kept it", "predicted": "predicted again for this report by the same bundle"}[
        poses.source
    ]
    limit = f", for {gallery.num_poses:,} of them" if gallery.num_poses < len(gallery.pictures) else ""
    return (
        f"{pictures}By rank, worst expected first, each as the model saw it. The pose is {source}{limit}: "
        "right side orange, left side blue; thin where a keypoint is likely wrong."
    )


def _calibration_remark(origin: Origin) -> str:
    if origin.calibration is None:
        return (
            "This bundle is not calibrated, or several bundles made the scores: no expected PCK and no expected number "
            "of failures can be given. `lossight train --validation` fits the calibration."
        )
    return (
        f"What a predicted loss means, fitted on {origin.calibration.num_images:,} labelled images. Beyond the last of "
        "them the curves stay level, since nothing is known there."
    )


def _slices(origin: Origin, parts: list[ReadablePart], metadata: Metadata) -> tuple[list[dict[str, Any]], str]:
    """The shares of each column's values, and a remark on where they are from."""
    names = metadata_of(parts)
    totals, source = (count_scores(parts, names), "scores") if names else (None, "pool")
    pools = _pools(origin)
    if totals is None and metadata and len(pools) == 1:
        totals = count_pool(pools[0], list(metadata), num_rows=sum(t.record["num_rows"] for t in origin.tables))
    if totals is None:
        return [], "The scores keep no metadata: `lossight score --metadata COLUMN` makes shares by slice known."
    shares = words.compare(totals, metadata, num_selected=len(origin.selected))
    remark = f"Share of the pool against share of the selection, by the metadata of the {source}."
    tables = [{"name": name, "rows": [_slice_row(share) for share in rows]} for name, rows in shares.items()]
    return tables, remark if tables else "No column of metadata has a few values to compare."


def _slice_row(share: words.Share) -> dict[str, Any]:
    times = share.selection / share.pool if share.pool else None
    return {
        "value": share.value,
        "pool": words.percent(share.pool),
        "selection": words.percent(share.selection),
        "times": words.NONE if times is None else words.multiple(times),
        "bar": Markup("") if times is None else times_bar(times),
    }


def _render(context: dict[str, Any], data: dict[str, Any]) -> bytes:
    """The page as UTF-8.

    Args:
        context: values of the template.
        data: input of the script, JSON values only.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_resource("page.html"))
    style, script = _resource("page.css"), _resource("page.js")
    page = template.render(
        **context,
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        style_hash=_source_hash(style.encode()),
        script_hash=_source_hash(script.encode()),
        data=_embedded(data),
    )
    return page.encode()


def _resource(name: str) -> str:
    """A file of this package."""
    return files("distributed.reporting").joinpath(name).read_text(encoding="utf-8")


def _source_hash(content: bytes) -> str:
    """The name of an inline script or style in a content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}"


def _embedded(data: dict[str, Any]) -> Markup:
    """JSON inside a script element: without the signs that could end it, or begin a comment."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)  # noqa: S704
