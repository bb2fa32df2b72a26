"""A server that cannot start says why: bundles, settings and addresses that are refused."""

import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest


def test_an_address_in_use_is_named(pixart: Any, tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = pixart("serve", "--bundle", str(tiny_bundle), "--port", str(port))
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr


def test_a_backend_that_is_not_installed_is_named(pixart: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text("raise ImportError('not here')")
    arguments = ["serve", "--backend", "onnxruntime", "--bundle", str(tiny_bundle), "--port", "0"]
    done = pixart(*arguments, PYTHONPATH=str(tmp_path))
    assert done.returncode == 1
    assert "PIXART_BACKEND: onnxruntime is not installed" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "onnxruntime", "--precision", "bf16"], "onnxruntime runs float32 graphs in f32, not in bf16"),
        (["--backend", "openvino", "--devices", "ABACUS"], "device ABACUS: OpenVINO finds "),
        (["--backend", "tensorrt_rtx", "--devices", "GPU.1"], "device 'GPU.1' is not cuda or cuda:<number>"),
    ],
)
@pytest.mark.parametrize("command", ["serve --port 0", "generate apple", "doctor"])
def test_what_a_backend_does_not_have_is_said_in_one_line(
    pixart: Any, tiny_bundle: Path, command: str, arguments: list[str], message: str
) -> None:
    done = pixart(*command.split(), "--bundle", str(tiny_bundle), *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and message in done.stderr.splitlines()[-1]


@pytest.fixture
def copied_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def serve_refuses(pixart: Any, bundle: Path) -> str:
    done: subprocess.CompletedProcess[str] = pixart("serve", "--bundle", str(bundle), "--port", "0")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", ["weights/dit.safetensors", "denoiser.onnx", "tokenizer.json"])
def test_a_changed_byte_is_refused_with_the_file_named(pixart: Any, copied_bundle: Path, name: str) -> None:
    content = bytearray((copied_bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copied_bundle / name).write_bytes(content)
    assert name in serve_refuses(pixart, copied_bundle)


@pytest.mark.parametrize("name", ["weights/vae.safetensors", "vae_decoder.onnx", "manifest.json"])
def test_a_missing_file_is_refused_by_name(pixart: Any, copied_bundle: Path, name: str) -> None:
    (copied_bundle / name).unlink()
    assert name in serve_refuses(pixart, copied_bundle)


def test_a_newer_format_is_refused(pixart: Any, copied_bundle: Path) -> None:
    manifest = copied_bundle / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format_version": 2}))
    line = serve_refuses(pixart, copied_bundle)
    assert "manifest.json" in line and "format_version" in line and "2" in line


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("PIXART_PORT", "tcp://10.0.0.1:80", "PIXART_PORT: 'tcp://10.0.0.1:80' is not a whole number"),
        ("PIXART_PORT", "70000", "PIXART_PORT: 70000 is not between 0 and 65535"),
        ("PIXART_QUEUE", "0", "PIXART_QUEUE: 0 is not between 1 and"),
        ("PIXART_BACKEND", "abacus", "PIXART_BACKEND: 'abacus' is not one of openvino"),
        ("PIXART_PRECISION", "f8", "PIXART_PRECISION: 'f8' is not one of"),
        ("PIXART_BUNDLE", "/nowhere", "/nowhere: is not a folder"),
    ],
)
def test_wrong_settings_are_named(pixart: Any, variable: str, value: str, message: str) -> None:
    done = pixart("serve", **{variable: value})
    assert done.returncode == 1 and message in done.stderr
