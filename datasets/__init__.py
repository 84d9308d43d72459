"""Structures in, labels on them, HDF5 out."""
