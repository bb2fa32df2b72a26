import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.bundle import Bundle, BundleError
from tests.engine.folders import manifest, write_folder, write_manifest

Edit = Callable[[dict[str, Any]], object]


def refused(folder: Path, where: str, problem: str) -> None:
    with pytest.raises(BundleError) as caught:
        Bundle.load(folder)
    assert where in caught.value.where
    assert re.search(problem, caught.value.problem)


def test_a_sound_bundle_loads(tmp_path: Path) -> None:
    write_folder(tmp_path)
    bundle = Bundle.load(tmp_path)
    assert bundle.manifest.name == "sound"
    assert not bundle.manifest.controllable
    assert bundle.path("denoiser.onnx").read_bytes() == b"denoise"
    with pytest.raises(BundleError, match="edge_detector"):
        bundle.module("edge_detector")


def test_the_digest_of_a_module_covers_its_weights_and_nothing_else(tmp_path: Path) -> None:
    write_folder(tmp_path)
    before = Bundle.load(tmp_path)
    data = write_folder(tmp_path)
    (tmp_path / "weights/all.safetensors").write_bytes(b"other")
    data["files"]["weights/all.safetensors"] = manifest({"weights/all.safetensors": b"other"})["files"][
        "weights/all.safetensors"
    ]
    data["name"] = "renamed"
    write_manifest(tmp_path, data)
    after = Bundle.load(tmp_path)
    assert before.digest("denoiser") != after.digest("denoiser")
    assert before.digest("denoiser") != before.digest("vae_decoder")
    write_folder(tmp_path)
    assert Bundle.load(tmp_path).digest("denoiser") == before.digest("denoiser")


@pytest.mark.parametrize("name", ["tokenizer.json", "denoiser.onnx", "weights/all.safetensors"])
def test_a_changed_byte_a_lost_tail_and_a_missing_file_are_named(tmp_path: Path, name: str) -> None:
    write_folder(tmp_path)
    path = tmp_path / name
    sound = path.read_bytes()
    path.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    refused(tmp_path, name, "was changed")
    path.write_bytes(sound[:-1])
    refused(tmp_path, name, f"has {len(sound) - 1} bytes instead of {len(sound)}")
    path.unlink()
    refused(tmp_path, name, "is missing")


def set_field(*path: str, value: Any) -> Edit:
    def edit(data: dict[str, Any]) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return edit


def add_file(name: str) -> Edit:
    return set_field("files", name, value={"sha256": "0" * 64, "bytes": 1})


@pytest.mark.parametrize(
    ("edit", "where", "problem"),
    [
        (set_field("format_version", value=2), "format_version", "is 2; this program reads up to 1"),
        (set_field("format_version", value="1"), "format_version", "should be 1"),
        (lambda data: data.pop("format_version"), "format_version", "required"),
        (set_field("colour", value=1), "colour", "not permitted"),
        (set_field("sampler", "gamma", value=1), "sampler.gamma", "not permitted"),
        (lambda data: data["modules"]["denoiser"].pop("graph"), "modules.denoiser.graph", "required"),
        (lambda data: data["modules"].pop("denoiser"), "manifest", "'denoiser' is missing"),
        (lambda data: data["modules"].update(nonsense={}), "modules.nonsense", "text_encoder"),
        (
            lambda data: data["modules"].update(vae_encoder=data["modules"]["vae_decoder"]),
            "manifest",
            "'denoiser_control' is missing beside 'vae_encoder'",
        ),
        (set_field("modules", "denoiser", "graph", value="other.onnx"), "manifest", "'other.onnx' is not among"),
        (set_field("modules", "denoiser", "weights", value=["w"]), "manifest", "'w' is not among the files"),
        (lambda data: data["dimensions"].pop("H"), "manifest", "dimension 'H' has no range"),
        (lambda data: data["dimensions"].pop("B"), "manifest", "dimension 'B' has no range"),
        (set_field("dimensions", "H", value={"min": 8, "max": 6}), "dimensions.H", "max 6 is below min 8"),
        (set_field("max_tokens", value="24"), "max_tokens", "valid integer"),
        (set_field("max_tokens", value=0), "max_tokens", "greater than or equal to 1"),
        (set_field("steps", "default", value=9), "steps.default", "less than or equal to 8"),
        (set_field("images", "default", "width", value=128), "images", "default is not among"),
        (set_field("files", "tokenizer.json", "sha256", value="AB"), "files.tokenizer.json.sha256", "pattern"),
        (lambda data: data["files"].pop("tokenizer.json"), "manifest", "'tokenizer.json' is missing"),
        (add_file("/etc/passwd"), "manifest", "'/etc/passwd' is not a plain path"),
        (add_file("../secret"), "manifest", r"'\.\./secret' is not a plain path"),
        (add_file("a/../../secret"), "manifest", "is not a plain path"),
        (add_file("a\\..\\secret"), "manifest", "is not a plain path"),
        (add_file("a\0b"), "manifest", "is not a plain path"),
        (add_file("./a"), "manifest", "is not a plain path"),
        (add_file(""), "manifest", "is not a plain path"),
        (add_file("weights"), "weights", "is missing"),
    ],
)
def test_a_bad_manifest_is_refused_with_the_field_named(tmp_path: Path, edit: Edit, where: str, problem: str) -> None:
    data = write_folder(tmp_path)
    edit(data)
    write_manifest(tmp_path, data)
    refused(tmp_path, where, problem)


