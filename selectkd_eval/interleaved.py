"""How do student and teacher write one text together? SKD's interleaved sampling (Xu et al., arXiv 2410.11325).

The student proposes each token. It stays where it is among the teacher's `top` likeliest tokens; otherwise the teacher
samples one in its place. So the text is one that the student would write, without the tokens that the teacher would
never write: top = V is the student's own rollout, top = 1 with a greedy teacher the teacher's own greedy text.

As the paper has it and unlike the public code, the verified token is the kept token, and the teacher's `top` tokens are
those of its own distribution, not of one cut to a nucleus first. One forward pass of each model per token, both with
their caches: the teacher's cost is that of decoding with the teacher.

SKD edits the text; SelecTKD weighs the loss. They can be combined.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from selectkd_eval.author import Author, Written, decoding
from selectkd_eval.batches import Example
from selectkd_eval.generate import Generation, Prefixes, by_length, end_tokens, finisher
from selectkd_eval.sampling import Sampling, pick, uniforms


def interleave(
    author: Author, examples: Sequence[Example], occasion: int | str, *, top: int, teacher_sampling: Sampling
) -> list[Written]:
    """A response of both models to the prompt of every example, in their order; the source is `mixed`."""
    prompts = list({example.prompt: example for example in examples}.values())
    ids = [example.prompt_ids for example in prompts]
    limits = author.limits(ids)
    seeds = [author.seeds(prompts, occasion, writer) for writer in ("student", "teacher")]
    found: dict[str, tuple[Generation, float]] = {}
    with decoding(author.student, author.teacher, bf16=author.bf16):
        for chosen in by_length(ids, author.batch_size):
            draws = [torch.stack([uniforms(stream[i], max(limits)) for i in chosen]) for stream in seeds]
            texts = _decode_together(
                author, [ids[i] for i in chosen], [limits[i] for i in chosen], draws, top, teacher_sampling
            )
            found |= {prompts[i].prompt: text for i, text in zip(chosen, texts, strict=True)}
    return [
        Written(example.answered(found[example.prompt][0].tokens, "mixed"), *found[example.prompt])
        for example in examples
    ]


def propose_and_verify(
    logits_q: Tensor, logits_p: Tensor, sampling_q: Sampling, sampling_p: Sampling, draws: Sequence[Tensor], top: int
) -> tuple[Tensor, Tensor]:
    """One token per row of the logits ``(B, V)``, and whether it is the student's proposal.

    `draws`: the uniform numbers ``(B,)`` of student and teacher. A tie at the last place of the teacher's `top` tokens
    keeps the proposal, as the Top-k gate does.
    """
    proposal = pick(logits_q, sampling_q, draws[0])
    kept = (logits_p > logits_p.gather(1, proposal[:, None])).sum(-1) < top
    return torch.where(kept, proposal, pick(logits_p, sampling_p, draws[1])), kept


def _decode_together(
    author: Author,
    ids: Sequence[Sequence[int]],
    limits: Sequence[int],
    draws: Sequence[Tensor],
    top: int,
    teacher_sampling: Sampling,
) -> list[tuple[Generation, float]]:
    """The texts of one batch, each with the share of its tokens that the student proposed."""
    pad, device = author.tokenizer.pad_token_id, author.student.device
    q, p = (Prefixes(model, ids, pad, author.vocabulary) for model in (author.student, author.teacher))
    ends = end_tokens(author.student, author.tokenizer) | end_tokens(author.teacher, author.tokenizer)
    finished = finisher(ends, author.tokenizer)
    written: list[list[int]] = [[] for _ in limits]
    own = [0] * len(limits)
    results: dict[int, Generation] = {}
    active = list(range(len(limits)))
    for step in range(max(limits)):
        now = [draw[active, step].to(device) for draw in draws]
        chosen, kept = propose_and_verify(q.logits(), p.logits(), author.sampling, teacher_sampling, now, top)
        for row, token, mine in zip(active, chosen.tolist(), kept.tolist(), strict=True):
            written[row].append(token)
            own[row] += mine
            if result := finished(written[row], limits[row]):
                results[row] = result
        keep = [at for at, row in enumerate(active) if row not in results]
        if not keep:
            break
        q.append(chosen, keep)
        p.append(chosen, keep)
        active = [active[at] for at in keep]
    return [(results[row], own[row] / len(written[row])) for row in range(len(limits))]
