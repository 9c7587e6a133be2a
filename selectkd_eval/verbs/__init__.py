"""Every verb, every option: the one place where an argument, its default and its help stand.

A frozen dataclass per verb. The command line turns its fields into flags, the record's header stores them, and
`--like RECORD` reads them back. The field's docstring is the flag's help. Standard library only: `--help` must
not wait for torch.

A `runtime` field says where or how fast, never what: it does not enter the hash that names the record, so the
same command on another device, or with other threads, continues the same record.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from selectkd_eval.verbs.exchange import ExportOptions, ImportOptions, PackOptions
from selectkd_eval.verbs.judging import AnswerOptions, WinrateOptions
from selectkd_eval.verbs.measuring import (
    DemoOptions,
    LandscapeOptions,
    PasskOptions,
    RegradeOptions,
    SpeedupOptions,
    TarOptions,
)
from selectkd_eval.verbs.reading import (
    AuditOptions,
    FigureOptions,
    ListOptions,
    ReportOptions,
    ShowOptions,
    TableOptions,
)
from selectkd_eval.verbs.run import RECORDS, ModelRun, Run, all_options, command, jsonable, result_options, runtime
from selectkd_eval.verbs.training import Normaliser, TrainOptions, VerifierName

__all__ = [
    "RECORDS", "VERBS", "AnswerOptions", "AuditOptions", "DemoOptions", "ExportOptions", "FigureOptions",
    "ImportOptions", "LandscapeOptions", "ListOptions", "ModelRun", "Normaliser", "PackOptions", "PasskOptions",
    "RegradeOptions", "ReportOptions", "Run", "ShowOptions", "SpeedupOptions", "TableOptions", "TarOptions",
    "TrainOptions", "Verb", "VerifierName", "WinrateOptions", "all_options", "command", "jsonable", "result_options",
    "runtime",
]  # fmt: skip


class Verb(NamedTuple):
    """One word of the command line. `function` is looked up by name after parsing, so nothing heavy loads before."""

    options: type[Any]
    function: str
    help: str
    positional: bool = False


VERBS: dict[str, Verb] = {
    "demo": Verb(DemoOptions, "selectkd_eval.demo.job:run", "the whole job on the embedded pair, CPU, no network"),
    "train": Verb(TrainOptions, "selectkd_eval.train:run", "distil a student, with or without selection"),
    "answer": Verb(AnswerOptions, "selectkd_eval.answer:run", "write a model's answers to a prompt set"),
    "winrate": Verb(WinrateOptions, "judges.winrate:run", "judge a candidate's answers against a baseline's"),
    "passk": Verb(PasskOptions, "selectkd_eval.passk:run", "pass@1 through lm-eval"),
    "regrade": Verb(RegradeOptions, "selectkd_eval.regrade:run", "stored answers graded again, without a model", True),
    "speedup": Verb(SpeedupOptions, "selectkd_eval.speedup:run", "speculative decoding: ratio and acceptance"),
    "tar": Verb(TarOptions, "selectkd_eval.tar:run", "Token Acceptance Rate of students and checkpoints"),
    "landscape": Verb(LandscapeOptions, "selectkd_eval.landscape:run", "filter-normalised loss landscape"),
    "table": Verb(TableOptions, "analysis.tables:run", "a paper-style table from records", True),
    "figure": Verb(FigureOptions, "analysis.figures:run", "a figure from records", True),
    "report": Verb(ReportOptions, "analysis.report:run", "one self-contained HTML page from records"),
    "audit": Verb(AuditOptions, "analysis.audit:run", "is a results table possible as it is printed?", True),
    "import": Verb(
        ImportOptions,
        "selectkd_eval.exchange.importing:run",
        "other tools' results as records",
        True,
    ),
    "export": Verb(ExportOptions, "analysis.export:run", "records for trackers and other tools", True),
    "pack": Verb(PackOptions, "analysis.pack:run", "all rows as Parquet"),
    "show": Verb(ShowOptions, "analysis.show:run", "what one record holds", True),
    "list": Verb(ListOptions, "selectkd_eval.listing:run", "recipes, protocols, prompt sets, records", True),
}
