"""The OpenAPI description is true: its examples run, its page shows them, and nothing random finds a contradiction."""

import html
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from PIL import Image
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.fixture(scope="session")
def description(client: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


def operations(description: dict[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in description["paths"].values() for operation in path.values()]


def examples(description: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        example["value"]
        for operation in operations(description)
        for content in operation.get("requestBody", {}).get("content", {}).values()
        for example in content["examples"].values()
    ]


def test_every_example_of_the_page_runs(client: httpx.Client, description: dict[str, Any], tmp_path: Path) -> None:
    Image.radial_gradient("L").save(tmp_path / "picture.png")
    page = client.get("/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "<script" not in page.text and "src=" not in page.text
    commands = [html.unescape(text) for text in re.findall("<pre>(.*?)</pre>", page.text, flags=re.DOTALL)]
    assert len(commands) == len(examples(description)) >= 8
    for command in commands:
        words = shlex.split(command)
        done = subprocess.run([*words, "--fail"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, command
        assert done.stdout.startswith("event: image_generation." if "-sN" in words else '{"created":')


def test_every_field_and_answer_is_explained(description: dict[str, Any]) -> None:
    for operation in operations(description):
        assert operation["description"]
        assert all(response["description"] for response in operation["responses"].values())
    for name in ("ImageRequest", "EditRequest"):
        fields = description["components"]["schemas"][name]["properties"]
        assert [field for field in fields if "description" not in fields[field]] == []


def test_what_any_request_may_get_is_told_of_each(description: dict[str, Any]) -> None:
    for path, methods in description["paths"].items():
        for method, operation in methods.items():
            if path.startswith("/v1/"):
                answers = operation["responses"]
                assert answers.keys() >= {"401", "408", "421", "429", "431", "500", "503"}, path
                assert ("403" in answers) == (method == "post")
                waits = {status for status in answers if "Retry-After" in answers[status].get("headers", {})}
                assert waits == {"429", "503"}


def test_what_is_always_sent_is_required(description: dict[str, Any]) -> None:
    schemas = description["components"]["schemas"]
    for name in ("ImageResponse", "PartialImageEvent", "CompletedEvent", "ErrorEvent", "Usage", "Model", "ModelList"):
        assert set(schemas[name]["required"]) == schemas[name]["properties"].keys(), name
    assert schemas["ImageRequest"]["required"] == ["prompt"]


def explore(server: Any, cases: int, derandomize: bool) -> None:
    """Send what the description allows and what it forbids, and hold every answer against it.

    `derandomize`: the same requests in every run.
    """
    schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    counted = 0

    for operation in schema.get_all_operations():
        assert isinstance(operation, Ok)
        found = operation.ok()

        strategy = found.as_strategy()
        if found.body or found.path_parameters:
            strategy |= found.as_strategy(schemathesis.GenerationMode.NEGATIVE)

        @hypothesis.given(case=strategy)
        def check(case: Case) -> None:
            nonlocal counted
            counted += 1
            case.call_and_validate(checks=CHECKS, timeout=120)

        share = cases * (4 if found.method.upper() == "POST" else 1) // 12
        settings = hypothesis.settings(
            max_examples=share,
            deadline=None,
            database=None,
            derandomize=derandomize,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate],
        )
        settings(check)()
    assert counted >= cases // 2


def test_random_requests_keep_to_the_description(server: Any) -> None:
    explore(server, 100, derandomize=True)


@pytest.mark.slow
def test_very_many_random_requests_keep_to_the_description(server: Any) -> None:
    explore(server, 2400, derandomize=False)
