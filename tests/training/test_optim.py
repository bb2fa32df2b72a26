"""Muon moves matrices and kernels as torch's does, and orthogonalises what it should."""

import pytest
import torch
from torch import nn, optim

from training.optim import Muon, muon_and_adamw, orthogonalize


@pytest.mark.parametrize("shape", [(48, 48), (24, 96), (96, 24)])
def test_singular_values_are_drawn_near_one(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape)
    result = orthogonalize(matrices)
    u, s, vh = torch.linalg.svd(matrices.double(), full_matrices=False)
    # The quintic trades exactness for speed: it leaves singular values between 0.5 and 1.5, and only those that are
    # next to nothing below; the singular vectors stay. bfloat16 keeps about two digits.
    inner = (u.mT @ result.double() @ vh.mT).diagonal(dim1=1, dim2=2)
    clear = s > 0.05 * s.amax(dim=1, keepdim=True)
    assert inner[clear].min() > 0.5
    assert inner.max() < 1.5


def test_the_update_is_that_of_torch() -> None:
    first, second = torch.randn(32, 16), torch.randn(16, 32)
    ours = [nn.Parameter(first.clone()), nn.Parameter(second.clone())]
    theirs = [nn.Parameter(first.clone()), nn.Parameter(second.clone())]
    mine = Muon(ours, lr=0.02)
    reference = optim.Muon(theirs, lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        for left, right in zip(ours, theirs, strict=True):
            left.grad = torch.randn_like(left)
            right.grad = left.grad.clone()
        mine.step()
        reference.step()
    for left, right, start in zip(ours, theirs, (first, second), strict=True):
        # torch iterates in bfloat16, whose 8 bits leave a few per cent of an update.
        moved = (right - start).norm()
        assert (left - right).norm() < 0.05 * moved


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (40, 2, 3, 3)])
def test_a_kernel_moves_as_its_matrix_does(shape: tuple[int, ...]) -> None:
    kernel = nn.Parameter(torch.randn(shape))
    matrix = nn.Parameter(kernel.detach().flatten(1).clone())
    optimizer = Muon([kernel, matrix], lr=0.02)
    for _ in range(3):
        kernel.grad = torch.randn(shape)
        matrix.grad = kernel.grad.flatten(1).clone()
        optimizer.step()
    torch.testing.assert_close(kernel.detach().flatten(1), matrix.detach())


def test_every_parameter_is_trained_by_one_optimizer() -> None:
    model = nn.ModuleDict(
        {
            "blocks": nn.Sequential(nn.Conv2d(2, 2, 3), nn.Linear(2, 2)),
            "shared": nn.Embedding(4, 2),
            "last": nn.Linear(2, 2),
        }
    )
    muon, adamw = muon_and_adamw(model, 1e-3, embedding_lr=3e-3, matrices=("blocks",))
    assert isinstance(muon, Muon)
    assert sum(p.numel() for group in muon.param_groups for p in group["params"]) == 2 * 2 * 9 + 4
    assert [group["lr"] for group in adamw.param_groups] == [1e-3, 3e-3]
    trained = sum(p.numel() for o in (muon, adamw) for group in o.param_groups for p in group["params"])
    assert trained == sum(p.numel() for p in model.parameters())
