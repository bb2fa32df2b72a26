"""`pixart compile`: real compilations by `tensorrt_rtx` for GPUs that are not here, and everything it refuses."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from engine import noise
from engine.backends import BackendOptions, CompileError, create
from engine.backends.tensorrt.record import EngineStore
from engine.bundle import Bundle
from engine.compile import compile_bundle
from engine.generate import Generator
from engine.manifest import CONTROL_MODULES, REQUIRED_MODULES, ModuleName
from engine.pipeline import Pipeline
from engine.request import GenerateRequest, validate
from engine.sources import BATCHES
from models.checkpoints import build, load_checkpoint
from models.controlnet import ControlNetTransformer
from models.hed import HED
from models.pipeline import Pipeline as TorchPipeline
from server.cli import main
from server.compile import CompileRequest, compile_model, table
from server.settings import DEMO_BUNDLE
from tests.checkpoints.published import randomise, save_pipeline
from tests.engine.compiling import only, plan

MODULES: tuple[ModuleName, ...] = (*REQUIRED_MODULES, *CONTROL_MODULES)
RTX = CompileRequest("emoji", "tensorrt_rtx", "fp16", max_batch=2, targets=("sm80",))


def quiet(line: str) -> None:
    pass


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The demo bundle with every module compiled in fp16 for the A100, and what was said about it."""
    folder = tmp_path_factory.mktemp("compiled") / "bundle"
    lines: list[str] = []
    reports = compile_model(replace(RTX, out=folder), lines.append)
    assert tuple(report.module for report in reports) == MODULES
    assert not any(report.reused for report in reports)
    lines.append(table(reports))
    return folder, lines


def test_every_module_of_the_demo_compiles_in_fp16_for_an_absent_gpu(compiled: tuple[Path, list[str]]) -> None:
    folder, lines = compiled
    bundle, store = Bundle.load(folder), EngineStore(folder / "engines")
    report = json.loads((folder / "engines" / "report-tensorrt_rtx-fp16.json").read_text())
    for name, module in zip(MODULES, report["modules"], strict=True):
        engine = store.path(name, "tensorrt_rtx", "fp16")
        record = store.record(engine)
        assert record is not None and store.is_whole(engine, record)
        assert record.key.targets == ("sm80",) and record.key.precision == "fp16"
        assert record.key.graph == bundle.digest(name)
        assert module["files"] == [engine.name] and module["bytes"] == engine.stat().st_size
        assert module["activation_bytes"] > 0
        spec = bundle.module(name)
        assert set(module["inputs"]) == {tensor.name for tensor in spec.inputs}
        # Half precision, but for the timestep's embedding and modulation: far from twice what is stored.
        stored = sum(bundle.manifest.files[file].bytes for file in spec.weights)
        assert name not in ("text_encoder", "denoiser") or stored < module["weight_bytes"] * 1.1 < 1.5 * stored
    assert report["modules"][1]["inputs"]["latents"] == {
        "dtype": "float32",
        "shapes": [[[1, 4, 16, 16], [1, 4, 16, 16], [2, 4, 16, 16]]],
    }
    assert any(line.startswith("denoiser compiled in") for line in lines)
    assert "latents float32 1-2x4x16x16" in lines[-1]


def test_a_second_run_builds_only_what_is_not_whole(compiled: tuple[Path, list[str]]) -> None:
    folder, _ = compiled
    engine = folder / "engines" / "edge_detector-tensorrt_rtx-fp16.engine"
    content = engine.read_bytes()
    engine.write_bytes(content[:-1])
    reports = compile_model(replace(RTX, model=str(folder)), quiet)
    assert [report.module for report in reports if not report.reused] == ["edge_detector"]
    assert len(engine.read_bytes()) == len(content)
    assert all(report.reused for report in compile_model(replace(RTX, model=str(folder)), quiet))


def test_one_engine_may_serve_several_gpus_and_bf16_compiles_too(tmp_path: Path) -> None:
    from models.export.half import typed_graph

    edges = only(Bundle.load("models/zoo/emoji"), "edge_detector", "vae_encoder")
    wanted = plan(tmp_path, precision="bf16", targets=("sm89", "sm80"))
    phases: list[tuple[str, str, float]] = []
    list(
        compile_bundle(
            edges,
            wanted,
            lambda path, precision: typed_graph(path, "bf16").SerializeToString(),
            lambda *what: phases.append(what),
        )
    )
    record = EngineStore(tmp_path).record(tmp_path / "vae_encoder-tensorrt_rtx-bf16.engine")
    assert record is not None and record.key.targets == ("sm80", "sm89")
    assert ("edge_detector", "Building engine", 0.0) in phases and ("vae_encoder", "Building engine", 1.0) in phases
    assert all(0.0 <= done <= 1.0 for _, _, done in phases)


