"""Which trainings make no sense as they are asked for? Told from the options and the recipe alone, in one sentence.

Looked at before a model is loaded, a text written or a record begun: what would fail hours later, or be ignored without
a word, costs nothing here. Numbers that no verb can use are refused by `ranges`, names by whoever looks them up, and
what depends on models or text by `materials`.
"""

from __future__ import annotations

from pathlib import Path

from selectkd_eval import records
from selectkd_eval.controllers import CONTROLLERS
from selectkd_eval.divergences import fraction
from selectkd_eval.errors import InputError
from selectkd_eval.objective import LossSpec
from selectkd_eval.recipe_row import Recipe
from selectkd_eval.rollouts import check_constants
from selectkd_eval.verbs import TrainOptions


def check(recipe: Recipe, spec: LossSpec, options: TrainOptions) -> None:
    """Raise an InputError for the first thing that cannot be meant."""
    _sizes(options)
    _constants(recipe, spec, options)
    _unused(recipe, options)
    for path in options.student_text:
        records.read(Path(path), verb="answer")


def _sizes(options: TrainOptions) -> None:
    if options.batch_size < 1 or not 1 <= options.accumulation <= options.batch_size:
        raise InputError(
            f"--batch-size {options.batch_size} cannot be cut into --accumulation {options.accumulation} passes: "
            "give at least one sequence for each"
        )
    if options.lr <= 0 or options.steps < 0 or (options.steps == 0 and options.epochs <= 0):
        raise InputError("training needs --lr above 0 and either --steps or --epochs above 0")
    if not 0 <= options.teacher_noise <= 1:
        raise InputError(f"--teacher-noise is a share of positions in [0, 1], but {options.teacher_noise} was given")
    if options.generation_top_p is not None and not 0 < options.generation_top_p <= 1:
        raise InputError(f"--generation-top-p lies in (0, 1], but {options.generation_top_p} was given")
    if options.device.startswith("cuda:") and options.device != "cuda:0":
        raise InputError(
            f"train uses the first visible GPU: set CUDA_VISIBLE_DEVICES instead of --device {options.device}"
        )


def _constants(recipe: Recipe, spec: LossSpec, options: TrainOptions) -> None:
    names = [setting.partition("=")[0] for setting in options.set]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--set gives {name} twice ({', '.join(options.set)}): give it once")
    check_constants(recipe.policy, recipe.constants)
    for controller in recipe.controllers:
        CONTROLLERS[controller](recipe.constants)
    for term in spec.terms:
        for name, value in term.parameters.items():
            if not isinstance(value, bool):
                fraction(name, value)


def _unused(recipe: Recipe, options: TrainOptions) -> None:
    """What this recipe would not look at: whoever gives it expects something else to happen."""
    if options.reference and recipe.selection != "learnable":
        raise InputError(f"--reference is adaspec's third model, which {recipe.name} has no use for: leave it out")
    if options.student_text and recipe.policy != "pairs":
        raise InputError(
            f"--student-text is for recipes on pairs of texts, but {recipe.name} trains on {recipe.policy} text: leave "
            "it out, or give such a record as --data"
        )
    if recipe.policy == "dataset" and (options.generation_temperature, options.generation_top_p) != (None, None):
        raise InputError(
            f"--generation-temperature and --generation-top-p are for text written for the training, but {recipe.name} "
            "trains on --data as it is: leave them out"
        )
    if options.teacher_cache is not None and recipe.policy in ("student", "interleaved"):
        raise InputError(
            f"--teacher-cache keeps what the teacher makes of fixed text, but {recipe.name} trains on text that is "
            "written anew for every update: leave it out"
        )
    if options.alpha is not None and "contrast" in recipe.controllers:
        raise InputError(
            f"{recipe.name} moves alpha by its own schedule, so --alpha {options.alpha:g} would not be used: give "
            "--set alpha0=... and alpha_high=..., or --variant code, which keeps alpha where it is"
        )
    if options.keep_adapter and not options.lora_rank:
        raise InputError("--keep-adapter saves a LoRA adapter, but --lora-rank is 0: give a rank, or leave it out")
