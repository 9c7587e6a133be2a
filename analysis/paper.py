"""What did the paper print? Its tables as data, to stand beside ours.

The files are those under reports/paper: a checkout has them there, an installed package carries them with it. Only
names decide what is the same: a target, a draft model and a method that are called alike once what merely describes a
release (its size of context, "instruct", the owner on a hub) is taken off. Nothing is computed from the numbers.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from selectkd_eval.errors import InputError

Row = Mapping[str, str]

TITLE = "Published"
GROUP, LABELS = "Published", ("speed-up", "Acpt.")
NOTE = (
    "Published: Table 5 of arXiv 2510.24021, measured on other hardware and, in blocks of its own, with other models; "
    "it states neither draft length nor prompts, nor which acceptance its Acpt. is. Its rows stand beside ours where "
    "target, draft model and method have the same names."
)
_PLACES = (Path(__file__).parent / "published", Path(__file__).parents[1] / "reports" / "paper")
_RELEASE = re.compile(r"^(instruct|chat|it|hf|base|\d+k)$")
_COLUMNS = {5: ("target", "draft", "method", "speedup", "acceptance")}


def published(number: int, places: tuple[Path, ...] = _PLACES) -> list[Row]:
    """The rows of one of the paper's tables, as text with the digits that it printed.

    Raises InputError for a table that is not set beside ours, and where its file is missing or has other columns.
    """
    if number not in _COLUMNS:
        raise InputError(f"--paper sets the published numbers beside table 5 alone, not table {number}: leave it out")
    paths = [place / f"table{number}.csv" for place in places]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise InputError(
            f"the published numbers are in none of {', '.join(map(str, paths))}: install the package again, or leave "
            "--paper out"
        )
    with path.open(encoding="utf-8", newline="") as file:
        rows: list[Row] = list(csv.DictReader(file))
    if not rows or tuple(rows[0]) != _COLUMNS[number]:
        raise InputError(
            f"{path} has the columns {', '.join(rows[0]) if rows else '(none)'} where the published table has "
            f"{', '.join(_COLUMNS[number])}: put the file of this version back"
        )
    return rows


def model_name(text: str) -> str:
    """A model's name without its owner and what describes a release: microsoft/Phi-3-medium-4k-instruct is
    phi-3-medium.
    """
    parts = text.rstrip("/").rpartition("/")[2].lower().split("-")
    return "-".join(part for part in parts if not _RELEASE.match(part))


def method_name(text: str) -> str:
    """A method's name by its letters and digits: DistiLLM-2 is DistiLLM2, KD + Spec-k is not KD."""
    return re.sub("[^a-z0-9+]", "", text.lower())


class Printed:
    """Published rows that are looked for by our names; it remembers which were never found."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = list(rows)
        self._found: list[Row] = []

    def of(self, target: str, drafts: Iterable[str], method: str) -> Row | None:
        """The row of this target and method whose draft model has one of these names."""
        wanted = {(model_name(target), model_name(draft), method_name(method)) for draft in drafts}
        for row in self.rows:
            if (model_name(row["target"]), model_name(row["draft"]), method_name(row["method"])) in wanted:
                self._found.append(row)
                return row
        return None

    def left(self) -> dict[tuple[str, str], list[Row]]:
        """The rows that nobody asked for, by target and draft."""
        rest: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in self.rows:
            if row not in self._found:
                rest[row["target"], row["draft"]].append(row)
        return dict(rest)
