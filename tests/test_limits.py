"""Limits on a clock of their own: what a minute holds, who waits, how a busy server slows everybody down."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges.limits import FIRST_PAUSE_S, LONGEST_PAUSE_S, Bucket, Limits, StoppedError


@dataclass
class Clock:
    """Time that passes when it is told to."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


def spend_all(bucket: Bucket, clock: Clock, amounts: list[float]) -> list[tuple[float, float]]:
    """(moment, amount) of every draw by somebody who draws as soon as it is allowed."""
    drawn = []
    for amount in amounts:
        while (delay := bucket.wait(amount)) > 0:
            clock.now += delay
        bucket.spend(amount)
        drawn.append((clock.now, amount))
    return drawn


@given(st.integers(1, 3000), st.integers(2, 300))
def test_no_minute_holds_more_requests_than_allowed(per_minute: int, n: int) -> None:
    clock = Clock()
    drawn = spend_all(Bucket(per_minute, clock), clock, [1.0] * n)
    for start, _ in drawn:
        assert sum(amount for moment, amount in drawn if start <= moment < start + 60 - 1e-6) <= per_minute


@given(st.integers(100, 100_000), st.lists(st.integers(1, 3000), min_size=2, max_size=60))
def test_no_minute_holds_more_tokens_than_allowed_and_one_draw(per_minute: int, amounts: list[int]) -> None:
    clock = Clock()
    drawn = spend_all(Bucket(per_minute, clock), clock, [float(amount) for amount in amounts])
    for start, _ in drawn:
        inside = sum(amount for moment, amount in drawn if start <= moment < start + 60 - 1e-6)
        assert inside <= per_minute + max(amounts) + 1


@pytest.mark.parametrize("per_minute", [3, 60, 500, 30_000])
def test_a_busy_hour_uses_nearly_all_that_is_allowed(per_minute: int) -> None:
    clock = Clock()
    drawn = spend_all(Bucket(per_minute, clock), clock, [1.0] * (10 * per_minute))
    assert (len(drawn) - 1) / (drawn[-1][0] - drawn[0][0]) * 60 >= 0.95 * per_minute


def test_no_limit_never_waits_and_a_gift_is_no_more_than_a_full_bucket() -> None:
    clock = Clock()
    free, bucket = Bucket(0, clock), Bucket(60, clock)
    free.spend(1e9)
    assert free.wait(1e9) == 0
    bucket.spend(1)
    assert bucket.wait(1) == pytest.approx(1.0)
    bucket.spend(-50)
    assert bucket.wait(1) == 0
    bucket.spend(1)
    assert bucket.wait(1) == pytest.approx(1.0)


def test_what_a_request_did_not_take_is_given_back() -> None:
    async def go() -> None:
        clock = Clock()
        limits = Limits(2, tokens_per_minute=6000, clock=clock)
        async with limits.turn(100):
            pass
        assert limits.tokens.wait(100) > 0
        limits.spent(estimated=100, used=40)
        assert limits.tokens.wait(60) == 0 < limits.tokens.wait(61)

    asyncio.run(go())


def test_requests_turned_away_together_halve_the_number_once() -> None:
    async def go() -> None:
        clock = Clock()
        limits = Limits(16, clock=clock)
        sent = clock.now
        clock.now += 1
        for _ in range(16):
            limits.slower(sent, 2.0)
        assert limits.allowed == 8 and limits.turned_away == 16
        clock.now += 3
        limits.slower(clock.now, 0.0)
        assert limits.allowed == 4
        for expected in (5, 6, 7):
            for _ in range(expected - 1):
                assert limits.allowed == expected - 1
                limits.went_well()
            assert limits.allowed == expected
        for _ in range(400):
            limits.went_well()
        assert limits.allowed == 16  # never more than was asked for
        for _ in range(10):
            clock.now += 1
            limits.slower(clock.now, 0.0)
        assert limits.allowed == 1

    asyncio.run(go())


def test_a_pause_without_a_time_doubles_until_a_success() -> None:
    async def go() -> None:
        clock = Clock()
        limits = Limits(4, clock=clock)
        pauses = []
        for _ in range(8):
            limits.slower(clock.now, None)
            pauses.append(limits._delay(1))
            clock.now += pauses[-1]
        assert pauses == [min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**n) for n in range(8)]
        limits.went_well()
        limits.slower(clock.now, None)
        assert limits._delay(1) == FIRST_PAUSE_S

    asyncio.run(go())


def test_turns_are_taken_in_the_order_of_asking_and_never_more_at_once_than_allowed() -> None:
    async def go() -> None:
        limits, order, most = Limits(3), [], 0

        async def one(number: int) -> None:
            nonlocal most
            async with limits.turn(1):
                order.append(number)
                most = max(most, limits.in_flight)
                await asyncio.sleep(0.002)

        await asyncio.gather(*map(one, range(20)))
        assert order == list(range(20)) and most == 3 and limits.in_flight == 0

    asyncio.run(go())


def test_a_turn_that_ended_badly_makes_room_too() -> None:
    async def go() -> None:
        limits = Limits(1)
        with pytest.raises(RuntimeError):
            async with limits.turn(1):
                raise RuntimeError
        async with limits.turn(1):
            assert limits.in_flight == 1

    asyncio.run(go())


def test_whoever_waits_when_the_run_stops_is_not_sent() -> None:
    async def go() -> None:
        limits = Limits(1)
        limits.slower(0.0, 3600.0)

        async def wait() -> None:
            async with limits.turn(1):
                raise AssertionError("nothing may be sent")

        waiting = [asyncio.create_task(wait()) for _ in range(3)]
        await asyncio.sleep(0.01)
        limits.stop()
        found = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 1)
        assert [type(error) for error in found] == [StoppedError] * 3

    asyncio.run(go())
