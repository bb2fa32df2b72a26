"""The 8-bit variant: what is calibrated with, what is written, and that two runtimes load it and agree on it."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from tokenizers import Tokenizer

from engine.backends import BackendOptions, create
from engine.bundle import Bundle
from engine.manifest import ModuleName
from engine.pipeline import Pipeline as EnginePipeline
from engine.request import GenerateRequest, validate
from models.export import quantize
from models.export.calibration import Calibration, GraphPipeline, session
from models.export.weights8 import compress_weights, quantise_rows
from models.pipeline import Pipeline
from tests.export.test_graphs import source
from tests.export.tiny import tiny_bundle

PROMPTS = ("a red apple", "quick fox", "the lazy dog")


def test_calibration_meets_the_latents_of_the_reference_pipeline(rng: np.random.Generator) -> None:
    parts, folder = tiny_bundle()
    recorded = GraphPipeline(folder, parts.config, (96, 48)).record("denoiser", PROMPTS[:2], steps=4, seed=5)
    assert len(recorded.inputs) == 8
    assert [float(inputs["timestep"][0]) for inputs in recorded.inputs[:4]] == [999.0, 759.0, 499.0, 259.0]
    # The last step's latents are what three steps of the reference pipeline lead to.
    noise = np.random.default_rng(5).standard_normal((2, 4, 1, 4, 6, 12), dtype=np.float32)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = torch.tensor([tokenizer.encode(PROMPTS[0]).ids])
    mask = torch.ones_like(ids, dtype=torch.bool)
    reference = Pipeline(parts.config, parts.text_encoder, parts.dit, parts.vae)
    with torch.no_grad():
        final = reference.denoise(parts.text_encoder(ids, mask), mask, torch.from_numpy(noise[0])).numpy()
    runner = session(folder / "denoiser.onnx")
    last = runner.run(["next_latents"], recorded.inputs[3])[0]
    np.testing.assert_allclose(last, final, atol=1e-3 * np.abs(final).max())
    np.testing.assert_array_equal(recorded.inputs[4]["latents"], np.random.default_rng(5).standard_normal(
        (2, 4, 1, 4, 6, 12), dtype=np.float32)[1, 0])  # fmt: skip


def test_pictures_to_judge_by_are_not_those_calibrated_with() -> None:
    inputs = [{"timestep": np.array([float(index)])} for index in range(20)]
    calibrating, judging = Calibration(inputs, steps=4).split()
    assert (calibrating, judging) == (inputs[:16], inputs[16:])
    with pytest.raises(ValueError, match="two prompts"):
        Calibration(inputs[:4], steps=4).split()


def test_rows_are_restored_within_half_a_step(rng: np.random.Generator) -> None:
    matrix = rng.standard_normal((40, 30)).astype(np.float32) * np.logspace(-3, 3, 40, dtype=np.float32)[:, None]
    matrix[7] = 0
    steps, scales = quantise_rows(matrix)
    assert steps.dtype == np.int8 and np.abs(steps).max() == 127
    assert (np.abs(steps * scales[:, None] - matrix) <= 0.501 * scales[:, None]).all()


def test_compressed_matrices_are_smaller_and_compute_nearly_the_same(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.export.weights8.MIN_ELEMENTS", 512)
    parts, folder = tiny_bundle()
    (tmp_path / "weights").mkdir()
    for file in (folder / "weights").iterdir():
        (tmp_path / "weights" / file.name).write_bytes(file.read_bytes())
    count = compress_weights(folder / "text_encoder.onnx", tmp_path / "text_encoder.onnx", "weights/t.bin")
    linear = [
        layer for layer in parts.text_encoder.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Embedding)
    ]
    matrices = {layer.weight for layer in linear if layer.weight.numel() >= 512}
    assert count == len(matrices)
    stored = sum(matrix.numel() for matrix in matrices)
    assert stored <= (tmp_path / "weights" / "t.bin").stat().st_size <= stored + 64 * count
    onnx.checker.check_model(tmp_path / "text_encoder.onnx", full_check=True)
    inputs = {"ids": rng.integers(0, 120, (2, 8)), "mask": np.ones((2, 8), np.bool_)}
    plain, small = (session(path / "text_encoder.onnx").run(None, inputs)[0] for path in (folder, tmp_path))
    error = quantize.relative_error([plain], [small])
    # A step is 1/127 of a row's largest value, so its rounding is some 0.3 % of it; a few layers add up.
    assert 1e-4 < error < 0.03
    with pytest.raises(ValueError, match="no stored matrix"):
        compress_weights(folder / "edge_detector.onnx", tmp_path / "e.onnx", "weights/e.bin")


def test_a_place_that_is_taken_and_a_folder_that_is_no_bundle_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SystemExit, match="is not empty"):
        quantize.main(["--bundle", str(tiny_bundle()[1]), "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="is not a bundle"):
        quantize.main(["--bundle", str(tmp_path), "--out", str(tmp_path / "new")])
    (tmp_path / "one.txt").write_text("a red apple\n")
    arguments = ["--bundle", str(tiny_bundle()[1]), "--out", str(tmp_path / "new")]
    with pytest.raises(SystemExit, match="at least two prompts"):
        quantize.main([*arguments, "--prompts", str(tmp_path / "one.txt")])


def damaged(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the tiny bundle in `folder`, whose manifest was changed."""
    shutil.copytree(tiny_bundle()[1], folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("name", ["../kept.txt", "weights/../../kept.txt", "/etc/hostname", "./tokenizer.json", ""])
def test_a_file_outside_the_bundle_is_neither_copied_nor_removed(tmp_path: Path, name: str) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    entry = {"sha256": hashlib.sha256(b"mine").hexdigest(), "bytes": 4}
    bundle = damaged(tmp_path / "bundle", lambda manifest: manifest["files"].update({name: entry}))
    (tmp_path / "out").mkdir()
    with pytest.raises(SystemExit, match="is not a plain path inside the bundle"):
        quantize.main(["--bundle", str(bundle), "--out", str(tmp_path / "out" / "variant")])
    assert kept.read_text() == "mine" and list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda manifest: manifest.pop("files"), "is not a bundle"),
        (lambda manifest: manifest.update(files=["tokenizer.json"]), "is not a bundle"),
        (lambda manifest: manifest["modules"]["denoiser"].update(weights=["../kept"]), r"'\.\./kept' is not among"),
        (lambda manifest: manifest["files"]["denoiser.onnx"].update(sha256="0" * 64), r"denoiser\.onnx was changed"),
        (lambda manifest: manifest["files"].update(other={"sha256": "0" * 64}), "other is missing"),
    ],
)
def test_a_damaged_bundle_is_not_vouched_for(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], problem: str
) -> None:
    bundle = damaged(tmp_path / "bundle", change)
    with pytest.raises(SystemExit, match=problem):
        quantize.main(["--bundle", str(bundle), "--out", str(tmp_path / "variant")])
    assert not (tmp_path / "variant").exists()


