"""Which optimizer trains what: Muon for the hidden matrices, AdamW for everything else."""

from torch import nn, optim


def muon_and_adamw(
    model: nn.Module, lr: float, *, embedding_lr: float, matrices: tuple[str, ...]
) -> list[optim.Optimizer]:
    """Split `model`'s parameters between Muon and AdamW.

    Muon (Jordan et al., 2024) orthogonalises the momentum of each matrix; with updates scaled to
    AdamW's root mean square both share one learning rate. Only 2-D weights below the submodules
    named in `matrices` go to it: embeddings, biases, tables, the first and the last layer do not.
    """
    hidden, tables, rest = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if "relative_attention_bias" in name or "shared" in name or "embed_tokens" in name:
            tables.append(parameter)
        elif parameter.ndim == 2 and "table" not in name and any(part in name for part in matrices):
            hidden.append(parameter)
        else:
            rest.append(parameter)
    groups = [{"params": rest, "lr": lr}]
    if tables:
        groups.append({"params": tables, "lr": embedding_lr})
    adamw = optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    if not hidden:
        return [adamw]
    return [optim.Muon(hidden, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"), adamw]
