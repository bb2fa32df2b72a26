"""The transformer and both control branches written out from their equations: NumPy, float64, one sample at a time.

Nothing is shared with models/: only the names under which the weights are stored.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

Array = NDArray[np.float64]


def weights_of(module: nn.Module) -> dict[str, Array]:
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}


def layer_norm(x: Array) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def sinusoid(value: float) -> Array:
    angles = [value * math.exp(-math.log(10000) * k / 128) for k in range(128)]
    return np.array([math.cos(a) for a in angles] + [math.sin(a) for a in angles])


def attention(q: Array, k: Array, v: Array, heads: int) -> Array:
    """q [N, W], k and v [L, W]; head by head, query by query."""
    size = q.shape[1] // heads
    out = np.zeros_like(q)
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        for n in range(len(q)):
            scores = k[:, part] @ q[n, part] / math.sqrt(size)
            weights = np.exp(scores - scores.max())
            out[n, part] = (weights / weights.sum()) @ v[:, part]
    return out


@dataclass
class Literal:
    """One sample's way through a base (`w`) and, if there is one, a control branch (`branch`)."""

    w: dict[str, Array]
    heads: int
    depth: int
    patch: int = 2
    size_conditions: bool = False
    branch: dict[str, Array] | None = None

    def linear(self, w: dict[str, Array], name: str, x: Array) -> Array:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def scalar(self, name: str, value: float) -> Array:
        return self.linear(self.w, f"{name}.fc2", silu(self.linear(self.w, f"{name}.fc1", sinusoid(value))))

    def embed(self, latents: Array, position: Array) -> Array:
        _, height, width = latents.shape
        tokens = []
        for row in range(0, height, self.patch):
            for column in range(0, width, self.patch):
                square = latents[:, row : row + self.patch, column : column + self.patch]
                tokens.append((self.w["patch.weight"] * square).sum(axis=(1, 2, 3)) + self.w["patch.bias"])
        return np.stack(tokens) + position

    def block(self, w: dict[str, Array], name: str, x: Array, t: Array, caption: Array) -> Array:
        table = w[f"{name}.scale_shift_table"]
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (table[i] + t[i] for i in range(6))
        h = layer_norm(x) * (1 + scale_1) + shift_1
        q, k, v = np.split(self.linear(w, f"{name}.attn.qkv", h), 3, axis=1)
        x = x + gate_1 * self.linear(w, f"{name}.attn.proj", attention(q, k, v, self.heads))
        q = self.linear(w, f"{name}.cross.q", x)
        k, v = np.split(self.linear(w, f"{name}.cross.kv", caption), 2, axis=1)
        x = x + self.linear(w, f"{name}.cross.proj", attention(q, k, v, self.heads))
        h = layer_norm(x) * (1 + scale_2) + shift_2
        return x + gate_2 * self.linear(w, f"{name}.mlp.fc2", gelu(self.linear(w, f"{name}.mlp.fc1", h)))

    def conditions(self, timestep: float, resolution: Array | None, aspect_ratio: float | None) -> tuple[Array, Array]:
        embedding = self.scalar("time_mlp", timestep)
        if self.size_conditions:
            assert resolution is not None and aspect_ratio is not None
            height, width = (self.scalar("resolution_mlp", value) for value in resolution)
            embedding = embedding + np.concatenate([height, width, self.scalar("aspect_ratio_mlp", aspect_ratio)])
        return self.linear(self.w, "time_modulation", silu(embedding)).reshape(6, -1), embedding

    def unembed(self, x: Array, embedding: Array, shape: tuple[int, int, int]) -> Array:
        shift, scale = (self.w["final.scale_shift_table"][i] + embedding for i in range(2))
        values = self.linear(self.w, "final.proj", layer_norm(x) * (1 + scale) + shift)
        channels, height, width = shape
        out = np.zeros(shape)
        for row in range(height):
            for column in range(width):
                token = (row // self.patch) * (width // self.patch) + column // self.patch
                place = (row % self.patch) * self.patch + column % self.patch
                out[:, row, column] = values[token, place * channels : (place + 1) * channels]
        return out

    def base(self, latents: Array, position: Array, t: Array, embedding: Array, caption: Array) -> Array:
        x = self.embed(latents, position)
        for i in range(self.depth):
            x = self.block(self.w, f"blocks.{i}", x, t, caption)
        return self.unembed(x, embedding, latents.shape)

    def transformer_control(
        self, latents: Array, position: Array, t: Array, embedding: Array, caption: Array, edges: Array, strength: float
    ) -> Array:
        """ControlNet-Transformer: copy i reads copy i-1 and adds to the input of base block i+1."""
        assert self.branch is not None
        copies = sum(name.startswith("after_proj") and name.endswith("bias") for name in self.branch)
        edges = self.embed(edges, position)
        x = self.block(self.w, "blocks.0", self.embed(latents, position), t, caption)
        c = edges
        for i in range(copies):
            if i == 0:
                c = self.linear(self.branch, "before_proj", c)
                c = self.block(self.branch, "blocks.0", x + c, t, caption)
            else:
                c = self.block(self.branch, f"blocks.{i}", c, t, caption)
            skip = self.linear(self.branch, f"after_proj.{i}", c)
            x = self.block(self.w, f"blocks.{i + 1}", x + strength * skip, t, caption)
        for i in range(copies + 1, self.depth):
            x = self.block(self.w, f"blocks.{i}", x, t, caption)
        return self.unembed(x, embedding, latents.shape)

    def unet_control(
        self, latents: Array, position: Array, t: Array, embedding: Array, caption: Array, edges: Array, strength: float
    ) -> Array:
        """ControlNet-UNet: copies see the input; what copy i says goes to base block depth-1-i."""
        assert self.branch is not None
        copies = sum(name.startswith("after_proj") and name.endswith("bias") for name in self.branch)
        x = self.embed(latents, position)
        c = x + self.linear(self.branch, "before_proj", self.embed(edges, position))
        arriving: dict[int, Array] = {}
        for i in range(copies):
            c = self.block(self.branch, f"blocks.{i}", c, t, caption)
            arriving[self.depth - 1 - i] = self.linear(self.branch, f"after_proj.{i}", c)
        for j in range(self.depth):
            x = self.block(self.w, f"blocks.{j}", x + strength * arriving.get(j, np.zeros_like(x)), t, caption)
        return self.unembed(x, embedding, latents.shape)