def test_openvino_compiles_into_the_cache_that_serving_reads(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    request = CompileRequest("emoji", "openvino", "fp32", out=folder, threads=1)
    first = compile_model(request, quiet)
    assert not any(report.reused for report in first)
    for report in first:
        assert report.bytes == sum((folder / "engines" / name).stat().st_size for name in report.files)
    assert {report.module: len(report.files) for report in first} == {
        "text_encoder": 1,  # for prompts of any length
        "edge_detector": 1,
        "vae_encoder": 1,
        "denoiser": len(BATCHES),
        "denoiser_control": len(BATCHES),
        "vae_decoder": 1,
    }
    before = sorted(path.stat().st_mtime_ns for path in (folder / "engines").glob("*.blob"))
    again = compile_model(request, quiet)
    assert all(report.reused for report in again)
    assert [(report.files, report.bytes) for report in again] == [(report.files, report.bytes) for report in first]
    bundle = Bundle.load(folder)
    pipeline = Pipeline(bundle, create("openvino", BackendOptions(threads=1, cache=folder / "engines")), BATCHES)
    assert sorted(path.stat().st_mtime_ns for path in (folder / "engines").glob("*.blob")) == before
    job = validate(GenerateRequest("a red apple", steps=1), bundle.manifest)
    sample = pipeline.start(job, pipeline.encode_text(job.prompt), None)
    pipeline.denoise([sample])
    assert pipeline.decode([sample]).std() > 2


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"profiles": ("512",)}, r"^profile 512 contains none of the bundle's sizes: 128x128$"),
        ({"max_batch": 99}, r"^max batch 99 is not within the bundle's 1 to 8$"),
        ({"targets": ("sm70",)}, r"^target 'sm70' is not one that tensorrt_rtx .* knows: .*sm80"),
        (
            {"targets": ()},
            r"^tensorrt_rtx finds no GPU to compile for \(.*\); name one with --target",
        ),
        ({"backend": "tensorrt"}, r"^tensorrt cannot be loaded .*; install it with: pip install"),
        ({"backend": "onnxruntime", "targets": (), "max_batch": None}, r"^onnxruntime runs float32 graphs in f32"),
        ({"backend": "onnxruntime"}, r"^--target: onnxruntime compiles for this machine alone$"),
        ({"backend": "openvino", "targets": ()}, r"^--max-batch: openvino compiles a bundle for all sizes"),
        ({"backend": "openvino", "targets": (), "profiles": ("128",)}, r"^--profile: openvino compiles a bundle for"),
        ({"name": "foo"}, r"^--name: .* is a bundle, which is complete"),
        ({"licence": "MIT"}, r"^--licence: .* is a bundle, which is complete"),
        ({"precision": "int8"}, r"^int8 is for openvino and onnxruntime; compile for TensorRT in fp16"),
        ({"controlnet": Path("c.pth")}, r"^--controlnet: .* is a bundle, which is complete"),
        ({"hed": Path("hed.h5")}, r"^--hed: .* is a bundle, which is complete"),
        ({"lora": Path("lora")}, r"^--lora: .* is a bundle, which is complete"),
    ],
)
def test_what_cannot_be_compiled_is_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    request = replace(RTX, out=tmp_path / "bundle", **changes)  # type: ignore[arg-type]
    with pytest.raises(CompileError, match=problem):
        compile_model(request, quiet)
    assert not list((tmp_path / "bundle").glob("engines/*.engine"))


