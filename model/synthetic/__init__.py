"""A synthetic fleet: pose images with their truth, rare hard slices and unreadable files, deterministic by seed."""

from model.synthetic.fleet import Sample, generate_fleet
from model.synthetic.plan import FRAMES_PER_DRIVE, SLICES

__all__ = ["FRAMES_PER_DRIVE", "SLICES", "Sample", "generate_fleet"]
