"""Answers of annotators, as the exports of labelling tools hold them, before it is known which pool rows they are of.

Coordinates are pixels as the tool counts them, which for keypoints are those of our tables
(`distributed.ingest.coco_entries`).

# K keypoints
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import unquote

import pyarrow as pa

from distributed.storage.location import Location, read_bytes
from model.errors import InputError

# `unclear`: it can't be told what was meant; `disagree`: several annotators contradict each other. `why` says how.
Verdict = Literal["pose", "unanswered", "draft", "skipped", "rejected", "unclear", "disagree"]

_MOST_BYTES = 2 * 2**30  # of the annotations in a zip: more is no export of a selection
_MARK = re.compile(r"(?<![0-9a-f])[0-9a-f]{12}(?![0-9a-f])")


class Point(NamedTuple):
    """A keypoint as it was placed."""

    x: float
    y: float
    visibility: int  # 1 occluded, 2 visible; 0: not labelled


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One annotator's answer to one image."""

    entry: str  # the task or image of the export that it belongs to
    image: str  # path or URI of the image in the tool
    verdict: Verdict
    why: str | None = None  # the reason of a rejection, or what is unclear
    sample_id: str | None = None  # as the export names it beside the image
    size: tuple[int, int] | None = None  # width, height of the image as the tool saw it
    points: Mapping[str, Point] = field(default_factory=dict)  # by the keypoint's name
    is_submitted: bool = False  # a person sent it; False: the file doesn't tell persons from predictions
    annotator: str | None = None
    seconds: float | None = None  # that the annotator had it open; None: the file doesn't say
    at: str = ""  # ISO time of its last change; "": the file doesn't say


@dataclass(frozen=True, kw_only=True)
class ToolExport:
    """All answers of a tool's export."""

    answers: list[Answer]
    names: tuple[str, ...] = ()  # keypoints, in the file's order; of Label Studio, which lists none, those in use
    lists_all: bool = False  # `names` are all keypoints of the project, not only those that somebody placed
    limbs: tuple[tuple[int, int], ...] = ()
    rounding_px: float = 0.0  # error of a coordinate that the tool itself makes
    notes: tuple[str, ...] = ()  # sentences for the user
    fingerprint: str = ""


def read_documents(place: Location, *, suffixes: tuple[str, ...]) -> dict[str, bytes]:
    """The annotation files of an export, by name: the file itself, or those with a suffix in it if it is a zip.

    Raises:
        InputError: the file is empty, or a damaged zip, or a zip without such a file.
    """
    data = read_bytes(place)
    if not data:
        raise InputError(f"{place.uri}: expected a tool's export, found an empty file")
    if not data.startswith(b"PK"):
        return {place.uri: data}
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = [info for info in archive.infolist() if info.filename.lower().endswith(suffixes)]
            if sum(info.file_size for info in inside) > _MOST_BYTES:
                raise InputError(f"{place.uri}: expected annotations of at most {_MOST_BYTES} B, found more in the zip")
            found = {f"{place.uri}/{info.filename}": archive.read(info) for info in inside}
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise InputError(f"{place.uri}: expected a zip, found a damaged one: {error}") from error
    if not found:
        raise InputError(f"{place.uri}: expected a zip with {' or '.join(suffixes)} in it, found none")
    return found


def fingerprint_of(documents: Iterable[bytes]) -> str:
    """Hash of the annotation files."""
    digest = hashlib.sha256()
    for data in documents:
        digest.update(hashlib.sha256(data).digest())
    return digest.hexdigest()[:16]


def name_mark(sample_id: str) -> str:
    """The twelve characters in the name of an exported image by which its row is found again."""
    return hashlib.sha256(sample_id.encode()).hexdigest()[:12]


class Claim(NamedTuple):
    """The selected row that an answer claims to be of."""

    place: int | None  # in the selection; None: of none, or of two
    other: str | None = None  # of two: what contradicts


class Claims:
    """Finds the selected rows that answers belong to: by the id beside the image, and by the image's name.

    Names hold `name_mark`, which survives the prefixes, folders and suffixes that tools add. Images that were not
    copied are named by pool file and row.

    Args:
        selected: the selection, by rank.
    """

    def __init__(self, selected: pa.Table) -> None:
        ids = selected["sample_id"].to_pylist()
        files, rows = selected["pool_file"].to_pylist(), selected["pool_row"].to_pylist()
        self._ids = {sample_id: place for place, sample_id in enumerate(ids)}
        self._marks = {name_mark(sample_id): place for place, sample_id in enumerate(ids)}
        self._rows = {f"{file}#row={row}": place for place, (file, row) in enumerate(zip(files, rows, strict=True))}

    def of(self, answer: Answer) -> Claim:
        """The row of an answer; of none where id and name belong to two rows: somebody has edited one of them."""
        named = self._by_name(answer.image)
        if answer.sample_id is None:
            return Claim(named)
        known = self._ids.get(answer.sample_id)
        if named is not None and named != known:
            return Claim(None, f"the id {answer.sample_id!r} beside the image {answer.image}")
        return Claim(known)

    def _by_name(self, image: str) -> int | None:
        plain = unquote(image)
        parts = plain.split("/")
        marks = [self._marks[mark] for mark in _MARK.findall(parts[-1]) if mark in self._marks]
        if marks:
            return marks[-1]
        if "#row=" not in plain:
            return None
        tails = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((self._rows[tail] for tail in tails if tail in self._rows), None)
