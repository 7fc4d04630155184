"""Synthetic images that one core makes a second, from drawing to JPEG bytes."""

from __future__ import annotations

import argparse
import time

import cv2

from model.synthetic import generate_fleet


def main() -> None:
    """Prints the rate in images per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-samples", type=int, default=2000)
    num_samples = parser.parse_args().num_samples
    cv2.setNumThreads(1)
    started = time.perf_counter()
    num_bytes = sum(len(sample.image) for sample in generate_fleet(seed=0, num_samples=num_samples))
    seconds = time.perf_counter() - started
    print(f"{num_samples / seconds:.0f} images/s, {num_bytes / num_samples / 1024:.1f} KiB an image, one core")


if __name__ == "__main__":
    main()
