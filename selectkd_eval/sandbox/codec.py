"""How does a value become bytes? A closed codec of plain data and numbered handles, nothing else.

What arrives is always built from Python's own plain types, whatever subclass was sent, so that equality, hashing and
iteration on the receiving side are the interpreter's. There is no pickle, marshal or eval; a type outside the list
crosses as a number that only its owner can resolve. The file knows neither tests nor verdicts, and trusts no byte.
"""

from __future__ import annotations

import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from struct import Struct, pack, unpack_from
from struct import error as struct_error
from typing import Any

from selectkd_eval.sandbox.channel import Malformed, RefusedError

DEPTH = 200
"""Deepest nesting that crosses; a value inside itself is refused by the same rule."""

TYPES: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        *(int, float, complex, bool, str, bytes, bytearray, list, tuple, set, frozenset, dict, range, slice),
        *(type(None), object, type, Fraction, Decimal, deque, OrderedDict, Counter),
    )
}
"""Types that cross by their name, in either direction."""

TOO_LONG = "a value of more than {} bytes cannot cross"

MINE, YOURS = 0, 1
"""Whose number a handle carries, as the sender sees it."""

_COUNT = Struct("<I")
_WORD, _FLOAT, _PAIR = Struct("<q"), Struct("<d"), Struct("<dd")
_HANDLE = Struct("<BBQ")
_PACK_FROM = 8  # shorter lists are not worth the look at their element types
_SINGLETONS: dict[int, Any] = {ord("N"): None, ord("T"): True, ord("F"): False, ord("."): ..., ord("!"): NotImplemented}
_SEQUENCES: dict[int, Callable[[Iterable[Any]], Any]] = {
    ord("l"): list,
    ord("t"): tuple,
    ord("S"): set,
    ord("f"): frozenset,
    ord("q"): deque,
    ord("k"): lambda items: dict.fromkeys(items).keys(),
    ord("v"): lambda items: dict(enumerate(items)).values(),
}

Other = Callable[[Any], tuple[int, int, int]]
"""Gives (whose, flags, number) for an object that is not plain data; raises RefusedError where it must not cross."""
Resolve = Callable[[int, int, int], Any]
"""Gives the object behind (whose, flags, number), whose as the receiver sees it; raises Malformed for unknown ones."""


class _Writer:
    def __init__(self, cap: int, other: Other) -> None:
        self.cap, self.room, self.other = cap, cap, other
        self.out: list[bytes] = []

    def take(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise RefusedError(TOO_LONG.format(self.cap))

    def put(self, value: Any, depth: int) -> None:
        writer = _PUT.get(type(value))
        if writer is None:
            writer = _flattening(value) or _Writer.handle
        writer(self, value, depth)

    def handle(self, value: Any, depth: int) -> None:
        self.take(11)
        self.out.append(b"h" + _HANDLE.pack(*self.other(value)))

    def items(self, tag: bytes, items: Iterable[Any], count: int, depth: int) -> None:
        if depth >= DEPTH:
            raise RefusedError(f"a value nested deeper than {DEPTH} levels, or inside itself, cannot cross")
        self.take(5 + count)
        self.out.append(tag + _COUNT.pack(count))
        put = self.put
        for item in items:
            put(item, depth + 1)

    def raw(self, tag: bytes, data: bytes) -> None:
        self.take(5 + len(data))
        self.out.append(tag + _COUNT.pack(len(data)) + data)


def _flattening(value: Any) -> Callable[[_Writer, Any, int], None] | None:
    """The writer of the plain base of a subclass's instance; None for everything else. Asks nothing of `value`."""
    for base in type.__dict__["__mro__"].__get__(type(value)):
        if base in _PUT:
            return _PUT[base]
    numpy = sys.modules.get("numpy")
    if numpy is None or not isinstance(value, (numpy.generic, numpy.ndarray)) or isinstance(value, numpy.void):
        return None
    # One number crosses, whatever holds it; an array of several is the candidate's own object.
    return None if value.ndim else lambda writer, scalar, depth: writer.put(scalar.item(), depth)


def _put_int(writer: _Writer, value: int, depth: int) -> None:
    value = int.__index__(value)
    if -(1 << 63) <= value < 1 << 63:
        writer.out.append(b"i" + _WORD.pack(value))
    else:
        writer.raw(b"I", value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True))


def _put_tuple(writer: _Writer, value: tuple[Any, ...], depth: int) -> None:
    _sequence(writer, b"t", tuple.__getitem__(value, slice(None)), depth)


def _sequence(writer: _Writer, tag: bytes, value: Any, depth: int) -> None:
    count = len(value)
    if count >= _PACK_FROM:
        kinds = set(map(type, value))
        letter = b"q" if kinds == {int} else b"d" if kinds == {float} else b""
        if letter:
            writer.take(8 * count)
            try:
                data = pack(f"<{count}{letter.decode()}", *value)
            except struct_error:  # an int of more than 64 bits
                writer.room += 8 * count
            else:
                writer.out.append(b"p" + tag + letter + _COUNT.pack(count) + data)
                return
    writer.items(tag, value, count, depth)


