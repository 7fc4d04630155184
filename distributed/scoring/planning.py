"""A plan of scoring a pool: rates measured on a sample of it, the slowest stage, and the hours for the whole pool."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import torch

from distributed.schema import IN_FLIGHT
from distributed.scoring.options import ScoringOptions
from distributed.scoring.pipeline import bins_of, join_cluster
from distributed.scoring.score import check_row_groups
from distributed.scoring.scorer import make_predictor
from distributed.storage.bundles import read_description
from distributed.storage.champion import find_bundle
from distributed.storage.location import Location, locate
from distributed.tables.manifest import Manifest, Segment, freeze_pool
from distributed.tables.reader import Bin, boxes, image_buffers, plan_bins, salvage_bin
from distributed.tables.references import find_root, with_images
from model.device import DTYPES
from model.errors import ImageError, InputError
from model.example import make_crop
from model.pose_model import PoseModel
from model.predictor import Predictor
from model.roofline import Bound, bound, count_work, measure_device

_PLACES = 4  # of the pool that the sample is taken from
_ROWS_PER_PLACE = 256
_MODEL_S = 1.0  # that the model is measured for, and the scorer too
_SHORT = 0.9  # of a rate: below it, one stage holds the other back


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Images a second of one process, each stage on its own, and together as an actor runs them."""

    read: float
    decode_thread: float  # with one thread
    model: float
    scorer: float  # decoding and model
    bound: Bound


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Measured rates, and their consequences for the whole pool."""

    manifest: Manifest
    rates: Rates
    stages: dict[str, float]  # images a second of all processes together, in the order of the pipeline
    bottleneck: str
    images_per_second: float
    advice: list[str]

    @property
    def seconds(self) -> float:
        """Seconds for the whole pool, once the processes have started."""
        return self.manifest.num_rows / self.images_per_second

    @property
    def share_of_bound(self) -> float:
        """An actor's rate as a share of the most that arithmetic and memory of the device allow."""
        return self.rates.scorer / self.rates.bound.images_per_s


def plan_scoring(pool: str, *, model: str, options: ScoringOptions) -> Plan:
    """Measures a sample of a pool in a process as an actor would be; writes nothing.

    Raises:
        InputError: pool, bundle or cluster cannot be used, or no sampled image can be read.
        RunFailedError: storage or compute failed.
    """
    bundle = find_bundle(model)
    spec = read_description(bundle).spec  # refused before the pool is listed
    manifest = freeze_pool(locate(pool), image_root=find_root(options.image_root))
    check_row_groups(manifest)  # refused before anything is measured
    measure = partial(_measure, manifest.location, manifest.images, _sample(manifest), bundle)
    options = join_cluster(options, num_rows=manifest.num_rows, input_size=spec.input_size)
    if options.debug:
        return _conclude(manifest, measure(options), options, cores=0)
    from distributed.cluster.resources import real_cpus
    from distributed.cluster.work import run_tasks

    (rates,) = run_tasks(measure, [options], cpus=options.cpus, gpus=options.gpus_per_actor)
    return _conclude(manifest, rates, options, cores=real_cpus())


def _sample(manifest: Manifest) -> list[Bin]:
    """The first rows of files at a few places of the pool."""
    segments = manifest.segments
    chosen = segments[:: math.ceil(len(segments) / _PLACES)]
    return [plan_bins([Segment(file, 0, min(file.num_rows, _ROWS_PER_PLACE))])[0] for file, _, _ in chosen]


def _measure(
    location: Location, root: Location, bins: Sequence[Bin], model: Location, options: ScoringOptions
) -> Rates:
    """The rates of one process: this one."""
    tables, read_s = _timed(lambda: [*_read(location, root, bins)])
    images = [image for rows in tables for image in image_buffers(rows)]
    regions = [box for rows in tables for box in boxes(rows)]
    predictor = make_predictor(model, options)
    num_read, decode_s = _timed(lambda: _decode(predictor, images, regions))
    if not num_read:
        raise InputError(f"{location.uri}: expected readable images, found none in a sample of {len(images)}")
    repeated = max(1, math.ceil(4 * predictor.batch_size / len(images)))  # a few full batches at least
    score_s = _repeated(lambda: predictor.predict(images * repeated, regions * repeated))
    # A row group is read whole: of the time, only the share of the rows that were wanted counts. Of references, what
    # takes time is the images of these rows.
    share = len(images) / sum(
        segment.stop - segment.start if segment.file.has_references else segment.file.row_group_rows[0]
        for bin_ in bins
        for segment in bin_.segments
    )
    return Rates(
        read=len(images) / read_s / min(1.0, share),
        decode_thread=len(images) / decode_s,
        model=_model_rate(predictor),
        scorer=len(images) * repeated / score_s,
        bound=_bound(predictor, torch.device(options.device)),
    )