def test_an_interrupted_run_does_not_stand_in_the_next_ones_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "variant"

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def plain(graph: Path, folder: Path, recorded: object, max_error: float) -> quantize.Report:
        """The denoiser as it is: quantising takes minutes, and is not what this is about."""
        assert not (folder / "stale").exists()
        model = onnx.load(folder / graph.name)
        weights = f"weights/{graph.stem}.int8.bin"
        onnx.save_model(model, folder / graph.name, save_as_external_data=True, location=weights, size_threshold=1024)
        return quantize.Report(graph.stem, 0, (), 0.0, 0.0)

    monkeypatch.setattr("models.export.weights8.MIN_ELEMENTS", 512)
    monkeypatch.setattr(quantize, "_quantize_denoiser", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quantize.quantize_bundle(tiny_bundle()[1], out, PROMPTS, 1.0)
    assert not out.exists()
    (tmp_path / "variant.part" / "stale").touch()
    monkeypatch.setattr(quantize, "_quantize_denoiser", plain)
    out.mkdir()
    quantize.quantize_bundle(tiny_bundle()[1], out, PROMPTS, 1.0)
    assert Bundle.load(out).manifest.controllable
    assert [path.name for path in tmp_path.iterdir()] == ["variant"]


def relative(runner_name: str, bundle: Bundle, folder: Path, name: ModuleName) -> float:
    """x0's error of the variant's module on the pictures that were judged by, in a backend of the engine."""
    pipeline = GraphPipeline(folder, tiny_bundle()[0].config, (64, 64))
    _, judging = pipeline.record(name, PROMPTS, quantize.STEPS).split()
    module = create(runner_name, BackendOptions(threads=1)).compile(source(bundle, name))
    original = session(folder / f"{name}.onnx")
    expected = [original.run(["x0"], inputs)[0] for inputs in judging]
    return quantize.relative_error(expected, [module.run(inputs)["x0"] for inputs in judging])


@pytest.mark.slow
def test_the_variant_of_a_bundle_is_a_bundle_that_draws_nearly_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random weights are the worst case for rounding, so the error may be large here; it has to be as reported."""
    monkeypatch.setattr("models.export.weights8.MIN_ELEMENTS", 512)
    _, folder = tiny_bundle()
    out = tmp_path / "variant"
    reports = quantize.quantize_bundle(folder, out, PROMPTS, max_error=1.0)
    bundle, plain = Bundle.load(out), Bundle.load(folder)
    names: list[ModuleName] = ["denoiser", "denoiser_control"]
    for name, report in zip(names, reports, strict=True):
        assert report.module == name and report.products > 10 and report.kept == ()
        assert 0 < report.error == report.error_all < 1
        products = quantize.quantised_products(onnx.load(out / f"{name}.onnx", load_external_data=False))
        assert len(products) == report.products
        size = (out / "weights" / f"{name}.int8.bin").stat().st_size
        float16 = sum((folder / file).stat().st_size for file in plain.module(name).weights)
        assert size < 0.9 * float16
        assert relative("onnxruntime", bundle, folder, name) == pytest.approx(report.error, rel=0.2)
        assert relative("torch", bundle, folder, name) == pytest.approx(report.error, rel=0.3)
    assert not (out / "weights" / "dit.safetensors").exists(), "nothing uses the float weights any more"
    for backend in ("openvino", "onnxruntime"):
        runner = EnginePipeline(bundle, create(backend, BackendOptions(threads=1)))
        job = validate(GenerateRequest("a red apple", seed=3), bundle.manifest)
        sample = runner.start(job, runner.encode_text(job.prompt), None)
        while not sample.finished:
            runner.denoise([sample])
        assert runner.decode([sample]).std() > 1


@pytest.mark.slow
def test_sensitive_products_stay_in_float(tmp_path: Path) -> None:
    parts, folder = tiny_bundle()
    recorded = GraphPipeline(folder, parts.config, (64, 64)).record("denoiser", PROMPTS, quantize.STEPS)
    (tmp_path / "weights").mkdir()
    report = quantize._quantize_denoiser(folder / "denoiser.onnx", tmp_path, recorded, max_error=1e-6)
    assert 0 < len(report.kept) <= quantize.MAX_FLOAT_SHARE * report.products
    products = quantize.quantised_products(onnx.load(tmp_path / "denoiser.onnx", load_external_data=False))
    assert len(products) == report.products - len(report.kept)
    assert not set(products) & set(report.kept)
    assert report.error < report.error_all
