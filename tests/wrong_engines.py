"""Engines with one fault each, among them those that engines in use have had; the gate must see every one.

`Plainly` is a right draft-and-verify loop, written apart from the reference engine so that neither can hide the
other's faults; every fault is a subclass that changes one of its parts. `FAULTS` says under which decoding a fault
changes the text or the counts, which the tests hold the gate to; `HARMLESS` are faults in name that leave the text
the target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import DynamicCache

from selectkd_eval.sampling import Sampling
from selectkd_eval.speculation.engine import Decoded, Request
from selectkd_eval.speeds import Arm


class Reader:
    """A model and its cache, which may be rewound."""

    def __init__(self, model: Any, vocabulary: int) -> None:
        self.model, self.vocabulary = model, vocabulary
        self.cache, self.length = DynamicCache(), 0

    def read(self, ids: Sequence[int], shift: int = 0) -> Tensor:
        """Logits (n, V) after each of the ids; `shift` misplaces them."""
        places = torch.arange(self.length, self.length + len(ids))[None] + shift
        out = self.model(
            input_ids=torch.tensor([list(ids)]), position_ids=places, past_key_values=self.cache, use_cache=True
        )
        self.length += len(ids)
        return out.logits[0, :, : self.vocabulary].float()

    def keep(self, length: int) -> None:
        if self.length > length:
            self.cache.crop(length - self.length)
            self.length = length


class Plainly:
    """Draft and verify without a fault, one token at a time and with nothing left out for speed."""

    name = "plainly"
    facts: ClassVar[dict[str, Any]] = {"proposals": "sampled"}
    batches = False

    def __init__(self, target: Any, drafts: Sequence[Any], vocabulary: int) -> None:
        self.target, self.drafts, self.vocabulary = target, list(drafts), vocabulary

    def close(self) -> None:
        pass

    # ---- the parts that faults change ----

    def p(self, logits: Tensor, sampling: Sampling) -> Tensor:
        return distribution(logits, sampling)

    def q(self, logits: Tensor, sampling: Sampling) -> Tensor:
        """What the accept rule takes for the draft's distribution."""
        return distribution(logits, sampling)

    def propose(self, logits: Tensor, sampling: Sampling) -> int:
        """A draft token from the draft's logits (V,)."""
        return self.draw(self.q(logits, sampling))

    def keeps(self, p: Tensor, q: Tensor, x: int) -> bool:
        return self.uniform() * float(q[x]) < float(p[x])

    def after_refusal(self, p: Tensor, q: Tensor) -> int:
        residual = (p - q).clamp_min(0)
        return self.draw(residual if float(residual.sum()) > 0 else p)

    def after_all(self, p: Tensor) -> list[int]:
        """The bonus: the target's token when nothing was refused."""
        return [self.draw(p)]

    def kept_target(self, length: int) -> int:
        return length

    def kept_draft(self, length: int) -> int:
        return length

    def shift(self) -> int:
        """By how much the positions of a verification are wrong."""
        return 0

    def count(self, left: int, gamma: int) -> int:
        return min(gamma, left - 1)

    def told(self, run: Decoded) -> Decoded:
        return run

    # ---- the loop ----

    def uniform(self) -> float:
        return float(torch.rand((), generator=self.generator, dtype=torch.float64))

    def draw(self, p: Tensor) -> int:
        return int(torch.multinomial(p.double(), 1, generator=self.generator))

    @torch.inference_mode()
    def decode(self, request: Request, arm: Arm, sampling: Sampling) -> Decoded:
        self.generator = torch.Generator().manual_seed(request.seed)
        ids, new = list(request.ids), request.new_tokens
        target = Reader(self.target, self.vocabulary)
        tokens = [self.draw(self.p(target.read(ids)[-1], sampling))]
        if arm.plain:
            while len(tokens) < new:
                tokens.append(self.draw(self.p(target.read(tokens[-1:])[-1], sampling)))
            return Decoded(tokens, [0] * (new - 1), [0] * (new - 1))
        draft = Reader(self.drafts[arm.draft], self.vocabulary)
        draft.read(ids)
        run = Decoded(tokens)
        while len(tokens) < new:
            base = len(ids) + len(tokens) - 1  # what the target's cache should hold: all tokens but the last
            unseen = (ids + tokens)[draft.length :] or tokens[-1:]
            proposal, qs = [], []
            for _ in range(self.count(new - len(tokens), arm.gamma)):
                logits = draft.read(unseen)[-1]
                proposal.append(self.propose(logits, sampling))
                qs.append(self.q(logits, sampling))
                unseen = proposal[-1:]
            ps = [self.p(row, sampling) for row in target.read([tokens[-1], *proposal], self.shift())]
            accepted = 0
            while accepted < len(proposal) and self.keeps_at(accepted, ps, qs, proposal):
                accepted += 1
            refused = accepted < len(proposal)
            last = [self.after_refusal(ps[accepted], qs[accepted])] if refused else self.after_all(ps[accepted])
            tokens += proposal[:accepted] + last
            run.drafted.append(len(proposal))
            run.accepted.append(accepted)
            target.keep(self.kept_target(base + 1 + accepted))
            draft.keep(self.kept_draft(base + 1 + accepted))
        del tokens[new:]
        return self.told(run)

    def keeps_at(self, place: int, ps: list[Tensor], qs: list[Tensor], proposal: list[int]) -> bool:
        return self.keeps(ps[place], qs[place], proposal[place])


