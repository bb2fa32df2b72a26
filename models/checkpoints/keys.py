"""From the tensors of a file to a module's state dict: every key accounted for, every shape checked."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError

StateDict = dict[str, Tensor]
# Names of a file's tensors that are stacked along dimension 0 to make one of ours.
Sources = tuple[str, ...]

SHOWN = 8


def assemble(
    origin: str,
    tensors: Mapping[str, Tensor],
    plan: Mapping[str, Sources],
    expected: Mapping[str, Tensor],
    ignored: Collection[str] = (),
) -> StateDict:
    """The state dict that has `expected`'s names and shapes, made from `tensors` by `plan`.

    Args:
        origin: the file, for messages.
        plan: for each name of ours, whence it comes; several sources are equal shares of its first dimension.
        expected: the module's own state dict, which may lie on the meta device.
        ignored: names that may be there and are not read.

    Raises:
        CheckpointError: a tensor is missing, surplus or misshaped; the message names it.
    """
    wanted = {name for target in expected for name in plan[target]}
    problems = [
        *_listed("missing", wanted - tensors.keys()),
        *_listed("surplus", tensors.keys() - wanted - set(ignored)),
        *_misshaped(tensors, plan, expected),
    ]
    if problems:
        raise CheckpointError(f"{origin}: {'; '.join(problems)}")
    state: StateDict = {}
    for target in expected:
        parts = [tensors[name] for name in plan[target]]
        state[target] = parts[0] if len(parts) == 1 else torch.cat(parts)
    return state


def identity(expected: Iterable[str]) -> dict[str, Sources]:
    """The plan of a file that uses our names."""
    return {name: (name,) for name in expected}


def with_parameters(layers: dict[str, Sources]) -> dict[str, Sources]:
    """The plan of tensors for a plan of layers."""
    return {
        f"{ours}.{parameter}": tuple(f"{source}.{parameter}" for source in theirs)
        for ours, theirs in layers.items()
        for parameter in ("weight", "bias")
    }


def select(prefix: str, tensors: Mapping[str, Tensor]) -> StateDict:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> StateDict:
    """The tensors with `prefix` before their names."""
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _misshaped(tensors: Mapping[str, Tensor], plan: Mapping[str, Sources], expected: Mapping[str, Tensor]) -> list[str]:
    found = []
    for target, example in expected.items():
        sources = plan[target]
        shape = tuple(example.shape)
        if len(sources) > 1:
            shape = (shape[0] // len(sources), *shape[1:])
        for name in sources:
            if name in tensors and tuple(tensors[name].shape) != shape:
                found.append(f"{name} is {tuple(tensors[name].shape)} instead of {shape}")
    return [f"misshaped: {_shortened(found)}"] if found else []


def _listed(kind: str, names: Collection[str]) -> list[str]:
    return [f"{kind}: {_shortened(sorted(names))}"] if names else []


def _shortened(items: list[str]) -> str:
    more = len(items) - SHOWN
    return ", ".join(items[:SHOWN]) + (f" and {more} more" if more > 0 else "")
