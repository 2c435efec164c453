"""Whether a series of measurements is flat, judged by the slope of the line through it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """How much a measurement may grow over the time that was measured, on the line through all its values.

    Attributes:
        absolute: In its own unit.
        share: And besides, of its mean.
    """

    absolute: float
    share: float

    def of(self, mean):
        return self.absolute + self.share * mean


@dataclass(frozen=True)
class Trend:
    """A line through measurements.

    Attributes:
        first: Where it begins.
        last: Where it ends.
        mean: Of the values.
        per_hour: Its slope.
    """

    first: float
    last: float
    mean: float
    per_hour: float

    @classmethod
    def through(cls, points):
        """Fit a line by least squares.

        Args:
            points: Pairs of seconds and value, at least two at different times.
        """
        middle = sum(time for time, _ in points) / len(points)
        mean = sum(value for _, value in points) / len(points)
        spread = sum((time - middle) ** 2 for time, _ in points)
        slope = sum((time - middle) * (value - mean) for time, value in points) / spread
        at = [mean + slope * (time - middle) for time in (points[0][0], points[-1][0])]
        return cls(*at, mean, slope * 3600)

    def is_flat(self, tolerance):
        """Whether it grew no more than it may; what shrinks is no leak."""
        return self.last - self.first <= tolerance.of(self.mean)
