"""API keys: the file, the limits, and `pixart keys`."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from server import keys
from server.auth import Holder, KeyRing
from server.cli import main
from server.errors import ApiError
from server.keys import KeysError


def test_a_key_matches_itself_alone() -> None:
    text, key = keys.create("alice")
    other, _ = keys.create("alice")
    assert key.matches(text)
    assert not key.matches(other) and not key.matches(text[:-1]) and not key.matches("")
    assert len(text) == len("pixart-") + 16 + len("-") + 43  # 256 bits in URL-safe base64
    assert text[24:] not in json.dumps(asdict(key))


def test_what_is_written_is_read_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "keys.json"
    some = [keys.create("alice", rate=2.5)[1], keys.create("bob", concurrency=3)[1]]
    keys.write(path, some)
    assert keys.read(path) == some
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == ["keys.json"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"keys": 1}',
        '{"keys": [1]}',
        '{"keys": [{"name": "alice"}]}',
        '{"keys": [{"name": "a b", "id": "0", "salt": "0", "hash": "0"}]}',
        '{"keys": [{"name": "alice", "id": "0", "salt": 0, "hash": "0"}]}',
        '{"keys": [{"name": "alice", "id": "0", "salt": "0", "hash": "0", "rate": -1}]}',
        '{"keys": [{"name": "alice", "id": "0", "salt": "0", "hash": "0", "rate": NaN}]}',
        '{"keys": [{"name": "alice", "id": "0", "salt": "0", "hash": "0", "concurrency": true}]}',
        '{"keys": [{"name": "alice", "id": "0", "salt": "0", "hash": "0", "role": "admin"}]}',
        '{"keys": [{"name": "a", "id": "", "salt": "", "hash": ""}, {"name": "b", "id": "", "salt": "", "hash": ""}]}',
    ],
    ids=range(13),
)
def test_what_is_no_file_of_keys_is_refused_by_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content)
    with pytest.raises(KeysError, match=r"keys\.json: is not a file of keys"):
        keys.read(path)


async def nothing() -> None:
    """What a holder without a file reads again."""


def test_a_rate_is_kept_and_the_wait_is_true() -> None:
    now = [100.0]
    holder = Holder(keys.create("alice", rate=2.0)[1], nothing, lambda: now[0])
    holder.take()
    holder.take()
    with pytest.raises(ApiError) as error:
        holder.take()
    assert error.value.status == 429 and error.value.code == "rate_limit_exceeded"
    assert (error.value.headers or {})["Retry-After"] == "1"
    now[0] += 0.49
    with pytest.raises(ApiError):
        holder.take()
    now[0] += 0.02
    holder.take()


def test_a_slow_rate_tells_how_long_to_wait() -> None:
    now = [100.0]
    holder = Holder(keys.create("alice", rate=0.1)[1], nothing, lambda: now[0])
    holder.take()
    with pytest.raises(ApiError) as error:
        holder.take()
    assert (error.value.headers or {})["Retry-After"] == "10"
    now[0] += 10.001
    holder.take()


def test_concurrency_is_counted() -> None:
    holder = Holder(keys.create("alice", concurrency=1)[1], nothing)
    holder.enter()
    with pytest.raises(ApiError) as error:
        holder.enter()
    assert error.value.code == "concurrency_limit_exceeded"
    holder.leave()
    holder.enter()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the file at every request."""
    monkeypatch.setattr("server.auth._RELOAD", -1.0)


async def test_a_ring_follows_its_file(tmp_path: Path, impatient: None) -> None:
    path = tmp_path / "keys.json"
    (alice, alices), (bob, bobs) = keys.create("alice"), keys.create("bob")
    keys.write(path, [alices])
    ring = KeyRing(path)
    before = ring.find(alice)
    assert before is not None and before.key.name == "alice"
    assert ring.find(bob) is None and ring.find("nonsense") is None and ring.find("") is None

    keys.write(path, [alices, bobs])
    await ring.refresh()
    bobs_holder = ring.find(bob)
    assert bobs_holder is not None
    assert ring.find(alice) is before

    path.write_text("{")
    await ring.refresh()
    assert ring.find(bob) is not None

    keys.write(path, [replace(alices, rate=1.0)])
    await ring.refresh()
    assert ring.find(bob) is None and bobs_holder.withdrawn
    assert ring.find(alice) is before and before.key.rate == 1.0 and not before.withdrawn  # what runs is not forgotten
    await bobs_holder.until_withdrawn()

    keys.write(path, [replace(alices, hash=bobs.hash)])
    await ring.refresh()
    assert before.withdrawn and ring.find(alice) is None


def test_requests_without_a_limit_do_not_count_against_a_later_one() -> None:
    now = [100.0]
    unlimited = keys.create("alice")[1]
    holder = Holder(unlimited, nothing, lambda: now[0])
    for _ in range(100):
        holder.take()
    holder.key = replace(unlimited, rate=1.0)
    holder.take()
    with pytest.raises(ApiError):
        holder.take()
    now[0] += 1.001
    holder.take()


@pytest.fixture
def keys_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run `pixart keys`; returns what it printed, or raises SystemExit with its one line."""
    monkeypatch.setattr("server.logs.configure", lambda *arguments: None)  # pytest's own handlers stay

    def run(*arguments: str) -> str:
        main(["keys", *arguments])
        return capsys.readouterr().out

    return run


def test_the_command_adds_lists_and_removes(keys_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    text = keys_command("--file", str(path), "add", "alice", "--rate", "2", "--concurrency", "3").strip()
    (alices,) = keys.read(path)
    assert alices.matches(text) and (alices.rate, alices.concurrency) == (2.0, 3)
    with pytest.raises(SystemExit, match="alice has a key already"):
        keys_command("--file", str(path), "add", "alice")
    monkeypatch.setenv("PIXART_API_KEYS", str(path))
    assert keys_command("list") == f"alice\tid {alices.id}\trate 2\tconcurrency 3\n"
    keys_command("remove", "alice")
    assert keys.read(path) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list"], "which file?"),
        (["--file", "/nowhere", "list"], "/nowhere: No such file"),
        (["--file", "/nowhere", "remove", "alice"], "/nowhere: No such file"),
        (["--file", "/nowhere", "add", "a b"], "'a b' is not 1 to 64 letters"),
        (["--file", "/nowhere", "add", "bob", "--rate", "-1"], "rate -1.0 is not a number from 0"),
    ],
)
def test_what_the_command_cannot_do_is_said_in_one_line(keys_command: Any, arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        keys_command(*arguments)
