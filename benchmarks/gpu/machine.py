"""Machine: what it has, and stand-ins for what it lacks."""

from __future__ import annotations

import importlib.util
import os
import platform
import re
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Package: what happens without it.
REPLACED = {"simplejpeg": "JPEGs are decoded by OpenCV, in both arms of every comparison"}
OPTIONAL = {
    "transformers": "no ViTPose-B",
    "pyarrow": "no training rate",
    "pydantic": "the training rate is of the loop's parts: reading, decoding, steps; not of checkpoints and records",
    "s3fs": "the training rate is of the loop's parts, as without pydantic",
    "triton": "no compiled models on a GPU",
}
_WITH_SIZE = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers that tell height and width


def has(name: str) -> bool:
    """True if a package can be imported; a stand-in is none."""
    if isinstance(sys.modules.get(name), _StandIn):
        return False
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def missing() -> dict[str, str]:
    """Packages that are not there, and what happens without each."""
    return {name: effect for name, effect in {**REPLACED, **OPTIONAL}.items() if not has(name)}


def replace_missing() -> None:
    """Puts stand-ins where packages are missing that the model's modules import."""
    if "simplejpeg" not in sys.modules and not has("simplejpeg"):
        sys.modules["simplejpeg"] = _opencv_as_simplejpeg()


def describe(device: str) -> dict[str, Any]:
    """The machine in plain values; `device` is there."""
    is_cuda = device.startswith("cuda")
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if is_cuda else f"CPU, {torch.get_num_threads()} threads",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }
    if is_cuda:
        properties = torch.cuda.get_device_properties(device)
        found |= {
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "multiprocessors": properties.multi_processor_count,
            "capability": ".".join(map(str, torch.cuda.get_device_capability(device))),
            "cudnn": torch.backends.cudnn.version(),
        }
    packages = {"opencv": "cv2", "numpy": "numpy", "simplejpeg": "simplejpeg", "transformers": "transformers"}
    return found | {name: _version(module) for name, module in packages.items()}


def slug(machine: dict[str, Any]) -> str:
    """The machine's name for the name of a file: cpu2, nvidia-h100-80gb-hbm3."""
    if machine["device"].startswith("CPU"):
        return f"cpu{machine['cores']}"
    return re.sub(r"[^a-z0-9]+", "-", machine["device"].lower()).strip("-")


def _version(name: str) -> str:
    if not has(name):
        return "missing"
    if name in sys.modules:
        return str(getattr(sys.modules[name], "__version__", "there"))
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "there"


class _StandIn(ModuleType):
    """A module in another's place."""


def _opencv_as_simplejpeg() -> ModuleType:
    """Stand-in for simplejpeg by OpenCV: the functions that `model` calls. It always decodes at full scale."""
    import cv2

    def decode_jpeg_header(data: Any, **_: Any) -> tuple[int, int, str, str]:
        height, width = jpeg_size(bytes(data))
        return height, width, "YCbCr", "420"

    def decode_jpeg(data: Any, **_: Any) -> NDArray[np.uint8]:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is None:
            raise ValueError("OpenCV can't decode it")
        return pixels

    def encode_jpeg(pixels: NDArray[np.uint8], quality: int = 85, **_: Any) -> bytes:
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        return cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1].tobytes()

    module = _StandIn("simplejpeg")
    module.encode_jpeg = encode_jpeg
    module.decode_jpeg_header = decode_jpeg_header
    module.decode_jpeg = decode_jpeg
    return module


def jpeg_size(data: bytes) -> tuple[int, int]:
    """Height and width by the header of a JPEG.

    Raises:
        ValueError: there is none.
    """
    at = 2  # behind the first marker; then marker (2 B), length (2 B), content
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _WITH_SIZE:
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise ValueError("JPEG without a header")
