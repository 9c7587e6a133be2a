"""Which measurements are there, and which of them belong to one method?

Reads every finished record below a directory and groups the models in them: one `Method` is one set-up
(recipe, verifier, k, beta ...) with all its training seeds, whatever its students' directories are called.
Unfinished records are named and left out. It computes no number: that is `selectkd_eval.measures`.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, Literal

from analysis import copies, pass_columns
from analysis.pass_columns import Column
from selectkd_eval import records, win_rates
from selectkd_eval.errors import InputError
from selectkd_eval.measures import Terms
from selectkd_eval.records import Record, canonical

Card = Mapping[str, Any]
Role = Literal["teacher", "start", "student", "model"]

# What makes two students of one label different set-ups. Seeds, names and places do not.
_SETTINGS = (
    "recipe",
    "variant",
    "policy",
    "divergence",
    "parameters",  # of the divergences, each a setting of its own
    "constants",  # of the recipe, likewise
    "verifier",
    "k",
    "beta",
    "spec_mode",
    "normaliser",
    "temperature",
    "teacher",
    "teacher_noise",
    "start",
    "data",
    "steps",
    "step",  # a checkpoint on the way; the final student has none
    "lr",
    "batch",  # sequences per update
    "schedule",
    "warmup",
    "lora_rank",
    "max_length",
)
_BASES = (
    *("SFT", "SFT-control", "KD", "SeqKD", "ImitKD", "GKD", "DistillSpec", "DistiLLM", "SKD", "DistiLLM-2"),
    *("AdaKD", "AdaSPEC", "ATKD", "TAID", "AKL"),
)
_VERIFIERS = ("none", "hellinger", "top-k", "spec-k")
_ROLES = ("teacher", "start", "model", "student")
_MEASURED = {"passk": ("model",), "regrade": ("model",), "winrate": ("candidate", "baseline"), "speedup": ("drafts",)}
LIKELIHOOD_NOTE = "a likelihood under a local model, not a human or LLM preference; it rewards bland text"


@dataclass(frozen=True)
class Method:
    """One row of a table: a set-up with all its training seeds, or an untrained model."""

    label: str
    base: str = ""
    role: Role = "student"
    setting: tuple[tuple[str, Any], ...] = ()
    variant: str = ""

    def get(self, name: str) -> Any:
        """One training fact, None when it is not known or does not apply."""
        return dict(self.setting).get(name)

    @property
    def family(self) -> str:
        """The method without its gate."""
        return self.base or self.label

    @property
    def held_out(self) -> tuple[Any, ...]:
        """What its validation loss is, its divergence first: two losses are on one scale only where all of it is the
        same.
        """
        parameters = [part for part in self.setting if part[0] not in _SETTINGS and not part[0].startswith("constant ")]
        # Without a gate and a selection, the mean over selected tokens is that over all tokens.
        normaliser = self.get("normaliser")
        normaliser = "valid_tokens" if normaliser in ("selected_tokens", "class_mean") else normaliser
        return (self.get("divergence"), tuple(parameters), self.get("temperature"), normaliser)

    @property
    def order(self) -> tuple[Any, ...]:
        """Teacher, untrained student, then every base followed by the gates on top of it."""
        family = self.family
        plain = family.partition(" (")[0]  # a variant stands behind the method that it varies
        rank = _BASES.index(plain) if plain in _BASES else len(_BASES)
        verifier = self.get("verifier") or "none"
        gate = _VERIFIERS.index(verifier) if verifier in _VERIFIERS else len(_VERIFIERS)
        return (
            _ROLES.index(self.role),
            rank,
            family,
            bool(self.base),
            gate,
            self.label,
            str(self.setting),
            self.variant,
        )


@dataclass(frozen=True)
class Measurement:
    """One model's number: its terms, and the record they come from."""

    column: Column
    method: Method
    seed: int | None
    terms: Terms
    record: Record


