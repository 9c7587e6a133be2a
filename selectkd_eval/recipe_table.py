"""Every method as a row: where its text comes from, what is minimised on it, and which numbers are its own.

The rows of the paper's Tables 1, 2, 4, 5 and 6 (SelecTKD, arXiv 2510.24021), and the methods of its references
that are sums of token terms. A row carries the method's *own paper*; where public code does something else, that is
a named variant, or a sentence under `deviations` when it is a defect that nobody would want. What is no sum of
token terms has no row; `recipes` says why, and resolves and explains the names.

Learning rates, batch sizes and lengths are not here: they are options of `train`. Standard library only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from selectkd_eval.errors import InputError
from selectkd_eval.objective import Term
from selectkd_eval.recipe_row import Recipe, Variant

_UNTEMPERED = {"generation_temperature": 1.0, "generation_top_p": 1.0}
_HALF_CE = (Term("fkl", coefficient=0.5), Term("nll", coefficient=0.5))


def _both(divergence: str, **parameters: float | bool) -> tuple[Term, ...]:
    # DistiLLM-2's code adds the means over each half of the pairs; 1/S runs over both halves, hence the 2.
    return (Term(divergence, parameters, coefficient=2.0),)


def _atkd(constants: Mapping[str, float]) -> Mapping[str, Any]:
    easy, hard = constants["alpha"], 1 - constants["alpha"]
    if hard < 0:
        raise InputError(f"ATKD's alpha is the easy half's share of the loss, in [0, 1], but {easy:g} was given")
    on_hard = (Term("tckd", {}, hard, part="hard"), Term("nckd", {}, hard, part="hard"))
    return {"terms": (Term("nckd", {}, easy, part="easy"), *on_hard)}


def _akl(constants: Mapping[str, float]) -> Mapping[str, Any]:
    return {"terms": (Term("akl", {"head": constants["head"], "crossing": constants["crossing"] == 1}),)}


_ROWS = (
    Recipe(
        "sft",
        "SFT-control",
        "maximum likelihood",
        "Training on the text without a teacher: the control that says how much of a gain is only more training.",
        terms=(Term("nll"),),
    ),
    Recipe(
        "kd",
        "KD",
        "Hinton et al. 2015; paper Eqs. 1-2",
        "Word-level distillation: the forward KL to the teacher at every response token.",
        deviations=(
            "No cross-entropy term, as in DistiLLM's and AdaKD's scripts (kd_ratio 1).",
            "Divided by each response's length (the paper's Algorithm 1), where DistiLLM's code divides by the tokens "
            "of a forward pass; --normaliser valid_tokens divides by the tokens of the update.",
        ),
        variants={
            "minillm": Variant("half cross-entropy, half forward KL, as in MiniLLM's scripts", {"terms": _HALF_CE}),
            "distillm2": Variant("on the teacher's text, as DistiLLM-2's `kd`", {"policy": "teacher"}),
        },
    ),
    Recipe(
        "seqkd",
        "SeqKD",
        "Kim & Rush 2016, arXiv 1606.07947",
        "Maximum likelihood on the teacher's own text, as DistiLLM-2 does.",
        policy="teacher",
        terms=(Term("nll"),),
        deviations=(
            "The teacher writes at temperature 0.8, top-p 0.95, as for DistiLLM-2's rows (Kim & Rush: beam search; "
            "DistiLLM's and MiniLLM's scripts: plain sampling).",
        ),
        variants={
            "distillm": Variant(
                "the full forward KL on that text, plainly sampled, as in DistiLLM's scripts",
                {"terms": (Term("fkl"),), **_UNTEMPERED},
            ),
            "minillm": Variant(
                "half cross-entropy, half forward KL on that text, plainly sampled, as in MiniLLM's scripts",
                {"terms": _HALF_CE, **_UNTEMPERED},
            ),
        },
    ),
    Recipe(
        "imitkd",
        "ImitKD",
        "Lin et al. 2020, arXiv 2009.07253, Algorithm 1",
        "Imitation learning: on the student's own text the teacher's most likely token is the label, on ground truth "
        "the text itself; the share of ground truth falls from 1 to 1/base.",
        policy="mixed-examples",
        terms=(Term("nll", source="dataset"), Term("imitation", source="student")),
        constants={"base": 200.0},
        generation_temperature=1.0,
        generation_top_p=1.0,
        generation_top_k=5,
        deviations=(
            "The student samples from its 5 likeliest tokens, the paper's IWSLT setting (WMT: greedy).",
            "DistiLLM's scripts send the student's text through the replay buffer and train on a random draw from it; "
            "its variant here trains on the text just written.",
        ),
        variants={
            "full": Variant(
                "the teacher's whole distribution instead of its argmax, on both kinds of text",
                {"terms": (Term("fkl"),)},
            ),
            "distillm": Variant(
                "forward KL on the student's text only, plainly sampled, as in DistiLLM's scripts",
                {"policy": "student", "terms": (Term("fkl"),), "constants": {}, **_UNTEMPERED, "generation_top_k": 0},
            ),
        },
    ),
    Recipe(
        "gkd",
        "GKD",
        "Agarwal et al. 2024, arXiv 2306.13649, Algorithm 1",
        "A generalised Jensen-Shannon divergence on a mix of ground truth and the student's own text.",
        policy="mixed-steps",
        terms=(Term("jsd", {"beta_jsd": 0.5}),),
        constants={"lambda": 0.5},
        generation_temperature=1.0,
        generation_top_p=1.0,
        deviations=(
            "The paper sweeps lambda over 0, 0.5, 1 and the divergence over FKL, RKL and JSD 0.1, 0.5, 0.9 and picks "
            "per task; the middle of both is the default, --divergence, --beta-jsd and --set lambda=... the sweep.",
            "JSD is not rescaled at its ends: it vanishes there, where TRL jumps to an unscaled KL.",
            "TRL divides by all tokens of the update: --normaliser valid_tokens.",
            "DistiLLM's scripts train on a random draw from the replay buffer; its variant here on the text just "
            "written.",
        ),
        variants={
            "trl": Variant(
                "TRL's defaults: sampled at 0.9, divided by all tokens of the update",
                {"generation_temperature": 0.9, "normaliser": "valid_tokens"},
            ),
            "distillm": Variant("JSD 0.1, as in DistiLLM's scripts", {"terms": (Term("jsd", {"beta_jsd": 0.1}),)}),
            "distillm2": Variant(
                "JSD 0.9 on pairs of teacher's and student's text, as DistiLLM-2's `gkd`",
                {
                    "policy": "pairs",
                    "terms": _both("jsd", beta_jsd=0.9),
                    "constants": {},
                    "generation_temperature": 0.8,
                    "generation_top_p": 0.95,
                },
            ),
        },
    ),
    Recipe(
        "distillspec",
        "DistillSpec",
        "Zhou et al. 2024, arXiv 2310.08461",
        "A draft for speculative decoding, trained on its own text to agree with the target.",
        policy="student",
        generation_temperature=1.0,
        generation_top_p=1.0,
        deviations=(
            "The paper chooses among FKL, RKL, JSD and TVD by task and decoding; the forward KL is what later work "
            "compares with under this name, --divergence gives the others.",
        ),
        variants={"tvd": Variant("total variation: 1 - TV is the acceptance rate itself", {"terms": (Term("tvd"),)})},
    ),
    Recipe(
        "distillm",
        "DistiLLM",
        "Ko et al. 2024, arXiv 2402.03898",
        "Skew KL on adaptively off-policy text: student text is written when held-out loss asks for it, and reused.",
        policy="replay",
        terms=(Term("skl", {"alpha": 0.1}),),
        constants={"phi": 0.0, "phi_step": 0.1, "epsilon": 0.1, "capacity": 1000.0, "decreasing": 1.0},
        generation_temperature=1.0,
        generation_top_p=1.0,
        deviations=(
            "No language-modelling loss on a pre-training corpus (the paper adds one with weight 1; DistiLLM-2 has "
            "none).",
            "phi is asked at every validation, --eval-every updates apart; the released code validates once an epoch.",
            "The first response token is trained: the released code drops it from student-written text (its mask is "
            "off by one) and strips the end token where the pad token is the same.",
        ),
        variants={
            "srkl": Variant("skew reverse KL instead of skew KL", {"terms": (Term("srkl", {"alpha": 0.1}),)}),
            "distillm2": Variant(
                "skew reverse KL on pairs of teacher's and student's text, as DistiLLM-2's `distillm_v1`",
                {
                    "policy": "pairs",
                    "terms": _both("srkl", alpha=0.1, detach_mixture=True),
                    "constants": {},
                    "generation_temperature": 0.8,
                    "generation_top_p": 0.95,
                },
            ),
        },
    ),
    Recipe(
        "skd",
        "SKD",
        "Xu et al. 2025, arXiv 2410.11325, Algorithm 1",
        "Forward KL on text that student and teacher write together: the teacher replaces the tokens it ranks below "
        "top_k.",
        policy="interleaved",
        constants={"top_k": 25.0, "teacher_temperature": 0.2, "teacher_top_p": 0.5},
        generation_temperature=0.5,
        generation_top_p=0.5,
        deviations=(
            "The token that was verified is the token that is kept: the public code verifies a fresh draw and keeps "
            "the proposal.",
            "The top_k are those of the teacher's own distribution: the public code cuts it to its nucleus first, "
            "which leaves one or two tokens and arbitrary ones of probability 0.",
            "The first response token is trained: the public code's slice starts one later.",
        ),
    ),
    Recipe(
        "distillm2",
        "DistiLLM-2",
        "Ko et al. 2025, arXiv 2503.07067, Eq. 2 and Algorithm 1",
        "Contrast: skew KL pulls the student up on the teacher's text, skew reverse KL pushes it down on its own.",
        policy="pairs",
        terms=(
            Term("skl", {"alpha": 0.1}, 0.5, source="teacher"),
            Term("srkl", {"alpha": 0.1}, 0.5, source="student"),
        ),
        controllers=("contrast",),
        constants={"alpha0": 0.1, "alpha_low": 0.01, "alpha_high": 0.1, "beta0": 0.5, "as_printed": 0.0},
        deviations=(
            "beta_c = clip(share of training done, beta0, 1). The printed clip(e/E + tau/T, beta0, 1), with e from 1 "
            "and T updates per epoch, is 1 for all of the last epoch and part of the others, so a run of one epoch "
            "would never use its first term (variant as-printed).",
            "p(y) and q(y) in the rule for alpha are per-token geometric means (those of whole responses underflow; "
            "the released code does the same), and all responses of one source in an update share one alpha.",
            "A divergence over a response is its mean over tokens, as in the released code and in Algorithm 1 of "
            "SelecTKD; Eq. 1 of the paper sums.",
        ),
        variants={
            "code": Variant(
                "the released code: alpha 0.1 throughout, both terms at full weight, no gradient in SRKL's mixture",
                {
                    "terms": (
                        Term("skl", {"alpha": 0.1}, 2.0, source="teacher"),
                        Term("srkl", {"alpha": 0.1, "detach_mixture": True}, 2.0, source="student"),
                    ),
                    "controllers": (),
                    "constants": {},
                },
            ),
            "as-printed": Variant("beta_c by the letter of Algorithm 1", {"constants": {"as_printed": 1.0}}),
        },
    ),
    Recipe(
        "speckd",
        "SpecKD",
        "arXiv 2510.24021v1 (abstract)",
        "KD on accepted tokens only: SelecTKD's first version, whose gate is a hard mask.",
        verifier="top-k",
        beta=0.0,
        plain="KD",
        deviations=("Only the abstract of the first version is public; k is the second version's.",),
        variants={"greedy": Variant("a token is accepted where both argmaxes agree", {"k": 1})},
    ),
    Recipe(
        "adakd",
        "AdaKD",
        "Xie et al. 2026, arXiv 2510.11615, Eqs. 3-10",
        "The hardest tokens by Hellinger distance, their share steered by the loss (LATF), each at a temperature that "
        "falls with its difficulty (IDTS).",
        terms=(Term("rkl"),),
        normaliser="selected_tokens",
        tau_squared=False,
        selection="hardest",
        controllers=("latf",),
        constants={"c": 0.5, "ema": 0.99, "epsilon": 0.05, "delta": 0.05, "warmup": 0.05, "floor": 0.0},
        follows=lambda constants: {"idts": constants["c"]},
        deviations=(
            "The divergence is the reverse KL of Eq. 4, the paper's own base; it is a plug-in, --divergence gives "
            "another.",
            "No factor tau^2: the analysis (Eqs. 11-17) is that of a loss without it, although Eq. 2 has one; with it "
            "a low temperature damps hard tokens instead of amplifying them (variant code).",
            "The median of Eq. 9 is over all tokens of the update, in the released code over the selected ones.",
            "ema, epsilon, delta and warmup are the released scripts' (the paper's main text gives only c), and one "
            "update is one step of LATF, however it is accumulated.",
        ),
        variants={
            "code": Variant(
                "the released code: loss times tau^2, the median of the selected tokens, a floor under the share",
                {"tau_squared": True, "idts_median": "selected", "constants": {"floor": 0.1}},
            )
        },
    ),
    Recipe(
        "adaspec",
        "AdaSPEC",
        "Hu et al. 2025, arXiv 2510.19779",
        "Forward KL on the tokens that a distilled reference model shows to be learnable: those with the largest "
        "FKL(p||q) - FKL(p||reference). Needs --reference.",
        normaliser="selected_tokens",
        selection="learnable",
        constants={"share": 0.4},
        follows=lambda constants: {"share": constants["share"]},
        deviations=(
            "The reference is a student trained before with `--recipe kd` from the same start.",
            "The quantile is over the whole update, the released code's over each forward pass.",
        ),
        variants={
            "code": Variant(
                "divided by all response tokens, as the released code under gradient accumulation",
                {"normaliser": "valid_tokens"},
            )
        },
    ),
    Recipe(
        "atkd",
        "ATKD",
        "Zhong et al. 2024, arXiv 2402.11890",
        "The forward KL taken apart: easy tokens (teacher's uncertainty below the median) teach only the distribution "
        "off the target, hard ones that and the target's probability; each half is averaged over its own tokens.",
        normaliser="class_mean",
        constants={"alpha": 0.2},
        follows=_atkd,
        deviations=(
            "The non-target part is not multiplied by the uncertainty, as in the paper: that is its point.",
            "The median is over the whole update, the released code's over each forward pass.",
        ),
    ),
    Recipe(
        "taid",
        "TAID",
        "Shing et al. 2025, arXiv 2501.16937, Algorithm 1",
        "Forward KL to a target that moves from the student to the teacher as the loss falls.",
        controllers=("taid",),
        constants={"t_start": 0.4, "t_end": 1.0, "alpha": 5e-4, "beta": 0.99},
        deviations=(
            "The first update sets the loss to compare with and leaves t alone, as in the released code; the paper's "
            "L_0 = infinity leaves the first change undefined.",
        ),
        variants={"linear": Variant("t on the straight line, whatever the loss", {"constants": {"alpha": 0.0}})},
    ),
    Recipe(
        "akl",
        "AKL",
        "Wu et al. 2025, arXiv 2404.02657",
        "Forward and reverse KL, weighted per token by how far p and q are apart in the head and in the tail of p.",
        constants={"head": 0.5, "crossing": 1.0},
        follows=_akl,
        deviations=(
            "The head is the smallest set of likeliest tokens that reaches the probability `head`, so it holds the "
            "token that crosses it; the released code leaves that one to the tail (variant code).",
            "TAID's copy finds the head in sorted order and applies it to unsorted differences; here both are in the "
            "vocabulary's order, as in the paper.",
        ),
        variants={"code": Variant("the token that crosses `head` is the tail's", {"constants": {"crossing": 0.0}})},
    ),
)


RECIPES: dict[str, Recipe] = {
    row.name: replace(row, **row.follows(row.constants)) if row.follows else row for row in _ROWS
}
