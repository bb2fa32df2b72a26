"""Compiling that cannot succeed: one sentence says why, and no half of an engine is left."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from engine.backends import CompileError
from engine.bundle import Bundle
from engine.compile import compile_bundle
from engine.manifest import ModuleSpec, TensorSpec
from server.settings import DEMO_BUNDLE
from tests.engine.compiling import only, plan


def odd_module(folder: Path, operation: str) -> Bundle:
    """A bundle whose one module is a graph with a single node."""
    matrix = helper.make_tensor_value_info("latents", TensorProto.FLOAT, ["B", 4, 4])
    result = helper.make_tensor_value_info("x0", TensorProto.FLOAT, ["B"])
    graph = helper.make_graph([helper.make_node(operation, ["latents"], ["x0"])], "odd", [matrix], [result])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, folder / "vae_decoder.onnx")
    spec = ModuleSpec(
        graph="vae_decoder.onnx",
        weights=(),
        inputs=(TensorSpec(name="latents", dtype="float32", shape=("B", 4, 4)),),
        outputs=(TensorSpec(name="x0", dtype="float32", shape=("B",)),),
    )
    demo = Bundle.load("models/zoo/emoji")
    files = demo.manifest.files | {"vae_decoder.onnx": demo.manifest.files["vae_decoder.onnx"]}
    return Bundle(folder, demo.manifest.model_copy(update={"modules": {"vae_decoder": spec}, "files": files}))


def test_an_operation_that_the_package_does_not_know_is_named(tmp_path: Path) -> None:
    bundle = odd_module(tmp_path, "Det")
    with pytest.raises(
        CompileError, match=r"^vae_decoder\.onnx: tensorrt_rtx does not support the operation Det; take another"
    ):
        list(compile_bundle(bundle, plan(tmp_path), lambda path, precision: path.read_bytes(), lambda *what: None))
    assert not list(tmp_path.glob("*.engine"))


def test_a_truncated_graph_is_refused_by_name(tmp_path: Path) -> None:
    from models.export.half import typed_graph

    bundle = odd_module(tmp_path, "Det")
    content = (tmp_path / "vae_decoder.onnx").read_bytes()
    (tmp_path / "vae_decoder.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(CompileError, match=r"^vae_decoder\.onnx: is damaged, or no ONNX graph .*export it anew"):
        list(
            compile_bundle(
                bundle,
                plan(tmp_path),
                lambda path, precision: typed_graph(path, "fp16").SerializeToString(),
                lambda *what: None,
            )
        )


FULL_DISK = """
import resource, sys
from engine.bundle import Bundle
from engine.compile import CompilePlan, compile_bundle
from engine.profiles import make_profiles
from pathlib import Path
graph = Path(sys.argv[2]).read_bytes()
bundle = Bundle.load("models/zoo/emoji")
modules = {"edge_detector": bundle.manifest.modules["edge_detector"]}
bundle = Bundle(bundle.folder, bundle.manifest.model_copy(update={"modules": modules}))
profiles = tuple(make_profiles(bundle.manifest, (), 1))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
plan = CompilePlan("tensorrt_rtx", "fp16", profiles, Path(sys.argv[1]), ("sm80",))
list(compile_bundle(bundle, plan, lambda *_: graph, lambda *_: None))
"""


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False), (errno.EROFS, False)],
)
def test_only_a_full_disk_wants_room(tmp_path: Path, number: int, advice: bool) -> None:
    def graph(path: Path, precision: str) -> bytes:
        raise OSError(number, os.strerror(number))

    edges = only(Bundle.load(DEMO_BUNDLE), "edge_detector")
    with pytest.raises(CompileError, match=r"^edge_detector: cannot be written to ") as caught:
        list(compile_bundle(edges, plan(tmp_path), graph, lambda *_: None))
    assert os.strerror(number) in str(caught.value) and ("make room" in str(caught.value)) == advice


def test_a_record_that_cannot_be_read_is_not_taken_for_none(tmp_path: Path) -> None:
    (tmp_path / "edge_detector-tensorrt_rtx-fp16.json").mkdir()
    edges = only(Bundle.load(DEMO_BUNDLE), "edge_detector")
    with pytest.raises(
        CompileError, match=r"^edge_detector: edge_detector-.*\.json cannot be read \(Is a directory\)$"
    ):
        list(compile_bundle(edges, plan(tmp_path), lambda *_: b"", lambda *_: None))


def test_a_disk_that_is_full_leaves_nothing_behind(tmp_path: Path) -> None:
    """The limit on a file's size stands for the disk's: either way, a write fails half way."""
    from models.export.half import typed_graph

    folder, graph = tmp_path / "engines", tmp_path / "typed.onnx"
    graph.write_bytes(typed_graph(Path("models/zoo/emoji/edge_detector.onnx"), "fp16").SerializeToString())
    command = [sys.executable, "-c", FULL_DISK, str(folder), str(graph)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 1
    message = done.stderr.strip().splitlines()[-1]
    assert "edge_detector: cannot be written to" in message and "(File too large)" in message
    assert list(folder.iterdir()) == []
