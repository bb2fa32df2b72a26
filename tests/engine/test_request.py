from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.manifest import Manifest
from engine.request import GenerateRequest, InvalidRequest, validate
from tests.engine.folders import write_folder

SOUND = GenerateRequest("a red apple")


@pytest.fixture
def limits(tmp_path: Path) -> Manifest:
    return Manifest.model_validate(write_folder(tmp_path), strict=False)


def test_defaults_come_from_the_bundle(limits: Manifest) -> None:
    job = validate(SOUND, limits)
    assert (job.seed, job.steps, job.size.width, job.size.height, job.strength) == (0, 4, 64, 64, 1.0)


@pytest.mark.parametrize(
    "prompt", ["x", "x" * 1000, "🍎🍏", "تفاحة حمراء", "a\nb\tc", "\u202ered", "e\u0301", "\x7f", "  padded  "]
)
def test_any_text_within_the_limit_is_a_prompt(limits: Manifest, prompt: str) -> None:
    assert validate(replace(SOUND, prompt=prompt), limits).prompt == prompt


@pytest.mark.parametrize(
    ("changes", "field", "limit", "message"),
    [
        ({"prompt": ""}, "prompt", "1 to 1000", "is empty"),
        ({"prompt": " \n\u3000"}, "prompt", "1 to 1000", "is empty"),
        ({"prompt": "x" * 1001}, "prompt", "1 to 1000", "has 1001 characters"),
        ({"prompt": "x" * 10_000}, "prompt", "1 to 1000", "has 10000 characters"),
        ({"prompt": "a\0b"}, "prompt", "without NUL", "holds a NUL"),
        ({"prompt": "a\ud83c"}, "prompt", "Unicode", "unpaired surrogate"),
        ({"prompt": 5}, "prompt", "1 to 1000", "is not text"),
        ({"seed": -1}, "seed", "0 to 9223372036854775807", "is -1"),
        ({"seed": 2**63}, "seed", "0 to 9223372036854775807", "is 9223372036854775808"),
        ({"seed": 1.0}, "seed", "an integer", "is 1.0"),
        ({"seed": True}, "seed", "an integer", "is True"),
        ({"steps": 0}, "steps", "1 to 8", "is 0"),
        ({"steps": 9}, "steps", "1 to 8", "is 9"),
        ({"steps": "4"}, "steps", "1 to 8", "is '4'"),
        ({"width": 63}, "size", "64x64, 96x48", "is 63x64"),
        ({"width": 96}, "size", "64x64, 96x48", "is 96x64"),
        ({"height": 48}, "size", "64x64, 96x48", "is 64x48"),
        ({"strength": -0.1}, "strength", "0 to 2", "is -0.1"),
        ({"strength": 2.1}, "strength", "0 to 2", "is 2.1"),
        ({"strength": float("nan")}, "strength", "0 to 2", "is nan"),
        ({"strength": "1"}, "strength", "0 to 2", "is '1'"),
        ({"control": np.zeros((64, 64, 3), np.uint8)}, "control", "none", "was given"),
    ],
)
def test_a_value_outside_its_limit_is_refused_with_the_limit(
    limits: Manifest, changes: dict[str, Any], field: str, limit: str, message: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(replace(SOUND, **changes), limits)
    assert caught.value.field == field
    assert limit in caught.value.limit
    assert message in caught.value.message
    assert str(caught.value) == f"{field} {caught.value.message}; allowed: {caught.value.limit}"


@pytest.mark.parametrize(
    ("control", "kind", "field"),
    [
        (np.zeros((64, 64, 3), np.uint8), "sketch", "control_kind"),
        (np.zeros((64, 64, 4), np.uint8), "edges", "control"),
        (np.zeros((64, 64), np.uint8), "edges", "control"),
        (np.zeros((48, 96, 3), np.uint8), "edges", "control"),
        (np.zeros((64, 64, 3), np.float32), "edges", "control"),
        ([[0]], "edges", "control"),
    ],
)
def test_a_control_image_of_another_form_is_refused(tmp_path: Path, control: Any, kind: Any, field: str) -> None:
    data = write_folder(tmp_path)
    for name in ("denoiser_control", "vae_encoder", "edge_detector"):
        data["modules"][name] = data["modules"]["denoiser"]
    limits = Manifest.model_validate(data, strict=False)
    with pytest.raises(InvalidRequest) as caught:
        validate(replace(SOUND, control=control, control_kind=kind), limits)
    assert caught.value.field == field
    validate(replace(SOUND, control=np.zeros((64, 64, 3), np.uint8), control_kind="picture"), limits)
