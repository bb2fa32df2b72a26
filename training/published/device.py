"""Where and in which arithmetic a stage runs."""

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from training.precision import has_native_bfloat16

Weights = TypeVar("Weights", bound=nn.Module)


@dataclass(frozen=True)
class Placement:
    """A device, and the type of its matrix products and of weights that are not trained: bfloat16 where it has it."""

    device: torch.device
    half: torch.dtype

    @classmethod
    def on(cls, name: str) -> "Placement":
        """The device of this name: "cuda", "cuda:1", "cpu"."""
        device = torch.device(name)
        emulated = device.type == "cpu" and not has_native_bfloat16()
        return cls(device, torch.float32 if emulated else torch.bfloat16)

    def hold(self, module: Weights, dtype: torch.dtype) -> Weights:
        """The module with its weights here, as `dtype`.

        Tensor by tensor, where `module.to` would swap contents, which tensors without content do not allow
        (`training.published.memory`).
        """
        held = {name: weight.to(self.device, dtype) for name, weight in module.state_dict().items()}
        module.load_state_dict(held, assign=True)
        return module

    def mixed_precision(self) -> torch.autocast:
        """Matrix products in half precision, everything else in float32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.half == torch.bfloat16)

    def gigabytes_used(self) -> float:
        """The most that PyTorch has held on a GPU so far, in 10⁹ bytes; 0 on a CPU, where it does not count."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.device.type == "cuda" else 0.0
