"""The codec: what is sent arrives as the same plain data, whatever class it wore, and no bytes can hurt the reader."""

from __future__ import annotations

import math
import os
import socket
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from selectkd_eval.sandbox import codec
from selectkd_eval.sandbox.channel import Channel, Closed, Late, Malformed, RefusedError

CAP = 1 << 20


def refuse(thing: object) -> tuple[int, int, int]:
    raise RefusedError(type(thing).__name__)


def unknown(whose: int, flags: int, number: int) -> Any:
    raise Malformed("no handles here")


def across(value: Any) -> Any:
    return codec.decode(codec.encode(value, CAP, refuse), unknown)


def same(one: Any, other: Any) -> bool:
    """Equal, of the same types all the way down, NaN and the sign of zero included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return (
            math.isnan(other) if math.isnan(one) else one == other and math.copysign(1, one) == math.copysign(1, other)
        )
    if isinstance(one, complex):
        return same(one.real, other.real) and same(one.imag, other.imag)
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


HASHABLE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(1 << 200), max_value=1 << 200),
    st.floats(allow_nan=False),
    st.complex_numbers(allow_nan=False),
    st.text(st.characters(codec=None), max_size=8),
    st.binary(max_size=8),
    st.fractions(),
    st.decimals(allow_nan=False),
    st.dates(),
    st.times(),
    st.datetimes(timezones=st.sampled_from([None, UTC, timezone(timedelta(hours=-3, minutes=-30))])),
    st.timedeltas(),
    st.builds(range, st.integers(), st.integers(), st.integers(min_value=1)),
    st.sampled_from([..., NotImplemented, int, str, type(None), OrderedDict]),
)
LEAVES = st.one_of(
    HASHABLE,
    st.floats(),
    st.builds(bytearray, st.binary(max_size=8)),
    st.builds(slice, st.integers() | st.none(), st.integers() | st.none(), st.integers() | st.none()),
    st.lists(st.integers(), min_size=8, max_size=20),
    st.lists(st.floats(), min_size=8, max_size=20).map(tuple),
    st.frozensets(HASHABLE, max_size=4),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.lists(inner, max_size=4).map(deque),
        st.sets(HASHABLE, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=4),
        st.dictionaries(HASHABLE, inner, max_size=4).map(OrderedDict),
        st.dictionaries(HASHABLE, st.integers(), max_size=4).map(Counter),
        st.dictionaries(HASHABLE, inner, max_size=4).map(lambda content: defaultdict(list, content)),
    ),
    max_leaves=12,
)


@given(VALUES)
@example([2**63, -(2**63), 2**64, -(2**64) - 1] * 3)
@example("\ud800 lone, \x00 and é")
@example([-0.0, math.inf, -math.inf, math.nan] * 3)
@example({(): [], (1, (2.0,)): {frozenset(): ...}})
@example(Decimal("1E+999999"))
def test_what_is_sent_arrives(value: Any) -> None:
    assert same(across(value), value)


def test_a_defaultdict_keeps_a_plain_factory_only() -> None:
    assert across(defaultdict(list))["new"] == []
    assert across(defaultdict(lambda: 7, {1: 2})) == {1: 2}
    assert across(defaultdict(lambda: 7)).default_factory is None


def test_views_of_a_dict_stay_views() -> None:
    assert across({1: 2, 3: 4}.keys()) == {1, 3}
    assert across({1: 2}.items()) == {(1, 2)}
    assert list(across({1: 2, 3: 2}.values())) == [2, 2]


class Liar:
    """Methods that a candidate would use to look equal to everything."""

    def __eq__(self, other: object) -> bool:
        return True

    def __ne__(self, other: object) -> bool:
        return False

    def __hash__(self) -> int:
        return 0

    def __iter__(self) -> Any:
        return iter(("forged",))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, key: object) -> str:
        return "forged"

    def __str__(self) -> str:
        return "forged"

    def __index__(self) -> int:
        return 99

    @property
    def __class__(self) -> type:  # type: ignore[override]
        return str


@pytest.mark.parametrize("plain", [5, 1 << 80, 2.5, "text", b"bytes", bytearray(b"b"), 1j, [1, [2]], (1, 2), {1, 2}])
def test_a_hostile_subclass_arrives_as_its_plain_base(plain: Any) -> None:
    kind = type("Hostile", (Liar, type(plain)), {})
    assert same(across(kind(plain)), plain)
    assert same(across([kind(plain)]), [plain])


@pytest.mark.parametrize("plain", [{1: 2}, OrderedDict(a=1), Counter("aab"), deque([1, 2]), frozenset({3})])
def test_a_hostile_container_arrives_as_its_plain_base(plain: Any) -> None:
    hostile = {"items": lambda self: [("forged", 1)], "keys": lambda self: ["forged"], "__eq__": lambda *_: True}
    kind = type("Hostile", (type(plain),), {**hostile, "__iter__": Liar.__iter__, "__hash__": Liar.__hash__})
    assert same(across(kind(plain)), plain)


def test_subclasses_without_malice_are_flattened() -> None:
    pair = namedtuple("pair", "x y")(1, [2])
    colour = IntEnum("Colour", "RED")
    assert same(across([pair, colour.RED, datetime(2020, 1, 2)]), [(1, [2]), 1, datetime(2020, 1, 2)])
    assert same(across(type("Day", (date,), {})(2020, 1, 2)), date(2020, 1, 2))
    assert same(across(type("Part", (Fraction,), {})(1, 3)), Fraction(1, 3))
    assert same(across(time(1, 2, 3, fold=1)), time(1, 2, 3, fold=1)) and across(time(1, fold=1)).fold == 1


def test_numpy_scalars_are_flattened_too() -> None:
    numpy = pytest.importorskip("numpy")
    assert same(across([numpy.int64(5), numpy.float32(0.5), numpy.bool_(True), numpy.str_("s")]), [5, 0.5, True, "s"])
    assert same(across([numpy.array(5), numpy.array("s"), numpy.sum(numpy.array([1.5, 2]))]), [5, "s", 3.5])


@pytest.mark.parametrize(
    "thing", [object(), lambda: 1, Liar(), Liar, (one for one in "a"), os, iter([])], ids=lambda one: type(one).__name__
)
def test_everything_else_is_a_handle(thing: object) -> None:
    asked: list[object] = []

    def number(other: object) -> tuple[int, int, int]:
        asked.append(other)
        return codec.MINE, 9, 77

    raw = codec.encode([thing], CAP, number)
    assert asked[0] is thing
    assert codec.decode(raw, lambda *handle: handle) == [(codec.YOURS, 9, 77)]


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth - 1):
        value = [value]
    return value


def test_depth_is_bounded_on_both_sides() -> None:
    assert across(nested(codec.DEPTH)) == nested(codec.DEPTH)
    inside: list[Any] = []
    inside.append({"it": inside})
    for value in (nested(codec.DEPTH + 1), nested(10**5), inside):
        with pytest.raises(RefusedError, match="nested deeper"):
            across(value)


def test_length_is_bounded_also_where_one_object_stands_often() -> None:
    doubling: list[Any] = ["x"]
    for _ in range(60):
        doubling = [doubling, doubling]
    for value in ("x" * CAP, [b"x" * 1000] * 2000, doubling, 1 << (8 * CAP), list(range(CAP)), [None] * CAP):
        with pytest.raises(RefusedError, match="more than"):
            across(value)


@given(st.binary(max_size=60))
@example(b"l\xff\xff\xff\xff" + b"N" * 20)
@example(b"pl" + b"q\xff\xff\xff\xff" + b"\x00" * 16)
@example(b"S\x01\x00\x00\x00l\x00\x00\x00\x00")
@example(b"@\x04\x00\x00\x00eval")
@example(b"E\x03\x00\x00\x00abc")
@example(b"h" + b"\x00" * 10)
@example(b"NN")
@example(b"")
def test_bytes_decode_to_plain_data_or_are_malformed(raw: bytes) -> None:
    try:
        value = codec.decode(raw, unknown)
    except Malformed:
        return
    assert type(value).__module__ in ("builtins", "collections", "fractions", "decimal", "datetime")


@pytest.mark.parametrize("unit", [b"l\1\0\0\0", b"t\1\0\0\0", b"R", b"D", b"Y", b"y\1\0\0\0"])
def test_deep_bytes_do_not_exhaust_the_stack(unit: bytes) -> None:
    with pytest.raises(Malformed, match="too deep"):
        codec.decode(unit * 100_000, unknown)


def test_a_channel_keeps_messages_apart_and_knows_the_end() -> None:
    ends = socket.socketpair()
    mine, yours = (Channel(end.fileno(), CAP) for end in ends)
    long = os.urandom(CAP)
    sender = threading.Thread(target=lambda: [yours.send(body) for body in (b"", b"one", long, b"two")])
    sender.start()
    assert [mine.receive() for _ in range(4)] == [b"", b"one", long, b"two"]
    sender.join()
    mine.deadline = 1e-9  # long ago
    with pytest.raises(Late):
        mine.receive()
    mine.deadline = 0.0
    os.write(yours.fd, (CAP + 1).to_bytes(4, "little"))
    with pytest.raises(Malformed, match="more than"):
        mine.receive()
    ends[1].close()
    with pytest.raises(Closed):
        Channel(ends[0].fileno(), CAP).receive()
    with pytest.raises(Closed):
        mine.send(b"anybody?")
    ends[0].close()
