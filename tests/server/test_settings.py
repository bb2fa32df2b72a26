"""Settings: where they come from, in which order, and what is refused."""

import dataclasses
import os
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from server.settings import CONFIG, DEMO_BUNDLE, Settings, SettingsError, parse, table, variable

OPERATIONS = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


@pytest.fixture
def config(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "pixart.toml"
        path.write_text(text)
        return str(path)

    return write


def test_options_win_over_variables_and_those_over_the_file(config: Any) -> None:
    path = config("queue = 1\nthreads = 1\nmax_connections = 1\n")
    environment = {CONFIG: path, "PIXART_QUEUE": "2", "PIXART_THREADS": "2"}
    settings = Settings.load({"queue": "3", "threads": None}, environment)
    assert (settings.queue, settings.threads, settings.max_connections) == (3, 2, 1)
    assert settings.port == 8000 and settings.bundle == DEMO_BUNDLE


def test_an_option_names_another_file_than_the_variable(config: Any) -> None:
    assert Settings.load({"config": config("queue = 5")}, {CONFIG: "/nowhere.toml"}).queue == 5


def test_every_kind_of_value_in_a_file(config: Any) -> None:
    text = """
        api_keys = "~/keys.json"
        cache = "none"
        allowed_origins = ["https://a.example", "https://b.example"]
        head_seconds = 2
        log_prompts = true
        log_format = "json"
    """
    settings = Settings.load({"config": config(text)}, {})
    assert settings.api_keys == Path("~/keys.json").expanduser() and settings.cache is None
    assert settings.allowed_origins == ("https://a.example", "https://b.example")
    assert settings.head_seconds == 2 and settings.log_prompts is True and settings.log_format == "json"


def test_every_kind_of_value_in_the_environment() -> None:
    environment = {
        "PIXART_CACHE": "none",
        "PIXART_ALLOWED_ORIGINS": "https://a.example, https://b.example",
        "PIXART_HEAD_SECONDS": "2.5",
        "PIXART_LOG_PROMPTS": "yes",
        "PIXART_HOST": "",
    }
    settings = Settings.load({}, environment)
    assert settings.cache is None and settings.allowed_origins == ("https://a.example", "https://b.example")
    assert settings.head_seconds == 2.5 and settings.log_prompts is True and settings.host == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cores = 2", "pixart.toml: cores is not a setting"),
        ("[server]\nqueue = 2", "pixart.toml: server is not a setting"),
        ("queue =", "pixart.toml: "),
        ('queue = "2"', "pixart.toml: queue: '2' is not a int"),
        ("queue = true", "pixart.toml: queue: True is not a int"),
        ("log_prompts = 1", "pixart.toml: log_prompts: 1 is not a bool"),
        ("host = 1", "pixart.toml: host: 1 is not a text"),
        ('allowed_origins = "https://a.example"', "pixart.toml: allowed_origins: 'https://a.example' is not a list"),
        ("queue = 0", "pixart.toml: queue: 0 is not between 1 and 100000"),
        ("head_seconds = nan", "pixart.toml: head_seconds: nan is not between"),
    ],
)
def test_files_that_are_refused(config: Any, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load({"config": config(text)}, {})
    assert message in str(error.value)


def test_a_file_that_is_missing_is_named() -> None:
    with pytest.raises(SettingsError, match=r"/nowhere\.toml: No such file"):
        Settings.load({"config": "/nowhere.toml"}, {})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("queue", "many", "--queue: 'many' is not a whole number"),
        ("head_seconds", "soon", "--head-seconds: 'soon' is not a number"),
        ("log_prompts", "perhaps", "--log-prompts: 'perhaps' is neither true nor false"),
        ("log_format", "xml", "--log-format: 'xml' is not one of text, json"),
        ("port", "99999", "--port: 99999 is not between 0 and 65535"),
        (
            "allowed_hosts",
            "a.example,pics.example:8126",
            "--allowed-hosts: 'pics.example:8126' is not a host's name",
        ),
        ("allowed_hosts", "https://pics.example", "--allowed-hosts: 'https://pics.example' is not"),
        ("allowed_hosts", "::1", "--allowed-hosts: '::1' is not"),
        ("allowed_origins", "https://a.example/", "--allowed-origins: 'https://a.example/' is not an origin"),
        ("allowed_origins", "https://a.example/app", "'https://a.example/app' is not an origin"),
        ("allowed_origins", "https://A.example", "'https://A.example' is not an origin"),
        ("allowed_origins", "https://a.example:443", "'https://a.example:443' is not an origin"),
        ("allowed_origins", "a.example", "'a.example' is not an origin"),
    ],
)
def test_options_that_are_refused(name: str, text: str, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        Settings.load({name: text}, {})
    assert message in str(error.value)


def test_a_variable_is_named_when_it_is_the_one_that_counts(config: Any) -> None:
    with pytest.raises(SettingsError, match="PIXART_QUEUE: 0 is not between"):
        Settings.load({"config": config("queue = 5")}, {"PIXART_QUEUE": "0"})


def test_hosts_and_origins_as_they_are_sent() -> None:
    hosts = ("*", "pics.example", "Pics-2.example", "10.0.0.1", "[::1]")
    origins = ("*", "null", "https://a.example", "http://a.example:443", "http://[::1]:3000", "moz-extension://0a-1b")
    settings = Settings.load({"allowed_hosts": ",".join(hosts), "allowed_origins": ",".join(origins)}, {})
    assert settings.allowed_hosts == hosts and settings.allowed_origins == origins


def test_unknown_variables_are_found() -> None:
    environment = {"PIXART_QEUE": "3", "PIXART_QUEUE": "3", CONFIG: "x", "PATH": "/bin"}
    assert Settings.unknown(environment) == ["PIXART_QEUE"]


def test_each_device_has_its_workers() -> None:
    def asked(**values: Any) -> list[tuple[str, int]]:
        backends = Settings(**values).backends()
        return [(backend.args[1].device, backend.args[1].threads) for backend in backends]  # type: ignore[attr-defined]

    assert asked(devices=("CUDA:0", "CUDA:1"), workers=2, threads=3) == [
        ("CUDA:0", 3),
        ("CUDA:0", 3),
        ("CUDA:1", 3),
        ("CUDA:1", 3),
    ]
    cores = len(os.sched_getaffinity(0))
    assert asked(devices=("GPU.0", "GPU.1")) == [("GPU.0", max(1, cores // 2)), ("GPU.1", max(1, cores // 2))]
    assert asked() == [("CPU", 0)]


def test_the_documented_table_is_the_one_that_is_true() -> None:
    assert "\n".join(["", *table(), ""]) in OPERATIONS.read_text()


def test_every_default_has_its_fields_type_and_can_be_written_as_text() -> None:
    settings, types = Settings.load({}, {}), get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        value = getattr(settings, field.name)
        text = ",".join(value) if isinstance(value, tuple) else "none" if value is None else str(value)
        assert parse(types[field.name], text, variable(field.name)) == value
        assert field.metadata["meaning"].endswith(".")