class Library:
    """The finished records of one directory, by verb, with their models grouped into methods."""

    def __init__(self, finished: Sequence[Record], unfinished: Sequence[Path] = ()) -> None:
        self.records, self.copies = copies.once(sorted(finished, key=lambda record: record.path.name))
        self.unfinished = list(unfinished)

    def of(self, verb: str) -> list[Record]:
        """The records of one verb, by file name."""
        return [record for record in self.records if record.verb == verb]

    def method(self, card: Card) -> Method:
        """The method a model belongs to."""
        label, setting = self._identity(card)
        variant = self._variant(card) if (label, setting) in self._ambiguous else ""
        training = card.get("training") or {}
        gated = training.get("verifier") not in (None, "none")
        base = str(card.get("base_method") or training.get("base_method") or "") if gated else ""
        return Method(label, base if base != label else "", self._role(card), setting, variant)

    def trained(self, record: Record) -> Method:
        """The method that a train record trains."""
        facts = record.facts
        training = {**(facts.get("training") or {}), "record": record.path.name}
        name = str(facts.get("save") or record.path.name)
        return self.method({**facts, "name": name, "seed": record.options.get("seed"), "training": training})

    def run_of(self, card: Card) -> Method:
        """The method of the run that a checkpoint was kept of, whatever its step."""
        training = {name: value for name, value in (card.get("training") or {}).items() if name != "step"}
        return self.method({**card, "training": training})

    def label(self, method: Method, among: Iterable[Method] | None = None) -> str:
        """The method's name in a table, with whatever tells it apart from others of the same name (in that block)."""
        others = self.methods if among is None else among
        twins = [other for other in others if other.label == method.label and other.role == method.role]
        names = dict.fromkeys(name for twin in twins for name, _ in twin.setting)
        differing = [name for name in names if len({str(twin.get(name)) for twin in twins}) > 1]
        words = [f"{name}={str(method.get(name))[:12]}" for name in differing if method.get(name) not in (None, "")]
        words += [method.variant] if method.variant and (among is None or len(twins) > 1) else []
        return f"{method.label} ({', '.join(words)})" if words else method.label

    @cached_property
    def methods(self) -> list[Method]:
        """Every method whose numbers a table or a figure could hold."""
        found = {self.method(card) for card in self.cards()}
        found |= {self.trained(record) for record in self.of("train")}
        found |= {self.run_of(card) for record in self.of("tar") for card in record.facts["students"]}
        found |= {self.method(card) for record in self.of("landscape") for card in record.facts["students"]}
        return sorted(found, key=lambda method: method.order)

    def base_of(self, method: Method, among: Iterable[Method]) -> Method | None:
        """The set-up without the gate that differs least: of the same start, and of the same teacher or none (SFT)."""
        start, teachers = method.get("start"), (method.get("teacher"), None)
        candidates = [other for other in among if other.label == method.base and other != method]
        candidates = [other for other in candidates if other.get("start") == start and other.get("teacher") in teachers]
        apart = {other: len(set(other.setting) ^ set(method.setting)) for other in candidates}
        return min(candidates, key=lambda other: (apart[other], other.order), default=None)

    def measurements(self) -> list[Measurement]:
        """pass@1 and win rates of every model, in the order of the record names."""
        return list(self._measured)

    @cached_property
    def _measured(self) -> list[Measurement]:
        return [*self._passk(), *self._winrates()]  # asked for by every table and figure

    def _passk(self) -> Iterator[Measurement]:
        for one in self._scored[0]:
            yield self._measurement(one.column, one.record.facts["model"], one.terms, one.record)

    @property
    def pass_notes(self) -> list[str]:
        """Which regraded numbers took whose place."""
        return [*self.copies.values(), *self._scored[1]]

    @cached_property
    def _scored(self) -> tuple[list[pass_columns.Scored], list[str]]:
        return pass_columns.scored(self.records)

    @property
    def win_notes(self) -> list[str]:
        """Which win rates are part of another one, and in no number of their own."""
        return [*self.copies.values(), *self._judged[1]]

    def _winrates(self) -> Iterator[Measurement]:
        for column, record in self._judged[0]:
            yield self._measurement(column, record.facts.get("candidate") or {}, win_rates.win_rate(record), record)

    @cached_property
    def _judged(self) -> tuple[list[tuple[Column, Record]], list[str]]:
        """Win-rate records by column, without those that a record of the same answers holds whole: a first try with
        --limit would count twice.
        """
        whole: list[tuple[Column, Record]] = []
        notes: list[str] = []
        held: dict[tuple[Column, str], list[tuple[Record, set[str]]]] = defaultdict(list)
        for column, record in sorted(self._win_columns(), key=lambda found: -len(found[1].rows)):
            keys = {row["key"] for row in record.rows}
            same = held[column, canonical(record.header.get("inputs"))]
            if larger := next((other for other, known in same if keys <= known), None):
                notes.append(f"{record.path.name} is left out: all its verdicts are in {larger.path.name} too.")
                continue
            same.append((record, keys))
            whole.append((column, record))
        return sorted(whole, key=lambda found: found[1].path.name), notes

    def _win_columns(self) -> Iterator[tuple[Column, Record]]:
        for record in self.of("winrate"):
            facts = record.facts
            prompts, judge, protocol = (facts.get(name) or {} for name in ("prompts", "judge", "protocol"))
            baseline = self.label(self.method(facts.get("baseline") or {}))
            key = {
                "prompts": prompts.get("name", ""),
                "sha256": prompts.get("sha256"),
                "baseline": baseline,
                "judge": judge.get("name", record.options.get("judge", "")),
                # A served judge says the same live and by batch.
                "judge_kind": {"batch": "server"}.get(str(judge.get("kind")), judge.get("kind", "")),
                "judge_weights": _judge_digest(judge),
                "server": judge.get("base_url") or record.options.get("base_url"),
                "tie_band": judge.get("tie_band"),
                "decoding": canonical(facts.get("generation")),
                "protocol": protocol.get("name", ""),
                "protocol_sha256": protocol.get("sha256"),
                "ties": win_rates.tie_rule(record),
            }
            label = f"{key['prompts'] or 'prompts'} vs {baseline}"
            yield Column("winrate", label, tuple(key.items())), record

    def _measurement(self, column: Column, card: Card, terms: Terms, record: Record) -> Measurement:
        return Measurement(column, self.method(card), card.get("seed"), terms, record)

    def cards(self) -> Iterator[Card]:
        for record in self.records:
            for name in _MEASURED.get(record.verb, ()):
                found = record.facts.get(name) or {}
                yield from found if isinstance(found, list) else [found]

    @cached_property
    def _ambiguous(self) -> set[tuple[str, tuple[tuple[str, Any], ...]]]:
        """Set-ups under which two different students of one seed were measured: they must not be pooled."""
        weights: dict[Any, set[Any]] = defaultdict(set)
        for card in self.cards():
            weights[(self._identity(card), card.get("seed"))].add(card.get("fingerprint"))
        return {identity for (identity, _), found in weights.items() if len(found) > 1}

    def _variant(self, card: Card) -> str:
        """The student's directory, with a digest where two students share that name too."""
        name, source = _folder(card), _source(card)
        return name if len(self._namesakes[name]) < 2 else f"{name} {source[:8]}"

    @cached_property
    def _namesakes(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = defaultdict(set)
        for card in self.cards():
            found[_folder(card)].add(_source(card))
        return found

    def _identity(self, card: Card) -> tuple[str, tuple[tuple[str, Any], ...]]:
        training = card.get("training") or {}
        role = self._role(card)
        label = str(card.get("method") or card.get("name") or "unnamed")
        if role in ("teacher", "start"):
            label = {"teacher": "Teacher", "start": "Student before"}[role]
        skipped = {
            "none": {"k", "beta", "spec_mode"},
            "hellinger": {"k", "beta", "spec_mode"},
            "top-k": {"spec_mode"},
        }.get(str(training.get("verifier")), set())
        known = [name for name in _SETTINGS if name in training and name not in skipped]
        return label, tuple(part for name in known for part in _settings(name, training[name]))

    def _role(self, card: Card) -> Role:
        if card.get("training"):
            return "student"
        fingerprint = card.get("fingerprint")
        if fingerprint in self._teachers:
            return "teacher"
        return "start" if fingerprint in self._starts else "model"

    @cached_property
    def _teachers(self) -> set[Any]:
        return self._fingerprints(self.records, "teacher", "target")

    @cached_property
    def _starts(self) -> set[Any]:
        return self._fingerprints(self.of("train"), "student")

    @staticmethod
    def _fingerprints(among: Iterable[Record], *names: str) -> set[Any]:
        cards = (record.facts.get(name) for record in among for name in names)
        return {card["fingerprint"] for card in cards if isinstance(card, dict) and "fingerprint" in card}


def library(directory: Path) -> Library:
    """Read a directory of records, or one record; names unfinished ones on stderr, refuses an empty directory."""
    if directory.is_file():
        return Library([records.read(directory)])
    if not directory.is_dir():
        raise InputError(f"there is no directory {directory} of records: measure something first, or give --records")
    finished, unfinished = records.read_all(directory)
    told = [records.unfinished(path) for path in unfinished]
    if not finished:
        more = "; ".join(told) or "measure something first, or give --records"
        raise InputError(f"{directory} holds no finished record: {more}")
    found = Library(finished, unfinished)
    for line in [*(f"left out: {one}" for one in told), *found.copies.values()]:
        print(f"selectkd-eval: {line}", file=sys.stderr)
    return found


def _judge_digest(judge: Mapping[str, Any]) -> str | None:
    """What tells two judges of one name apart: a local model's weights, or how a served one is asked."""
    model = judge.get("model")
    return model.get("fingerprint") if isinstance(model, Mapping) else judge.get("sha256")


def _folder(card: Card) -> str:
    """The name of a student's directory; a checkpoint has that of its run."""
    path = PurePath(str(card.get("name", "")))
    return (path.parent if path.name.startswith("checkpoint-") else path).stem


def _source(card: Card) -> str:
    """What tells two students apart for good: the record of the training, else the weights."""
    record = PurePath(str((card.get("training") or {}).get("record") or "")).stem
    return record.rpartition("-")[2] if record else str(card.get("fingerprint") or "")


def _settings(name: str, value: Any) -> list[tuple[str, Any]]:
    """A setting, or each of those that stand together; TAID's constant alpha is not SKL's parameter alpha."""
    if not isinstance(value, dict):
        return [(name, canonical(value) if isinstance(value, list) else value)]
    return [(f"constant {key}" if name == "constants" else key, value[key]) for key in sorted(value)]
