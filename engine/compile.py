"""Compile every module of a bundle for a backend, ahead of time; what is compiled already is kept."""

import errno
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.backends import BackendOptions, CompileError, Source, create
from engine.backends.base import Keeping, Precision
from engine.backends.tensorrt.build import EngineOptions, build_engine, engine_key
from engine.backends.tensorrt.package import PackageName
from engine.backends.tensorrt.record import EngineRecord, EngineRefused, EngineStore
from engine.bundle import Bundle
from engine.manifest import ModuleName
from engine.profiles import ShapeProfile
from engine.sources import module_source

# (module, phase, part of the phase that is done, 0 to 1)
Progress = Callable[[str, str, float], None]
# The ONNX graph at a path with every operation's precision spelled out: `models.export.half.typed_graph`, in bytes.
TypedGraph = Callable[[Path, str], bytes]

PRECISIONS: dict[str, Precision] = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "auto": "auto"}
PACKAGES: dict[str, PackageName] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt_rtx"}


@dataclass(frozen=True)
class CompilePlan:
    """What to compile for. `precision` is fp32, bf16 or fp16, and without TensorRT also auto, the backend's choice.

    `targets` are GPUs like `sm80`, or none for this one.
    """

    backend: str
    precision: str
    profiles: tuple[ShapeProfile, ...]
    folder: Path
    targets: tuple[str, ...] = ()
    threads: int = 0


@dataclass(frozen=True)
class ModuleReport:
    """What became of a module. Memory is in bytes, and absent where the backend does not tell.

    `files` are those that hold it, for OpenVINO one for each usual number of samples; `bytes` is their length.
    `reused` says that all of them were there already.
    `inputs` and `outputs` are, by name, the type and for each profile the smallest, most usual and largest shape.
    """

    module: str
    files: tuple[str, ...]
    bytes: int
    seconds: float
    reused: bool
    activation_bytes: int | None = None
    weight_bytes: int | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As values that `json.dumps` takes."""
        return asdict(self)


def compile_bundle(
    bundle: Bundle, plan: CompilePlan, typed_graph: TypedGraph, progress: Progress
) -> Iterator[ModuleReport]:
    """Compile one module after the other and report each; a module whose engine is there and whole is not built again.

    Raises:
        CompileError: the backend is missing, or refuses a graph, a target or a precision; or an engine cannot be
            written. Modules that were reported stay compiled.
    """
    for name in bundle.manifest.modules:
        source = module_source(bundle, name)
        progress(name, "reading the graph", 0.0)
        try:
            yield _compile_module(name, source, plan, typed_graph, progress)
        except OSError as error:
            advice = "; make room and run the same command again, which keeps the finished modules"
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise CompileError(
                f"{name}: cannot be written to {plan.folder} ({error.strerror or error}){advice if full else ''}"
            ) from error


def _compile_module(
    name: ModuleName, source: Source, plan: CompilePlan, typed_graph: TypedGraph, progress: Progress
) -> ModuleReport:
    if plan.backend not in PACKAGES:
        return _with_adapter(name, source, plan)
    options = EngineOptions(PACKAGES[plan.backend], plan.targets, plan.precision, plan.profiles)
    key = engine_key(source, options)
    store = EngineStore(plan.folder)
    engine = store.path(source.graph.stem, plan.backend, plan.precision)
    try:
        record = store.record(engine)
    except EngineRefused as refusal:
        raise CompileError(f"{name}: {refusal}") from refusal
    reused = record is not None and record.key == key and store.is_whole(engine, record)
    if record is None or not reused:
        try:
            graph = typed_graph(source.graph, plan.precision)
        except ValueError as error:
            raise CompileError(str(error)) from error
        record = build_engine(source, graph, key, store, lambda phase, done: progress(name, phase, done))
    return _report(name, source, engine, record, reused)


def _report(name: str, source: Source, engine: Path, record: EngineRecord, reused: bool) -> ModuleReport:
    profiles = [ShapeProfile(str(place), ranges) for place, ranges in enumerate(record.key.profiles)]
    inputs, outputs = (
        {
            tensor.name: {"dtype": tensor.dtype, "shapes": [list(profile.shapes(tensor)) for profile in profiles]}
            for tensor in tensors
        }
        for tensors in (source.spec.inputs, source.spec.outputs)
    )
    return ModuleReport(
        module=name,
        files=(engine.name,),
        bytes=record.bytes,
        seconds=record.seconds,
        reused=reused,
        activation_bytes=record.activation_bytes,
        weight_bytes=record.weight_bytes,
        inputs=inputs,
        outputs=outputs,
    )


def _with_adapter(name: str, source: Source, plan: CompilePlan) -> ModuleReport:
    """With a backend whose adapter compiles and keeps what it compiled itself; its shapes are the manifest's ranges."""
    options = BackendOptions(precision=PRECISIONS[plan.precision], threads=plan.threads, cache=plan.folder)
    try:
        backend = create(plan.backend, options)
    except ImportError as error:
        raise CompileError(f"{plan.backend} is not installed ({error}); install the package {plan.backend}") from error
    except ValueError as error:
        raise CompileError(str(error)) from error
    start = time.perf_counter()
    backend.compile(source)
    seconds = time.perf_counter() - start
    kept = backend.kept if isinstance(backend, Keeping) else {}
    size = sum(path.stat().st_size for path in kept)
    files = tuple(sorted(path.name for path in kept))
    return ModuleReport(name, files, size, round(seconds, 3), reused=bool(kept) and not any(kept.values()))
