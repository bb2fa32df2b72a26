"""The files that operators start from are well-formed, and speak of settings that exist."""

import argparse
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.compile import PACKAGES
from engine.shared import Layout, Shared
from server.cli import compile as command
from server.settings import CONFIG, PREFIX, Settings, variable

ROOT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent


@pytest.mark.parametrize(
    "command", [["hadolint", "Dockerfile"], ["kubernetes-validate", "--strict", "deploy/kubernetes.yaml"]]
)
def test_linter(command: list[str]) -> None:
    done = subprocess.run(
        [str(TOOLS / command[0]), *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def stages() -> dict[str, str]:
    """The Dockerfile's instructions by build stage."""
    parts = re.split(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def compose() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
    return services


def test_compose_builds_a_target_of_the_repositorys_dockerfile() -> None:
    build = compose()["pixart"]["build"]
    assert (ROOT / "deploy" / build["context"] / "Dockerfile").is_file()
    target = re.fullmatch(r"\$\{PIXART_TARGET:-(\w+)\}", build["target"])
    assert target and target[1] in stages()


def test_images_run_as_nobody_in_particular_and_cpu_has_no_torch() -> None:
    parts = stages()
    assert list(parts)[-1] == "cpu"  # what a plain build makes
    assert "USER 10001" in parts["base"]
    for name in ("cpu", "gpu"):
        assert re.search(rf"^FROM base AS {name}$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        assert "USER" not in parts[name]
    assert "torch" not in parts["build"] + parts["base"] + parts["cpu"]
    assert "COPY --from=build /opt/pixart" in parts["cpu"]


def test_the_gpu_image_has_what_compiling_needs_and_serves_what_was_compiled() -> None:
    parts = stages()
    extras = re.search(r"pip install '\.\[([\w,]+)\]'", parts["build-gpu"])
    assert extras and {"compile", "tensorrt"} <= set(extras[1].split(","))
    gpu = dict(re.findall(r"(PIXART_\w+)=(\S+)", parts["gpu"]))
    assert gpu["PIXART_BACKEND"] in PACKAGES  # so that it cannot serve the demo bundle as it is
    text = (ROOT / "docs" / "operations.md").read_text()
    (words,) = re.findall(r"^ +(compile --model .*)$", text, flags=re.MULTILINE)
    parser = argparse.ArgumentParser()
    command.add(parser)
    options = parser.parse_args(words.split()[1:])
    assert (options.compile_backend, str(options.out)) == (gpu["PIXART_BACKEND"], gpu["PIXART_BUNDLE"])
    assert re.findall(r'-v "\S+?:(\S+?)(?::ro)?" ', text) == [gpu["PIXART_BUNDLE"]] * 2
    assert compose()["pixart"]["mem_limit"] == "${PIXART_MEMORY:-2g}"


def test_containers_have_no_more_rights_than_they_need() -> None:
    for service in compose().values():
        assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["mem_limit"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_memory_that_processes_share_needs_no_setting() -> None:
    shared = Shared(Layout(slots=1, places=1, picture_bytes=4096))
    assert os.readlink(f"/proc/self/fd/{shared.descriptor}").startswith("/memfd:")
    shared.close_descriptor()
    assert "shm_size" not in compose()["pixart"]
    assert "mountPath: /dev/shm" not in (ROOT / "deploy" / "kubernetes.yaml").read_text()


def test_prometheus_scrapes_the_server_of_the_compose_file() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    ((target,),) = (each["targets"] for each in job["static_configs"])
    host, _, port = target.partition(":")
    assert host in compose() and any(published.endswith(f":{port}") for published in compose()[host]["ports"])
    mounted = {volume.partition(":")[0] for volume in compose()["prometheus"]["volumes"]}
    assert {"./prometheus.yml", *(f"./{name}" for name in config["rule_files"])} <= mounted


def test_alerts_use_metrics_that_exist() -> None:
    documented = set(re.findall(r"pixart_\w+", (ROOT / "docs" / "operations.md").read_text()))
    used = set(re.findall(r"pixart_\w+", (ROOT / "deploy" / "alerts.yml").read_text()))
    assert used and {re.sub(r"_(bucket|count|sum)$", "", name) for name in used} <= documented


@pytest.mark.system
@pytest.mark.parametrize(
    "command",
    [
        ["docker-compose", "-f", "deploy/compose.yaml", "config"],
        ["promtool", "check", "config", "deploy/prometheus.yml"],
    ],
    ids=lambda command: command[0],
)
def test_programs_understand_the_files(command: list[str]) -> None:
    assert shutil.which(command[0]), f"{command[0]} is not installed (make system-packages)"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "deploy/compose.yaml", "deploy/kubernetes.yaml", "docs/operations.md"])
def test_settings_exist(name: str) -> None:
    known = {CONFIG, *(variable(field.name) for field in fields(Settings))}
    compose_only = {"PIXART_BUNDLE_DIR", "PIXART_MEMORY", "PIXART_TARGET"}
    ours = set(re.findall(rf"(?<!set ){PREFIX}[A-Z_]+", (ROOT / name).read_text()))
    assert ours <= known | compose_only


def test_the_security_page_names_tests_that_exist() -> None:
    named = set(re.findall(r"test_\w+\.py", (ROOT / "docs" / "security.md").read_text()))
    assert len(named) > 5 and named <= {path.name for path in (ROOT / "tests").rglob("test_*.py")}
