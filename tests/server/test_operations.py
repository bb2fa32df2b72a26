"""What an operator sees: probes, metrics, start and stop."""

import base64
import hashlib
import io
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from engine.backends import BackendOptions, create
from engine.sources import BATCHES
from server import keys

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"
ROUTE = "/v1/images/generations"


def samples(client: httpx.Client) -> dict[tuple[str, ...], float]:
    """Metric samples by name and label values."""
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(response.text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_probes(client: httpx.Client) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    for path in ("/healthz", "/readyz", "/"):
        head, get = client.head(path), client.get(path)
        assert head.status_code == 200 and head.content == b""
        for name in ("content-length", "content-type", "content-security-policy"):
            assert head.headers[name] == get.headers[name]


def test_the_model_and_its_limits(client: httpx.Client) -> None:
    (model,) = client.get("/v1/models").json()["data"]
    assert model["id"] == "tiny" and model["object"] == "model" and model["licence"]
    limits = model["limits"]
    assert limits["sizes"] == ["64x64", "96x48"] and limits["default_size"] == "64x64"
    assert limits["steps"] == [1, 8] and limits["default_steps"] == 4
    assert limits["images"] == [1, 10] and limits["control"] is True
    assert limits["prompt_characters"] == 1000


def test_metrics_count_what_happened(client: httpx.Client) -> None:
    before = samples(client)
    assert client.post(ROUTE, json={"prompt": "an apple", "n": 2}).status_code == 200
    assert client.post(ROUTE, json={"prompt": ""}).status_code == 422
    assert client.get("/wp-admin.php").status_code == 404
    assert client.get("/v1/models/tiny").status_code == 200 and client.get("/static/app.js").status_code == 200
    after = samples(client)

    def more(*key: str) -> float:
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert more("pixart_request_seconds_count", "ok", ROUTE) == 1
    assert more("pixart_request_seconds_count", "client_error", ROUTE) == 1
    assert more("pixart_request_seconds_count", "client_error", "other") == 1
    for template in ("/v1/models/{name}", "/static/{path}"):
        assert more("pixart_request_seconds_count", "ok", template) == 1
    assert more("pixart_images_total") == 2
    for stage in ("text", "control", "denoise", "decode", "encode"):
        assert more("pixart_stage_seconds_count", stage) == 1
    assert after["pixart_requests_in_flight", "/metrics"] == 1
    assert after["pixart_requests_in_flight", ROUTE] == 0
    assert after["pixart_ready",] == 1
    assert more("pixart_denoise_step_seconds_count") == 2 and more("pixart_denoise_step_seconds_sum") > 0
    assert more("pixart_picture_steps_count") == 2 and more("pixart_picture_steps_sum") == 8
    assert after["pixart_queue_depth",] == 0 and after["pixart_refusals_total", "queue_full"] == 0
    assert next(value for key, value in after.items() if key[0] == "pixart_worker_resident_memory_bytes") > 10e6
    assert more("pixart_prompt_cache_hits_total") + more("pixart_prompt_cache_misses_total") == 2
    assert more("pixart_batch_size_sum") == 8  # two pictures of four steps
    states = {key[1:]: value for key, value in after.items() if key[0] == "pixart_worker_state"}
    assert [state for (state, _), value in states.items() if value] == ["warm"]
    (build,) = (key for key in after if key[0] == "pixart_build_info")
    precision = create("openvino", BackendOptions(precision="auto")).precision
    assert {"tiny", "openvino", precision} < set(build)


def test_every_metric_is_documented(client: httpx.Client) -> None:
    families = {family.name for family in text_string_to_metric_families(client.get("/metrics").text)}
    ours = {name for name in families if name.startswith("pixart_")}
    documented = set(re.findall(r"(pixart_\w+)", OPERATIONS.read_text().partition("## Metrics")[2]))
    assert len(ours) > 15
    assert {re.sub(r"_total$", "", name) for name in documented} >= ours


def test_every_answer_has_the_headers_that_keep_browsers_safe(client: httpx.Client) -> None:
    for path in ("/", "/healthz", "/nowhere"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff" and headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer" and headers["x-request-id"]
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
    page = client.get("/")
    for kind in ("script", "style"):
        for body in re.findall(rf"<{kind}>(.*?)</{kind}>", page.text, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
            assert f"'sha256-{digest}'" in page.headers["content-security-policy"]


def test_a_guarded_server_and_its_log(start_server: Any, tmp_path: Path) -> None:
    """One server with keys, origins and a log for machines, which then ends although a request is stuck."""
    text, key = keys.create("alice")
    keys.write(tmp_path / "keys.json", [key])
    running = start_server(
        PIXART_API_KEYS=str(tmp_path / "keys.json"),
        PIXART_ALLOWED_ORIGINS="https://good.example",
        PIXART_LOG_FORMAT="json",
        PIXART_DRAIN_SECONDS="1",
    )
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {"Authorization": f"Bearer {text}", "X-Request-Id": "mine", "traceparent": trace}
    with httpx.Client(base_url=running.url, timeout=60) as client:
        good, evil = {"Origin": "https://good.example"}, {"Origin": "https://evil.example"}
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,x-stainless-arch",
        }
        preflight = client.options(ROUTE, headers=good | asked)
        assert preflight.status_code == 200 and preflight.headers["access-control-allow-origin"] == good["Origin"]
        assert "x-stainless-arch" in preflight.headers["access-control-allow-headers"]
        refused = client.options(ROUTE, headers=evil | asked)
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "origin_not_allowed"
        refused = client.options(ROUTE, headers=good | asked | {"Access-Control-Request-Method": "DELETE"})
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "bad_request"
        body = {"prompt": "a secret garden"}
        answer = client.post(ROUTE, json=body, headers=headers | good)
        assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == good["Origin"]
        assert client.post(ROUTE, json=body, headers=headers | evil).json()["error"]["code"] == "origin_not_allowed"
        refused = client.post(ROUTE, json=body, headers=good)
        assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == good["Origin"]
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
        assert client.get("/metrics").status_code == 401 and client.get("/healthz").status_code == 200
        sockets = running.url.replace("http", "ws", 1)
        for path, origin, status, code in (
            ("/v1/realtime", evil, 403, "origin_not_allowed"),
            ("/nowhere", good, 404, "not_found"),
        ):
            with (
                pytest.raises(InvalidStatus) as handshake,
                connect(sockets + path, additional_headers=headers | origin),
            ):
                raise AssertionError("it opened")
            assert handshake.value.response.status_code == status
            assert json.loads(handshake.value.response.body or b"")["error"]["code"] == code
        metrics = client.get("/metrics", headers=headers).text
    for reason in ("unauthenticated", "origin_not_allowed", "unknown_host"):
        assert f'pixart_refusals_total{{reason="{reason}"}}' in metrics
    address = ("127.0.0.1", int(running.url.rpartition(":")[2]))
    with socket.create_connection(address) as stuck:  # which must not keep the server from ending
        head = (
            f"POST {ROUTE} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {text}\r\nContent-Length: 100\r\n\r\n"
        )
        stuck.sendall(head.encode() + b"{")
        with httpx.Client(base_url=running.url, headers=headers, timeout=60) as client:
            while f'in_flight{{route="{ROUTE}"}} 1.0' not in client.get("/metrics").text:
                time.sleep(0.01)
        running.process.terminate()
        running.wait_for_end()
        assert running.process.wait(60) == 0
    lines = [json.loads(line) for line in running.lines if line.startswith("{")]
    (made,) = (
        line for line in lines if line.get("request_id") == "mine" and line.get("status") == 200 and "seed" in line
    )
    assert made["logger"] == "server.access" and made["key"] == "alice" and made["message"] == f"POST {ROUTE}"
    assert made["trace_id"] == trace[3:35] and made["parent_id"] == trace[36:52]
    assert made["stages"]["denoise"] > 0 and made["seconds"] > made["stages"]["denoise"]
    (lost,) = (line for line in lines if line["message"] == "WEBSOCKET /nowhere")
    assert lost["status"] == 404
    everything = "\n".join(running.lines)
    assert "handshake" not in everything  # in uvicorn's view, a refused one is not complete
    assert "secret" not in everything and text not in everything


def test_unknown_routes_and_methods_answer_in_the_same_shape(client: httpx.Client) -> None:
    for response, status in ((client.get("/v2"), 404), (client.get(ROUTE), 405)):
        assert response.status_code == status
        assert response.json()["error"]["type"] == "invalid_request_error"


def test_the_page_and_the_schema(client: httpx.Client) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert 'name="prompt"' in page.text and "http://" not in page.text and "https://" not in page.text
    fields = client.get("/openapi.json").json()["components"]["schemas"]["ImageRequest"]["properties"]
    assert fields["steps"]["minimum"] == 1 and fields["steps"]["maximum"] == 8


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_running_request_finish_and_exits_with_0(start_server: Any, number: int) -> None:
    running = start_server()
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(running.url + ROUTE, json={"prompt": "an apple", "n": 4, "steps": 8}, timeout=120))

    thread = threading.Thread(target=ask)
    with suspended(worker_of(running)):  # so that the request cannot be over before the signal
        thread.start()
        wait_for_a_request(running)
        running.process.send_signal(number)
    thread.join(120)
    assert running.process.wait(60) == 0
    assert [answer.status_code for answer in answers] == [200]


def pixels(answer: httpx.Response) -> Any:
    """[n, height, width, 3] of an answer's pictures."""
    pictures = [Image.open(io.BytesIO(base64.b64decode(entry["b64_json"]))) for entry in answer.json()["data"]]
    return np.stack([np.asarray(picture) for picture in pictures]).astype(int)


def worker_of(running: Any) -> psutil.Process:
    (worker,) = psutil.Process(running.process.pid).children()
    assert "engine.worker" in worker.cmdline()
    return worker


@contextmanager
def suspended(worker: psutil.Process) -> Iterator[None]:
    """Stop a worker for a moment. If that takes so long that the server replaces it, nothing is lost either."""
    worker.suspend()
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            worker.resume()


def wait_for_a_request(running: Any) -> None:
    while f'in_flight{{route="{ROUTE}"}} 1.0' not in httpx.get(f"{running.url}/metrics", timeout=60).text:
        time.sleep(0.01)


def test_clients_do_not_see_a_killed_worker(start_server: Any) -> None:
    running = start_server()
    worker = worker_of(running)
    body = {"prompt": "an apple", "seed": 4, "n": 4, "steps": 8}
    undisturbed = httpx.post(running.url + ROUTE, json=body, timeout=60)
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(httpx.post(running.url + ROUTE, json=body, timeout=120)))
    with suspended(worker):
        thread.start()
        wait_for_a_request(running)
        worker.kill()
    thread.join(120)
    assert answers[0].status_code == 200
    # Replayed in other batches, a picture may be rounded differently.
    assert np.abs(pixels(answers[0]) - pixels(undisturbed)).max() <= 1
    # The next request is there when the next worker is.
    assert httpx.post(running.url + ROUTE, json={"prompt": "an apple"}, timeout=120).status_code == 200
    with httpx.Client(base_url=running.url) as client:
        assert samples(client)["pixart_worker_restarts_total", "worker-0"] == 1


