"""What does the demo do? The whole job as a list of commands, each one that a user could type.

The label-limited set-up: one student, fine-tuned on few labelled examples, goes on in four ways for the same
number of updates. The control learns on from the labelled text; KD and both selections learn from text that the
teacher wrote, in the same batches under the same seed. Then every student is measured in every way.

Only options and names stand here; `job.py` runs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selectkd_eval.records import record_path
from selectkd_eval.verbs import (
    VERBS,
    AnswerOptions,
    DemoOptions,
    FigureOptions,
    LandscapeOptions,
    PasskOptions,
    ReportOptions,
    SpeedupOptions,
    TableOptions,
    TarOptions,
    TrainOptions,
    WinrateOptions,
    all_options,
    command,
)

LABELLED = "mini-gsm:labelled,mini-stories:labelled"
VALIDATION = "mini-gsm:validation,mini-stories:validation"
# One teacher size and one judge: no figure of teachers or of judges.
FIGURES = ("passk", "winrate", "curves", "training", "tar", "theorem", "breakdown", "landscape", "speedup")
TIMED = 12  # prompts of each family that every draft is timed on
WRITTEN = {"mini-gsm": 1200, "mini-stories": 400}  # prompts that the teacher answers: twice the labelled ones


@dataclass(frozen=True)
class Arm:
    """One way to go on from the same student."""

    slug: str
    method: str
    recipe: str
    verifier: str = "none"


ARMS = (
    Arm("sft-control", "SFT-control", "sft"),
    Arm("kd", "KD", "kd"),
    Arm("kd-top-k", "KD + Top-k", "kd", "top-k"),
    Arm("kd-spec-k", "KD + Spec-k", "kd", "spec-k"),
)


@dataclass(frozen=True)
class Job:
    """One command: a verb and its options."""

    verb: str
    options: Any
    label: str = ""

    @property
    def arguments(self) -> list[str]:
        """The words of the command line: the verb and every option that differs from its default."""
        assert VERBS[self.verb].options is type(self.options)
        return command(self.verb, type(self.options), all_options(self.options))

    @property
    def record(self) -> Path:
        """Where this command's record lies."""
        return record_path(self.verb, self.options)


@dataclass(frozen=True)
class Stage:
    """Commands that do not wait for each other. `alone`: one after the other, because they measure time."""

    title: str
    jobs: list[Job]
    alone: bool = False


