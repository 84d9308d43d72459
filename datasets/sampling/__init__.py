"""Geometries to label: conformers, rattling, normal modes and MD, thinned to what differs; one seed, one set."""

from .config import MDConfig, SamplingConfig
from .sample import Sample, sample_geometries, sample_with_notes
from .selection import descriptors, drop_duplicates, farthest_points

__all__ = [
    "MDConfig",
    "Sample",
    "SamplingConfig",
    "descriptors",
    "drop_duplicates",
    "farthest_points",
    "sample_geometries",
    "sample_with_notes",
]
