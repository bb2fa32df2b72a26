"""How much longer than predicted things take: what admission has to leave free so that few deadlines are missed."""

START = 0.05
STEP = 0.05  # by how much one missed deadline raises it
MISSES = 0.0025  # the share of accepted deadlines that it settles at
MOST = 0.5


class Headroom:
    """A share by which admission stretches its predictions where several wait; once admitted, all is planned without.

    Whoever is admitted just fits, and among many that come, those get in whose prediction happens to be too short. So
    the average error says little, and the share is steered by what matters: up by a step when an accepted deadline is
    missed, and down by so little when one is kept that both balance at the wanted share of misses (the stochastic
    approximation of a quantile: Robbins and Monro 1951).
    """

    def __init__(self) -> None:
        self.share = START

    def kept(self) -> None:
        """An accepted deadline was kept."""
        self.share = max(self.share - STEP * MISSES, 0.0)

    def missed(self) -> None:
        """An accepted deadline was missed."""
        self.share = min(self.share + STEP, MOST)
