"""From an ONNX graph to an engine file. With `tensorrt_rtx` no GPU is needed."""

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.backends.base import CompileError, Source
from engine.backends.tensorrt.interrupt import Interrupt, noted_interrupt
from engine.backends.tensorrt.package import Messages, PackageName, load_package, messages, parse_targets
from engine.backends.tensorrt.record import EngineKey, EngineRecord, EngineStore, EngineWriter
from engine.profiles import ShapeProfile

# Called with the phase's name and the part of it that is done, 0 to 1.
PhaseProgress = Callable[[str, float], None]

_ACTIVATIONS = re.compile(r"Total Activation Memory: (\d+) bytes")
_WEIGHTS = re.compile(r"Total Weights Memory: (\d+) bytes")


@dataclass(frozen=True)
class EngineOptions:
    """What is wanted of an engine: `targets` such as `sm80` (none: the GPU of this machine), its precision in words
    (the graph itself decides on it), and the shapes."""

    package: PackageName
    targets: tuple[str, ...]
    precision: str
    profiles: tuple[ShapeProfile, ...]


def engine_key(source: Source, options: EngineOptions) -> EngineKey:
    """What the engine of `source` will depend on.

    Raises:
        CompileError: the package is missing, or cannot compile for a target; or there is no GPU to compile for.
    """
    trt = load_package(options.package)
    parse_targets(options.package, options.targets)
    targets = options.targets or (_local_target(options.package),)
    ranges: list[dict[str, Any]] = []
    for profile in options.profiles:
        # Profiles that differ only in dimensions that this module does not have are one.
        if (range_ := dict(profile.restricted(source.spec.inputs))) not in ranges:
            ranges.append(range_)
    return EngineKey(
        options.package, trt.__version__, tuple(sorted(targets)), source.digest, options.precision, tuple(ranges)
    )


def build_engine(
    source: Source,
    graph: bytes,
    key: EngineKey,
    store: EngineStore,
    progress: PhaseProgress = lambda phase, done: None,
) -> EngineRecord:
    """Compile `graph` (ONNX, external data relative to the folder of `source.graph`) and put the engine into `store`.

    Raises:
        CompileError: the package refuses the graph or a shape.
        OSError: the engine cannot be written; nothing is left of it.
        KeyboardInterrupt: Ctrl-C was pressed, which ends the package's work at its next step.
    """
    package: PackageName = "tensorrt_rtx" if key.package == "tensorrt_rtx" else "tensorrt"
    trt = load_package(package)
    logger, said = messages(package)
    said.clear()
    start = time.perf_counter()
    builder = trt.Builder(logger)
    network, _parser = _parse(trt, logger, said, builder, source, graph)
    config = _configure(trt, builder, package, key)
    profiles = [ShapeProfile(str(number), ranges) for number, ranges in enumerate(key.profiles)]
    _add_profiles(builder, config, source, profiles)
    found: dict[str, int] = {}
    said.listener = lambda text: _note_memory(text, found)
    engine = store.path(source.graph.stem, key.package, key.precision)
    try:
        with store.writing(engine) as writer, noted_interrupt() as interrupt:
            config.progress_monitor = _monitor(trt, progress, interrupt)
            _build(trt, builder, network, config, writer, source, said)
            writer.record = EngineRecord(
                key=key,
                sha256=writer.sha256,
                bytes=writer.bytes,
                seconds=round(time.perf_counter() - start, 3),
                activation_bytes=found.get("activations"),
                weight_bytes=found.get("weights"),
            )
            return writer.record
    finally:
        said.listener = None


def _local_target(package: PackageName) -> str:
    from engine.backends.tensorrt.device import NoDevice, compute_capability

    try:
        return compute_capability()
    except NoDevice as error:
        hint = "; name one with --target, for example sm80" if package == "tensorrt_rtx" else ""
        raise CompileError(f"{package} finds no GPU to compile for ({error}){hint}") from error


def _parse(trt: Any, logger: Any, said: Messages, builder: Any, source: Source, graph: bytes) -> tuple[Any, Any]:
    """The network, and the parser, which owns the weights that the network refers to."""
    # Networks are strongly typed anyway in newer versions, where the flag has gone.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph, str(source.graph)):
        raise CompileError(f"{source.graph.name}: {trt.__name__} {_parser_problem(parser, said)}")
    found = [network.get_input(place) for place in range(network.num_inputs)]
    found += [network.get_output(place) for place in range(network.num_outputs)]
    wanted = {tensor.name: tensor.dtype for tensor in (*source.spec.inputs, *source.spec.outputs)}
    if wanted != {tensor.name: np.dtype(trt.nptype(tensor.dtype)).name for tensor in found}:
        raise CompileError(f"{source.graph.name}: inputs and outputs are not those of the manifest; export it anew")
    return network, parser


def _parser_problem(parser: Any, said: Messages) -> str:
    if not parser.num_errors:
        return f"cannot read the graph ({said.reason()})"
    error = parser.get_error(0)
    node = f"{error.node_operator()} {error.node_name()}".strip()
    if error.code().name.startswith(("UNSUPPORTED_NODE", "INVALID_NODE")) and node:
        return f"does not support the operation {node}; take another backend, or a model without it"
    return f"cannot read the graph at {node or 'its beginning'} ({' '.join(str(error.desc()).split())})"


def _configure(trt: Any, builder: Any, package: PackageName, key: EngineKey) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if package == "tensorrt_rtx":
        targets = parse_targets(package, key.targets)
        config.num_compute_capabilities = len(targets)
        for place, target in enumerate(targets):
            if not config.set_compute_capability(target, place):
                raise CompileError(f"{package} cannot compile for {key.targets[place]}")
    return config


def _add_profiles(builder: Any, config: Any, source: Source, profiles: Sequence[ShapeProfile]) -> None:
    for profile in profiles:
        added = builder.create_optimization_profile()
        for tensor in source.spec.inputs:
            added.set_shape(tensor.name, *profile.shapes(tensor))
        if config.add_optimization_profile(added) < 0:
            raise CompileError(f"{source.graph.name}: the shapes {dict(profile.ranges)} are refused")


def _build(
    trt: Any, builder: Any, network: Any, config: Any, writer: EngineWriter, source: Source, said: Messages
) -> None:
    """Build, straight into the file: an engine of some gigabytes is never in memory twice."""
    failures: list[OSError] = []

    class Writer(trt.IStreamWriter):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, piece: Any) -> int:
            try:
                return writer.write(piece)
            except OSError as error:
                failures.append(error)  # an exception cannot pass through the package
                return -1

    done = builder.build_serialized_network_to_stream(network, config, Writer())
    if failures:
        raise failures[0]
    if not done or not writer.bytes:
        raise CompileError(f"{source.graph.name}: {trt.__name__} cannot compile it ({said.reason()})")


def _monitor(trt: Any, progress: PhaseProgress, interrupt: Interrupt) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Phases have phases within; the outermost says how far the whole is, the innermost what is going on."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            progress(phase_name, 0.0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            progress(phase_name, min(1.0, (step + 1) / max(1, self._steps.get(phase_name, 1))))
            return not interrupt.wanted

        def phase_finish(self, phase_name: str) -> None:
            progress(phase_name, 1.0)

    return Monitor()


def _note_memory(text: str, found: dict[str, int]) -> None:
    for name, pattern in (("activations", _ACTIVATIONS), ("weights", _WEIGHTS)):
        if match := pattern.search(text):
            found[name] = max(found.get(name, 0), int(match[1]))
