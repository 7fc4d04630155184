"""A synthetic fleet: pose images with their truth, rare hard slices and unreadable files, deterministic by seed."""

from model.synthetic.fleet import Sample, generate_fleet, generate_frames
from model.synthetic.plan import FRAMES_PER_DRIVE, SLICES, frames_by_slice

__all__ = ["FRAMES_PER_DRIVE", "SLICES", "Sample", "frames_by_slice", "generate_fleet", "generate_frames"]
