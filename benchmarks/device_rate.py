"""How many images a second does one device score, model alone and decoding included, and what share of its bound?

Needs neither Ray nor Arrow. On a GPU with the paper's model: `python -m benchmarks.device_rate --device cuda`; on a CPU
within seconds: `python -m benchmarks.device_rate --estimator hourglass-small --batch-sizes 16 --images 128`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from model.bundle import Bundle
from model.device import DTYPES
from model.objective import METHODS
from model.pose_model import PoseModel, make_spec
from model.predictor import Predictor
from model.roofline import bound, count_work, measure_device
from model.skeleton import LSP

_IMAGE_SIZE = 256
_NUM_DISTINCT = 64
_REPEATS = 5
_HEADER = ("batch", "model", "predictor", "predictor ÷ model", "bound", "model ÷ bound", "decode", "wait", "compute")


def main() -> None:
    """Prints the machine, one table row a batch size, and the kernels that take longest."""
    options = _parse()
    device = torch.device(options.device)
    torch.manual_seed(0)
    spec = make_spec(options.estimator, method=options.method, skeleton=LSP)
    images, boxes = _images(options.images)
    print(_machine(device, options))
    rows = []
    for batch_size in options.batch_sizes:
        predictor = Predictor(
            Bundle(model=PoseModel(spec).eval(), bundle_id="random weights"),
            device=options.device,
            batch_size=batch_size,
            decode_threads=options.decode_threads,
            precision=options.precision,
            is_compiled=options.compiled,
        )
        crops = torch.randint(0, 256, (batch_size, spec.input_size, spec.input_size, 3), dtype=torch.uint8).to(device)
        rows.append(_row(predictor, crops, images, boxes))
    print("\n".join(_markdown(rows)))
    if options.kernels:
        print(_profile(predictor, crops, num_rows=options.kernels))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--estimator", choices=("hourglass", "hourglass-small"), default="hourglass")
    parser.add_argument("--method", choices=tuple(METHODS), default="keypoint")
    parser.add_argument("--precision", choices=tuple(DTYPES))
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--decode-threads", type=int, default=os.cpu_count())
    parser.add_argument("--images", type=int, default=4096, help="images of one call of the predictor")
    parser.add_argument("--kernels", type=int, default=0, help="kernels to list, for the last batch size")
    return parser.parse_args()


def _images(count: int) -> tuple[list[bytes], list[np.ndarray]]:
    """JPEGs of smooth noise, about 20 KB each, and a box in each."""
    rng = np.random.default_rng(0)
    distinct = []
    for _ in range(_NUM_DISTINCT):
        noise = rng.integers(0, 256, (_IMAGE_SIZE, _IMAGE_SIZE, 3), np.uint8)
        distinct.append(cv2.imencode(".jpg", cv2.GaussianBlur(noise, (0, 0), 2))[1].tobytes())
    return [distinct[i % _NUM_DISTINCT] for i in range(count)], [np.array([60.0, 40.0, 190.0, 220.0])] * count


def _row(predictor: Predictor, crops: torch.Tensor, images: list[bytes], boxes: list[np.ndarray]) -> tuple[str, ...]:
    model, batch_size = predictor.device_model, len(crops)
    passes = max(1, len(images) // batch_size // 4)

    def run_model() -> None:
        for _ in range(passes):
            model.compute(crops, num_rows=batch_size)

    model_rate = passes * batch_size / _median_seconds(run_model, crops.device)
    before = dict(predictor.seconds)
    rate = len(images) / _median_seconds(lambda: predictor.predict(images, boxes), crops.device)
    spent = {stage: (predictor.seconds[stage] - before[stage]) / (_REPEATS + 1) for stage in before}
    limit = _bound(predictor, crops)
    stages = [f"{1e6 * spent[stage] / len(images):.0f} us" for stage in ("decode", "wait", "compute")]
    rates = (f"{model_rate:.0f}", f"{rate:.0f}", f"{rate / model_rate:.0%}", limit[0], f"{model_rate / limit[1]:.0%}")
    rows = f"{batch_size}" if model.rows_per_pass == batch_size else f"{batch_size}, in {model.rows_per_pass}"
    return (rows, *rates, *stages)


def _bound(predictor: Predictor, crops: torch.Tensor) -> tuple[str, float]:
    """The bound in words, and as images a second."""
    dtype = DTYPES[predictor.device_model.precision]
    model = PoseModel(predictor.spec).eval().to(crops.device)
    work = count_work(model, crops[:1], batch_size=len(crops), dtype=dtype)
    rates = measure_device(crops.device, dtype=dtype)
    at_most = bound(work, rates)
    print(
        f"B = {len(crops)}: {work.flops / 1e9:.3g} GFLOP and {work.bytes / 1e6:.4g} MB an image; "
        f"device {rates.flops_per_s / 1e12:.3g} TFLOP/s, {rates.bytes_per_s / 1e12:.3g} TB/s"
    )
    return f"{at_most.images_per_s:.0f} ({at_most.limit})", at_most.images_per_s


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    def seconds() -> float:
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    seconds()
    return statistics.median(seconds() for _ in range(_REPEATS))


def _profile(predictor: Predictor, crops: torch.Tensor, *, num_rows: int) -> str:
    """The operations or kernels that take longest in three passes."""
    is_cuda = crops.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as recorded:
        for _ in range(3):
            predictor.device_model.compute(crops, num_rows=len(crops))
        if is_cuda:
            torch.cuda.synchronize(crops.device)
    order = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    return str(recorded.key_averages().table(sort_by=order, row_limit=num_rows, max_name_column_width=80))


def _machine(device: torch.device, options: argparse.Namespace) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"{name}; torch {torch.__version__}; {options.estimator}, {options.method}; {options.decode_threads} decode "
        f"threads; images/s, medians of {_REPEATS}; time by stage an image, decoding of all threads together"
    )


def _markdown(rows: list[tuple[str, ...]]) -> list[str]:
    table = [_HEADER, ("---",) * len(_HEADER), *rows]
    return ["| " + " | ".join(row) + " |" for row in table]


if __name__ == "__main__":
    main()
