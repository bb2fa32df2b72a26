"""Text encoder against transformers' T5 and diffusers' caption projection."""

import torch
from diffusers.models.embeddings import PixArtAlphaTextProjection
from transformers import T5EncoderModel

from models.text import TextEncoder
from tests.models.reference import T5_TINY, assert_close, randomise


def test_equals_transformers_and_diffusers() -> None:
    ours = TextEncoder(T5_TINY, 24)
    t5 = randomise(T5EncoderModel(T5_TINY))
    projection = randomise(PixArtAlphaTextProjection(32, 24))
    ours.t5.load_state_dict(t5.state_dict())
    names = {"fc1": "linear_1", "fc2": "linear_2"}
    for name, theirs in names.items():
        ours.projection.get_submodule(name).load_state_dict(projection.get_submodule(theirs).state_dict())
    ids = torch.randint(0, 100, (3, 9))
    mask = torch.arange(9)[None] < torch.tensor([[9], [4], [1]])
    expected = projection(t5(input_ids=ids, attention_mask=mask.long()).last_hidden_state)
    assert_close(ours.eval()(ids, mask)[mask], expected[mask])
    assert_close(ours(ids, mask.long())[mask], expected[mask])


def test_padding_changes_nothing() -> None:
    encoder = randomise(TextEncoder(T5_TINY, 24))
    ids = torch.randint(0, 100, (2, 6))
    padded = torch.cat([ids, torch.randint(0, 100, (2, 5))], dim=1)
    mask = torch.arange(11)[None].expand(2, -1) < 6
    assert_close(encoder(padded, mask)[:, :6], encoder(ids, torch.ones(2, 6)), 1e-5)


def test_a_prompt_does_not_depend_on_its_company() -> None:
    encoder = randomise(TextEncoder(T5_TINY, 24))
    ids = torch.randint(0, 100, (3, 8))
    mask = torch.arange(8)[None] < torch.tensor([[8], [5], [2]])
    together = encoder(ids, mask)
    for row in range(3):
        length = int(mask[row].sum())
        alone = encoder(ids[row : row + 1, :length], mask[row : row + 1, :length])
        assert_close(together[row : row + 1, :length], alone, 1e-5)
