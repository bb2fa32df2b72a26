"""A bundle folder that is sound in form, for tests of the loader: its graphs are never run."""

import hashlib
import json
from pathlib import Path
from typing import Any


def manifest(files: dict[str, bytes]) -> dict[str, Any]:
    latents = {"name": "latents", "dtype": "float32", "shape": ["B", 4, "H", "W"]}

    position = {"name": "position", "dtype": "float32", "shape": [1, "N", 48]}

    def module(name: str) -> dict[str, Any]:
        return {
            "graph": f"{name}.onnx",
            "weights": ["weights/all.safetensors"],
            "inputs": [latents, position] if name == "denoiser" else [latents],
            "outputs": [{"name": "image", "dtype": "uint8", "shape": ["B", "8*H", "8*W", 3]}],
        }

    return {
        "format_version": 1,
        "name": "sound",
        "licence": "Apache-2.0",
        "origin": "made for a test",
        "model": {"any": "thing"},
        "sampler": {
            "train_timesteps": 1000,
            "beta_start": 0.0001,
            "beta_end": 0.02,
            "origin_steps": 50,
            "sigma_data": 0.5,
            "timestep_scaling": 10.0,
        },
        "positions": {"width": 48, "patch_size": 2, "base_size": 4, "interpolation_scale": 1.0},
        "size_conditions": False,
        "max_tokens": 24,
        "steps": {"default": 4, "min": 1, "max": 8},
        "images": {
            "default": {"width": 64, "height": 64},
            "allowed": [{"width": 64, "height": 64}, {"width": 96, "height": 48}],
        },
        "dimensions": {
            "B": {"min": 1, "max": 4},
            "L": {"min": 8, "max": 24, "multiple": 8},
            "H": {"min": 6, "max": 8, "multiple": 2},
            "W": {"min": 8, "max": 12, "multiple": 2},
            "N": {"min": 16, "max": 18},
        },
        "modules": {name: module(name) for name in ("text_encoder", "denoiser", "vae_decoder")},
        "files": {
            name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
            for name, content in files.items()
        },
    }


def write_folder(folder: Path) -> dict[str, Any]:
    """Write a sound bundle and return its manifest."""
    files = {
        "tokenizer.json": b"{}",
        "text_encoder.onnx": b"text",
        "denoiser.onnx": b"denoise",
        "vae_decoder.onnx": b"decode",
        "weights/all.safetensors": bytes(range(256)) * 64,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    data = manifest(files)
    write_manifest(folder, data)
    return data


def write_manifest(folder: Path, data: Any) -> None:
    (folder / "manifest.json").write_text(json.dumps(data))
