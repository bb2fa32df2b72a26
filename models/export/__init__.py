"""Checkpoint to bundle: ONNX graphs whose weights stay in safetensors files. docs/bundle.md describes the result."""

from models.export.bundle import Card, export_bundle
from models.export.modules import Parts

__all__ = ["Card", "Parts", "export_bundle"]
