"""What did the paper print? Its tables as data, to stand beside ours.

The files are those under reports/paper: a checkout has them there, an installed package carries them with it. Only
names decide what is the same: models and methods that are called alike once what merely describes a release (its size
of context, "instruct", the owner on a hub) is taken off. Nothing is computed from the numbers. `beside` decides what
else must be the same before two numbers stand beside each other.
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
_RELEASE = re.compile(r"^(instruct|inst|chat|it|hf|base|\d+k)$")
VISION = ("mmbench_v11", "mmstar", "mmmu_val", "mathvista", "ocrbench", "ai2d", "hallusionbench", "mmvet")
_WIN_SETS = ("alpacaeval", "evol_instruct", "ultrafeedback")
_GATES = ("method", "verifier", "k", "beta", "avg_win_rate")
_COLUMNS = {
    1: ("pair", "method", "base_method", *_WIN_SETS, "avg", *(f"delta_{name}" for name in (*_WIN_SETS, "avg"))),
    2: ("pair", "method", "base_method", "task", "pass_at_1"),
    3: ("model", *VISION, "average"),
    4: _GATES,
    5: ("target", "draft", "method", "speedup", "acceptance"),
    6: _GATES,
}
# What the paper's short names stand for on the hub, where taking the release off is not enough. Section 5.1 names the
# models; of Mistral's versions it names none, and the one here is that of the scripts released with DistiLLM-2.
_ALIASES = {
    "mistral-7b-v0.2": "mistral-7b",
    "h2o-danube2-1.8b": "danube2-1.8b",
    "deepseek-coder-6.7b": "ds-coder-6.9b",
    "ds-coder-6.7b": "ds-coder-6.9b",
    "deepseek-coder-1.3b": "ds-coder-1.3b",
}


def published(number: int, places: tuple[Path, ...] = _PLACES) -> list[Row]:
    """The rows of one of the paper's tables, as text with the digits that it printed.

    Raises InputError where there is no such table, and where its file is missing or has other columns.
    """
    if number not in _COLUMNS:
        raise InputError(f"there is no table {number} in the paper: ask for 1 to {max(_COLUMNS)}")
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
    name = "-".join(part for part in parts if not _RELEASE.match(part))
    return _ALIASES.get(name, name)


def pair_names(text: str) -> tuple[str, str]:
    """Teacher and student of a printed pair: "Qwen2-Math-7B-Inst -> 1.5B" is qwen2-math-7b and qwen2-math-1.5b."""
    teacher, student = (model_name(part.strip()) for part in text.split("->"))
    # Table 2 prints a student by its size alone: it is the teacher's family in that size.
    return teacher, student if "-" in student else f"{teacher.rpartition('-')[0]}-{student}"


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
