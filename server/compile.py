"""`pixart compile`: from a checkpoint or a bundle to a bundle with compiled modules."""

import hashlib
import importlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from engine.backends import CompileError
from engine.bundle import MANIFEST, Bundle, BundleError
from engine.compile import PACKAGES, CompilePlan, ModuleReport, compile_bundle
from engine.profiles import ProfileError, make_profiles, parse_profile
from server.bar import Bar
from server.settings import DEMO_BUNDLE

ENGINES = "engines"
EXPORT_RECORD = "export.json"
INT8 = "int8"
INSTALL = "install it with: pip install 'pixart-delta-server[compile]'"


@dataclass(frozen=True)
class CompileRequest:
    """The command's options; see its `--help`."""

    model: str
    backend: str
    precision: str
    profiles: tuple[str, ...] = ()
    max_batch: int | None = None
    targets: tuple[str, ...] = ()
    out: Path | None = None
    controlnet: Path | None = None
    hed: Path | None = None
    lora: Path | None = None
    components: str | None = None
    name: str | None = None
    licence: str | None = None
    threads: int = 0


def compile_model(request: CompileRequest, say: Callable[[str], None]) -> list[ModuleReport]:
    """Export if need be, compile every module, and write the report beside the engines.

    Raises:
        BundleError, CompileError: what cannot be done, and what to do; finished modules stay.
    """
    _refuse_idle_options(request)
    bundle = (_eight_bit if request.precision == INT8 else _bundle)(request, say)
    try:
        profiles = tuple(make_profiles(bundle.manifest, request.profiles, request.max_batch))
    except ProfileError as error:
        raise CompileError(str(error)) from error
    folder = bundle.folder / ENGINES
    precision = "auto" if request.precision == INT8 else request.precision
    plan = CompilePlan(request.backend, precision, profiles, folder, request.targets, request.threads)
    reports = []
    with Bar() as bar:
        for report in compile_bundle(bundle, plan, _typed_graph, bar.show):
            reports.append(report)
            bar.clear()
            done = "is compiled already" if report.reused else f"compiled in {report.seconds:.1f} s"
            say(f"{report.module} {done}")
    _write_report(folder / f"report-{request.backend}-{request.precision}.json", request, reports)
    return reports


def _refuse_idle_options(request: CompileRequest) -> None:
    """An option that changes nothing would be taken for one that did.

    Raises:
        CompileError: naming the option.
    """
    if request.backend not in PACKAGES and request.targets:
        raise CompileError(f"--target: {request.backend} compiles for this machine alone")
    folder = _bundle_folder(request.model)
    if folder is None:
        return
    complete = {**_parts(request), "--name": request.name, "--licence": request.licence}
    for option, value in complete.items():
        if value is not None:
            raise CompileError(f"{option}: {folder} is a bundle, which is complete; give the checkpoint as --model")
    if request.backend not in PACKAGES:
        for option, given in (("--profile", request.profiles), ("--max-batch", request.max_batch)):
            if given:
                raise CompileError(f"{option}: {request.backend} compiles a bundle for all sizes that it allows")


def table(reports: Sequence[ModuleReport]) -> str:
    """The report for people: a line for each module, then its inputs with their ranges."""
    lines = [f"{'module':<18}{'engine MB':>10}{'weights MB':>12}{'scratch MB':>12}{'build s':>9}"]
    for report in reports:
        memory = (f"{size / 1e6:.1f}" if size is not None else "-" for size in _memory(report))
        weights, scratch = memory
        lines.append(f"{report.module:<18}{report.bytes / 1e6:>10.1f}{weights:>12}{scratch:>12}{report.seconds:>9.1f}")
        for name, tensor in report.inputs.items():
            ranges = "; ".join(_range(*shapes) for shapes in tensor["shapes"])
            lines.append(f"    {name} {tensor['dtype']} {ranges}")
    return "\n".join(lines)


def _memory(report: ModuleReport) -> tuple[int | None, int | None]:
    return report.weight_bytes, report.activation_bytes


def _range(low: Sequence[int], usual: Sequence[int], high: Sequence[int]) -> str:
    return "x".join(str(a) if a == b else f"{a}-{b}" for a, b in zip(low, high, strict=True))


def _write_report(path: Path, request: CompileRequest, reports: Sequence[ModuleReport]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "model": request.model,
        "backend": request.backend,
        "precision": request.precision,
        "targets": list(request.targets),
        "modules": [report.to_json() for report in reports],
    }
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def _typed_graph(path: Path, precision: str) -> bytes:
    typed: Any = _models("models.export.half").typed_graph(path, precision)
    return bytes(typed.SerializeToString())


