"""`pixart generate` and `pixart doctor`."""

import base64
import io
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image, ImageDraw

from server.cli import COMMANDS, main
from tests.server.conftest import PIXART, SECONDS, environment

PROMPT = "a green owl"


def test_generate_writes_the_servers_picture_and_prints_the_times(
    pixart: Any, tiny_bundle: Path, tmp_path: Path, client: httpx.Client
) -> None:
    output = tmp_path / "owl.png"
    done = pixart("generate", PROMPT, "--bundle", str(tiny_bundle), "--seed", "3", "--steps", "2", "-o", str(output))
    assert done.returncode == 0, done.stderr
    assert "2 steps in" in done.stderr and "denoise" in done.stderr and f"wrote {output}" in done.stderr
    answer = client.post("/v1/images/generations", json={"prompt": PROMPT, "seed": 3, "steps": 2}).json()
    served = Image.open(io.BytesIO(base64.b64decode(answer["data"][0]["b64_json"])))
    assert Image.open(output).tobytes() == served.tobytes()


def test_generate_follows_a_sketch(pixart: Any, tiny_bundle: Path, tmp_path: Path) -> None:
    sketch = tmp_path / "sketch.png"
    picture = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(picture).rectangle((40, 40, 160, 160), outline=0, width=4)
    picture.save(sketch)
    pictures = []
    for extra in ([], ["--control", str(sketch), "--strength", "1.5"]):
        output = tmp_path / f"{len(extra)}.png"
        done = pixart("generate", PROMPT, "--bundle", str(tiny_bundle), "-o", str(output), *extra)
        assert done.returncode == 0, done.stderr
        pictures.append(Image.open(output).tobytes())
    assert pictures[0] != pictures[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["", "--seed", "1"], "prompt is empty; allowed: 1 to 1000 characters"),
        (["an apple", "--steps", "9"], "steps is 9; allowed: an integer from 1 to 8"),
        (["an apple", "--seed", "-1"], "seed is -1; allowed: an integer from 0"),
        (["an apple", "--size", "huge"], "size is 'huge'"),
        (["an apple", "--size", "128x128"], "size is 128x128; allowed: one of 64x64, 96x48"),
        (["an apple", "--strength", "nan"], "strength is nan; allowed: 0 to 2"),
        (["an apple", "--control", "/nowhere.png"], "/nowhere.png"),
        (["an apple", "--control", __file__], f"pixart: {__file__} is not a PNG, JPEG or WebP picture"),
        (["an apple", "-o", "/nowhere/out.png"], "/nowhere/out.png"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    pixart: Any, tiny_bundle: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    done = pixart("generate", "--bundle", str(tiny_bundle), "-o", str(tmp_path / "out.png"), *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and message in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(("name", "format"), [("a.JPG", "JPEG"), ("a.webp", "WEBP"), ("a", "PNG")])
def test_a_files_name_says_its_format(pixart: Any, tiny_bundle: Path, tmp_path: Path, name: str, format: str) -> None:
    done = pixart("generate", PROMPT, "--bundle", str(tiny_bundle), "--steps", "1", "-o", name)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / name).format == format


def test_a_name_that_says_another_format_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["generate", PROMPT, "-o", "a.gif"])
    assert end.value.code == 2
    assert "a.gif: the name must end in .png, .jpg, .jpeg or .webp" in capsys.readouterr().err


def test_doctor_checks_everything(pixart: Any, tiny_bundle: Path) -> None:
    done = pixart("doctor", "--bundle", str(tiny_bundle))
    assert done.returncode == 0, done.stderr
    for words in ("backend openvino: installed", "processor: ", "every file is as it was exported", "all well"):
        assert words in done.stderr


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0 and "usage: pixart" in capsys.readouterr().out


def test_help_names_units(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    words = capsys.readouterr().out
    for option in ("--content-filter NUMBER", "--head-seconds SECONDS", "--drain-seconds SECONDS", "--queue N"):
        assert option in words


def test_a_command_is_needed() -> None:
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2


def interrupted(command: list[str], line: str, folder: Path) -> tuple[int, str]:
    """Exit status and messages of a command to which Ctrl-C comes when it has said `line`."""
    process = subprocess.Popen(
        [str(PIXART), *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=folder,
    )
    assert process.stderr is not None
    said = ""
    for text in process.stderr:
        said += text
        if line in text:
            process.send_signal(signal.SIGINT)
            break
    said += process.communicate(timeout=SECONDS)[1]
    return process.returncode, said


def test_ctrl_c_ends_a_command_in_one_line(tiny_bundle: Path, tmp_path: Path) -> None:
    command = ["bench", "--bundle", str(tiny_bundle), "--count", "1000000", "--steps", "1"]
    status, said = interrupted(command, "warmed up", tmp_path)
    assert status == 130 and "Traceback" not in said and said.splitlines()[-1] == "pixart: interrupted"


def test_ctrl_c_ends_a_compilation_and_leaves_what_is_complete(tmp_path: Path) -> None:
    command = ["compile", "--model", "emoji", "--backend", "tensorrt_rtx", "--target", "sm80", "--out", "bundle"]
    status, said = interrupted(command, "text_encoder compiled", tmp_path)
    assert status == 130 and "Traceback" not in said and said.splitlines()[-1] == "pixart: interrupted"
    names = {path.name for path in (tmp_path / "bundle" / "engines").iterdir()}
    assert "text_encoder-tensorrt_rtx-fp16.engine" in names and "report-tensorrt_rtx-fp16.json" not in names
    assert not [name for name in names if name.endswith(".part")]


def test_bench_prints_each_stage(pixart: Any, tiny_bundle: Path) -> None:
    done = pixart("bench", "--bundle", str(tiny_bundle), "--count", "3", "--steps", "1", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["count"] == 3 and found["bundle"] == "tiny"
    for stage in ("text", "denoise", "decode", "all"):
        assert 0 < found[stage]["median_ms"] <= found[stage]["p95_ms"]
    assert found["denoise"]["median_ms"] < found["all"]["median_ms"]
