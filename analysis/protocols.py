"""Which judging protocol do win rates follow? Two protocols never share a table or a figure.

A protocol is known by the hash of its prompt text, decoding, order and tie rule. Win rates under two of them are two
quantities (DistiLLM-2's half ties in both orders, SelecTKD's ties excluded in one), however alike their names are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from analysis.load import Library
from selectkd_eval.errors import InputError
from selectkd_eval.records import Record, canonical

_SHOWN = 48  # characters of a fact in a refusal


class Protocol(NamedTuple):
    """A protocol's name, and its hash (empty in records that do not know the prompt)."""

    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} {self.sha256[:12]}".strip()


def protocol_of(record: Record) -> Protocol:
    """The protocol of a winrate record."""
    facts: Mapping[str, Any] = record.facts.get("protocol") or {}
    return Protocol(str(facts.get("name") or "unnamed"), str(facts.get("sha256") or ""))


def protocols(library: Library) -> list[Protocol]:
    """The protocols of the library's win rates, by name."""
    return sorted({protocol_of(record) for record in library.of("winrate")})


def under(library: Library, protocol: Protocol) -> Library:
    """The library without the win rates of other protocols."""
    kept = [record for record in library.records if record.verb != "winrate" or protocol_of(record) == protocol]
    return Library(kept, library.unfinished)


def one_protocol(library: Library, wanted: str) -> Library:
    """The library under the protocol of this name or hash; without a name, an InputError when there are several."""
    found = protocols(library)
    matching = [one for one in found if not wanted or wanted in (one.name, str(one)) or one.sha256.startswith(wanted)]
    if found and not matching:
        raise InputError(f"no win rate follows the protocol {wanted!r}: there are {', '.join(map(str, found))}")
    if len(matching) > 1:
        counts = [f"{one} ({len(under(library, one).of('winrate'))} records)" for one in matching]
        raise InputError(
            f"win rates of {len(matching)} protocols do not share a table: {', '.join(counts)}"
            f"{_apart(library, matching)}; name one with --protocol NAME, or its hash"
        )
    return under(library, matching[0]) if matching else library


def _apart(library: Library, found: Sequence[Protocol]) -> str:
    """Everything in which protocols differ beside name and hash, with what each says."""
    judged = {protocol_of(record): record for record in library.of("winrate")}
    facts = [judged[one].facts.get("protocol") or {} for one in found]
    told = []
    for name in sorted({name for one in facts for name in one} - {"name", "sha256"}):
        values = [_said(one.get(name)) for one in facts]
        if len(set(values)) > 1:
            told.append(f"{name} {' / '.join(map(_cut, values))}")
    return f"; they differ in {'; '.join(told)}" if told else ""


def _said(fact: Any) -> str:
    return "not stated" if fact is None else fact if isinstance(fact, str) else canonical(fact)


def _cut(value: str) -> str:
    """A fact on one line, the long ones by their beginning and a digest, so that two that differ never look alike."""
    line = " ".join(value.split())
    return line if len(line) <= _SHOWN else f"{line[:_SHOWN]}… ({hashlib.sha256(value.encode()).hexdigest()[:6]})"
