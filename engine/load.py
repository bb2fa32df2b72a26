"""How busy arrivals keep the device, and what follows for decisions."""

MEMORY = 100.0  # arrivals over which the averages reach
MOST = 0.97  # of the device's capacity; near 1 the worth of time grows without bound
CALM = 0.7  # the load up to which no slack need be kept for requests yet to come


class Load:
    """Running averages of the time between arrivals and of the work that each brings, in seconds."""

    def __init__(self) -> None:
        self._gap = 0.0
        self._work = 0.0
        self._last: float | None = None
        self._count = 0

    def arrive(self, work: float, now: float) -> None:
        """Note an arrival, refused or not, that would occupy the device for `work` seconds in full batches."""
        self._count += 1
        self._work += max(1.0 / MEMORY, 1.0 / self._count) * (work - self._work)
        if self._last is not None:
            self._gap += max(1.0 / MEMORY, 1.0 / (self._count - 1)) * (now - self._last - self._gap)
        self._last = now

    def share(self, now: float) -> float:
        """The load ρ: seconds of work that arrive in a second; 0 until two requests have arrived."""
        if self._last is None or self._count < 2:
            return 0.0
        return self._work / max(self._gap, now - self._last, 1e-9)

    def worth(self, now: float) -> float:
        """How many requests profit, for each that waits now, when all that waits is done sooner.

        The device is busy until the queue is empty, and whatever arrives until then waits for that as well. At a load
        of ρ, those are 1 / (1 − ρ) requests for each that waits, were the device always as fast as in full batches;
        since it is not, (1 + ρ) / (1 − ρ), which was as good or better in simulation at every load.
        """
        load = min(self.share(now), MOST)
        return (1.0 + load) / (1.0 - load)

    def reserve(self, now: float) -> float:
        """Which share of the time until its deadline a request should not need, for the sake of those yet to come."""
        return min(max(self.share(now) - CALM, 0.0), 0.7)
