from itertools import pairwise, product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from qure_provider.api.model import Route
from qure_provider.dicom.model import Identity, Instance, SelectedSeries, Series
from qure_provider.dicom.pack import pack_batches, pack_requests


def selected(number, size, route=Route.XRAY):
    instance = Instance(f"{number}", size, 1.0, f"1.{number}", "1.2", "1.2", 1)
    return SelectedSeries(Series(Identity("1.2.3"), f"1.9.{number}", "CR", (instance,)), route)


def night(sizes, routes=None):
    routes = routes or [Route.XRAY] * len(sizes)
    return [selected(number, size, route) for number, (size, route) in enumerate(zip(sizes, routes, strict=True))]


nights = st.lists(st.tuples(st.integers(0, 10**9), st.sampled_from(Route)), max_size=60).map(
    lambda pairs: night([size for size, _ in pairs], [route for _, route in pairs])
)


class TestBatches:
    def test_a_small_night_is_one_series_a_batch(self):
        series = night([5, 1, 9])
        assert [batch.series for batch in pack_batches(series, 32)] == [(each,) for each in series]

    def test_nothing(self):
        assert pack_batches([], 32) == ()

    @pytest.mark.parametrize("max_batches", [1, 0, -1])
    def test_too_few_batches_to_keep_the_routes_apart(self, max_batches):
        with pytest.raises(ValueError, match="at least 2"):
            pack_batches([], max_batches)

    def test_both_routes_share_in_proportion_to_their_bytes(self):
        series = night([10] * 300 + [100] * 10, [Route.XRAY] * 300 + [Route.CT] * 10)
        batches = pack_batches(series, 16)
        assert [sum(batch.route is route for batch in batches) for route in Route] == [12, 4]

    def test_the_smaller_route_always_gets_a_batch(self):
        batches = pack_batches(night([10**9] * 50 + [1], [Route.CT] * 50 + [Route.XRAY]), 8)
        assert sum(batch.route is Route.XRAY for batch in batches) == 1
        assert len(batches) == 8

    @given(nights, st.integers(2, 40))
    def test_nothing_is_lost_doubled_or_mixed(self, series, max_batches):
        batches = pack_batches(series, max_batches)
        assert len(batches) <= max_batches
        assert all(batch.series for batch in batches)
        assert all({each.route for each in batch.series} == {batch.route} for batch in batches)
        packed = [each.series.series_instance_uid for batch in batches for each in batch.series]
        assert sorted(packed) == sorted(each.series.series_instance_uid for each in series)
        place = {each.series.series_instance_uid: i for i, each in enumerate(series)}
        for batch in batches:
            places = [place[each.series.series_instance_uid] for each in batch.series]
            assert places == sorted(places)

    @given(nights, st.integers(2, 40))
    def test_no_batch_is_left_unused_while_another_has_two(self, series, max_batches):
        batches = pack_batches(series, max_batches)
        assert len(batches) == min(max_batches, len(series))

    @given(nights, st.integers(2, 40))
    def test_a_repeat_is_the_same(self, series, max_batches):
        assert pack_batches(series, max_batches) == pack_batches(list(series), max_batches)

    @given(st.lists(st.integers(1, 50), min_size=1, max_size=7), st.integers(2, 3))
    def test_the_heaviest_batch_is_within_four_thirds_of_the_best_division(self, sizes, count):
        assume(len(sizes) > count)
        best = min(
            max(sum(size for size, place in zip(sizes, places, strict=True) if place == i) for i in range(count))
            for places in product(range(count), repeat=len(sizes))
        )
        heaviest = max(batch.size for batch in pack_batches(night(sizes), count))
        assert heaviest <= best * 4 / 3

    @given(st.lists(st.integers(1, 10**6), min_size=33, max_size=200))
    def test_the_heaviest_batch_exceeds_the_mean_by_less_than_the_largest_series(self, sizes):
        batches = pack_batches(night(sizes), 32)
        assert max(batch.size for batch in batches) <= sum(sizes) / 32 + max(sizes)


class TestRequests:
    def test_in_order_up_to_the_limit(self):
        assert pack_requests([4, 6, 1, 9, 10], int, 10) == [(4, 6), (1, 9), (10,)]

    def test_overhead_counts_once_a_request(self):
        assert pack_requests([4, 4, 4], int, 10, overhead=2) == [(4, 4), (4,)]

    def test_an_item_larger_than_a_request(self):
        with pytest.raises(ValueError, match="11 bytes on the wire is larger than one request may be"):
            pack_requests([3, 11], int, 10)

    def test_nothing(self):
        assert pack_requests([], int, 10) == []

    @given(st.lists(st.integers(0, 100)), st.integers(0, 20))
    def test_nothing_is_lost_and_no_request_too_large(self, sizes, overhead):
        requests = pack_requests(sizes, int, 120, overhead)
        assert [size for request in requests for size in request] == sizes
        assert all(request and sum(request) + overhead <= 120 for request in requests)

    @given(st.lists(st.integers(0, 100)))
    def test_no_two_neighbours_would_have_fitted_in_one(self, sizes):
        requests = pack_requests(sizes, int, 120)
        assert all(sum(a) + sum(b) > 120 for a, b in pairwise(requests))
