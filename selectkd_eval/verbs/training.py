"""The options of `train`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from selectkd_eval.verbs.run import ModelRun, runtime

VerifierName = Literal["none", "hellinger", "top-k", "spec-k"]
Normaliser = Literal["per_seq_mean", "valid_tokens", "selected_tokens", "class_mean"]


@dataclass(frozen=True, kw_only=True)
class TrainOptions(ModelRun):
    """Distil a student from a teacher, with or without selection."""

    teacher: str = "embedded:teacher"
    """Teacher p: a directory, a hub name, or embedded:teacher."""
    student: str = "embedded:student"
    """Student q before training: a directory, a hub name, a train record, or embedded:student."""
    recipe: str = "kd"
    """Where the text comes from and what is minimised: see `selectkd-eval list recipes`."""
    variant: str = ""
    """A named deviation of the recipe, such as what its public code does: `list recipes --explain NAME`."""
    set: tuple[str, ...] = ()
    """The recipe's own constants, as NAME=VALUE: `list recipes --explain NAME` names them."""
    divergence: str | None = None
    """Override the divergence of a recipe that has one: nll, fkl, rkl, skl, srkl, jsd, tvd ..."""
    verifier: VerifierName | None = None
    """Which tokens are worth learning from: none (plain), hellinger (Eq. 7), top-k (Eq. 9), spec-k (Eq. 12). By
    default the recipe's, which is none for all but speckd."""
    k: int | None = None
    """Proposals or ranks that the verifier looks at. By default 5 (the paper's)."""
    beta: float | None = None
    """Weight of a rejected token; 0 masks it. By default 0.01 (the paper's), in speckd 0."""
    spec_sampled: bool = False
    """Spec-k by a draw per token, as printed, instead of its exact expectation 1 - TV^k."""
    alpha: float | None = None
    """Override the recipe's skew of skl and srkl (0.1)."""
    beta_jsd: float | None = None
    """Override the recipe's mixing weight of jsd."""
    temperature: float | None = None
    """Override the recipe's softmax temperature of both models in the divergence."""
    normaliser: Normaliser | None = None
    """Override the recipe's: per_seq_mean (Algorithm 1), valid_tokens (whole update), selected_tokens (weight),
    class_mean (easy and hard tokens apart)."""
    reference: str = ""
    """AdaSPEC's third model, frozen: what the student would be after plain distillation. A model or a train record."""
    student_text: tuple[str, ...] = ()
    """Answer records of the student for distillm2, one per epoch, instead of writing them during training."""
    generation_temperature: float | None = None
    """Override the recipe's sampling temperature of text written for training."""
    generation_top_p: float | None = None
    """Override its nucleus."""
    generation_max_new_tokens: int = 512
    """Longest answer written for training, in tokens."""
    generation_batch_size: int = runtime(64)
    """Prompts decoded together."""
    data: str = "mini-gsm:labelled"
    """Training text: a JSONL file of prompt and answer, an answer record, a named set; several with commas."""
    validation: str = "mini-gsm:validation"
    """Held-out text for the validation loss, as `data`."""
    exclude: tuple[str, ...] = ("mini-gsm", "mini-stories")
    """Evaluation sets whose prompts are dropped from the training text."""
    max_length: int = 1024
    """Longest training sequence in tokens, prompt and answer."""
    batch_size: int = 32
    """Sequences per update and device."""
    accumulation: int = 1
    """Forward passes into which an update is cut: less memory, the same loss."""
    steps: int = 0
    """Updates; 0 means `epochs` passes over the text."""
    epochs: float = 2.0
    """Passes over the text when steps is 0 (the paper: 2; mathematics 1)."""
    lr: float = 5e-5
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Learning-rate schedule after warm-up."""
    warmup: float = 0.1
    """Share of the updates spent warming up."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay."""
    clip: float = 1.0
    """Largest gradient norm."""
    lora_rank: int = 0
    """0 trains every weight; otherwise LoRA of this rank on all linear layers."""
    lora_alpha: int = 128
    """LoRA's scale, before division by the rank."""
    lora_dropout: float = 0.05
    """LoRA's dropout."""
    keep_adapter: bool = False
    """Save the LoRA adapter alone instead of the merged student."""
    eval_every: int = 50
    """Updates between validations; 0 means only at the end."""
    patience: int = 0
    """Stop after this many validations without a better loss; 0 never stops early."""
    save_every: int = 50
    """Updates between checkpoints, from which a killed run resumes."""
    keep_checkpoints: int = 2
    """How many checkpoints stay on disk; 0 keeps all (for TAR curves)."""
    teacher_noise: float = 0.0
    """Stress test: share of positions at which the teacher is made confidently wrong."""
    method: str = ""
    """Label in tables; empty means one made from recipe and verifier."""
    save: Path | None = runtime(None)
    """Directory of the trained student; by default beside the record."""
    bf16: bool = False
    """Train in bfloat16 autocast."""
    gradient_checkpointing: bool = runtime(False)
    """Recompute activations in the backward pass: less memory, more time."""
    teacher_cache: Path | None = runtime(None)
    """Directory for the teacher's hidden states of fixed text: from the second epoch on no teacher forward."""
    head: Literal["chunked", "full"] = runtime("chunked")
    """How the loss meets the vocabulary: in chunks of tokens without ever holding all logits, or with them."""
    chunk: int = runtime(0)
    """Tokens per chunk; 0 chooses by the vocabulary."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = runtime("sdpa")
    """Attention implementation of both models."""
    pack: bool = runtime(False)
    """Put the texts of a forward pass one after the other in one row instead of padding them (for flash attention)."""