def distribution(logits: Tensor, sampling: Sampling) -> Tensor:
    """(V,) probabilities; greedy decoding is all of them on the first best token."""
    if sampling.greedy:
        return torch.nn.functional.one_hot(logits.argmax(), logits.shape[-1]).float()
    return sampling.probabilities(logits[None])[0]


# ---- accept rules ----


class KeepsTheInverse(Plainly):
    def keeps(self, p, q, x):
        return self.uniform() * float(p[x]) < float(q[x])


class KeepsByQ(Plainly):
    def keeps(self, p, q, x):
        return self.uniform() < float(q[x])


class KeepsAll(Plainly):
    def keeps(self, p, q, x):
        return True


class KeepsLikelyTokens(Plainly):
    """Typical acceptance, as Medusa's: what p finds likely enough stays."""

    def keeps(self, p, q, x):
        return float(p[x]) > 0.1


class KeepsEqualRanks(Plainly):
    def keeps(self, p, q, x):
        return int((p > p[x]).sum()) == int((q > q[x]).sum())


class KeepsAThirdMore(Plainly):
    """A lenient factor on the ratio."""

    def keeps(self, p, q, x):
        return self.uniform() * float(q[x]) < 1.33 * float(p[x])


class NeverVerifiesTheLast(Plainly):
    def keeps_at(self, place, ps, qs, proposal):
        return place == len(proposal) - 1 or super().keeps_at(place, ps, qs, proposal)


class VerifiesAgainstTheRowBefore(Plainly):
    def keeps_at(self, place, ps, qs, proposal):
        return self.keeps(ps[max(place - 1, 0)], qs[place], proposal[place])


# ---- the token after the accepted ones ----


class DrawsFromPAfterARefusal(Plainly):
    """Forgets to resample from norm(max(0, p - q))."""

    def after_refusal(self, p, q):
        return self.draw(p)


class DrawsFromQAfterARefusal(Plainly):
    def after_refusal(self, p, q):
        return self.draw(q)


class KeepsTheRefusedMass(Plainly):
    """|p - q| for max(0, p - q)."""

    def after_refusal(self, p, q):
        return self.draw((p - q).abs() if float((p - q).abs().sum()) > 0 else p)


class DropsTheBonus(Plainly):
    """The models have read the bonus token; the text goes on without it."""

    def decode(self, request, arm, sampling):
        whole = super().decode(request._replace(new_tokens=3 * request.new_tokens), arm, sampling)
        run, at = Decoded(whole.tokens[:1]), 1
        for drafted, accepted in zip(whole.drafted, whole.accepted, strict=True):
            if len(run.tokens) >= request.new_tokens:
                break
            emitted = accepted + (accepted < drafted)
            run.tokens += whole.tokens[at : at + emitted]
            run.drafted.append(drafted)
            run.accepted.append(accepted)
            at += accepted + 1
        del run.tokens[request.new_tokens :]
        return run


class EmitsTheBonusTwice(Plainly):
    def after_all(self, p):
        return super().after_all(p) * 2


# ---- what p and q are ----


class GreedyDraftSoftmaxRatio(Plainly):
    """transformers#32867: the draft is its best token, the ratio has its softmax."""

    def propose(self, logits, sampling):
        return int(logits.argmax())


class ForgetsTheTemperatureOfTheRatio(Plainly):
    """Drafts at the run's temperature, compares with q at 1."""

    def propose(self, logits, sampling):
        return self.draw(distribution(logits, sampling))

    def q(self, logits, sampling):
        return distribution(logits, sampling if sampling.greedy else sampling._replace(temperature=1.0))


class ForgetsTheTemperatureOfP(Plainly):
    def p(self, logits, sampling):
        return distribution(logits, sampling if sampling.greedy else sampling._replace(temperature=1.0))


class UninitialisedTemperature(Plainly):
    """vllm#55005: the verifier's temperature is whatever the memory held."""

    def p(self, logits, sampling):
        if sampling.greedy:
            return distribution(logits, sampling)
        garbage = (1e-6, 4.6e-41, -3.5e13, 1.0)[int(self.uniform() * 4)]
        return torch.softmax((logits / garbage).clamp(-1e30, 1e30), dim=-1)


class MixesTheDraftIn(Plainly):
    """DIVERSE, `assistant_ensemble_weight`: verifies against (1 - w) p + w q."""

    weight = 0.3

    def keeps(self, p, q, x):
        return super().keeps((1 - self.weight) * p + self.weight * q, q, x)

    def after_refusal(self, p, q):
        return super().after_refusal((1 - self.weight) * p + self.weight * q, q)


