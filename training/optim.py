"""Which optimizer trains what: Muon for the hidden matrices and kernels, AdamW for everything else."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim


class KernelMuon(optim.Muon):
    """Muon for matrices and for convolution kernels, which it sees as matrices [out, in * height * width]."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float) -> None:
        self._kernels = list(parameters)
        # Views: a step on them changes the kernels themselves.
        self._flat = [nn.Parameter(kernel.detach().flatten(1)) for kernel in self._kernels]
        super().__init__(self._flat, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        """One update from the kernels' gradients."""
        for kernel, flat in zip(self._kernels, self._flat, strict=True):
            flat.grad = None if kernel.grad is None else kernel.grad.flatten(1)
        return super().step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, the kernels' too."""
        super().zero_grad(set_to_none)
        for kernel in self._kernels:
            kernel.grad = None


def muon_and_adamw(
    model: nn.Module, lr: float, *, embedding_lr: float, matrices: tuple[str, ...]
) -> list[optim.Optimizer]:
    """Split `model`'s parameters between Muon and AdamW.

    Muon (Jordan et al., 2024) orthogonalises the momentum of each matrix; with updates scaled to
    AdamW's root mean square both share one learning rate. Only matrices and convolution kernels below the submodules
    named in `matrices` go to it: embeddings, biases, tables, the first and the last layer do not.
    """
    hidden, tables, rest = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "relative_attention_bias" in name or "shared" in name or "embed_tokens" in name:
            tables.append(parameter)
        elif parameter.ndim in (2, 4) and "table" not in name and any(part in name for part in matrices):
            hidden.append(parameter)
        else:
            rest.append(parameter)
    groups: list[dict[str, list[Tensor] | float]] = [{"params": list(rest), "lr": lr}]
    if tables:
        groups.append({"params": list(tables), "lr": embedding_lr})
    adamw = optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    return [KernelMuon(hidden, lr), adamw] if hidden else [adamw]
