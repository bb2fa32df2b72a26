"""What a call costs: seconds by stage, shape class and batch size, measured at warm-up and corrected while running."""

from bisect import bisect_left
from collections.abc import Callable, Mapping
from copy import copy

from engine.ticket import Shape, Stage

RATE = 0.1  # how far one observation moves its own batch size
SHARE = 0.25  # how far it moves the others of its curve, relative to that: what slows one mostly slows all
SINKING = 0.95  # what is left of a prediction that is doubted
FLOOR = 0.5  # of what was measured at first; doubts lead no further
OUTLIER = 4.0  # no observation counts as further off than this factor, so one hiccup does not change the policy


class CostModel:
    """Predicts seconds by piecewise linear curves over the batch size.

    `measured` maps (stage, shape class, batch size) to seconds. The stage `text` has the shape class None. A preview
    that was not measured costs what decoding does. A shape class that was not measured is estimated from the nearest
    one by `area`, which maps shape classes to sizes (pixels, say).

    Raises:
        ValueError: text, denoise or decode was never measured, or a measurement is not positive.
    """

    def __init__(
        self, measured: Mapping[tuple[Stage, Shape, int], float], area: Callable[[Shape], float] = lambda shape: 1.0
    ) -> None:
        self._area = area
        self._curves: dict[tuple[Stage, Shape], list[float]] = {}  # seconds of batches of 1, 2, …
        self._floors: dict[tuple[Stage, Shape], float] = {}  # of one sample's seconds
        points: dict[tuple[Stage, Shape], dict[int, float]] = {}
        for (stage, shape, batch), seconds in measured.items():
            if batch < 1 or not seconds > 0.0:
                raise ValueError(f"{stage} of {shape} in batches of {batch} was measured as {seconds} s")
            points.setdefault((stage, shape), {})[batch] = seconds
        missing = {"text", "denoise", "decode"} - {stage for stage, _ in points}
        if missing:
            raise ValueError(f"not measured: {', '.join(sorted(missing))}")
        for key, curve in points.items():
            self._curves[key] = [_interpolate(curve, batch) for batch in range(1, max(curve) + 1)]
            self._floors[key] = FLOOR * self._curves[key][0]

    def seconds(self, stage: Stage, shape: Shape, batch: int = 1) -> float:
        """Predicted seconds of one call with `batch` samples."""
        return self.curve(stage, shape, batch)[batch - 1]

    def observe(self, stage: Stage, shape: Shape, batch: int, seconds: float) -> None:
        """Correct the model by one call that took `seconds`."""
        curve = self.curve(stage, shape, batch)
        ratio = min(max(seconds / curve[batch - 1], 1.0 / OUTLIER), OUTLIER)
        own, others = 1.0 + RATE * (ratio - 1.0), 1.0 + SHARE * RATE * (ratio - 1.0)
        corrected = curve[batch - 1] * own
        for index in range(len(curve)):
            curve[index] *= others
        curve[batch - 1] = corrected

    def doubt(self) -> None:
        """Predict a little less from now on: requests are refused for what is predicted, and no call corrects it.

        A phase in which the machine was slow would keep them out for ever otherwise.
        """
        for key, curve in self._curves.items():
            factor = max(SINKING, self._floors[key] / curve[0])
            if factor < 1.0:
                curve[:] = [seconds * factor for seconds in curve]

    def at_best(self) -> "CostModel":
        """What doubts lead to in the end."""
        best = copy(self)
        best._curves = {
            key: [seconds * min(1.0, self._floors[key] / curve[0]) for seconds in curve]
            for key, curve in self._curves.items()
        }
        return best

    def curve(self, stage: Stage, shape: Shape, batch: int) -> list[float]:
        """Seconds of calls with 1, 2, … samples, at least as far as `batch`; to be read only."""
        key = (stage, None if stage == "text" else shape)
        curve = self._curves.get(key)
        if curve is None:
            curve, self._floors[key] = self._estimate(*key)
            self._curves[key] = curve
        while len(curve) < batch:  # beyond what was measured, along the last slope; but no batch costs less than a part
            curve.append(max(2.0 * curve[-1] - curve[-2], curve[-1]) if len(curve) > 1 else 2.0 * curve[-1])
        return curve

    def _estimate(self, stage: Stage, shape: Shape) -> tuple[list[float], float]:
        """Curve and floor of a shape class that was not measured."""
        if stage == "preview" and not any(known == "preview" for known, _ in self._curves):
            return list(self.curve("decode", shape, 1)), self._floors["decode", shape]
        known = [other for measured, other in self._curves if measured == stage]
        if not known:
            raise ValueError(f"not measured: {stage}")
        wanted = self._area(shape)
        nearest = min(known, key=lambda other: abs(self._area(other) / wanted - 1.0))
        larger = wanted / self._area(nearest)
        return [seconds * larger for seconds in self._curves[stage, nearest]], self._floors[stage, nearest] * larger


def _interpolate(curve: Mapping[int, float], batch: int) -> float:
    """Between measured sizes linear, below the first proportional."""
    sizes = sorted(curve)
    index = bisect_left(sizes, batch)
    high = sizes[index]
    if index == 0:
        return curve[high] * batch / high
    low = sizes[index - 1]
    return curve[low] + (curve[high] - curve[low]) * (batch - low) / (high - low)