def _copied(tag: bytes, kind: Any) -> Callable[[_Writer, Any, int], None]:
    def put(writer: _Writer, value: Any, depth: int) -> None:
        items = list(kind.__iter__(value))
        writer.items(tag, items, len(items), depth)

    return put


def _pairs(tag: bytes, kind: Any) -> Callable[[_Writer, Any, int], None]:
    def put(writer: _Writer, value: Any, depth: int) -> None:
        items = [part for pair in list(kind.items(value)) for part in pair]
        writer.items(tag, items, len(items), depth)

    return put


def _put_defaultdict(writer: _Writer, value: Any, depth: int) -> None:
    factory = defaultdict.__dict__["default_factory"].__get__(value)
    if type(factory) is not type or TYPES.get(factory.__name__) is not factory:
        factory = None
    writer.out.append(b"D")
    writer.put(factory, depth)
    _pairs(b"m", dict)(writer, value, depth)


def _put_type(writer: _Writer, value: type, depth: int) -> None:
    name = type.__dict__["__name__"].__get__(value)
    if TYPES.get(name) is value:
        writer.raw(b"@", name.encode())
    else:
        writer.handle(value, depth)


def _fields(tag: bytes, read: Callable[[Any], tuple[Any, ...]]) -> Callable[[_Writer, Any, int], None]:
    """A type that crosses as a tuple of its parts."""

    def put(writer: _Writer, value: Any, depth: int) -> None:
        writer.out.append(tag)
        _put_tuple(writer, read(value), depth)

    return put


def _get(kind: Any, *names: str) -> Callable[[Any], tuple[Any, ...]]:
    slots = [kind.__dict__[name].__get__ for name in names]
    return lambda value: tuple(slot(value) for slot in slots)


def _offset(value: Any) -> timedelta | None:
    offset = value.utcoffset()
    return offset if type(offset) is timedelta else None


_complex = _get(complex, "real", "imag")
_DATE, _TIME = ("year", "month", "day"), ("hour", "minute", "second", "microsecond")

_PUT: dict[type, Callable[[_Writer, Any, int], None]] = {
    type(None): lambda writer, value, depth: writer.out.append(b"N"),
    bool: lambda writer, value, depth: writer.out.append(b"T" if value else b"F"),
    type(...): lambda writer, value, depth: writer.out.append(b"."),
    type(NotImplemented): lambda writer, value, depth: writer.out.append(b"!"),
    int: _put_int,
    float: lambda writer, value, depth: writer.out.append(b"d" + _FLOAT.pack(value)),
    complex: lambda writer, value, depth: writer.out.append(b"c" + _PAIR.pack(*_complex(value))),
    str: lambda writer, value, depth: writer.raw(b"s", str.encode(value, "utf-8", "surrogatepass")),
    bytes: lambda writer, value, depth: writer.raw(b"b", bytes(memoryview(value))),
    bytearray: lambda writer, value, depth: writer.raw(b"B", bytes(memoryview(value))),
    list: lambda writer, value, depth: _sequence(writer, b"l", list.__getitem__(value, slice(None)), depth),
    tuple: _put_tuple,
    set: _copied(b"S", set),
    frozenset: _copied(b"f", frozenset),
    deque: _copied(b"q", deque),
    type({}.keys()): _copied(b"k", type({}.keys())),
    type({}.values()): _copied(b"v", type({}.values())),
    type({}.items()): _copied(b"y", type({}.items())),
    dict: _pairs(b"m", dict),
    OrderedDict: _pairs(b"O", OrderedDict),
    Counter: _pairs(b"C", dict),
    defaultdict: _put_defaultdict,
    range: _fields(b"r", lambda value: (value.start, value.stop, value.step)),
    slice: _fields(b"x", lambda value: (value.start, value.stop, value.step)),
    Fraction: _fields(b"R", _get(Fraction, "numerator", "denominator")),
    Decimal: lambda writer, value, depth: writer.raw(b"E", Decimal.__str__(value).encode()),
    timedelta: _fields(b"W", _get(timedelta, "days", "seconds", "microseconds")),
    datetime: _fields(b"Z", lambda at: (*_get(date, *_DATE)(at), *_get(datetime, *_TIME, "fold")(at), _offset(at))),
    date: _fields(b"Y", _get(date, *_DATE)),
    time: _fields(b"U", lambda at: (*_get(time, *_TIME, "fold")(at), _offset(at))),
    type: _put_type,
}


def encode(value: Any, cap: int, other: Other) -> bytes:
    """The bytes of a value; raises RefusedError. `other` numbers what is not plain data."""
    writer = _Writer(cap, other)
    writer.put(value, 0)
    body = b"".join(writer.out)
    if len(body) > cap:
        raise RefusedError(TOO_LONG.format(cap))
    return body


