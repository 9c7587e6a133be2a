"""Which prompt sets go by a name, and where do their files come from?

The paper judges answers to AlpacaEval, Evol-Instruct and UltraFeedback prompts (SelecTKD, Table 1), against the
answers that DistiLLM-2's evaluation ships with them: those of text-davinci-003 and of gpt-3.5-turbo. Speculative
decoding (Table 5) is mostly measured on Spec-Bench's questions, which come without answers. The files are not in this
package: their licences do not allow it, or are those of the many data sets that they were taken from. One row of facts
each says where they lie and by which digest they are known. `prompts` reads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from selectkd_eval import environment
from selectkd_eval.errors import InputError
from selectkd_eval.tasks.files import ENDINGS, find_file


class HubFile(NamedTuple):
    """A file of a data set on the Hugging Face hub."""

    repository: str
    file: str


class Origin(NamedTuple):
    """Who publishes a set's file: a repository, and its directory of prompt sets."""

    repository: str
    root: str


DISTILLM2 = Origin("github.com/jongwooko/distillm-2", "eval")
SPEC_BENCH = Origin("github.com/hemingkx/Spec-Bench", "data")


@dataclass(frozen=True)
class NamedSet:
    """A set by name. `prompts` counts its entries, and `references` wrote the answers in it ("": it has none).

    `stem` is the accepted file name without its ending, and `folder` its directory in the `origin`'s root. `sha256` is
    the uncompressed file's digest there, `content` that of its prompts and answers alone, whatever the file's packing.
    """

    about: str
    prompts: int
    references: str
    stem: str
    folder: str
    sha256: str
    content: str
    hub: HubFile | None = None
    origin: Origin = DISTILLM2
    ending: str = ".json"

    @property
    def published(self) -> str:
        """The file's path in its origin."""
        return f"{self.origin.root}/{self.folder}/{self.stem}{self.ending}"

    @property
    def answers(self) -> str:
        """Whose answers are in it, in words."""
        return f"references by {self.references}" if self.references else "no references"


PROMPT_SETS: dict[str, NamedSet] = {
    "alpaca-eval": NamedSet(
        about="AlpacaEval (Li et al. 2023): five data sets of instructions, which are its strata",
        prompts=805,
        references="text-davinci-003",
        stem="alpaca_eval",
        folder="alpacaeval",
        sha256="15595b68d7f29fce0c64b8694236fb3de1e03ec3df20bb177a705980760771f4",
        content="a933cc5c0a3731110ca2db5018cbc4134168eb2eb6e392480cc86ab3677bc681",
        hub=HubFile("tatsu-lab/alpaca_eval", "alpaca_eval.json"),
    ),
    "evol-instruct": NamedSet(
        about="WizardLM's Evol-Instruct test set (Xu et al. 2023); one question stands in it twice",
        prompts=218,
        references="gpt-3.5-turbo",
        stem="evol_inst_eval",
        folder="evol-instruct",
        sha256="c721d66df27a6246e31939c6fcb3d96a12bd2c374ac4464750292edea56e3300",
        content="59753b7801ccbeecae2c3a0590ef981d6c4432b2d30a4c6b63275c27e8925fe4",
    ),
    "ultrafeedback": NamedSet(
        about="prompts of UltraFeedback (Cui et al. 2023) that DistiLLM-2 holds out",
        prompts=2000,
        references="gpt-3.5-turbo",
        stem="ultrafeedback_eval",
        folder="ultrafeedback",
        sha256="da641333e5dcbbb5e3d4c3d75593e09f5a8329f80e1296c812feea1d0550d0e0",
        content="908738433642781174a368b71d68914135bc5740fc69e2abfe02615b304e41d1",
    ),
    "spec-bench": NamedSet(
        about="Spec-Bench (Xia et al. 2024): MT-bench in two turns and five other tasks, 80 questions each",
        prompts=480,
        references="",
        stem="question",
        folder="spec_bench",
        sha256="4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04",
        content="50971206e7597777911e9d18137afc109d779fca6b526ee21883f6c16d5348af",
        origin=SPEC_BENCH,
        ending=".jsonl",
    ),
}


def locate(name: str, directory: Path | None) -> Path:
    """The file of a named set: in `directory`, which may be the origin's own root, or from the hub.

    An InputError says which file was looked for, and where it is to be had.
    """
    row = PROMPT_SETS[name]
    if directory is None:
        return _from_hub(name, row)
    if not directory.is_dir():
        raise InputError(f"--prompt-dir {directory} is not a directory: give the one with {row.stem}{row.ending}")
    for folder in (directory, directory / row.folder):
        if path := find_file(folder, (row.stem,)):
            return path
    raise InputError(
        f"{name} needs {row.stem} with one of the endings {', '.join(ENDINGS)} in {directory}, and none is there: "
        f"{_advice(row)}"
    )


def notes(name: str, file_sha256: str, content_sha256: str, entries: int) -> Iterator[str]:
    """What a reader must know when the file is not the published one: it is accepted, and its digest is recorded."""
    row = PROMPT_SETS[name]
    if entries != row.prompts:
        yield f"note: the file of {name} has {entries:,} entries where the published one has {row.prompts:,}"
    elif file_sha256 != row.sha256 and content_sha256 != row.content:
        yield (
            f"note: the file of {name} is not the published one (sha256 {file_sha256[:12]}, published "
            f"{row.sha256[:12]}), so what is measured on it compares with nobody else's"
        )


def digest(uncompressed: bytes) -> str:
    """sha256 of a file's bytes before any compression."""
    return hashlib.sha256(uncompressed).hexdigest()


def facts_line(name: str) -> str:
    """A set in one line: its size, its references, and what it takes to use it."""
    row = PROMPT_SETS[name]
    where = f"from the hub's {row.hub.repository}, or " if row.hub else ""
    return f"{row.prompts:,} prompts, {row.answers}; {where}--prompt-dir with {row.stem}{row.ending}"


def explanation(name: str) -> str:
    """What `list prompts --explain` says."""
    row = PROMPT_SETS[name]
    hub = (
        f"{row.hub.file} of {row.hub.repository}"
        if row.hub
        else f"no known copy with {'these references' if row.references else 'these questions'}"
    )
    return "\n".join(
        [
            row.about,
            facts_line(name),
            f"with --prompt-dir DIR: {row.stem} with one of the endings {', '.join(ENDINGS)}",
            f"on the Hugging Face hub: {hub}",
            f"published in {row.origin.repository}, {row.published}",
            f"sha256 of that file: {row.sha256}",
        ]
    )


def _advice(row: NamedSet) -> str:
    return f"take {row.published} from {row.origin.repository} and give --prompt-dir the directory that holds it"


def _from_hub(name: str, row: NamedSet) -> Path:
    if row.hub is None:
        raise InputError(f"{name} with {row.answers} is on no hub that we know: {_advice(row)}")
    environment.expect_hub()
    hub = environment.require("huggingface_hub", f"the prompt set {name} from the hub", "train")
    try:
        return Path(hub.hf_hub_download(row.hub.repository, row.hub.file, repo_type="dataset"))
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().split("\n", 1)[0][:160]
        raise InputError(
            f"{name} could not be fetched from the hub's {row.hub.repository} ({type(error).__name__}: {first}): "
            f"{_advice(row)}"
        ) from None
