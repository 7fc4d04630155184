"""Plan: the measurements by name, those that matter most first.

# B batch
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch

from benchmarks.gpu.agreement import agreement
from benchmarks.gpu.checks import CHECKS, CUDA_CHECKS, Check, title
from benchmarks.gpu.device import device_rate
from benchmarks.gpu.machine import has
from benchmarks.gpu.networks import networks, photos
from benchmarks.gpu.profiling import profile_scoring, profile_training
from benchmarks.gpu.scoring import scorer_rate
from benchmarks.gpu.training import training_rate
from model.choices import Precision
from model.pose_model import ModelSpec

PIECES = ("check", "device", "scorer", "training", "profile", "agreement")
MODES = ("eager", "compiled")


class Measurement(NamedTuple):
    """One thing to measure; its name begins with its piece."""

    name: str
    run: Callable[[], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Numbers of images and batch sizes of the measurements."""

    batch_sizes: tuple[int, ...]
    batch_size: int  # B of all that is measured with one alone
    training_batch_size: int
    device_images: int
    scorer_images: int
    training_images: int
    agreement_images: int
    agreement_steps: int  # of training before it, so that heatmaps and statistics of batch norms are of the images


FULL = Sizes(
    batch_sizes=(64, 128, 256, 512, 1024),
    batch_size=256,
    training_batch_size=64,
    device_images=8192,
    scorer_images=16384,
    training_images=4096,
    agreement_images=2000,
    agreement_steps=100,
)
TINY = Sizes(
    batch_sizes=(16, 32),
    batch_size=16,
    training_batch_size=16,
    device_images=32,
    scorer_images=64,
    training_images=32,
    agreement_images=100,
    agreement_steps=4,
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Device, sizes, workers and inputs of the measurements."""

    device: torch.device
    sizes: Sizes
    is_tiny: bool
    modes: tuple[str, ...]  # of MODES
    workers: int  # processes of a DataLoader, threads of ours
    folder: str | None  # of JPEGs; None: the synthetic fleet
    bundle: str | None  # folder of a model bundle whose scores are compared; None: a network after a few steps

    @property
    def is_cuda(self) -> bool:
        """True for a GPU."""
        return self.device.type == "cuda"

    @property
    def is_compiled(self) -> bool:
        """True if pieces that know one mode alone are measured compiled: on a GPU, as by default."""
        return self.is_cuda and "compiled" in self.modes

    @property
    def precisions(self) -> tuple[Precision, ...]:
        """Precisions whose rates are measured, the device's default first."""
        return ("bfloat16", "float16") if self.is_cuda else ("float32", "bfloat16")


def plan(setting: Setting, pieces: Sequence[str]) -> list[Measurement]:
    """The measurements of some pieces; of the device's rates those at the default batch and precision come early."""
    specs = networks(is_tiny=setting.is_tiny)
    hourglasses = dict(list(specs.items())[:2])
    rates = list(_device_rates(setting, specs))
    main = [each for each in rates if f"; {setting.precisions[0]}; {setting.sizes.batch_size};" in each.name]
    found = [
        *_checks(setting),
        *main,
        *_rates_of_photos(setting, hourglasses),
        *(each for each in rates if each not in main),
    ]
    return [each for each in found if each.name.partition(":")[0] in pieces]


def _checks(setting: Setting) -> Iterator[Measurement]:
    def passed(check: Check) -> dict[str, Any]:
        check(setting.device)
        return {"passed": True}

    for check in (*CHECKS, *(CUDA_CHECKS if setting.is_cuda else ())):
        if setting.modes != MODES and ("compiled" in title(check)):
            continue
        yield Measurement(f"check: {title(check)}", partial(passed, check))


def _device_rates(setting: Setting, specs: dict[str, ModelSpec]) -> Iterator[Measurement]:
    for precision in setting.precisions:
        for batch_size in setting.sizes.batch_sizes:
            for name, spec in specs.items():
                for mode in setting.modes:
                    yield Measurement(
                        f"device: {name}; {precision}; {batch_size}; {mode}",
                        partial(
                            device_rate,
                            spec,
                            device=setting.device,
                            precision=precision,
                            batch_size=batch_size,
                            is_compiled=mode == "compiled",
                            images=setting.sizes.device_images,
                        ),
                    )


def _rates_of_photos(setting: Setting, specs: dict[str, ModelSpec]) -> Iterator[Measurement]:
    """All that is measured over photos; they are made when a measurement runs."""
    sizes, (last, spec_of_last) = setting.sizes, list(specs.items())[-1]
    predicting = {"batch_size": sizes.batch_size, "is_compiled": setting.is_compiled}
    training = {"batch_size": sizes.training_batch_size}
    agreeing = {
        **training,
        "is_compiled": setting.is_compiled,
        "folder": setting.bundle,
        "num_steps": sizes.agreement_steps,
        "precisions": ("float32", *(each for each in setting.precisions if each != "float32")),
    }

    def of(
        name: str, measure: Callable[..., dict[str, Any]], spec: ModelSpec, count: int, how: dict[str, Any]
    ) -> Measurement:
        def run() -> dict[str, Any]:
            some = photos(count, folder=setting.folder, seed=1 if measure is agreement else 0)
            return measure(spec, some, device=setting.device, workers=setting.workers, **how)

        return Measurement(name, run)

    for name, spec in specs.items():
        yield of(f"scorer: {name}", scorer_rate, spec, sizes.scorer_images, predicting)
    if has("pyarrow"):
        yield of(f"training: {last}", training_rate, spec_of_last, sizes.training_images, training)
    yield of(f"profile: scoring, {last}", profile_scoring, spec_of_last, 8 * sizes.batch_size, predicting)
    yield of(f"profile: training, {last}", profile_training, spec_of_last, 8 * sizes.training_batch_size, training)
    for name, spec in ({"the bundle": spec_of_last} if setting.bundle else specs).items():
        yield of(f"agreement: {name}", agreement, spec, sizes.agreement_images, agreeing)
