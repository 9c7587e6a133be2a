"""What a judgement will cost, counted by hand, and a bound that is not exceeded whatever the replies take."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges import costs
from judges.cache import Cache, request_key
from judges.costs import Budget, SpentError
from judges.judge import Judge
from judges.pairing import Comparison
from judges.protocols import PROTOCOLS, Order
from judges.tasks import Task, question
from selectkd_eval.errors import InputError

PROTOCOL = PROTOCOLS["selectkd"]
JUDGE = Judge(
    name="j", model="m", base_url="http://localhost/v1", price_in=2.0, price_in_cached=0.5, price_out=10.0,
    batch_discount=0.5,
)  # fmt: skip


def task(number: int, order: Order = "candidate-first", sample: int = 0, candidate: str = "mine") -> Task:
    return Task(Comparison(f"{number}", f"Q{number}", 0, candidate, "theirs"), order, sample)


def store(cache: Cache, item: Task, reply_tokens: int) -> None:
    """What the client keeps of a paid reply."""
    key = request_key(JUDGE.base_url, PROTOCOL.sha256, JUDGE.request(PROTOCOL, question(item, PROTOCOL)), item.sample)
    cache.put(key, JUDGE.model, item.sample, {"text": "", "usage": {"completion_tokens": reply_tokens}}, 0.1)


def test_a_plan_counts_calls_tokens_and_money() -> None:
    plan = costs.estimate([task(i) for i in range(10)], JUDGE, PROTOCOL)
    size = sum(len(message["content"].encode()) for message in question(task(0), PROTOCOL))
    assert plan.calls == plan.comparisons == 10 and plan.cached == 0
    assert plan.tokens_in == pytest.approx(10 * (size / 4 + 8), abs=10)
    assert plan.tokens_out == 2500
    assert plan.money == pytest.approx((2 * plan.tokens_in + 10 * 2500) / 1e6)
    assert plan.batch_money == pytest.approx((plan.money or 0) / 2)


def test_what_is_in_the_cache_and_what_is_asked_twice_is_not_paid_for(tmp_path: Path) -> None:
    same_answer = replace(task(1), comparison=replace(task(1).comparison, seed=1))
    tasks = [task(0), task(1), task(1, sample=1), same_answer]
    with Cache(tmp_path / "c") as cache:
        store(cache, tasks[0], 90)
        store(cache, task(7), 110)
        plan = costs.estimate(tasks, JUDGE, PROTOCOL, cache)
    assert (plan.comparisons, plan.cached, plan.calls) == (4, 2, 2)
    assert (plan.reply, plan.seen, plan.tokens_out) == (100.0, 2, 200)


def test_the_lines_say_that_it_is_an_estimate_and_what_a_batch_saves() -> None:
    plan = costs.estimate([task(i) for i in range(3)], replace(JUDGE, noted="yesterday"), PROTOCOL)
    said = "\n".join(costs.lines(plan))
    assert said.startswith("3 calls to j for 3 judgements") and "estimated" in said
    assert f"US$ {plan.money:.2g}, US$ {plan.batch_money:.2g} with --batch" in said and "noted yesterday" in said
    free = costs.lines(costs.estimate([task(0)], replace(JUDGE, price_in=None), PROTOCOL))
    assert costs.lines(costs.estimate([], JUDGE, PROTOCOL)) == ["no calls: nothing is left to ask j"]
    assert "1 call to j" in free[0] and "price unknown" in free[-1] and "judges.toml" in free[-1]


def test_a_plan_says_how_long_the_limits_make_it() -> None:
    tasks = [task(i) for i in range(100)]
    plan = costs.estimate(tasks, replace(JUDGE, requests_per_minute=20), PROTOCOL)
    assert plan.minutes == 5 and "at least 5 minutes" in costs.lines(plan)[2]
    by_tokens = costs.estimate(tasks, replace(JUDGE, requests_per_minute=20, tokens_per_minute=1000), PROTOCOL)
    assert by_tokens.minutes == (by_tokens.tokens_in + by_tokens.tokens_out) / 1000 > 5
    assert costs.estimate(tasks, JUDGE, PROTOCOL).minutes == 0


def test_a_reply_is_expected_to_be_no_longer_than_it_may_be() -> None:
    assert costs.estimate([task(0)], JUDGE, PROTOCOLS["alpacaeval2"]).tokens_out == 1


@pytest.mark.parametrize(
    ("usage", "money"),
    [
        ({"prompt_tokens": 1000, "completion_tokens": 100}, 0.003),
        ({"prompt_tokens": 1000, "completion_tokens": 100, "cached_tokens": 400}, 0.0024),
        ({}, 0.0),
    ],
)
def test_a_price_by_hand(usage: dict[str, int], money: float) -> None:
    assert costs.price(JUDGE, usage) == pytest.approx(money)
    assert costs.price(JUDGE, usage, batch=True) == pytest.approx(money / 2)
    assert costs.price(replace(JUDGE, price_out=None), usage) is None


def test_a_bound_without_a_price_is_refused() -> None:
    with pytest.raises(InputError, match=r"--max-cost needs the price of 'j'.* price_in and price_out"):
        Budget(replace(JUDGE, price_in=None), 1.0)
    with pytest.raises(InputError, match="--max-cost must be more than 0"):
        Budget(JUDGE, -1.0)


def request(letters: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "x" * letters}], "max_tokens": 1000}


async def spend(budget: Budget, workers: int, replies: list[tuple[int, int]]) -> int:
    """Workers that ask until the budget ends; each reply is (bytes of the question, tokens of the reply)."""
    queue, paid = iter(replies), 0

    async def work() -> None:
        nonlocal paid
        for letters, tokens in queue:
            reserved = await budget.reserve(request(letters))
            await asyncio.sleep(0)
            usage = {"prompt_tokens": round(letters / 4), "completion_tokens": tokens}
            await budget.settle(reserved, usage)
            paid += 1

    found = await asyncio.gather(*(work() for _ in range(workers)), return_exceptions=True)
    assert all(error is None or isinstance(error, SpentError) for error in found)
    return paid


@given(
    st.floats(0.0, 0.2),
    st.integers(1, 8),
    st.lists(st.tuples(st.integers(0, 8000), st.integers(0, 1000)), max_size=40),
)
def test_no_more_is_spent_than_allowed_and_it_is_used_up_to_one_call(
    most: float, workers: int, replies: list[tuple[int, int]]
) -> None:
    budget = Budget(JUDGE, 0.001 + most)
    paid = asyncio.run(spend(budget, workers, replies))
    assert budget.spent <= (budget.most or 0) + 1e-12
    if paid < len(replies):
        # It stopped, so the dearest call that could come next would not have fitted in.
        assert budget.spent + (2 * 1.3 * (4 + 2000) + 10 * 1000) / 1e6 > (budget.most or 0)


def test_without_a_bound_it_only_counts() -> None:
    budget = Budget(replace(JUDGE, price_in=None), None)
    assert asyncio.run(spend(budget, 4, [(100, 10)] * 20)) == 20 and budget.spent == 0
    budget = Budget(JUDGE, None, spent=1.0)
    assert asyncio.run(spend(budget, 4, [(400, 10)] * 20)) == 20
    assert budget.spent == pytest.approx(1.0 + 20 * (100 * 2 + 10 * 10) / 1e6)


def test_a_call_that_might_not_fit_waits_for_those_in_flight() -> None:
    async def go() -> list[str]:
        # Room for one longest reply at a time (0.0105 each); a real one costs a tenth of that.
        budget, order = Budget(JUDGE, 0.015), []

        async def one(number: int) -> None:
            reserved = await budget.reserve(request(4))
            order.append(f"ask {number}")
            await asyncio.sleep(0.001)
            order.append(f"end {number}")
            await budget.settle(reserved, {"prompt_tokens": 1, "completion_tokens": 100})

        await asyncio.gather(one(0), one(1), one(2))
        return order

    assert asyncio.run(go()) == [word for number in range(3) for word in (f"ask {number}", f"end {number}")]


def test_a_server_that_does_not_count_is_taken_at_its_dearest_and_a_failed_call_at_nothing() -> None:
    async def go() -> tuple[float, float, float]:
        budget = Budget(JUDGE, 1.0)
        reserved = await budget.reserve(request(400))
        await budget.settle(reserved, {})
        first = budget.spent
        await budget.settle(await budget.reserve(request(400)), None)
        return reserved, first, budget.spent

    reserved, first, second = asyncio.run(go())
    assert first == second == reserved > 0
