"""The metrics, as Prometheus itself judges and stores them."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.server.conftest import SECONDS, Server

pytestmark = pytest.mark.system

ROUTE = "/v1/images/generations"


def program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed; Debian's package prometheus brings it (make system-packages)"
    return found


def test_promtool_finds_nothing_to_mend(client: httpx.Client) -> None:
    client.post(ROUTE, json={"prompt": "an apple"})
    client.post(ROUTE, json={"prompt": ""})
    text = client.get("/metrics").text
    done = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr.strip(), done.stderr


@pytest.fixture
def query(server: Server, tmp_path: Path) -> Iterator[Callable[[str], list[Any]]]:
    """A Prometheus that scrapes the server, to be asked in its own language."""
    target = server.url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "5s", "scrape_timeout": "5s"},
        "scrape_configs": [{"job_name": "pixart", "static_configs": [{"targets": [target]}]}],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
    command = [
        program("prometheus"),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)

    def ask(expression: str) -> list[Any]:
        """The values of an instant query; none while Prometheus is starting."""
        assert process.poll() is None, "Prometheus ended"
        listening = [
            each.laddr.port for each in psutil.Process(process.pid).net_connections() if each.status == "LISTEN"
        ]
        if not listening:
            return []
        answer = httpx.get(
            f"http://127.0.0.1:{listening[0]}/api/v1/query", params={"query": expression}, timeout=SECONDS
        )
        if answer.status_code != 200:
            return []
        return [float(result["value"][1]) for result in answer.json()["data"]["result"]]

    yield ask
    process.terminate()
    process.wait(SECONDS)


def test_a_real_prometheus_scrapes_what_happened(client: httpx.Client, query: Callable[[str], list[Any]]) -> None:
    assert client.post(ROUTE, json={"prompt": "an apple"}).status_code == 200
    # Over a minute, since a scrape may fail on a busy machine.
    made = f'max_over_time(pixart_request_seconds_count{{route="{ROUTE}", outcome="ok"}}[1m])'
    end = time.monotonic() + 2 * SECONDS
    while not any(value >= 1 for value in query(made)):
        assert time.monotonic() < end, "Prometheus has not scraped the server"
        time.sleep(0.2)
    assert query('max_over_time(up{job="pixart"}[1m])') == [1.0]
    assert query('max_over_time(pixart_worker_state{state="warm"}[1m])') == [1.0]
    assert query("max_over_time(pixart_images_total[1m]) >= 1")
    (median,) = query('histogram_quantile(0.5, max_over_time(pixart_stage_seconds_bucket{stage="denoise"}[1m]))')
    assert 0 < median <= 60
    assert max(query("max_over_time(scrape_samples_scraped[1m])")) < 1000
