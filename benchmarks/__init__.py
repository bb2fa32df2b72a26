"""Measurements, each one command, with a peer measured in the same run."""
