"""Geometries to label: conformers, rattling, normal modes and MD, thinned to what differs; one seed, one set."""

from .config import MDConfig, SamplingConfig, TrajectoryConfig
from .sample import Sample, sample_geometries, sample_with_notes
from .selection import descriptors, drop_duplicates, farthest_points
from .trajectories import TrajectoryResult, run_trajectories

__all__ = [
    "MDConfig",
    "Sample",
    "SamplingConfig",
    "TrajectoryConfig",
    "TrajectoryResult",
    "descriptors",
    "drop_duplicates",
    "farthest_points",
    "run_trajectories",
    "sample_geometries",
    "sample_with_notes",
]
