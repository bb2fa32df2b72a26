"""Which optimizer trains what: Muon for the hidden matrices and kernels, AdamW for everything else."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn, optim

from training.precision import has_native_bfloat16

# Coefficients of the quintic Newton-Schulz iteration, as in Jordan et al., 2024 and in torch.optim.Muon.
QUINTIC = (3.4445, -4.775, 2.0315)


def orthogonalize(matrices: Tensor, steps: int = 5) -> Tensor:
    """Draw all singular values of each of [N, rows, columns] near 1 by Newton-Schulz iterations."""
    a, b, c = QUINTIC
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    if has_native_bfloat16():
        x = x.bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(optim.Optimizer):
    """Momentum whose matrices are orthogonalised (Jordan et al., 2024), scaled to AdamW's root mean square.

    The update is that of `torch.optim.Muon(..., adjust_lr_fn="match_rms_adamw")`, with three differences: a convolution
    kernel counts as the matrix [out, in * height * width]; matrices of one shape are orthogonalised together; and the
    iteration runs in float32 where the CPU would only emulate bfloat16, which is a hundred times as fast there.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.01
    ) -> None:
        super().__init__(list(parameters), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """One Nesterov update of every parameter that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                gradient = parameter.grad
                if not self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(gradient)
                average = self.state[parameter]["momentum"]
                average.lerp_(gradient, 1 - group["momentum"])
                update = gradient.lerp(average, group["momentum"]).flatten(1)
                alike[update.shape].append((parameter, update))
            for (rows, columns), members in alike.items():
                directions = orthogonalize(torch.stack([update for _, update in members]))
                rate = 0.2 * max(rows, columns) ** 0.5 * group["lr"]
                for (parameter, _), direction in zip(members, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.sub_(direction.reshape(parameter.shape), alpha=rate)


def muon_and_adamw(
    model: nn.Module, lr: float, *, embedding_lr: float, matrices: tuple[str, ...]
) -> list[optim.Optimizer]:
    """Split `model`'s parameters between Muon and AdamW.

    Both share one learning rate. Only matrices and convolution kernels below the submodules named in `matrices` go to
    Muon: embeddings, biases, tables, the first and the last layer do not.
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
    return [Muon(hidden, lr), adamw] if hidden else [adamw]
