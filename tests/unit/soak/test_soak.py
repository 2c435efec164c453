"""The soak test's judgement: what grows is found, and what only trembles is not."""

import random

import pytest
from soak.__main__ import BYTES_A_NIGHT, FILES, MEMORY, judged
from soak.trend import Tolerance, Trend

MB = 1024 * 1024


def line(slope, *, start=300.0, noise=0.0, count=30, every=30.0):
    rng = random.Random(7)
    return [(number * every, start + slope * number * every + rng.uniform(-noise, noise)) for number in range(count)]


def test_a_line_is_what_it_is():
    trend = Trend.through([(0, 10.0), (60, 20.0), (120, 30.0)])

    assert (trend.first, trend.last, trend.mean, trend.per_hour) == (10, 30, 20, 600)


@pytest.mark.parametrize(
    ("points", "is_flat"),
    [
        (line(0), True),
        (line(0, noise=20), True),
        (line(-0.1), True),
        (line(0.05, noise=5), False),
    ],
    ids=["still", "trembling", "shrinking", "growing"],
)
def test_growth_is_judged_by_the_slope(points, is_flat):
    assert Trend.through(points).is_flat(Tolerance(absolute=8, share=0.05)) is is_flat


@pytest.mark.parametrize(
    ("tolerance", "start", "a_night"),
    [(MEMORY, 250 * MB, 2 * MB), (FILES, 60, 1), (BYTES_A_NIGHT, 300_000, 20_000)],
    ids=["two MB", "a file handle", "rows that lead to more rows"],
)
def test_what_leaks_with_each_night_is_found_within_a_quarter_of_an_hour(tolerance, start, a_night):
    nights = [(number * 20.0, start + number * a_night) for number in range(40)]

    assert not Trend.through(nights).is_flat(tolerance)
    assert Trend.through([(time, start) for time, _ in nights]).is_flat(tolerance)


def test_too_few_nights_are_no_proof():
    samples = [{"at": float(number), "measures": {"triggerer memory": 1.0}} for number in range(3)]

    _, problems = judged(samples, warm_up=1)

    assert problems == ["only 2 nights were measured after the warm-up: let it run longer"]
