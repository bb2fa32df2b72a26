import json
import subprocess
import sys
from typing import Any

import pytest

from models.config import DiTConfig, LatentConfig, PixArtConfig, SamplerConfig, from_json, to_json


def config() -> PixArtConfig:
    return PixArtConfig(
        dit=DiTConfig(sample_size=16, depth=4, width=48, heads=4, interpolation_scale=0.5, size_conditions=True),
        sampler=SamplerConfig(beta_end=0.015),
        latent=LatentConfig(mean=(0.1, 0.2), std=(1.5, 2.5)),
        text={"d_model": 8},
        vae={"block_out_channels": [8, 8]},
        controlnet_depth=2,
    )


def test_json_and_back() -> None:
    assert from_json(json.loads(json.dumps(to_json(config())))) == config()


def changed(path: str, value: Any) -> dict[str, Any]:
    data = to_json(config())
    *parents, last = path.split(".")
    part = data
    for parent in parents:
        part = part[parent]
    part[last] = value
    return data


@pytest.mark.parametrize("path", ["colour", "dit.colour", "sampler.colour", "latent.colour"])
def test_unknown_keys_are_named(path: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key {path}"):
        from_json(changed(path, 1))


@pytest.mark.parametrize("path", ["dit", "latent", "vae", "dit.sample_size", "latent.std"])
def test_missing_keys_are_named(path: str) -> None:
    data = to_json(config())
    *parents, last = path.split(".")
    part = data
    for parent in parents:
        part = part[parent]
    del part[last]
    with pytest.raises(ValueError, match=f"missing key {path}"):
        from_json(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("dit", [], "dit must be an object"),
        ("dit.depth", 0, "dit.depth"),
        ("dit.heads", 5, "dit.heads"),
        ("dit.width", 16, "divisible by 3"),
        ("dit.sample_size", 15, "dit.sample_size"),
        ("sampler.origin_steps", 1001, "sampler.origin_steps"),
        ("sampler.beta_end", 1.0, "betas"),
        ("latent.mean", [0.0], "latent.mean"),
        ("latent.std", [1.0, 0.0], "latent.std"),
        ("controlnet_depth", 4, "controlnet_depth"),
        ("max_tokens", 0, "max_tokens"),
    ],
)
def test_impossible_values_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_json(changed(path, value))


def test_reading_a_configuration_needs_no_torch() -> None:
    code = "import sys, models.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
