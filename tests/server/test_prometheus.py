"""The metrics, as Prometheus itself judges and stores them."""

import shutil
import subprocess

import httpx
import pytest

pytestmark = pytest.mark.system


def program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed; Debian's package prometheus brings it (make system-packages)"
    return found


def test_promtool_finds_nothing_to_mend(client: httpx.Client) -> None:
    client.post("/v1/images/generations", json={"prompt": "an apple"})
    text = client.get("/metrics").text
    done = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr
