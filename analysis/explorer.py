"""What did every model say to one prompt, and what became of it? The data of the page's item explorer.

An item is a problem of a task or a prompt of a set. To it belong the graded answers of `passk` and `regrade`, the
written ones of `answer` and the verdicts of `winrate`, all taken from the records as they stand; nothing is judged or
averaged here. Outcomes of all items are kept; texts are cut evenly where a page would grow too large, and the page
says so. The browser's half is templates/explorer.js.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from analysis.load import Card, Library
from analysis.provenance import ids
from selectkd_eval.records import Record

TEXT = 4_000  # characters of one text; an answer may have a megabyte
_GRADED = ("passk", "regrade")
_VERDICTS = ("candidate", "baseline", "tie")
# What a grader says beside the outcome, in the order in which it is shown.
_DETAILS = ("extracted", "gold", "detail", "output", "finish", "mode", "error")
_WORST = 40  # no deflate stream is smaller than its text by more than this, hence no text worth a try is longer


class Explorer(NamedTuple):
    """The packed items, and how much of the records they are."""

    data: str
    items: int
    of_items: int
    texts: int
    rows: int

    @property
    def cut(self) -> bool:
        """Whether texts of some items had to go."""
        return self.texts < self.items


@dataclass
class _Item:
    task: str
    id: str
    prompt: str = ""
    answers: list[dict[str, Any]] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rows(self) -> int:
        return len(self.answers) + len(self.verdicts)


class _Names:
    """Words by number, numbered as they come."""

    def __init__(self) -> None:
        self.known: dict[Any, int] = {}

    def __call__(self, word: Any) -> int:
        return self.known.setdefault(word, len(self.known))


def explorer(library: Library, rows: int, budget: int) -> Explorer | None:
    """The items of the records in at most `budget` bytes of base64 text and with at most `rows` answers and verdicts;
    None when there are none, or no room for their outcomes alone.
    """
    models = _models(library)
    everything = [item for item in _items(library, models).values() if item.rows]
    kept = _within(everything, rows)
    texts = len(kept)
    content = Packer(library, models, kept)
    # The first guess supposes that text is squeezed by no more than is ever seen; every further one goes by the last.
    while texts > 1 and content.length(texts) > _WORST * budget:
        texts //= 2
    while kept:
        data = base64.b64encode(zlib.compress(content.json(texts), 9)).decode()
        if len(data) <= budget:
            return Explorer(data, len(kept), len(everything), texts, sum(item.rows for item in kept))
        if texts == 0:
            break
        texts = min(texts - 1, int(texts * 0.97 * budget / len(data)))
    return None


def unpack(data: str) -> dict[str, Any]:
    """The content that the browser sees."""
    return dict(json.loads(zlib.decompress(base64.b64decode(data))))


def _models(library: Library) -> dict[tuple[str, Any], tuple[str, str]]:
    """Every model that answered, by label and seed in the order of the tables: what a reader calls it, and its
    method.
    """
    order: dict[tuple[str, Any], tuple[Any, ...]] = {}
    for record in library.records:
        for name in ("model", "candidate", "baseline"):
            card = record.facts.get(name)
            if record.verb in (*_GRADED, "answer", "winrate") and isinstance(card, Mapping):
                method = library.method(card)
                order[_model(library, card)] = (*method.order, str(card.get("seed")))
    return {
        (label, seed): (label if seed is None else f"{label}, seed {seed}", label)
        for label, seed in sorted(order, key=lambda key: order[key])
    }


def _model(library: Library, card: Card) -> tuple[str, Any]:
    return library.label(library.method(card)), card.get("seed")


def _items(library: Library, models: Mapping[tuple[str, Any], Any]) -> dict[tuple[str, str], _Item]:
    """Every item of the library by task and name, in order; answers that nobody graded, judged or gave a second time
    are training text and left out, unless there is nothing else.
    """
    place = {key: index for index, key in enumerate(models)}
    found: dict[tuple[str, str], _Item] = {}
    for record in library.records:
        rows = {"answer": _answers, "winrate": _verdicts}.get(record.verb, _graded if record.verb in _GRADED else None)
        card = record.facts.get("candidate" if record.verb == "winrate" else "model")
        if rows is None or not isinstance(card, Mapping):
            continue
        model = place[_model(library, card)]
        for task, name, prompt, kind, row in rows(record):
            item = found.setdefault((task, name), _Item(task, name))
            item.prompt = item.prompt or prompt
            getattr(item, kind).append({"model": model, "record": record.path.name, **row})
    for item in found.values():
        item.answers.sort(key=lambda row: (row["model"], str(row["seed"]), str(row["sample"])))
        item.verdicts.sort(key=lambda row: (row["model"], str(row["seed"]), str(row["sample"]), row["order"]))
    told = {item.task for item in found.values() if item.verdicts or any(a["right"] is not None for a in item.answers)}
    told |= {item.task for item in found.values() if len({answer["model"] for answer in item.answers}) > 1}
    return {key: item for key, item in sorted(found.items()) if item.task in told or not told}


_Row = tuple[str, str, str, str, dict[str, Any]]


def _graded(record: Record) -> Iterator[_Row]:
    for row in record.rows:
        text = str(row.get("completion") or "")
        details = {name: str(row[name]) for name in _DETAILS if row.get(name) not in (None, "")}
        if details.get("extracted", "") in text:  # a program stands in the answer that it was taken from
            program = details.pop("extracted", "")
            details |= {"extracted": program} if len(program) <= 80 and program else {}
        if isinstance(other := row.get("other"), Mapping):
            details["other"] = f"{other.get('mode')}: {other.get('outcome')}"
        right = None if row.get("correct") is None else int(row["correct"])
        word = "failed" if "error" in row else row.get("outcome") or ("right" if right else "wrong")
        told = {"seed": row.get("seed"), "sample": row.get("sample"), "word": str(word), "right": right}
        yield (
            str(row.get("task", "")),
            str(row.get("problem", row["key"])),
            str(row.get("question") or ""),
            "answers",
            {**told, "text": text, "details": details},
        )


def _answers(record: Record) -> Iterator[_Row]:
    task = str((record.facts.get("prompts") or {}).get("name") or "")
    for row in record.rows:
        failed = {"error": str(row["error"])} if "error" in row else {}
        told = {"seed": row.get("seed"), "sample": row.get("sample"), "word": "failed" if failed else "", "right": None}
        yield (
            task,
            str(row.get("prompt", row["key"])),
            str(row.get("text") or ""),
            "answers",
            {**told, "text": str(row.get("answer") or ""), "details": failed},
        )


def _verdicts(record: Record) -> Iterator[_Row]:
    task = str((record.facts.get("prompts") or {}).get("name") or "")
    for row in record.rows:
        verdict = str(row.get("verdict") or "")
        reply = str(row.get("raw") or row.get("error") or "")
        told = {"seed": row.get("seed"), "sample": row.get("sample"), "order": str(row.get("order") or "")}
        told |= {"word": verdict if verdict in _VERDICTS else "none", "reason": str(row.get("reason") or "")}
        yield task, str(row.get("prompt", row["key"])), "", "verdicts", {**told, "text": reply}


def _within(items: list[_Item], rows: int) -> list[_Item]:
    """As many items as have `rows` rows together, taken evenly."""
    total = sum(item.rows for item in items)
    count = len(items)
    while count and total > rows:
        count = min(count - 1, count * rows // total)
        chosen = [item for place, item in enumerate(items) if _chosen(place, count, len(items))]
        total = sum(item.rows for item in chosen)
    return [item for place, item in enumerate(items) if _chosen(place, count, len(items))]


def _chosen(place: int, count: int, of: int) -> bool:
    """Whether the item at this place is one of `count` taken evenly out of `of`."""
    return (place + 1) * count // of > place * count // of


class Packer:
    """Items as columns: what is alike stands together, and deflate finds it."""

    def __init__(self, library: Library, models: Mapping[tuple[str, Any], tuple[str, str]], items: list[_Item]) -> None:
        self.library = library
        self.models = models
        self.items = items

    def length(self, texts: int) -> int:
        """Characters of the texts of `texts` items."""
        count = len(self.items)
        return sum(
            min(TEXT, len(row["text"]))
            for place, item in enumerate(self.items)
            if _chosen(place, texts, count)
            for row in (*item.answers, *item.verdicts)
        )

    def json(self, texts: int) -> bytes:
        """The content with the texts of `texts` items, as bytes of JSON."""
        tasks, words, records = _Names(), _Names(), _Names()
        shown = [_chosen(place, texts, len(self.items)) for place in range(len(self.items))]
        items = {
            "task": [tasks(item.task) for item in self.items],
            "id": [item.id for item in self.items],
            "prompt": [_short(item.prompt, has) for item, has in zip(self.items, shown, strict=True)],
            "whole": [int(has) for has in shown],
        }
        columns: dict[str, dict[str, Any]] = {}
        for kind in ("answers", "verdicts"):
            rows = [(row, has) for item, has in zip(self.items, shown, strict=True) for row in getattr(item, kind)]
            columns[kind] = {
                "count": [len(getattr(item, kind)) for item in self.items],
                "model": [row["model"] for row, _ in rows],
                "record": [records(row["record"]) for row, _ in rows],
                "seed": _same([row["seed"] for row, _ in rows]),
                "sample": _same([row["sample"] for row, _ in rows]),
                "word": [words(row["word"]) for row, _ in rows],
                "text": [_short(row["text"], has) for row, has in rows],
                "cut": {i: len(row["text"]) for i, (row, has) in enumerate(rows) if has and len(row["text"]) > TEXT},
            }
            if kind == "answers":
                columns[kind]["right"] = [-1 if row["right"] is None else row["right"] for row, _ in rows]
                for name in (*_DETAILS, "other"):
                    values = [_short(row["details"].get(name, ""), has) for row, has in rows]
                    if any(values):
                        columns[kind][name] = _same(values)
            else:
                columns[kind]["order"] = [words(row["order"]) for row, _ in rows]
                columns[kind]["reason"] = [words(row["reason"]) for row, _ in rows]
        content = {
            "tasks": list(tasks.known),
            "models": list(self.models.values()),
            "words": list(words.known),
            "records": [self._told(name) for name in records.known],
            "items": items,
            **columns,
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")

    def _told(self, name: str) -> list[str]:
        """A record's name, who judged or whom the candidate was set against, and its id on the page."""
        record = next(record for record in self.library.records if record.path.name == name)
        judge = str((record.facts.get("judge") or {}).get("name") or "")
        baseline = record.facts.get("baseline")
        other = self.library.label(self.library.method(baseline)) if isinstance(baseline, Mapping) else ""
        return [name, judge, other, ids(self.library)[name]]


def _short(text: str, shown: bool) -> str:
    return text[:TEXT] if shown else ""


def _same(values: Sequence[Any]) -> Any:
    """A column of one value as that value."""
    return values[0] if values and all(value == values[0] for value in values) else list(values)