class CutsOnlyTheRatio(Plainly):
    """top-k and top-p in the ratio, the residual from the whole softmax."""

    def p(self, logits, sampling):
        p = distribution(logits, sampling)
        p.whole = distribution(logits, Sampling(sampling.temperature))
        return p

    def after_refusal(self, p, q):
        return super().after_refusal(p.whole, q)


class ForgetsTheCutOfP(Plainly):
    """top-k and top-p on the draft alone."""

    def p(self, logits, sampling):
        return distribution(logits, sampling._replace(top_k=0, top_p=1.0))


# ---- caches and positions ----


class KeepsRefusedTokensInTheCache(Plainly):
    def kept_target(self, length):
        return 10**9


class RewindsOneTooFar(Plainly):
    def kept_target(self, length):
        return length - 1


class RewindsTheDraftTooLittle(Plainly):
    """The text is right, the drafts are not q's."""

    def kept_draft(self, length):
        return 10**9


class MisplacesAVerification(Plainly):
    def shift(self):
        return 1


# ---- lengths and counts ----


class ClaimsMoreAccepted(Plainly):
    """Every third step tells one more accepted token than it kept."""

    def told(self, run):
        for step in range(0, run.steps, 3):
            if run.accepted[step] < run.drafted[step]:
                run.accepted[step] += 1
        return run


class MovesClaims(Plainly):
    """The sum of accepted tokens is right; which step kept them is not."""

    def told(self, run):
        run.accepted.reverse()
        run.drafted.reverse()
        return run


class StopsOneShort(Plainly):
    def told(self, run):
        run.tokens.pop()
        return run


class RepeatsTheLastToken(Plainly):
    """A last step cut in the wrong place."""

    def told(self, run):
        if len(run.tokens) > 2:
            run.tokens[-1] = run.tokens[-2]
        return run


# ---- what only sounds wrong ----


class ComparesWithGreaterOrEqual(Plainly):
    """`>=` for `>` in greedy choices: among exactly equal logits the last one wins."""

    def p(self, logits, sampling):
        if not sampling.greedy:
            return distribution(logits, sampling)
        last = len(logits) - 1 - int(logits.flip(-1).argmax())
        return torch.nn.functional.one_hot(torch.tensor(last), len(logits)).float()


class DraftsWithoutTheCut(Plainly):
    """top-k and top-p on p alone, q by temperature alone in drawing and in the ratio (vLLM's "probabilistic")."""

    facts: ClassVar[dict[str, Any]] = {"proposals": "tempered"}

    def q(self, logits, sampling):
        return distribution(logits, sampling if sampling.greedy else Sampling(sampling.temperature))


class DraftsGreedily(Plainly):
    """vLLM's default: the draft's best token at any temperature, and a q that says so."""

    facts: ClassVar[dict[str, Any]] = {"proposals": "greedy"}

    def q(self, logits, sampling):
        return distribution(logits, Sampling())


class DraftsBeyondTheEnd(Plainly):
    """Always gamma tokens; what is too long is cut off and the last step's counts with it."""

    def count(self, left, gamma):
        return gamma

    def told(self, run):
        over = run.first + run.steps + sum(run.accepted) - len(run.tokens)
        run.accepted[-1] -= over
        return run


GREEDY_FAULTS = (
    KeepsAll,
    KeepsTheInverse,
    NeverVerifiesTheLast,
    VerifiesAgainstTheRowBefore,
    DrawsFromQAfterARefusal,
    DropsTheBonus,
    EmitsTheBonusTwice,
    MixesTheDraftIn,
    KeepsRefusedTokensInTheCache,
    RewindsOneTooFar,
    MisplacesAVerification,
    ClaimsMoreAccepted,
    MovesClaims,
    StopsOneShort,
    RepeatsTheLastToken,
)
SAMPLED_FAULTS = (
    KeepsTheInverse,
    KeepsByQ,
    KeepsAll,
    KeepsLikelyTokens,
    KeepsEqualRanks,
    NeverVerifiesTheLast,
    VerifiesAgainstTheRowBefore,
    DrawsFromPAfterARefusal,
    DrawsFromQAfterARefusal,
    KeepsTheRefusedMass,
    DropsTheBonus,
    EmitsTheBonusTwice,
    GreedyDraftSoftmaxRatio,
    UninitialisedTemperature,
    MixesTheDraftIn,
    KeepsRefusedTokensInTheCache,
    RewindsOneTooFar,
    MisplacesAVerification,
    RewindsTheDraftTooLittle,
    ClaimsMoreAccepted,
    MovesClaims,
    StopsOneShort,
)
TEMPERATURE_FAULTS = (ForgetsTheTemperatureOfTheRatio, ForgetsTheTemperatureOfP)
CUT_FAULTS = (CutsOnlyTheRatio, ForgetsTheCutOfP)
HARMLESS = (DraftsWithoutTheCut, DraftsGreedily, DraftsBeyondTheEnd)
