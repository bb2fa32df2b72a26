"""Prompt tokens to caption: T5's encoder and PixArt's caption projection."""

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel


class CaptionProjection(nn.Module):
    """Linear, GELU (tanh), Linear: text states [..., caption_channels] to the transformer's width [..., W]."""

    def __init__(self, caption_channels: int, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(caption_channels, width)
        self.fc2 = nn.Linear(width, width)
        for linear in (self.fc1, self.fc2):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(states), approximate="tanh"))


class TextEncoder(nn.Module):
    """T5 encoder (Raffel et al. 2020) and caption projection in one, so that what is cached is what is used."""

    def __init__(self, config: T5Config, width: int) -> None:
        super().__init__()
        self.t5 = T5EncoderModel(config)
        self.projection = CaptionProjection(config.d_model, width)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Caption [B, L, W] of token `ids` int64 [B, L]; `mask` [B, L] is true for real tokens.

        Outputs at padded places are finite but mean nothing; the transformer masks them.
        """
        states = self.t5(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        return self.projection(states)
