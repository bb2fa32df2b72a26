"""What an export refuses, and that the same model gives the same bytes."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from engine.manifest import Manifest
from models.checkpoints import CheckpointError
from models.export import Card, export_bundle
from models.export.__main__ import main as export
from models.export.graph import MAX_INLINE_BYTES, ModulePlan, TensorPlan, write_graph
from models.export.modules import plan_modules
from models.export.weights import WeightIndex, save_weights
from tests.export.tiny import tiny_bundle, tiny_parts, write_tokenizer

ROWS = (TensorPlan("x", "float32", ("B", 4)),)
OUT = (TensorPlan("y", "float32", ("B", 4)),)


def plan(module: nn.Module) -> ModulePlan:
    return ModulePlan("module", module, ROWS, OUT)


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.unused = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


def test_a_shared_tensor_is_stored_once_and_an_export_repeats_to_the_byte(tmp_path: Path) -> None:
    module = Affine()
    contents = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        index = save_weights({"w.safetensors": module}, folder, torch.float16)
        assert write_graph(plan(module), index, {"B": 2}, folder) == ("w.safetensors",)
        contents.append([(folder / name).read_bytes() for name in ("w.safetensors", "module.onnx")])
    assert contents[0] == contents[1]
    assert b"second" not in contents[0][0]


def test_a_weight_beyond_the_storage_type_is_refused(tmp_path: Path) -> None:
    module = nn.Linear(2, 2)
    nn.init.constant_(module.weight, 1e5)
    with pytest.raises(CheckpointError, match=r"w\.safetensors: weight does not fit into torch\.float16"):
        save_weights({"w.safetensors": module}, tmp_path, torch.float16)


def test_a_large_tensor_outside_the_weight_files_is_refused(tmp_path: Path) -> None:
    class Hidden(nn.Module):
        table: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(MAX_INLINE_BYTES // 16 + 1, 4), persistent=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.table[: x.shape[0]]

    with pytest.raises(ValueError, match="in no weight file"):
        write_graph(plan(Hidden()), WeightIndex(), {"B": 2}, tmp_path)


@pytest.mark.parametrize("size", [(64, 56), (0, 64), (72, 64)])
def test_a_size_that_does_not_divide_into_patches_is_refused(tmp_path: Path, size: tuple[int, int]) -> None:
    write_tokenizer(tmp_path / "tokenizer.json")
    card = Card("tiny", "Apache-2.0", "random weights", ((64, 64), size))
    with pytest.raises(ValueError, match=f"image size {size[0]}x{size[1]} is not a multiple of 16"):
        export_bundle(tiny_parts(), tmp_path / "tokenizer.json", tmp_path, card)


def test_without_a_control_branch_there_are_no_control_modules() -> None:
    parts = tiny_parts()
    bare = replace(parts, controlnet=None, edge_detector=None)
    assert [plan.name for plan in plan_modules(bare)] == ["text_encoder", "denoiser", "vae_decoder"]
    assert set(bare.weight_files()) == {f"weights/{name}.safetensors" for name in ("text_encoder", "dit", "vae")}


EXPORT = ["--licence", "Apache-2.0", "--origin", "random weights", "--weights", "/nowhere/checkpoint"]


@pytest.mark.parametrize("name", ["", "Tiny", "-tiny", "a/b", "a" * 65, "tiny\n"])
def test_a_name_that_no_manifest_may_have_is_refused_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate({"name": name})
    with pytest.raises(SystemExit) as end:
        export([*EXPORT, "--out", str(tmp_path / "out"), f"--name={name}"])
    assert end.value.code == 2 and "--name: " in capsys.readouterr().err


@pytest.mark.parametrize("batch", ["0", "-1", "two"])
def test_a_batch_below_one_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture[str], batch: str) -> None:
    with pytest.raises(SystemExit) as end:
        export([*EXPORT, "--out", str(tmp_path / "out"), "--name", "tiny", f"--max-batch={batch}"])
    assert end.value.code == 2 and "--max-batch: " in capsys.readouterr().err


def test_another_bundle_is_left_alone(tmp_path: Path) -> None:
    bundle = shutil.copytree(tiny_bundle()[1], tmp_path / "bundle")
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(SystemExit, match="bundle holds another bundle; choose another folder"):
        export([*EXPORT, "--out", str(bundle), "--name", "other"])
    # The same model may be exported anew, so this gets as far as its checkpoint.
    with pytest.raises(SystemExit, match=r"/nowhere/checkpoint: is no file"):
        export([*EXPORT, "--out", str(bundle), "--name", "tiny"])
    assert (bundle / "manifest.json").read_bytes() == before