def test_a_signal_while_the_model_is_loading_exits_with_0(start_server: Any) -> None:
    running = start_server(until="listening")
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(60) == 0


def test_it_answers_while_the_model_is_loading(start_server: Any) -> None:
    running = start_server(until="listening")
    assert httpx.get(f"{running.url}/healthz").status_code == 200
    early = httpx.get(f"{running.url}/readyz")
    if early.status_code == 503:
        assert early.json() == {"status": "loading"}
        refused = httpx.post(running.url + ROUTE, json={"prompt": "an apple"})
        assert refused.status_code == 200 or refused.json()["error"]["code"] == "not_ready"
    running.wait_for("ready: http")
    assert httpx.get(f"{running.url}/readyz").status_code == 200


def test_requests_beyond_the_queue_are_refused_with_a_time_to_come_back(start_server: Any) -> None:
    running = start_server(PIXART_QUEUE="1")
    assert httpx.post(running.url + ROUTE, json={"prompt": "an apple"}, timeout=60).status_code == 200
    refused = httpx.post(running.url + ROUTE, json={"prompt": "an apple", "n": 2}, timeout=60)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) >= 1
    error = refused.json()["error"]
    assert error["type"] == "rate_limit_error" and error["code"] == "queue_full"
    # What was begun of it was given up.
    assert httpx.post(running.url + ROUTE, json={"prompt": "an apple"}, timeout=60).status_code == 200


