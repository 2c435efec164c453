"""The model of big nights: what it must get right whatever the figures are."""

from dataclasses import replace

import pytest

from benchmarks.model import BENCH, Costs, Night, Site, fit, measured_night, simulate

COSTS = Costs(start=1.0, scan=2e-4, image=2e-4, byte=1e-9, poll=2e-4, result=0.1, rows=4, row_bytes=450, objects=12)
SITE = Site(cores=8, slots=16, uploads=6)


def test_the_smallest_night_takes_its_steps_one_after_the_other():
    outcome = simulate(Night(1, 0, processing=5.0), SITE, COSTS)

    # complete, plan, batches of both kinds; upload, collect, the two looks, collect again, summarize
    assert outcome.starts == 8
    assert outcome.seconds == pytest.approx(8 * COSTS.start + 15 + 15 + COSTS.result + 0.3, abs=0.2)
    assert outcome.polls == 2


def test_a_big_night_takes_as_long_as_what_is_taken_most():
    night = Night(90_000, 10_000)
    outcome = simulate(night, SITE, COSTS)

    assert outcome.limit == "line"
    assert night.size / SITE.line < outcome.seconds < 1.2 * night.size / SITE.line
    assert all(0 <= share <= 1 for share in outcome.busy.values())


def test_with_a_faster_line_cores_are_the_limit_and_more_of_them_help():
    night = Night(90_000, 10_000)
    slow = simulate(night, replace(SITE, line=1e12, batches=32), COSTS)
    fast = simulate(night, replace(SITE, line=1e12, cores=16, slots=32, batches=32), COSTS)

    assert slow.limit == "cores"
    assert fast.seconds < 0.7 * slow.seconds


def test_the_number_of_tasks_does_not_grow_with_the_night():
    starts = [simulate(Night(results), SITE, COSTS).starts for results in (1_000, 10_000, 100_000)]

    assert max(starts) <= 3 + SITE.batches * 4 + 2


def test_a_low_ceiling_asks_less_and_holds_nothing_up():
    night = Night(10_000)
    low, high = (simulate(night, replace(SITE, ceiling=ceiling, line=1e12), COSTS) for ceiling in (1.0, 1000.0))

    assert low.polls < high.polls
    assert low.seconds < high.seconds + 400


def test_fitting_finds_the_costs_that_figures_were_made_of():
    figures = {
        "scan of 20,000 files: against opening and reading 4 KB, the limit [files/s]": 1 / COSTS.scan,
        "20,000 images of 10 KB: speed, against the vendor's sample [MB/s]": 10e3 / 1e6 / COSTS.image,
        "a CT series of 2,000 images of 512 KB: speed, against the vendor's sample [MB/s]": 1 / 1e6 / COSTS.byte,
        "10,000 resources: CPU a poll, against 500 HttpSensors [µs]": 1e6 * COSTS.poll,
        "a night of 1,000 X-ray studies: the ledger, a result [rows]": COSTS.rows,
        "a night of 1,000 X-ray studies: the ledger, a result [bytes]": COSTS.rows * COSTS.row_bytes,
        "a night of 1,000 X-ray studies: the store, a result [objects]": COSTS.objects,
        **{
            f"a night of {studies:,} X-ray studies: against another [s of CPU]": simulate(
                measured_night(studies), BENCH, COSTS
            ).cpu
            for studies in (40, 1_000)
        },
    }

    found = fit(figures)

    assert (found.start, found.result) == (pytest.approx(COSTS.start, rel=0.05), pytest.approx(COSTS.result, rel=0.05))


def test_a_missing_figure_is_named():
    with pytest.raises(KeyError, match="make bench"):
        fit({})
