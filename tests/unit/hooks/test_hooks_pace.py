import asyncio
import time

from qure_provider.hooks.pace import Pace


async def start_times(pace, count):
    times = []

    async def one():
        await pace.wait()
        times.append(time.monotonic())

    await asyncio.gather(*(one() for _ in range(count)))
    return times


def most_in_any_window(times, seconds):
    return max(sum(start <= other < start + seconds for other in times) for start in times)


async def test_no_window_ever_holds_more_than_the_ceiling():
    pace = Pace(50)

    times = await start_times(pace, 40)
    times += await start_times(pace, 10)

    assert most_in_any_window(times, 0.2) <= 10
    assert 0.9 < times[-1] - times[0] < 2.5


async def test_waiters_go_in_order_and_one_that_gives_up_takes_no_turn():
    pace, order = Pace(20), []

    async def one(name):
        await pace.wait()
        order.append(name)

    tasks = [asyncio.create_task(one(name)) for name in range(12)]
    await asyncio.sleep(0.01)
    for task in tasks[1:10]:
        task.cancel()
    begun = time.monotonic()
    await asyncio.gather(*tasks, return_exceptions=True)

    assert order == [0, 10, 11]
    assert time.monotonic() - begun < 0.3


async def test_the_first_does_not_wait():
    begun = time.monotonic()
    await Pace(0.01).wait()

    assert time.monotonic() - begun < 0.1
