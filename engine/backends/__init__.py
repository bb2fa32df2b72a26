"""Runtimes that can execute a bundle's graphs."""

from engine.backends.base import (
    Backend,
    BackendOptions,
    CompileError,
    Module,
    Precision,
    ShapeError,
    Source,
    create,
    names,
)

__all__ = [
    "Backend",
    "BackendOptions",
    "CompileError",
    "Module",
    "Precision",
    "ShapeError",
    "Source",
    "create",
    "names",
]
