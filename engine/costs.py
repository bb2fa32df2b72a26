"""What a call costs: seconds by stage, shape class and batch size, measured at warm-up and corrected while running."""

from bisect import bisect_left
from collections.abc import Callable, Mapping

from engine.ticket import Shape, Stage

RATE = 0.1  # how far one observation moves its own batch size; it moves the others of its curve a quarter as far
OUTLIER = 4.0  # no observation counts as further off than this factor, so one hiccup does not change the policy


class CostModel:
    """Predicts seconds by piecewise linear curves over the batch size.

    `measured` maps (stage, shape class, batch size) to seconds. The stage `text` has the shape class None. A preview
    that was not measured costs what decoding does. A shape class that was not measured is estimated from the nearest
    one by `area` (pixels, say), which maps shape classes to sizes; control and no control may differ there too.

    Raises:
        ValueError: text, denoise or decode was never measured, or a measurement is not positive.
    """

    def __init__(
        self, measured: Mapping[tuple[Stage, Shape, int], float], area: Callable[[Shape], float] = lambda shape: 1.0
    ) -> None:
        self._area = area
        self._curves: dict[tuple[Stage, Shape], dict[int, float]] = {}
        self._memo: dict[tuple[Stage, Shape], dict[int, float]] = {}
        for (stage, shape, batch), seconds in measured.items():
            if batch < 1 or not seconds > 0.0:
                raise ValueError(f"{stage} of {shape} in batches of {batch} was measured as {seconds} s")
            self._curves.setdefault((stage, shape), {})[batch] = seconds
        missing = {"text", "denoise", "decode"} - {stage for stage, _ in self._curves}
        if missing:
            raise ValueError(f"not measured: {', '.join(sorted(missing))}")

    def seconds(self, stage: Stage, shape: Shape, batch: int = 1) -> float:
        """Predicted seconds of one call with `batch` samples."""
        key = (stage, None if stage == "text" else shape)
        memo = self._memo.get(key)
        if memo is None:
            memo = self._memo[key] = {}
        known = memo.get(batch)
        if known is None:
            known = memo[batch] = _interpolate(self._curve(*key), batch)
        return known

    def observe(self, stage: Stage, shape: Shape, batch: int, seconds: float) -> None:
        """Correct the model by one call that took `seconds`."""
        key = (stage, None if stage == "text" else shape)
        expected = self.seconds(*key, batch)
        ratio = min(max(seconds / expected, 1.0 / OUTLIER), OUTLIER)
        curve = self._curve(*key)
        others, own = 1.0 + RATE / 4.0 * (ratio - 1.0), 1.0 + RATE * (ratio - 1.0)
        corrected = {size: value * others for size, value in curve.items()}
        corrected[batch] = expected * own
        self._curves[key] = dict(sorted(corrected.items()))
        self._memo.clear()

    def _curve(self, stage: Stage, shape: Shape) -> dict[int, float]:
        curve = self._curves.get((stage, shape))
        if curve is None and stage == "preview":
            return self._curve("decode", shape)
        if curve is None:
            wanted = self._area(shape)
            candidates = [known for known in self._curves if known[0] == stage]
            if not candidates:
                raise ValueError(f"not measured: {stage}")
            nearest = min(candidates, key=lambda known: abs(self._area(known[1]) / wanted - 1.0))
            factor = wanted / self._area(nearest[1])
            curve = {size: value * factor for size, value in self._curves[nearest].items()}
            self._curves[stage, shape] = curve
        return curve


def _interpolate(curve: Mapping[int, float], batch: int) -> float:
    """Between measured sizes linear, below the first proportional, beyond the last along the last slope."""
    if batch in curve:
        return curve[batch]
    sizes = sorted(curve)
    index = bisect_left(sizes, batch)
    if index == 0:
        return curve[sizes[0]] * batch / sizes[0]
    if index == len(sizes):
        if len(sizes) == 1:
            return curve[sizes[0]] * batch / sizes[0]
        index -= 1
    low, high = sizes[index - 1], sizes[index]
    slope = (curve[high] - curve[low]) / (high - low)
    return max(curve[low] + slope * (batch - low), 1e-9)