def test_an_interrupted_copy_does_not_stand_in_the_next_ones_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, copied = tmp_path / "bundle", list[str]()

    def interrupted(source: Path, copy: Path) -> Path:
        copied.append(copy.name)
        if len(copied) == 3:
            raise KeyboardInterrupt
        return Path(copyfile(source, copy))

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    request = CompileRequest("emoji", "onnxruntime", "fp32", out=out, threads=1)
    with pytest.raises(KeyboardInterrupt):
        compile_model(request, quiet)
    assert not out.exists()
    (tmp_path / "bundle.part" / "stale").touch()
    compile_model(request, quiet)
    assert Bundle.load(out).manifest == Bundle.load(DEMO_BUNDLE).manifest
    assert not (out / "stale").exists() and [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_another_bundle_is_left_alone(tmp_path: Path) -> None:
    save_pipeline(tmp_path / "published")
    out = shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle")
    request = CompileRequest(str(tmp_path / "published"), "openvino", "fp32", ("64",), 2, out=out)
    with pytest.raises(CompileError, match="holds another bundle; choose another folder"):
        compile_model(request, quiet)
    assert Bundle.load(out).manifest.name == "emoji"


@pytest.mark.parametrize("option", ["--name=No", "--max-batch=0", "--max-batch=many"])
def test_an_impossible_option_is_a_wrong_command_line(capsys: pytest.CaptureFixture[str], option: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compile", "--model", "emoji", "--backend", "openvino", option])
    assert end.value.code == 2 and option.partition("=")[0] in capsys.readouterr().err


def test_a_checkpoint_needs_a_place_and_has_to_be_pixarts(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    with pytest.raises(CompileError, match=r"is no bundle, so it has to be exported first: say where to with --out"):
        compile_model(replace(RTX, model=str(other)), quiet)
    with pytest.raises(CompileError, match=r"other: .*"):
        compile_model(replace(RTX, model=str(other), out=tmp_path / "out"), quiet)
    with pytest.raises(CompileError, match=r"nothing: is no file, no folder and no hub id"):
        compile_model(replace(RTX, model="nothing", out=tmp_path / "out"), quiet)


def test_what_joins_a_checkpoint_reaches_the_export(tmp_path: Path) -> None:
    save_pipeline(tmp_path)
    request = CompileRequest(str(tmp_path), "openvino", "fp32", ("64",), 2, out=tmp_path / "bundle")
    with pytest.raises(CompileError, match=r"--hed: .* has no control branch"):
        compile_model(replace(request, hed=tmp_path / "hed.safetensors"), quiet)
    for option in ("controlnet", "lora"):
        missing = tmp_path / f"no-{option}.safetensors"
        with pytest.raises(CompileError, match=missing.name):
            compile_model(replace(request, **{option: missing}), quiet)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_published_checkpoint_with_branch_and_hed_draws_as_in_torch(tmp_path: Path) -> None:
    published, out = tmp_path / "published", tmp_path / "bundle"
    save_pipeline(published)
    hed, branch = randomise(HED()), tmp_path / "control.safetensors"
    save_file(hed.state_dict(), tmp_path / "hed.safetensors")
    modules = build(load_checkpoint(published))
    controlnet = randomise(ControlNetTransformer(modules.dit, 2))
    save_file(controlnet.state_dict(), branch)
    request = CompileRequest(str(published), "openvino", "fp32", ("64",), 2, out=out, threads=1)
    compile_model(replace(request, hed=tmp_path / "hed.safetensors", controlnet=branch), quiet)

    picture = np.random.default_rng().integers(0, 256, (64, 64, 3), dtype=np.uint8)
    wanted = GenerateRequest("a red apple", seed=3, steps=2, control=picture, control_kind="picture", strength=0.7)
    backend = create("openvino", BackendOptions(precision="f32", threads=1, cache=out / "engines"))
    drawn = Generator(Bundle.load(out), backend).generate(wanted).images[0]
    # The same in PyTorch, from the files as they were published.
    config = modules.dit.config
    pipeline = TorchPipeline(
        load_checkpoint(published).config, modules.text_encoder, modules.dit, modules.vae, controlnet
    )
    ids = torch.tensor([Tokenizer.from_file(str(out / "tokenizer.json")).encode(wanted.prompt).ids])
    shape = (1, config.in_channels, config.sample_size, config.sample_size)
    start = torch.stack([torch.from_numpy(noise.normal(wanted.seed, step, shape)) for step in range(2)])
    edges = hed(torch.from_numpy(picture)[None])
    expected = pipeline(ids, torch.ones_like(ids), start, edges, torch.tensor([0.7]))[0].numpy()
    assert expected.std() > 2
    # Weights are stored in half precision.
    assert np.abs(drawn.astype(int) - expected).mean() < 1
    without = pipeline(ids, torch.ones_like(ids), start)[0].numpy()
    assert np.abs(without.astype(int) - expected).mean() > 2


def test_an_8_bit_variant_needs_a_folder_of_its_own() -> None:
    request = CompileRequest("emoji", "openvino", "int8", threads=1)
    with pytest.raises(CompileError, match="say where to with --out"):
        compile_model(request, quiet)
    with pytest.raises(CompileError, match="is the bundle to quantise"):
        compile_model(replace(request, out=DEMO_BUNDLE), quiet)


@pytest.mark.slow
def test_int8_quantises_once_and_compiles(tmp_path: Path) -> None:
    published, out, said = tmp_path / "published", tmp_path / "bundle", list[str]()
    save_pipeline(published)
    request = CompileRequest(str(published), "openvino", "int8", ("64",), 2, out=out, threads=1)
    compile_model(request, said.append)
    assert (tmp_path / "bundle-float" / "manifest.json").is_file()
    assert any(line.startswith("quantising") for line in said)
    graph = onnx.load(out / "denoiser.onnx", load_external_data=False)
    assert any(node.op_type == "QuantizeLinear" for node in graph.graph.node)
    wanted = GenerateRequest("a red apple", seed=3, steps=2)
    drawn = Generator(Bundle.load(out), create("openvino", BackendOptions(threads=1))).generate(wanted).images[0]
    assert drawn.std() > 2
    said.clear()
    assert all(report.reused for report in compile_model(request, said.append))
    assert not any(line.startswith(("quantising", "exporting")) for line in said)
