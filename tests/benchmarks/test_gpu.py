"""What can be checked of the GPU benchmark without one: inputs that every module accepts, and the table."""

from pathlib import Path

from benchmarks.gpu import TOKENS, Row, random_inputs, table
from engine.backends import BackendOptions, Source, create
from engine.backends.base import prepare
from engine.bundle import Bundle
from engine.pipeline import Pipeline
from engine.request import GenerateRequest, validate


def test_inputs_fit_every_module() -> None:
    bundle = Bundle.load(Path("models/zoo/emoji"))
    for name, spec in bundle.manifest.modules.items():
        inputs = random_inputs(spec, bundle.manifest, bundle.manifest.images.default, 2)
        source = Source(bundle.path(spec.graph), spec, bundle.manifest.dimensions, bundle.digest(name))
        ready, results = prepare(source, inputs)
        assert all(len(array) == 2 for key, array in (ready | results).items() if key != "position")


def test_denoisers_get_captions_as_the_engine_pads_them() -> None:
    bundle = Bundle.load(Path("models/zoo/emoji"))
    manifest = bundle.manifest
    pipeline = Pipeline(bundle, create("onnxruntime", BackendOptions()))
    job = validate(GenerateRequest("a red apple"), manifest)
    sample = pipeline.start(job, pipeline.encode_text(job.prompt), None)
    for name in ("denoiser", "denoiser_control"):
        caption = random_inputs(manifest.modules[name], manifest, manifest.images.default, 1)["caption"]
        assert caption.shape == sample.caption.shape
    text = random_inputs(manifest.modules["text_encoder"], manifest, manifest.images.default, 1)
    assert text["ids"].shape == (1, TOKENS)


def test_the_table_shows_a_ratio_where_there_is_a_peer() -> None:
    lines = table([Row("denoiser", "512x512", 1, 12.5), Row("picture", "512x512", 1, 100.0, 250.0)]).splitlines()
    assert lines[2:] == [
        "| denoiser | 512x512 | 1 | 12.50 |  |  |",
        "| picture | 512x512 | 1 | 100.00 | 250.00 | 2.50 |",
    ]