def test_a_full_queue_refuses_before_it_reads(start_server: Any) -> None:
    """Whatever is asked for, on a connection that goes on; other routes, and bodies that are too large, as always."""
    running = start_server(PIXART_QUEUE="1", PIXART_MAX_BODY_BYTES="20000")
    answers: list[httpx.Response] = []
    first = threading.Thread(
        target=lambda: answers.append(httpx.post(running.url + ROUTE, json={"prompt": "an apple"}, timeout=120))
    )
    with httpx.Client(base_url=running.url, timeout=60) as client, suspended(worker_of(running)):
        before = samples(client)["pixart_refusals_total", "queue_full"]
        first.start()
        wait_for_a_request(running)
        for body in (b'{"prompt": "an owl"}', b'{"prompt": 7}', b"no JSON", b"x" * 20000, b""):
            refused = client.post(ROUTE, content=body, headers={"Content-Type": "application/json"})
            assert refused.status_code == 429 and refused.json()["error"]["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
            assert "connection" not in refused.headers
        assert client.post("/v1/images/edits", files={"image": b"no picture"}).status_code == 429
        assert client.post(ROUTE, content=b"x" * 20001).json()["error"]["code"] == "body_too_large"
        chunked = client.post(ROUTE, content=(b"x" * 3000 for _ in range(7)))
        assert (chunked.status_code, chunked.json()["error"]["code"]) == (413, "body_too_large")
        assert client.get("/v1/models").status_code == 200
        assert client.post("/v1/images/variations").status_code == 404
        assert samples(client)["pixart_refusals_total", "queue_full"] >= before + 6
    first.join(120)
    assert answers[0].status_code == 200
    assert httpx.post(running.url + ROUTE, json={"prompt": 7}, timeout=60).status_code == 422


def test_compiled_modules_are_kept_between_starts(start_server: Any, tmp_path: Path) -> None:
    pictures = []
    for _ in range(2):
        running = start_server(PIXART_CACHE=str(tmp_path / "cache"))
        body = {"prompt": "an apple", "seed": 1}
        pictures.append(httpx.post(running.url + ROUTE, json=body, timeout=60).json()["data"])
        running.process.terminate()
    assert pictures[0] == pictures[1]
    # A graph for each module and any size, and for the default size one for each usual number of samples.
    assert len(list((tmp_path / "cache").iterdir())) == 6 + 3 + 2 * len(BATCHES)
