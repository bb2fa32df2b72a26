"""Muon on kernels is Muon on the matrices that they are."""

import torch
from torch import nn, optim

from training.optim import KernelMuon, muon_and_adamw


def test_a_kernel_moves_as_its_matrix_does() -> None:
    kernel = nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = nn.Parameter(kernel.detach().reshape(6, 36).clone())
    ours = KernelMuon([kernel], lr=0.02)
    theirs = optim.Muon([matrix], lr=0.02, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        gradient = torch.randn(6, 4, 3, 3)
        kernel.grad, matrix.grad = gradient.clone(), gradient.reshape(6, 36).clone()
        ours.step()
        theirs.step()
        ours.zero_grad()
        assert kernel.grad is None
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
    assert isinstance(muon, KernelMuon)
    assert sum(p.numel() for group in muon.param_groups for p in group["params"]) == 2 * 2 * 9 + 4
    assert [group["lr"] for group in adamw.param_groups] == [1e-3, 3e-3]
    trained = sum(p.numel() for o in (muon, adamw) for group in o.param_groups for p in group["params"])
    assert trained == sum(p.numel() for p in model.parameters())