def _models(module: str) -> Any:
    """A module of `models`, which serving never loads and this command needs.

    Raises:
        CompileError: what it needs is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CompileError(f"exporting needs a package that is missing ({error}); {INSTALL}") from error


def _bundle(request: CompileRequest, say: Callable[[str], None]) -> Bundle:
    """The bundle to compile, in the folder where its engines go."""
    folder = _bundle_folder(request.model)
    if folder is None:
        return _export(request, say)
    say(f"checking the bundle {folder}")
    bundle = Bundle.load(folder)
    if request.out is None or request.out.resolve() == folder.resolve():
        return bundle
    _copy(bundle, request.out)
    return Bundle.load(request.out)


def _eight_bit(request: CompileRequest, say: Callable[[str], None]) -> Bundle:
    """The 8-bit variant in the folder `out`, made unless it was before; a checkpoint is exported beside it first."""
    out = request.out
    if request.backend in PACKAGES:
        raise CompileError("int8 is for openvino and onnxruntime; compile for TensorRT in fp16, bf16 or fp32")
    if out is None:
        raise CompileError("an 8-bit variant is a bundle of its own: say where to with --out")
    if _bundle_folder(request.model) is None:
        request = replace(request, out=out.with_name(f"{out.name}-float"))
    else:
        request = replace(request, out=None)
    source = _bundle(request, say)
    if source.folder.resolve() == out.resolve():
        raise CompileError(f"{out} is the bundle to quantise; an 8-bit variant needs a folder of its own")
    stamp = {"quantised": hashlib.sha256(source.path(MANIFEST).read_bytes()).hexdigest()}
    if _recorded(out) != stamp:
        quantize = _models("models.export.quantize")
        say(f"quantising {source.folder} to {out}: minutes")
        _run(quantize.main, ["--bundle", str(source.folder), "--out", str(out)], request.model)
        (out / EXPORT_RECORD).write_text(json.dumps(stamp), encoding="utf-8")
    return Bundle.load(out)


def _run(command: Callable[[list[str]], None], arguments: list[str], model: str) -> None:
    """Run a command of `models`, whose way to refuse is to exit."""
    try:
        command(arguments)
    except SystemExit as error:
        raise CompileError(f"{model}: {str(error.code).removeprefix('error: ')}") from error


def _parts(request: CompileRequest) -> dict[str, Path | str | None]:
    """What may join a checkpoint, by option."""
    return {
        "--controlnet": request.controlnet,
        "--hed": request.hed,
        "--lora": request.lora,
        "--components": request.components,
    }


def _bundle_folder(model: str) -> Path | None:
    """Where `model` is a bundle: a folder with a manifest, or a name in the zoo."""
    if (Path(model) / MANIFEST).is_file():
        return Path(model)
    if re.fullmatch(r"[\w.-]+", model) and (DEMO_BUNDLE.parent / model / MANIFEST).is_file():
        return DEMO_BUNDLE.parent / model
    return None


def _copy(bundle: Bundle, target: Path) -> None:
    """Copy the bundle's files, unless they are there already.

    They are collected in the folder `TARGET.part`, so what an interruption leaves behind is in nobody's way.
    """
    manifest = target / MANIFEST
    if manifest.is_file():
        if manifest.read_bytes() == bundle.path(MANIFEST).read_bytes():
            return
        raise CompileError(f"{target} holds another bundle; choose an empty folder, or give that one as --model")
    if target.is_mount():  # nothing can be renamed to it
        raise CompileError(f"{target} is a mount point; name a folder in it")
    if target.is_dir() and any(target.iterdir()):
        raise CompileError(f"{target} holds other files; choose an empty folder")
    final = target.resolve()
    part = final.with_name(f"{final.name}.part")
    if part.exists():
        shutil.rmtree(part)
    for name in (*bundle.manifest.files, MANIFEST):
        copy = part / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle.path(name), copy)
    os.replace(part, final)


def _export(request: CompileRequest, say: Callable[[str], None]) -> Bundle:
    """Export a checkpoint to the folder `out`, unless that was done before with the same arguments."""
    model, out = request.model, request.out
    if out is None:
        raise CompileError(f"{model} is no bundle, so it has to be exported first: say where to with --out")
    arguments = _export_arguments(request, out)
    stamp = {"arguments": arguments, "files": _fingerprint(request)}
    if _recorded(out) == stamp:
        try:
            return Bundle.load(out)
        except BundleError:
            say(f"{out} is incomplete; exporting anew")
    export = _models("models.export.__main__")
    say(f"exporting {model} to {out}")
    _run(export.main, arguments, model)
    (out / EXPORT_RECORD).write_text(json.dumps(stamp), encoding="utf-8")
    return Bundle.load(out)


def _export_arguments(request: CompileRequest, out: Path) -> list[str]:
    name = request.name or re.sub(r"[^a-z0-9._-]+", "-", Path(request.model).stem.lower()).strip("-._")[:64] or "model"
    arguments = ["--weights", request.model, "--out", str(out), "--name", name]
    arguments += ["--licence", request.licence or "LicenseRef-unknown", "--origin", request.model]
    for option, value in _parts(request).items():
        if value is not None:
            arguments += [option, str(value)]
    try:
        for profile in request.profiles:
            width, height = parse_profile(profile)
            arguments += ["--size", f"{width}x{height}"]
    except ProfileError as error:
        raise CompileError(str(error)) from error
    if request.max_batch is not None:
        arguments += ["--max-batch", str(request.max_batch)]
    return arguments


def _fingerprint(request: CompileRequest) -> str:
    """Of the checkpoint's files, by name, length and time; a hub id is its own."""
    whole = hashlib.sha256()
    for name in (request.model, *_parts(request).values()):
        place = Path(name or "")
        if not place.exists() or place == Path():
            continue
        for path in sorted(place.rglob("*")) if place.is_dir() else [place]:
            if path.is_file():
                status = path.stat()
                whole.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    return whole.hexdigest()


def _recorded(out: Path) -> Any:
    try:
        return json.loads((out / EXPORT_RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
