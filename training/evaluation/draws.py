"""Which subjects, colours and seeds the measures use: by rule, never by how a picture came out."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from training.control_pairs import bend, sketches, soft_edge_maps
from training.data import emoji
from training.data.captions import canonical
from training.data.colors import BACKGROUNDS
from training.evaluation.sampler import Pictures

Pair = tuple[int, str]
"""Number of a subject in its set, and the name of a background."""


def _as_images(pictures: torch.Tensor) -> Pictures:
    """uint8 [B, H, W, 3] of pictures [B, 3, H, W] in -1..1."""
    values = ((pictures + 1) * 127.5).round().clamp(0, 255).byte()
    return values.permute(0, 2, 3, 1).contiguous().numpy()


class Draws:
    """Which subjects, colours and seeds the measures use."""

    def __init__(self, data: emoji.EmojiSet, groups: Sequence[str], seed: int) -> None:
        chosen = [i for i, subject in enumerate(data.subjects) if subject.group in groups]
        self.data = data
        self.seed = seed
        self.seen = [i for i in chosen if not emoji.is_held_out_picture(data.subjects[i])]
        self.held_out = [i for i in chosen if emoji.is_held_out_picture(data.subjects[i])]

    def _cycle(self, pool: Sequence[int], count: int, generator: np.random.Generator) -> list[int]:
        """`count` of `pool`, none again before all have come."""
        rounds = -(-count // len(pool))
        return [pool[i] for _ in range(rounds) for i in generator.permutation(len(pool))][:count]

    def subjects_on_white(self, count: int) -> list[Pair]:
        """Seen subjects on white."""
        generator = np.random.default_rng((self.seed, 1))
        return [(i, "white") for i in self._cycle(self.seen, count, generator)]

    def background_pairs(self, count: int) -> tuple[list[Pair], NDArray[np.bool_]]:
        """Half pairs of a seen subject and a colour that were held out of training, half that were not; which are."""
        generator = np.random.default_rng((self.seed, 2))
        pairs: dict[bool, list[Pair]] = {False: [], True: []}
        for i in self.seen:
            for color in BACKGROUNDS:
                pairs[emoji.is_held_out_pair(self.data.subjects[i], color)].append((i, color))
        drawn: list[Pair] = []
        for held, wanted in ((True, count // 2), (False, count - count // 2)):
            order = self._cycle(range(len(pairs[held])), wanted, generator)
            drawn += [pairs[held][k] for k in order]
        return drawn, np.arange(count) < count // 2

    def pairs(self, pool: Sequence[int], count: int, salt: int) -> list[Pair]:
        """Subjects of `pool` in turn, each on a colour drawn evenly."""
        generator = np.random.default_rng((self.seed, salt))
        names = list(BACKGROUNDS)
        return [(i, names[generator.integers(len(names))]) for i in self._cycle(pool, count, generator)]

    def seeds(self, measure: int, count: int) -> list[int]:
        """The pictures' seeds: runs of whole numbers that no two measures share."""
        return [(self.seed * 16 + measure) * 1_000_000 + i for i in range(count)]

    def captions(self, pairs: Sequence[Pair]) -> list[str]:
        """The canonical caption of each pair."""
        return [canonical(self.data.subjects[i], color) for i, color in pairs]

    def pictures(self, pairs: Sequence[Pair]) -> Pictures:
        """The true pictures of pairs."""
        index = torch.tensor([i for i, _ in pairs])
        colors = torch.tensor([BACKGROUNDS[color] for _, color in pairs]) / 255
        return _as_images(self.data.composite(index, colors))

    def sketches(self, pairs: Sequence[Pair]) -> tuple[Pictures, Pictures]:
        """Bent pictures of pairs, which nobody could draw by heart, and sketches of them, white on black."""
        index = torch.tensor([i for i, _ in pairs])
        colors = torch.tensor([BACKGROUNDS[color] for _, color in pairs]) / 255
        bent = bend(torch.from_numpy(self.data.pictures)[index], torch.Generator().manual_seed(self.seed))
        shown = emoji.composite(bent, colors)
        drawn = sketches(soft_edge_maps(shown), bent[:, 3].byte(), np.random.default_rng((self.seed, 8)))
        return _as_images(shown), drawn.numpy()