def allow_size(width: int, height: int) -> Edit:
    return lambda data: data["images"]["allowed"].append({"width": width, "height": height})


def add_input(name: str) -> Edit:
    tensor = {"name": name, "dtype": "float32", "shape": ["B", 1]}
    return lambda data: data["modules"]["denoiser"]["inputs"].append(tensor)


@pytest.mark.parametrize(
    ("edit", "where", "problem"),
    [
        (allow_size(128, 64), "dimensions.W", "does not allow 16, which 128x64 pixels need"),
        (allow_size(64, 32), "dimensions.H", "does not allow 4, which 64x32 pixels need"),
        (allow_size(96, 64), "dimensions.N", "does not allow 24, which 96x64 pixels need"),
        (allow_size(72, 64), "images.allowed", "72x64 is not a multiple of 16"),
        (allow_size(65536, 64), "images.allowed.2.width", "less than or equal to 8192"),
        (set_field("dimensions", "B", "min", value=2), "dimensions.B", "does not begin at single samples"),
        (set_field("dimensions", "B", "multiple", value=2), "dimensions.B", "does not begin at single samples"),
        (lambda data: data["dimensions"].pop("L"), "dimensions.L", "is missing"),
        (set_field("dimensions", "L", "max", value=16), "dimensions.L", "does not allow every multiple of 8"),
        (set_field("dimensions", "L", "multiple", value=16), "dimensions.L", "does not allow every multiple of 8"),
        (set_field("dimensions", "L", "max", value=10**9), "dimensions.L", "is above 4096"),
        (set_field("max_tokens", value=10**9), "max_tokens", "less than or equal to 4096"),
        (set_field("positions", "width", value=52), "positions.width", "52 is not what the input position of denoiser"),
        (set_field("positions", "patch_size", value=1), "dimensions.N", "does not allow 64"),
        (set_field("positions", "patch_size", value=3), "images.allowed", "64x64 is not a multiple of 24"),
        (set_field("positions", "interpolation_scale", value=float("inf")), "interpolation_scale", "finite number"),
        (
            set_field("size_conditions", value=True),
            "size_conditions",
            "is true, but denoiser lacks the input resolution",
        ),
        (add_input("aspect_ratio"), "size_conditions", "is false, but denoiser has the input aspect_ratio"),
        (lambda data: data["modules"]["denoiser"]["inputs"].pop(), "positions.width", "the input position of denoiser"),
        (set_field("sampler", "train_timesteps", value=10**12), "sampler.train_timesteps", "less than or equal to"),
        (set_field("sampler", "origin_steps", value=10**9), "sampler.origin_steps", "is above train_timesteps 1000"),
        (set_field("sampler", "beta_start", value=0.5), "sampler.beta_start", "0.5 is above beta_end 0.02"),
        (set_field("sampler", "sigma_data", value=float("inf")), "sampler.sigma_data", "finite number"),
        (set_field("sampler", "timestep_scaling", value=float("nan")), "sampler.timestep_scaling", "finite number"),
    ],
)
def test_fields_that_contradict_each_other_are_named(tmp_path: Path, edit: Edit, where: str, problem: str) -> None:
    data = write_folder(tmp_path)
    edit(data)
    write_manifest(tmp_path, data)
    refused(tmp_path, where, problem)


def test_a_number_beyond_every_float_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace('"sigma_data": 0.5', '"sigma_data": 1e400'))
    refused(tmp_path, "sampler.sigma_data", "finite number")


@pytest.mark.parametrize("shape", [["b"], ["0*H"], ["H*8"], ["8*"], [0], [-1], [True], [1.5], [None], ["H "]])
def test_a_bad_shape_is_refused(tmp_path: Path, shape: list[Any]) -> None:
    data = write_folder(tmp_path)
    data["modules"]["denoiser"]["inputs"] = [{"name": "latents", "dtype": "float32", "shape": shape}]
    write_manifest(tmp_path, data)
    refused(tmp_path, "modules.denoiser.inputs.0", "dimension|valid")


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 1}'])
def test_a_manifest_that_is_no_json_object_is_refused(tmp_path: Path, text: bytes) -> None:
    write_folder(tmp_path)
    (tmp_path / "manifest.json").write_bytes(text)
    refused(tmp_path, "manifest.json", "")


def test_a_folder_without_manifest_and_no_folder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, "manifest.json", "cannot be read")
    refused(tmp_path / "nowhere", "nowhere", "is not a folder")


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    write_folder(folder)
    graph = folder / "denoiser.onnx"
    outside = tmp_path / "outside.onnx"
    graph.rename(outside)
    graph.symlink_to(outside)
    refused(folder, "denoiser.onnx", "leaves the bundle")
    graph.unlink()
    outside.rename(folder / "real.onnx")
    graph.symlink_to("real.onnx")
    Bundle.load(folder)


def test_a_bundle_of_55_megabytes_is_verified_in_a_moment(tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    files = {f"weights/{i}.bin": content * megabytes for i, megabytes in enumerate((27, 10, 10, 8))}
    data = write_folder(tmp_path)
    for name, value in files.items():
        (tmp_path / name).write_bytes(value)
    data["files"] |= manifest(files)["files"]
    write_manifest(tmp_path, data)
    best = min(_cpu_seconds(lambda: Bundle.load(tmp_path)) for _ in range(3))
    assert best < 0.3


def _cpu_seconds(call: Callable[[], object]) -> float:
    """Processor time of all threads: what a busy machine does not change."""
    start = time.process_time()
    call()
    return time.process_time() - start