class _Reader:
    def __init__(self, raw: bytes, resolve: Resolve) -> None:
        self.raw, self.resolve, self.at = raw, resolve, 0

    def fixed(self, shape: Struct) -> tuple[Any, ...]:
        values = shape.unpack_from(self.raw, self.at)
        self.at += shape.size
        return values

    def bytes(self) -> bytes:
        (length,) = self.fixed(_COUNT)
        data = self.raw[self.at : self.at + length]
        if len(data) != length:
            raise Malformed("a message that ends early")
        self.at += length
        return data

    def value(self, depth: int) -> Any:
        if depth > DEPTH + 4:  # a field's own tuple counts as a level here
            raise Malformed("a message nested too deep")
        tag = self.raw[self.at]
        self.at += 1
        if tag == 105:  # i
            return self.fixed(_WORD)[0]
        if tag == 115:  # s
            return str(self.bytes(), "utf-8", "surrogatepass")
        if tag in _SEQUENCES:
            return _SEQUENCES[tag](self.items(depth))
        if tag in _SINGLETONS:
            return _SINGLETONS[tag]
        if tag == 100:  # d
            return self.fixed(_FLOAT)[0]
        rebuild = _REBUILD.get(tag)
        if rebuild is None:
            raise Malformed("an unknown tag")
        return rebuild(self, depth)

    def items(self, depth: int) -> list[Any]:
        (count,) = self.fixed(_COUNT)
        if count > len(self.raw) - self.at:
            raise Malformed("a message that ends early")
        value, deeper = self.value, depth + 1
        return [value(deeper) for _ in range(count)]

    def pairs(self, depth: int) -> list[tuple[Any, Any]]:
        items = self.items(depth)
        return list(zip(items[::2], items[1::2], strict=True))

    def packed(self, depth: int) -> Any:
        kind, letter = self.raw[self.at], self.raw[self.at + 1 : self.at + 2]
        self.at += 2
        (count,) = self.fixed(_COUNT)
        if letter not in (b"q", b"d") or count * 8 > len(self.raw) - self.at:
            raise Malformed("a message that ends early")
        numbers = unpack_from(f"<{count}{letter.decode()}", self.raw, self.at)
        self.at += 8 * count
        return list(numbers) if kind == ord("l") else numbers

    def parts(self, depth: int) -> tuple[Any, ...]:
        parts = self.value(depth + 1)
        if type(parts) is not tuple:
            raise Malformed("parts that are no tuple")
        return parts

    def handle(self, depth: int) -> Any:
        whose, flags, number = self.fixed(_HANDLE)
        return self.resolve(1 - whose, flags, number)

    def defaultdict(self, depth: int) -> Any:
        factory, content = self.value(depth + 1), self.value(depth + 1)
        if type(content) is not dict or not (factory is None or isinstance(factory, type)):
            raise Malformed("a defaultdict without content")
        return defaultdict(factory, content)


def _at(parts: tuple[Any, ...], kind: Any) -> Any:
    *numbers, fold, offset = parts
    return kind(*numbers, fold=fold, tzinfo=None if offset is None else timezone(offset))


_REBUILD: dict[int, Callable[[_Reader, int], Any]] = {
    ord("I"): lambda reader, depth: int.from_bytes(reader.bytes(), "little", signed=True),
    ord("c"): lambda reader, depth: complex(*reader.fixed(_PAIR)),
    ord("b"): lambda reader, depth: reader.bytes(),
    ord("B"): lambda reader, depth: bytearray(reader.bytes()),
    ord("p"): _Reader.packed,
    ord("y"): lambda reader, depth: dict(reader.items(depth)).items(),
    ord("m"): lambda reader, depth: dict(reader.pairs(depth)),
    ord("O"): lambda reader, depth: OrderedDict(reader.pairs(depth)),
    ord("C"): lambda reader, depth: Counter(dict(reader.pairs(depth))),
    ord("D"): _Reader.defaultdict,
    ord("r"): lambda reader, depth: range(*reader.parts(depth)),
    ord("x"): lambda reader, depth: slice(*reader.parts(depth)),
    ord("R"): lambda reader, depth: Fraction(*reader.parts(depth)),
    ord("E"): lambda reader, depth: Decimal(reader.bytes().decode()),
    ord("W"): lambda reader, depth: timedelta(*reader.parts(depth)),
    ord("Z"): lambda reader, depth: _at(reader.parts(depth), datetime),
    ord("Y"): lambda reader, depth: date(*reader.parts(depth)),
    ord("U"): lambda reader, depth: _at(reader.parts(depth), time),
    ord("@"): lambda reader, depth: TYPES[reader.bytes().decode()],
    ord("h"): _Reader.handle,
}


def decode(raw: bytes, resolve: Resolve) -> Any:
    """The value behind the bytes; raises Malformed for anything that `encode` would not have made."""
    reader = _Reader(raw, resolve)
    try:
        value = reader.value(0)
    except (struct_error, IndexError, KeyError, ValueError, TypeError, ArithmeticError) as error:
        raise Malformed(f"a message that is no value ({type(error).__name__})") from None
    if reader.at != len(raw):
        raise Malformed("bytes after the end of a message")
    return value
