"""What is documented is what is served: the AsyncAPI file, the protocol's page, the example clients."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from server.realtime.asyncapi import document
from server.realtime.protocol import ClientMessage, CloseCode, ServerMessage, SessionSettings
from tests.server.playground.chromium import chromium
from tests.server.realtime.client import drawing, session

DOCS = Path(__file__).resolve().parents[3] / "docs"


def asyncapi() -> dict[str, Any]:
    text = (DOCS / "asyncapi.yaml").read_text()
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


def test_the_asyncapi_file_is_that_of_the_models() -> None:
    assert asyncapi() == document(), "python -m server.realtime.asyncapi > docs/asyncapi.yaml"


def test_the_asyncapi_file_is_whole() -> None:
    whole = asyncapi()
    assert whole["asyncapi"] == "3.0.0"

    def follow(node: Any) -> int:
        if isinstance(node, list):
            return sum(follow(each) for each in node)
        if not isinstance(node, dict):
            return 0
        if isinstance(reference := node.get("$ref"), str):
            target: Any = whole
            for part in reference.removeprefix("#/").split("/"):
                target = target[part]
            return 1
        return sum(follow(each) for each in node.values())

    assert follow(whole) > 20
    for schema in whole["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)
    for model in get_args(ServerMessage):
        schema = whole["components"]["schemas"][model.__name__]
        assert set(schema["required"]) == schema["properties"].keys(), model.__name__
    said = {name for each in whole["operations"].values() for name in (m["$ref"] for m in each["messages"])}
    assert len(said) == len(whole["components"]["messages"])


async def test_what_is_said_keeps_to_the_asyncapi_file(server: Any, rng: Any) -> None:
    whole = asyncapi()
    messages = whole["components"]["messages"].values()
    schemas = {message["name"]: message["payload"] for message in messages if "name" in message}
    seen: set[str] = set()

    def check(message: dict[str, Any]) -> None:
        # References are looked up in the whole document.
        jsonschema.validate({k: v for k, v in message.items() if k != "data"}, {**whole, **schemas[message["type"]]})
        seen.add(message["type"])

    async with session(server.url) as live:
        check(live.created)
        await live.send("generate")  # without a prompt: an error
        await live.send("session.update", session={"prompt": "an apple", "previews": 3})
        await live.send("ping", id=3)
        for _ in range(20):
            await live.socket.send(drawing(rng))
        while True:
            message = await live.receive()
            check(message)
            if message["type"] == "image.completed" and message["input"] == 21:
                break
    assert seen >= {"session.created", "session.updated", "error", "pong", "image.completed"}


def test_the_page_names_everything() -> None:
    page = (DOCS / "realtime.md").read_text()
    for model in (*get_args(ClientMessage), *get_args(ServerMessage)):
        (name,) = get_args(model.model_fields["type"].annotation)
        (row,) = re.findall(rf"^\| `{re.escape(name)}`.*$", page, re.MULTILINE)
        for field in model.model_fields.keys() - {"type"}:
            assert f"`{field}`" in row, f"{name}: {field}"
    for field in SessionSettings.model_fields.keys() - {"control"}:
        assert re.search(rf"^\| `{field}` \|", page, re.MULTILINE), field
    for code in CloseCode:
        assert re.search(rf"^\| {code.value} \|", page, re.MULTILINE), code


async def run(*command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, output.decode()
    return output.decode()


async def test_the_python_example(server: Any, tmp_path: Path) -> None:
    address = server.url.replace("http", "ws", 1)
    words = await run(
        sys.executable, str(DOCS / "examples" / "realtime.py"), address, "--frames", "5", "--out", str(tmp_path)
    )
    assert "input 5: " in words
    assert (tmp_path / "0005.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.system
async def test_the_javascript_example(server: Any, tmp_path: Path) -> None:
    example = (DOCS / "examples" / "realtime.mjs").read_text()
    assert example.count("export ") == 1
    script = f"""(async () => {{
      {example.replace("export ", "")}
      const found = [];
      await follow({server.url.replace("http", "ws", 1)!r}, "a 🐟", (header, bytes) => found.push([header, bytes]));
      return found.map(([header, bytes]) => [header.input, header.bytes, bytes.byteLength]);
    }})()"""
    async with chromium(tmp_path / "profile") as page:
        await page.open(server.url)  # pages of other origins may not connect
        pictures = await page.run(script)
        assert pictures[-1][0] == 3
        assert all(announced == received for _, announced, received in pictures)
