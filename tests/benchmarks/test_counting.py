"""Counts from graphs against PyTorch's own counter on the modules, and against sums done by hand."""

from pathlib import Path
from unittest.mock import patch

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.counting import ConcreteGraph, Count
from benchmarks.fullsize import FullSize, full_config, meta_parts, shorten, sizes_at, write_graphs
from models.config import PixArtConfig
from models.export.modules import Parts, plan_modules
from tests.export.tiny import tiny_bundle

MODULES = ["text_encoder", "denoiser", "vae_decoder", "denoiser_control", "vae_encoder", "edge_detector"]


def torch_flops(parts: Parts, name: str, sizes: dict[str, int], device: str) -> int:
    """What PyTorch counts while the module runs; on the meta device nothing is computed."""
    plan = next(plan for plan in plan_modules(parts) if plan.name == name)
    inputs = [tensor.example(sizes).to(device) for tensor in plan.inputs]
    # T5 would look whether the mask hides anything, and the meta device has no values.
    unread = patch("transformers.masking_utils._ignore_bidirectional_mask_sdpa", return_value=False)
    # Attention as its two products: the counter does not know every fused kernel.
    attention = sdpa_kernel(SDPBackend.MATH)
    with unread, attention, torch.no_grad(), FlopCounterMode(display=False) as counter:
        plan.module.to(device)(*inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("name", MODULES)
def test_operations_are_those_that_torch_counts(name: str) -> None:
    parts, folder = tiny_bundle()
    for sizes in ({"B": 1, "L": 8, "H": 8, "W": 8, "N": 16}, {"B": 3, "L": 24, "H": 6, "W": 12, "N": 18}):
        count = ConcreteGraph(folder / f"{name}.onnx", sizes).count()
        assert count.flops == torch_flops(parts, name, sizes, "cpu")
        assert count.flops > 0


def test_weights_matrices_and_tables_are_the_modules_own() -> None:
    parts, folder = tiny_bundle()
    sizes = sizes_at(64, 64, 24)
    count = ConcreteGraph(folder / "text_encoder.onnx", sizes).count()
    own = set(parts.text_encoder.parameters())
    linear = [layer for layer in parts.text_encoder.modules() if isinstance(layer, torch.nn.Linear)]
    tables = [layer for layer in parts.text_encoder.modules() if isinstance(layer, torch.nn.Embedding)]
    assert count.weights == sum(parameter.numel() for parameter in own)
    assert count.matrices == sum(layer.weight.numel() for layer in linear)
    assert count.tables == sum(parameter.numel() for parameter in {layer.weight for layer in tables})
    assert count.bytes(2) == 2 * (count.weights - count.tables + count.moved)
    denoiser = ConcreteGraph(folder / "denoiser.onnx", sizes).count()
    assert denoiser.weights == sum(parameter.numel() for parameter in parts.dit.parameters())


def test_attention_grows_with_the_square_of_tokens_and_products_in_proportion() -> None:
    _, folder = tiny_bundle()
    small, large = (
        ConcreteGraph(folder / "denoiser.onnx", {"B": 1, "L": 8, "H": side, "W": side, "N": side**2 // 4}).count()
        for side in (16, 32)
    )
    config = tiny_bundle()[0].config.dit
    # 2 products of 2·N·(N + L)·W in each block.
    for count, tokens in ((small, 64), (large, 256)):
        assert count.attention == config.depth * 4 * config.width * tokens * (tokens + 8)
    assert large.conv == 4 * small.conv


class TinyFullSize(FullSize):
    """The same arithmetic for a model that is small in every way."""

    def __init__(self, folder: Path, config: PixArtConfig) -> None:
        super().__init__(folder)
        self.config = config


@pytest.mark.slow
@pytest.mark.parametrize("name", ["denoiser", "denoiser_control", "text_encoder"])
def test_two_depths_tell_any_number_of_equal_blocks(tmp_path: Path, name: str) -> None:
    config = shorten(tiny_bundle()[0].config, 5, 4, 3)
    model = TinyFullSize(tmp_path / "short", config)
    path = write_graphs(meta_parts(config), tmp_path / "whole", [name])[name]
    whole = ConcreteGraph(path, sizes_at(64, 64, config.max_tokens))
    assert model.count(name, 64) == whole.count()
    assert model.peak(name, 64, 2) == whole.peak(2)
    stored = sum(path.stat().st_blocks for path in tmp_path.rglob("*.safetensors"))
    assert stored == 0, "weight files are holes"


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_full_size_operations_are_those_that_torch_counts_at_full_depth(name: str, graphs: Path) -> None:
    model = FullSize(graphs)
    for pixels in (512, 1024):
        sizes = sizes_at(pixels, pixels, 120)
        assert model.count(name, pixels).flops == torch_flops(meta_parts(full_config()), name, sizes, "meta")


@pytest.fixture(scope="session")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


def chain(path: Path) -> Path:
    """x [1, 100] → Relu → a; a·W [100, 400] → b; b·V [400, 100] → c; y = a + c; all as views of themselves twice."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("MatMul", ["a", "W"], ["b"]),
        helper.make_node("Sigmoid", ["b"], ["s"]),
        helper.make_node("Reshape", ["s", "shape"], ["r"]),
        helper.make_node("Reshape", ["r", "back"], ["t"]),
        helper.make_node("MatMul", ["t", "V"], ["c"]),
        helper.make_node("Add", ["a", "c"], ["y"]),
    ]
    arrays = {
        "W": np.zeros((100, 400), np.float32),
        "V": np.zeros((400, 100), np.float32),
        "shape": np.array([20, -1]),
        "back": np.array([1, -1]),
    }
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 100])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", 100])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), path)
    return path


def test_live_memory_of_a_chain_is_what_a_pencil_finds(tmp_path: Path) -> None:
    graph = ConcreteGraph(chain(tmp_path / "chain.onnx"), {"B": 1})
    # Relu writes over x; a (100) stays for the sum beside b (400), whose views and Sigmoid take no room of their own;
    # the second product adds c (100).
    assert graph.peak(4) == 4 * (100 + 400 + 100)
    assert graph.peak(2) == 2 * (100 + 400 + 100)
    # W and V are inline, so none is stored; a, b, t and c cross the products, x and y the module's border.
    assert graph.count() == Count(matmul=4 * 100 * 400, moved=100 + 100 + (100 + 400) + (400 + 100))


def test_fused_attention_keeps_scores_out_of_memory() -> None:
    _, folder = tiny_bundle()
    graph = ConcreteGraph(folder / "denoiser.onnx", {"B": 1, "L": 8, "H": 64, "W": 64, "N": 1024})
    heads = tiny_bundle()[0].config.dit.heads
    scores = heads * 1024 * 1024
    assert graph.peak(4) < 4 * scores < graph.peak(4, fused_attention=False)


def test_a_shape_that_depends_on_data_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("NonZero", ["x"], ["y"])],
        "nonzero",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", 4])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [2, None])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="NonZero"):
        ConcreteGraph(tmp_path / "x.onnx", {"B": 2})