def _read(location: Location, root: Location, bins: Sequence[Bin]) -> Iterator[pa.Table]:
    for bin_ in bins:
        for rows in salvage_bin(location, bin_, on_bad_file=_ignore):
            yield from with_images(rows, root, columns=IN_FLIGHT.names)


def _decode(predictor: Predictor, images: Sequence[memoryview], regions: Sequence[Any]) -> int:
    """Number of images that could be decoded."""
    num_read = 0
    for image, region in zip(images, regions, strict=True):
        try:
            make_crop(image, region, spec=predictor.spec)
            num_read += 1
        except ImageError:
            continue
    return num_read


def _model_rate(predictor: Predictor) -> float:
    model, size = predictor.device_model, predictor.spec.input_size
    pixels = torch.zeros((predictor.batch_size, size, size, 3), dtype=torch.uint8)
    return len(pixels) / _repeated(lambda: model.start(pixels, num_rows=len(pixels)).fetch())


def _bound(predictor: Predictor, device: torch.device) -> Bound:
    spec, dtype = predictor.spec, DTYPES[predictor.device_model.precision]
    pixels = torch.zeros((1, spec.input_size, spec.input_size, 3), dtype=torch.uint8, device=device)
    plain = PoseModel(spec).eval().to(device)  # weights don't matter
    work = count_work(plain, pixels, batch_size=predictor.batch_size, dtype=dtype)
    return bound(work, measure_device(device, dtype=dtype))


def _timed(run: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    result = run()
    return result, time.perf_counter() - started


def _repeated(run: Callable[[], Any]) -> float:
    """Seconds of a run, over so many as fit into a second, after one to warm up."""
    run()
    count, started = 0, time.perf_counter()
    while not count or time.perf_counter() - started < _MODEL_S:
        run()
        count += 1
    return (time.perf_counter() - started) / count


def _ignore(path: str, reason: str) -> None:
    """A file of the sample that changed gives no rows; the run itself will say so."""


def _conclude(manifest: Manifest, rates: Rates, options: ScoringOptions, *, cores: float) -> Plan:
    """The plan for so many real cores of all machines together; 0: one process does one thing after the other."""
    fitting = max(1.0, cores / options.cpus) if options.device == "cpu" else math.inf
    actors = min(options.max_actors, fitting)
    spare = cores - actors * options.cpus  # cores that read while the others score
    stages = {
        "read": rates.read * max(1.0, spare),
        "decode": rates.decode_thread * options.threads * actors,
        "model": rates.model * actors,
        "decode and model": rates.scorer * actors,
    }
    shared = 1 / (1 / (rates.read * max(1.0, cores)) + 1 / stages["decode and model"])
    return Plan(
        manifest=manifest,
        rates=rates,
        stages=stages,
        bottleneck=min(("read", "decode", "model"), key=lambda stage: stages[stage]),
        images_per_second=min(stages["read"], stages["decode and model"]) if spare >= 1 else shared,
        advice=[
            *check_row_groups(manifest),
            *_advice(stages, rates, options, num_bins=len(bins_of(manifest.segments, options)), cores=cores),
        ],
    )


def _advice(
    stages: dict[str, float], rates: Rates, options: ScoringOptions, *, num_bins: int, cores: float
) -> list[str]:
    """Suggestions, a line each."""
    advice = []
    if stages["decode"] < _SHORT * stages["model"]:
        threads = math.ceil(rates.model / rates.decode_thread)
        advice.append(
            f"decoding holds the model back: {threads} decode threads an actor would keep up with it "
            f"(--decode-threads {threads}, with as many CPUs: --cpus-per-actor {threads})"
        )
    if stages["read"] < _SHORT * stages["decode and model"]:
        advice.append("reading holds the actors back: leave more CPUs to it, or move the pool nearer")
    if num_bins < options.max_actors:
        advice.append(f"{options.max_actors} actors are more than the {num_bins} pieces that the pool can be read in")
    if cores and options.max_actors * options.cpus > cores and options.device == "cpu":
        advice.append(f"{options.max_actors} actors of {options.cpus:g} CPUs share {cores:g} real ones")
    if rates.model < rates.bound.images_per_s / 2 and options.device == "cuda":
        advice.append("the model is far from its bound: try a larger --batch-size")
    if options.device == "cpu" and stages["model"] <= stages["decode"]:
        advice.append("the model takes most of the time: a GPU (--gpus-per-actor 1) or more actors would help")
    return advice
