"""What the two published formats call the layers of the transformer, and how many of theirs make one of ours.

Our names are those of models/dit.py under `dit.` and of the caption projection (models/text.py) under
`projection.`, since both formats keep the projection in the transformer's file.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.checkpoints.keys import Sources, StateDict, prefixed, with_parameters
from models.config import DiTConfig
from models.dit import DiT
from models.text import CaptionProjection


@dataclass(frozen=True)
class Naming:
    """A format's names.

    Attributes:
        layers: outside the blocks, ours to theirs; `sizes` those of models with size conditions.
        blocks: their prefix of a block, before its number; `block`: inside a block.
        final_table: their name of `dit.final.scale_shift_table`.
    """

    layers: dict[str, str]
    sizes: dict[str, str]
    final_table: str
    blocks: str
    block: dict[str, Sources]

    def layer_plan(self, config: DiTConfig) -> dict[str, Sources]:
        """Every layer that has a weight and a bias, ours to theirs."""
        outer = {**self.layers, **(self.sizes if config.size_conditions else {})}
        plan: dict[str, Sources] = {ours: (theirs,) for ours, theirs in outer.items()}
        for index in range(config.depth):
            plan |= self._block_layers(f"dit.blocks.{index}.", f"{self.blocks}.{index}.")
        return plan

    def plan(self, config: DiTConfig) -> dict[str, Sources]:
        """Every tensor of the transformer and the caption projection, ours to theirs."""
        plan = with_parameters(self.layer_plan(config))
        plan["dit.final.scale_shift_table"] = (self.final_table,)
        for index in range(config.depth):
            plan |= self._block_table(f"dit.blocks.{index}.", f"{self.blocks}.{index}.")
        return plan

    def block_plan(self, ours: str, theirs: str) -> dict[str, Sources]:
        """Every tensor of one block; `ours` and `theirs` are prefixes that end in a dot."""
        return with_parameters(self._block_layers(ours, theirs)) | self._block_table(ours, theirs)

    def _block_layers(self, ours: str, theirs: str) -> dict[str, Sources]:
        return {ours + name: tuple(theirs + source for source in sources) for name, sources in self.block.items()}

    @staticmethod
    def _block_table(ours: str, theirs: str) -> dict[str, Sources]:
        return {f"{ours}scale_shift_table": (f"{theirs}scale_shift_table",)}


def expected_transformer(config: DiTConfig) -> StateDict:
    """Names and shapes of the transformer and the caption projection, on the meta device."""
    with torch.device("meta"):
        dit = DiT(config)
        projection = CaptionProjection(config.caption_channels, config.width)
    return prefixed("dit.", dit.state_dict()) | prefixed("projection.", projection.state_dict())


def drop_variance(rows: Tensor, config: DiTConfig) -> Tensor:
    """The ε rows of the output layer's weight or bias, whose rows are ordered (patch row, patch column, channel).

    Published models have twice as many channels; the second half predicts a variance that no sampler here
    uses. Anything that is not of that size comes back as it is, for the shape check to refuse.
    """
    pixels = config.patch_size**2
    if rows.shape[0] != pixels * 2 * config.in_channels:
        return rows
    return rows.unflatten(0, (pixels, -1))[:, : config.in_channels].flatten(0, 1)


DIFFUSERS = Naming(
    layers={
        "dit.patch": "pos_embed.proj",
        "dit.time_mlp.fc1": "adaln_single.emb.timestep_embedder.linear_1",
        "dit.time_mlp.fc2": "adaln_single.emb.timestep_embedder.linear_2",
        "dit.time_modulation": "adaln_single.linear",
        "dit.final.proj": "proj_out",
        "projection.fc1": "caption_projection.linear_1",
        "projection.fc2": "caption_projection.linear_2",
    },
    sizes={
        "dit.resolution_mlp.fc1": "adaln_single.emb.resolution_embedder.linear_1",
        "dit.resolution_mlp.fc2": "adaln_single.emb.resolution_embedder.linear_2",
        "dit.aspect_ratio_mlp.fc1": "adaln_single.emb.aspect_ratio_embedder.linear_1",
        "dit.aspect_ratio_mlp.fc2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
    },
    final_table="scale_shift_table",
    blocks="transformer_blocks",
    block={
        "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
        "attn.proj": ("attn1.to_out.0",),
        "cross.q": ("attn2.to_q",),
        "cross.kv": ("attn2.to_k", "attn2.to_v"),
        "cross.proj": ("attn2.to_out.0",),
        "mlp.fc1": ("ff.net.0.proj",),
        "mlp.fc2": ("ff.net.2",),
    },
)

PIXART = Naming(
    layers={
        "dit.patch": "x_embedder.proj",
        "dit.time_mlp.fc1": "t_embedder.mlp.0",
        "dit.time_mlp.fc2": "t_embedder.mlp.2",
        "dit.time_modulation": "t_block.1",
        "dit.final.proj": "final_layer.linear",
        "projection.fc1": "y_embedder.y_proj.fc1",
        "projection.fc2": "y_embedder.y_proj.fc2",
    },
    sizes={
        "dit.resolution_mlp.fc1": "csize_embedder.mlp.0",
        "dit.resolution_mlp.fc2": "csize_embedder.mlp.2",
        "dit.aspect_ratio_mlp.fc1": "ar_embedder.mlp.0",
        "dit.aspect_ratio_mlp.fc2": "ar_embedder.mlp.2",
    },
    final_table="final_layer.scale_shift_table",
    blocks="blocks",
    block={
        "attn.qkv": ("attn.qkv",),
        "attn.proj": ("attn.proj",),
        "cross.q": ("cross_attn.q_linear",),
        "cross.kv": ("cross_attn.kv_linear",),
        "cross.proj": ("cross_attn.proj",),
        "mlp.fc1": ("mlp.fc1",),
        "mlp.fc2": ("mlp.fc2",),
    },
)
