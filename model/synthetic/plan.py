"""The plan of each drive, before anything is drawn: vehicle, time, light, motion, and its hard frames.

Cheap: the truth about millions of frames takes seconds. Every draw comes from a stream of its own, so that no frame
depends on which others were made.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from model.synthetic.pose import EVERYDAY, UNUSUAL

SLICES = ("night", "motion_blur", "occlusion", "unusual_pose", "unreadable")

FRAMES_PER_DRIVE = 24
FRAME_INTERVAL = timedelta(milliseconds=100)
FIRST_DAY = datetime(2026, 3, 2, tzinfo=UTC)
DRIVES_PER_DAY = 40
NUM_CARS, NUM_ROBOTS = 9, 3  # vehicles 0-8 drive outdoors, 9-11 in warehouses
CAMERAS = ("front", "left", "right", "rear")
HOURS = {"day": (7.0, 17.0), "dusk": (17.0, 19.0), "night": (19.5, 23.9)}

# Hard frames are dealt out block by block, so that their shares hold in small fleets too:
# of each 25 drives (600 frames) so many get a burst of so many frames. 90 of 600, some of which coincide.
DRIVES_PER_BLOCK = 25
DEALS = {"night": (1, 24), "motion_blur": (3, 6), "occlusion": (3, 8), "unusual_pose": (2, 12)}


class Stream(IntEnum):
    """The independent streams of randomness of a fleet."""

    BLOCK = 1
    PLAN = 2
    LOOK = 3
    FRAME = 4
    DAMAGE = 5


class Burst(NamedTuple):
    """Frames `first` to `last` of a drive, both included."""

    first: int
    last: int

    def depth(self, frame: int) -> int:
        """Frames from the nearer edge of the burst; 1 at its edges, 0 or less outside."""
        return min(frame - self.first, self.last - frame) + 1


@dataclass(frozen=True, kw_only=True)
class DrivePlan:
    """One drive: its metadata and what will be seen."""

    seed: int
    drive: int
    vehicle: str
    camera: str
    light: str
    scene: str
    started_at: datetime
    motion: str
    unusual_motion: str
    bursts: dict[str, Burst]  # by slice

    @property
    def group(self) -> str:
        """The drive's id."""
        return f"{self.vehicle}-d{self.drive:04d}"

    def slices(self, frame: int) -> tuple[str, ...]:
        """The hard slices that a frame belongs to, in the order of `SLICES`."""
        return tuple(s for s in SLICES if s in self.bursts and self.bursts[s].depth(frame) > 0)


def generator(stream: Stream, *, seed: int, drive: int, frame: int = 0) -> np.random.Generator:
    """The generator of one stream, the same whatever else is generated."""
    return np.random.default_rng([seed, stream, drive, frame])


def plan_drive(drive: int, *, seed: int) -> DrivePlan:
    """The plan of a fleet's drive number `drive`."""
    rng = generator(Stream.PLAN, seed=seed, drive=drive)
    bursts = {
        name: _draw_burst(rng, length=length)
        for (name, (_, length)), is_dealt in zip(DEALS.items(), _is_dealt(drive, seed=seed), strict=True)
        if is_dealt
    }
    light = "night" if "night" in bursts else str(rng.choice(["day", "dusk"], p=[0.85, 0.15]))
    vehicle = int(rng.integers(NUM_CARS + NUM_ROBOTS))
    camera = str(rng.choice(CAMERAS))
    street = "street_ahead" if camera in ("front", "rear") else "street_side"
    outdoors = str(rng.choice([street, "park"], p=[0.7, 0.3]))
    hour = timedelta(hours=float(rng.uniform(*HOURS[light])))
    return DrivePlan(
        seed=seed,
        drive=drive,
        vehicle=f"v{vehicle:02d}",
        camera=camera,
        light=light,
        scene=outdoors if vehicle < NUM_CARS else "warehouse",
        started_at=FIRST_DAY + timedelta(days=drive // DRIVES_PER_DAY) + hour,
        motion=str(rng.choice(list(EVERYDAY), p=list(EVERYDAY.values()))),
        unusual_motion=str(rng.choice(UNUSUAL)),
        bursts=bursts,
    )


def frames_by_slice(*, seed: int, first_drive: int, per_slice: int, num_easy: int, step: int) -> Iterator[int]:
    """Numbers of frames, from a drive on, until each hard slice has at least `per_slice` and `num_easy` have none.

    Every `step`-th frame of a drive is looked at, and taken if anything that it shows is still wanted; so a slice that
    comes together with a rarer one has more.
    """
    wanted = {**dict.fromkeys(DEALS, per_slice), "easy": num_easy}
    for drive in itertools.count(first_drive):
        plan = plan_drive(drive, seed=seed)
        for frame in range(0, FRAMES_PER_DRIVE, step):
            shown = plan.slices(frame) or ("easy",)
            if any(wanted[name] > 0 for name in shown):
                wanted.update({name: wanted[name] - 1 for name in shown})
                yield drive * FRAMES_PER_DRIVE + frame
            if max(wanted.values()) <= 0:
                return


def _is_dealt(drive: int, *, seed: int) -> list[bool]:
    """Flags for the entries of `DEALS`: True where this drive is among those of its block that get it."""
    block, place = divmod(drive, DRIVES_PER_BLOCK)
    rng = generator(Stream.BLOCK, seed=seed, drive=block)
    return [place in rng.permutation(DRIVES_PER_BLOCK)[:num_drives] for num_drives, _ in DEALS.values()]


def _draw_burst(rng: np.random.Generator, *, length: int) -> Burst:
    first = int(rng.integers(FRAMES_PER_DRIVE - length + 1))
    return Burst(first, first + length - 1)