class Plan:
    """The commands of one demo, in order."""

    def __init__(self, options: DemoOptions) -> None:
        self.quick = options.quick
        self.seeds = options.seeds[:1] if options.quick else options.seeds
        self.noise = 0.3 if options.noisy_teacher else 0.0
        self.root = options.out / "noisy-teacher" if options.noisy_teacher else options.out
        self.records = self.root / "records"
        self.weights = options.out / "weights" if options.from_scratch else None

    def model(self, name: str) -> str:
        """An embedded model, or the one just trained from scratch."""
        return str(self.weights / name) if self.weights else f"embedded:{name}"

    def stages(self) -> Iterator[Stage]:
        """Everything from the teacher's text to tables and figures; `report` comes after."""
        yield Stage("the teacher writes", [self.teacher_text(family) for family in ("mini-gsm", "mini-stories")])
        yield Stage("students learn", [self.train(arm, seed) for seed in self.seeds for arm in ARMS])
        # The longest command first, so that no worker waits for it at the end.
        yield Stage("measured", [self.landscape(), *self.tar(), *self.passk(), *self.answers()])
        yield Stage("judged", list(self.winrates()))
        yield Stage("timed, one at a time", list(self.speedups()), alone=True)
        yield Stage("drawn", [*self.tables(), *self.figures()])

    def teacher_text(self, family: str) -> Job:
        """The teacher's answers to prompts that have no label."""
        options = AnswerOptions(
            out=self.records,
            name=f"teacher-{family}",
            model=self.model("teacher"),
            prompts=f"{family}:train",
            temperature=0.7,
            top_p=1.0,
            max_new_tokens=96,
            batch_size=256,
            limit=64 if self.quick else WRITTEN[family],
            threads=1,
        )
        return Job("answer", options, f"teacher on {family}")

    def train(self, arm: Arm, seed: int) -> Job:
        """One student of one arm."""
        written = ",".join(str(self.teacher_text(family).record) for family in ("mini-gsm", "mini-stories"))
        options = TrainOptions(
            out=self.records,
            name=f"{arm.slug}-seed{seed}",
            teacher=self.model("teacher"),
            student=self.model("student"),
            recipe=arm.recipe,
            verifier=arm.verifier,  # type: ignore[arg-type]
            data=LABELLED if arm.recipe == "sft" else written,
            validation=VALIDATION,
            method=arm.method,
            seed=seed,
            steps=8 if self.quick else 80,
            batch_size=32,
            lr=3e-3,
            schedule="linear",
            warmup=0.125,
            eval_every=4 if self.quick else 20,
            save_every=4 if self.quick else 20,
            keep_checkpoints=0,
            teacher_noise=self.noise if arm.recipe != "sft" else 0.0,
            save=self.student(arm, seed),
            threads=1,
            max_length=160,
        )
        return Job("train", options, f"{arm.method}, seed {seed}")

    def student(self, arm: Arm, seed: int) -> Path:
        """The trained student's directory."""
        return self.root / "students" / f"{arm.slug}-seed{seed}"

    def everyone(self) -> Iterator[tuple[str, str]]:
        """(slug, model) of teacher, starting student and every trained student."""
        yield "teacher", self.model("teacher")
        yield "student", self.model("student")
        for seed in self.seeds:
            for arm in ARMS:
                yield f"{arm.slug}-seed{seed}", str(self.student(arm, seed))

    def passk(self) -> Iterator[Job]:
        """pass@1 of everyone on held-out arithmetic."""
        for slug, model in self.everyone():
            options = PasskOptions(
                out=self.records,
                name=slug,
                model=model,
                max_new_tokens=96,
                # A noisy teacher flattens its students; the likeliest token hides that, a drawn one shows it.
                temperature=0.7 if self.noise else 0.0,
                batch_size=256,
                limit=16 if self.quick else None,
                threads=1,
            )
            yield Job("passk", options, f"pass@1 of {slug}")

    def answer(self, slug: str, model: str) -> Job:
        """Stories of one model on held-out instructions."""
        options = AnswerOptions(
            out=self.records,
            name=slug,
            model=model,
            prompts="mini-stories",
            max_new_tokens=96,
            batch_size=256,
            limit=16 if self.quick else None,
            threads=1,
        )
        return Job("answer", options, f"stories of {slug}")

    def answers(self) -> Iterator[Job]:
        """Stories of everyone."""
        return (self.answer(slug, model) for slug, model in self.everyone())

    def winrates(self) -> Iterator[Job]:
        """Everyone's stories against those of the student they all started from."""
        baseline = self.answer("student", self.model("student")).record
        for slug, model in self.everyone():
            if slug == "student":
                continue
            options = WinrateOptions(
                out=self.records,
                name=slug,
                candidate=str(self.answer(slug, model).record),
                baseline=str(baseline),
                judge=f"likelihood:{self.model('judge')}",
                threads=1,
            )
            yield Job("winrate", options, f"{slug} against the starting student")

    def first_students(self) -> tuple[str, ...]:
        """One student per arm: those of the first seed."""
        return tuple(str(self.student(arm, self.seeds[0])) for arm in ARMS)

    def tar(self) -> Iterator[Job]:
        """Acceptance over the checkpoints of every arm, on both families."""
        for family in ("mini-gsm", "mini-stories"):
            options = TarOptions(
                out=self.records,
                name=family,
                teacher=self.model("teacher"),
                student=(self.model("student"), *self.first_students()),
                data=f"{family}:validation",
                limit=16 if self.quick else 150,
                threads=1,
            )
            yield Job("tar", options, f"acceptance on {family}")

    def landscape(self) -> Job:
        """The same directions, radius and tokens for every student: training seeds vary as directions do."""
        options = LandscapeOptions(
            out=self.records,
            teacher=self.model("teacher"),
            student=tuple(str(self.student(arm, seed)) for arm in ARMS for seed in self.seeds),
            data=VALIDATION,
            sequences=8 if self.quick else 12,
            grid=5 if self.quick else 11,
            directions=1 if self.quick else 3,
            held_out=4 if self.quick else 16,
            scalars=2 if self.quick else 8,
            threads=1,
        )
        return Job("landscape", options, "loss landscapes")

    def speedups(self) -> Iterator[Job]:
        """The one-layer draft, the student that everyone started from, and every arm's student as the draft.

        One command times them all in turns on each prompt, so that the distilled students and the undistilled one are
        compared within a prompt and not between runs.
        """
        options = SpeedupOptions(
            out=self.records,
            name="drafts",
            target=self.model("teacher"),
            draft=(self.model("draft"), self.model("student"), *self.first_students()),
            prompts="mini-gsm,mini-stories",
            gamma=(4,),
            limit=3 if self.quick else TIMED,
            repetitions=3,
            threads=1,
        )
        yield Job("speedup", options, "every draft, greedy")

    def tables(self) -> Iterator[Job]:
        """The paper's tables that these records can fill."""
        for number in (1, 2, 4, 5):
            yield Job("table", TableOptions(number=number, records=self.records, out=self.root / "tables"))

    def figures(self) -> Iterator[Job]:
        """Every figure, as files; the page holds them too."""
        for what in FIGURES:
            options = FigureOptions(what=what, records=self.records, out=self.root / "figures")  # type: ignore[arg-type]
            yield Job("figure", options)

    def report(self) -> Job:
        """The page."""
        title = "Selective distillation on the embedded pair" + (", noisy teacher" if self.noise else "")
        page = self.root / "report.html"
        return Job("report", ReportOptions(records=self.records, out=page, title=title))
