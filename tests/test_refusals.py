"""A training that cannot be meant is refused in one sentence, before a model is loaded or a record begun."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from selectkd_eval.cli import main
from selectkd_eval.errors import SetupError
from selectkd_eval.pair import load_model

WRONG = {
    "--recipe gkd --set lambda=1 lambda=0": "gives lambda twice",
    "--recipe gkd --set lambda=2": r"lambda lies in \[0, 1\]",
    "--recipe gkd --beta-jsd 2": r"beta_jsd must lie in \[0, 1\]",
    "--recipe gkd --generation-max-new-tokens 0": "--generation-max-new-tokens must be at least 1",
    "--recipe gkd --generation-batch-size 0": "--generation-batch-size must be at least 1",
    "--recipe gkd --generation-temperature -1": "--generation-temperature must not be negative",
    "--recipe gkd --generation-top-p 0": r"--generation-top-p lies in \(0, 1\]",
    "--recipe kd --generation-top-p 0.9": "trains on --data as it is",
    "--recipe distillm --alpha 2": r"alpha must lie in \[0, 1\]",
    "--recipe distillm --set capacity=1.5": "capacity is a count",
    "--recipe distillm --set decreasing=0.5": "decreasing is either 0 or 1",
    "--recipe skd --set teacher_top_p=0": "a nucleus holds at least one token",
    "--recipe skd --set top_k=0": "top_k must be at least 1",
    "--recipe skd --teacher-cache DIR": "written anew for every update",
    "--recipe taid --set t_start=0.9 t_end=0.1": "t_start must not lie above t_end",
    "--recipe distillm2 --set alpha_low=0.5": "alpha_low must not lie above alpha_high",
    "--recipe distillm2 --alpha 0.3": "--set alpha0=",
    "--recipe distillm2 --student-text nowhere.jsonl": "cannot read the record nowhere.jsonl",
    "--recipe akl --set head=2": r"head must lie in \[0, 1\]",
    "--recipe adakd --set ema=2": r"ema lies in \[0, 1\]",
    "--recipe kd --reference embedded:student": "kd has no use for",
    "--recipe kd --student-text nowhere.jsonl": "kd trains on dataset text",
    "--recipe kd --keep-adapter": "--lora-rank is 0",
    "--recipe kd --lora-rank 2 --lora-alpha 0": "--lora-alpha must be at least 1",
    "--recipe kd --chunk -1": "--chunk must be at least 0",
    "--recipe kd --accumulation 33": "cannot be cut into",
}  # fmt: skip


@pytest.mark.parametrize("words", WRONG)
def test_one_sentence_and_nothing_begun(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "records"
    assert main(["train", *words.replace("DIR", str(tmp_path / "cache")).split(), "--out", str(out)]) == 2
    [sentence] = capsys.readouterr().err.splitlines()
    assert re.search(WRONG[words], sentence), sentence
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_an_attention_that_is_not_installed_is_one_sentence() -> None:
    with pytest.raises(SetupError, match=r"--attention flash_attention_2 cannot be used here .* use --attention sdpa"):
        load_model("embedded:student", attention="flash_attention_2")
