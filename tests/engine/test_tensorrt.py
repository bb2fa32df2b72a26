"""The TensorRT runtime's own logic, on a fake GPU (tests/engine/fake_gpu.py): bindings, buffers, graphs, refusals."""

import os
import stat
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorrt_rtx

from engine.backends import BackendOptions, CompileError, ShapeError, Source, create
from engine.backends.base import Array
from engine.backends.cache import BlobCache
from engine.backends.tensorrt import runtime
from engine.backends.tensorrt.package import MAX_ERRORS, Messages, messages
from engine.backends.tensorrt.record import EngineKey, EngineRecord, EngineStore
from engine.backends.tensorrt.runtime import TensorRTBackend, TensorRTModule, Workspace
from engine.bundle import Bundle
from engine.profiles import make_profiles
from tests.engine.fake_gpu import FakeBuffer, FakeDevice, FakeEngine, FakePackage

DEMO = Path("models/zoo/emoji")
VERSION = tensorrt_rtx.__version__


def compute(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Something that depends on every byte: the position's sum stands for inputs that stay on the device."""
    x0 = inputs["latents"] * inputs["timestep"][:, None, None, None] + inputs["position"].sum()
    return {"x0": x0, "next_latents": x0 + inputs["noise"] + inputs["caption"].sum() + np.float32(inputs["mask"].sum())}


class Bench:
    """An engine file for the demo's denoiser, and a fake GPU that runs `compute` for it."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bundle = Bundle.load(DEMO)
        self.folder = folder / "engines"
        spec = bundle.module("denoiser")
        self.source = Source(folder / spec.graph, spec, bundle.manifest.dimensions, bundle.digest("denoiser"))
        self.device = FakeDevice()
        self.package = FakePackage(tensorrt_rtx)
        self.engine = FakeEngine(tensorrt_rtx, self.device, spec, compute)
        self.package.engine = self.engine
        monkeypatch.setattr(runtime, "load_package", lambda name: self.package)
        (profile,) = make_profiles(bundle.manifest, max_batch=4)
        ranges = dict(profile.restricted(spec.inputs))
        self.key = EngineKey("tensorrt_rtx", VERSION, ("sm80",), self.source.digest, "fp16", (ranges,))
        self.write(self.key)

    def write(self, key: EngineKey) -> Path:
        store = EngineStore(self.folder)
        path = store.path("denoiser", "tensorrt_rtx", "fp16")
        with store.writing(path) as writer:
            writer.write(b"an engine")
            writer.record = EngineRecord(key, writer.sha256, writer.bytes, 1.0)
        return path

    def load(self) -> TensorRTModule:
        options = BackendOptions(precision="f16")
        return TensorRTBackend("tensorrt_rtx", options, self.device).compile(self.source)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def inputs(batch: int = 1, tokens: int = 8, seed: int = 0) -> dict[str, Array]:
    generator = np.random.default_rng(seed)

    def normal(*shape: int) -> Array:
        return generator.standard_normal(shape, dtype=np.float32)

    return {
        "latents": normal(batch, 4, 16, 16),
        "caption": normal(batch, tokens, 256),
        "mask": generator.random((batch, tokens)) < 0.5,
        "timestep": normal(batch),
        "coefficients": normal(batch, 6),
        "noise": normal(batch, 4, 16, 16),
        "position": normal(1, 64, 256),
    }


def check(module: TensorRTModule, given: dict[str, Array]) -> None:
    results = module.run(given)
    for name, expected in compute(given).items():
        np.testing.assert_array_equal(results[name], expected)


def test_each_shape_runs_once_by_itself_and_then_as_a_graph(bench: Bench) -> None:
    module = bench.load()
    allocated = len(bench.device.buffers)
    for seed in range(4):
        check(module, inputs(seed=seed))
    assert (bench.device.captures, bench.device.replays) == (1, 3)
    assert bench.engine.executions == 2, "once eagerly, once into the graph"
    assert len(bench.engine.contexts) == 1
    assert len(bench.device.buffers) == allocated + 1, "scratch memory; everything else was there"


def test_shapes_take_turns_and_scratch_memory_that_grows_renews_the_graphs(bench: Bench) -> None:
    module = bench.load()
    for seed in range(3):
        check(module, inputs(1, seed=seed))
    for seed in range(3):
        check(module, inputs(4, 16, seed=seed))
    for seed in range(3):
        check(module, inputs(1, seed=seed))
        check(module, inputs(4, 16, seed=seed))
    assert len(bench.engine.contexts) == 2
    assert bench.device.captures == 3, "the first shape's graph twice, as its scratch memory moved"


def test_shapes_that_are_not_used_any_more_are_forgotten(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "MAX_SHAPES", 2)
    module = bench.load()
    for tokens in (8, 16, 24, 8):
        check(module, inputs(1, tokens))
    assert len(bench.engine.contexts) == 4


def test_what_cannot_change_is_uploaded_once(bench: Bench) -> None:
    module = bench.load()
    first, second = inputs(seed=1), inputs(seed=2)
    for given in (first, second):
        given["position"].setflags(write=False)
    for given in (first, first, first, second, first):
        before = len(bench.device.uploads)
        check(module, given)
        latest = len(bench.device.uploads) - before
        assert latest in (6, 7)
    assert len(bench.device.uploads) == 5 * 6 + 3, "three changes of position"
    writable = inputs(seed=3)
    check(module, writable)
    writable["position"] += 1
    check(module, writable)


def test_a_stream_that_cannot_be_captured_runs_each_time(bench: Bench) -> None:
    bench.engine.capturable = False
    module = bench.load()
    for seed in range(3):
        check(module, inputs(seed=seed))
    assert bench.device.captures == 0 and bench.engine.executions == 3


def test_kernels_made_at_run_time_are_kept_and_foreign_ones_dropped(bench: Bench) -> None:
    check(bench.load(), inputs())
    (blob,) = bench.folder.glob("*.blob")
    again = bench.load()
    check(again, inputs())
    assert bench.engine.contexts[-1].kernels is not None
    assert bench.engine.contexts[-1].kernels.content == b"kernels"
    BlobCache(bench.folder).write(blob, b"of another driver")
    check(bench.load(), inputs())
    assert bench.engine.contexts[-1].kernels.content == b"fresh"


def test_a_shape_outside_every_profile_is_refused_with_what_there_is(bench: Bench) -> None:
    module = bench.load()
    with pytest.raises(
        ShapeError, match=r"denoiser: no profile .* latents \[5, 4, 16, 16\].* compiled for B 1-4 .*--max-batch"
    ):
        module.run(inputs(5))


def test_a_failure_on_the_device_is_no_result_and_says_why(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    logger, said = messages("tensorrt_rtx")
    module = bench.load()
    bench.engine.broken = True
    bench.engine.say = lambda text: logger.log(tensorrt_rtx.ILogger.Severity.ERROR, text)
    logger.log(tensorrt_rtx.ILogger.Severity.ERROR, "of something before")
    for _ in range(2 * MAX_ERRORS):
        with pytest.raises(RuntimeError, match=r"could not run the engine \(it is broken\)$"):
            module.run(inputs())
        said.take("ERROR", "one more")
    assert caplog.messages.count("it is\nbroken") == 2 * MAX_ERRORS, "the log has them all"


def test_errors_that_nobody_asks_for_are_not_hoarded() -> None:
    said = Messages()
    for place in range(10 * MAX_ERRORS):
        said.take("INTERNAL_ERROR", str(place))
    assert len(said.errors) == MAX_ERRORS


def test_scratch_memory_that_grows_is_not_held_twice() -> None:
    class Tight(FakeDevice):
        """Remembers no buffer, and has room for one alone."""

        def __init__(self) -> None:
            super().__init__()
            self.held: weakref.WeakSet[FakeBuffer] = weakref.WeakSet()

        def allocate(self, size: int) -> FakeBuffer:
            if self.held or size > 1000:
                raise MemoryError
            buffer = FakeBuffer(4096, size)
            self.held.add(buffer)
            return buffer

    workspace = Workspace(Tight())
    assert workspace.reserve(10).bytes == 10
    assert workspace.reserve(1000).bytes == 1000
    with pytest.raises(MemoryError):
        workspace.reserve(2000)
    before = workspace.generation
    assert workspace.reserve(10).bytes == 10 and workspace.generation > before, "so that graphs are recorded anew"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"version": "1.0.0"}, rf"made by tensorrt_rtx 1\.0\.0, and {VERSION} is installed"),
        ({"targets": ("sm89",)}, "is for sm89, and Fake GPU is sm80"),
        ({"graph": "0" * 64}, "made of another version of the module"),
        ({"precision": "bf16"}, "is for tensorrt_rtx in bf16"),
    ],
)
def test_an_engine_that_does_not_fit_is_refused_and_the_cure_named(
    bench: Bench, change: dict[str, object], problem: str
) -> None:
    bench.write(replace(bench.key, **change))  # type: ignore[arg-type]
    with pytest.raises(CompileError, match=problem) as caught:
        bench.load()
    assert f"pixart compile --model {bench.folder.parent} --backend tensorrt_rtx --precision fp16 --target sm80" in str(
        caught.value
    )


def test_a_missing_or_damaged_engine_is_never_loaded(bench: Bench) -> None:
    path = EngineStore(bench.folder).path("denoiser", "tensorrt_rtx", "fp16")
    for content in (b"an engin", b"an Engine", b""):
        path.write_bytes(content)
        with pytest.raises(CompileError, match=r"denoiser-tensorrt_rtx-fp16\.engine is damaged"):
            bench.load()
    path.unlink()
    with pytest.raises(CompileError, match="cannot be read"):
        bench.load()
    for record in (b"", b"{}", b"[1]", b'{"format": 99}'):
        path.with_suffix(".json").write_bytes(record)
        with pytest.raises(CompileError, match="there is no engine"):
            bench.load()


def test_an_unreadable_record_is_not_taken_for_none(bench: Bench) -> None:
    record = EngineStore(bench.folder).path("denoiser", "tensorrt_rtx", "fp16").with_suffix(".json")
    record.unlink()
    record.mkdir()
    with pytest.raises(CompileError, match=r"denoiser-tensorrt_rtx-fp16\.json cannot be read \(Is a directory\)"):
        bench.load()


def test_an_engine_may_be_read_by_whoever_may_read_other_files(bench: Bench) -> None:
    before = os.umask(0o027)
    try:
        path = bench.write(bench.key)
    finally:
        os.umask(before)
    assert [stat.S_IMODE(file.stat().st_mode) for file in (path, path.with_suffix(".json"))] == [0o640, 0o640]


def test_an_engine_with_other_tensors_or_none_at_all_is_refused(bench: Bench) -> None:
    spec = bench.source.spec
    odd = spec.inputs[0].model_copy(update={"dtype": "uint8"})
    bench.package.engine = FakeEngine(
        tensorrt_rtx, bench.device, spec.model_copy(update={"inputs": (odd, *spec.inputs[1:])}), compute
    )
    with pytest.raises(CompileError, match="latents is not as the manifest has it"):
        bench.load()
    bench.package.engine = None
    with pytest.raises(CompileError, match="is refused by tensorrt_rtx"):
        bench.load()


def test_an_engine_is_replaced_whole_or_not_at_all(bench: Bench) -> None:
    store = EngineStore(bench.folder)
    path = store.path("denoiser", "tensorrt_rtx", "fp16")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match="half way"), store.writing(path) as writer:
        writer.write(b"half of an")
        raise RuntimeError("half way")
    assert path.read_bytes() == before
    assert sorted(file.name for file in bench.folder.iterdir()) == [path.with_suffix(".json").name, path.name][::-1]
    assert bench.load()


def test_without_a_gpu_one_sentence_says_so() -> None:
    with pytest.raises(CompileError, match=r"^tensorrt_rtx has nothing to run on: .*; use the backend openvino"):
        create("tensorrt_rtx", BackendOptions())


@pytest.mark.parametrize("device", ["GPU.1", "cuda1", "gpu:1", "1", "cuda:"])
def test_a_device_of_another_kind_of_name_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=rf"device '{device}' is not cuda or cuda:<number>"):
        create("tensorrt_rtx", BackendOptions(device=device))


def test_a_missing_package_is_named_with_its_installation() -> None:
    with pytest.raises(CompileError, match=r"^tensorrt cannot be loaded .* install it with: pip install"):
        create("tensorrt", BackendOptions())
