"""TAR is 1 for identical models, equals the definition position by position, and does not depend on the
batching.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import TinyPair, tiny_llama

from selectkd_eval import answer, measures, pair, prompts, records, tar
from selectkd_eval.errors import InputError
from selectkd_eval.verbs import AnswerOptions, TarOptions


def options(tiny_pair: TinyPair, out: Path, **changes) -> TarOptions:
    given = {
        "teacher": str(tiny_pair.teacher),
        "student": (str(tiny_pair.student),),
        "data": str(tiny_pair.data),
        "limit": 7,
        "threads": 1,
        "device": "cpu",
        "out": out,
    }
    return TarOptions(**given | changes)


def measured(chosen: TarOptions) -> dict[str, dict]:
    tar.run(chosen)
    (path,) = Path(chosen.out).glob("tar-*.jsonl")
    return {row["key"]: row for row in records.read(path).rows}


def test_identical_models_have_tar_one_and_no_divergence(tiny_pair, tmp_path, capsys):
    rows = measured(options(tiny_pair, tmp_path, student=(str(tiny_pair.teacher),)))
    assert len(rows) == 7
    for row in rows.values():
        for what in ("greedy", "greedy1", "spec", "alpha"):
            assert row[what] == pytest.approx(row["n_tokens"], abs=1e-5)
        assert row["fkl"] == pytest.approx(0, abs=1e-5)
    assert measures.tar(rows.values(), 0).value == 1
    assert "TAR greedy-5" in capsys.readouterr().out


@torch.inference_mode()
def test_sums_follow_the_definitions_position_by_position(tiny_pair, tmp_path):
    rows = measured(options(tiny_pair, tmp_path))
    p, q = pair.load_model(str(tiny_pair.teacher)), pair.load_model(str(tiny_pair.student))
    for prompt in prompts.load_prompts(str(tiny_pair.data), 7).prompts:
        ids, response = prompts.encode_example(p.tokenizer, prompt.text, prompt.answer, 100)
        log_p = p.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        log_q = q.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        greedy = spec = overlap = kl = likelihood = 0.0
        for t in range(1, len(ids)):
            if not response[t]:
                continue
            a, b = log_p[t - 1], log_q[t - 1]
            greedy += float(int(b.argmax()) in a.topk(5).indices.tolist())
            spec += 1 - float(0.5 * (a.exp() - b.exp()).abs().sum()) ** 5
            overlap += float(torch.minimum(a.exp(), b.exp()).sum())
            kl += float((a.exp() * (a - b)).sum())
            likelihood -= float(b[ids[t]])
        row = rows[f"0/{prompt.id}"]
        assert row["n_tokens"] == sum(response)
        assert row["greedy"] == greedy
        assert row["spec"] == pytest.approx(spec, abs=1e-4)
        assert row["alpha"] == pytest.approx(overlap, abs=1e-4)
        assert row["fkl"] == pytest.approx(kl, abs=1e-4)
        assert row["nll"] == pytest.approx(likelihood, abs=1e-3)
        assert row["greedy1"] <= row["greedy"] and row["alpha"] <= row["spec"]


def test_the_batch_size_and_other_students_change_nothing(tiny_pair, tmp_path):
    alone = measured(options(tiny_pair, tmp_path / "a", batch_size=1))
    together = measured(
        options(tiny_pair, tmp_path / "b", batch_size=4, student=(str(tiny_pair.teacher), str(tiny_pair.student)))
    )
    for key, row in alone.items():
        other = together["1" + key[1:]]
        for what in ("greedy", "spec", "alpha", "fkl", "nll", "hellinger", "teacher_entropy"):
            assert row[what] == pytest.approx(other[what], rel=1e-4, abs=1e-4)


def test_bins_add_up_to_the_totals_of_their_row(tiny_pair, tmp_path):
    rows = measured(options(tiny_pair, tmp_path, batch_size=3))
    (path,) = tmp_path.glob("tar-*.jsonl")
    facts = records.read(path).facts
    for row in rows.values():
        for by, edges in (("by_entropy", facts["entropy_edges"]), ("by_position", facts["position_edges"])):
            bins = row[by]
            assert all(len(values) == len(edges) + 1 for values in bins.values())
            assert sum(bins["n"]) == row["n_tokens"]
            for what in ("greedy", "spec", "alpha"):
                assert sum(bins[what]) == pytest.approx(row[what], abs=1e-5)
                assert all(0 <= value <= n + 1e-6 for value, n in zip(bins[what], bins["n"], strict=True))


@torch.inference_mode()
def test_a_token_is_in_the_bin_of_its_teachers_entropy_and_of_its_place(tiny_pair, tmp_path):
    rows = measured(options(tiny_pair, tmp_path))
    p = pair.load_model(str(tiny_pair.teacher))
    for prompt in prompts.load_prompts(str(tiny_pair.data), 7).prompts:
        ids, response = prompts.encode_example(p.tokenizer, prompt.text, prompt.answer, 100)
        log_p = p.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        entropies = [float(-(log_p[t - 1].exp() * log_p[t - 1]).sum()) for t in range(1, len(ids)) if response[t]]
        by_entropy, by_place = [0] * (len(tar.ENTROPY_EDGES) + 1), [0] * (len(tar.POSITION_EDGES) + 1)
        for place, entropy in enumerate(entropies):
            by_entropy[sum(entropy >= edge for edge in tar.ENTROPY_EDGES)] += 1
            by_place[sum(place >= edge for edge in tar.POSITION_EDGES)] += 1
        row = rows[f"0/{prompt.id}"]
        assert row["by_entropy"]["n"] == by_entropy
        assert row["by_position"]["n"] == by_place


@pytest.mark.parametrize("k", [1, 3, 7])
def test_spec_k_is_one_minus_tv_to_the_k_exactly(k):
    generator = torch.Generator().manual_seed(k)
    log_p, log_q = (torch.randn(50, 40, generator=generator).mul(2).log_softmax(-1) for _ in range(2))
    tv = (log_p.double().exp() - log_q.double().exp()).abs().sum(-1) / 2
    found = tar.quantities(log_p, log_q, torch.zeros(50, dtype=torch.long), k)
    assert found["spec"].double() == pytest.approx(1 - tv**k, abs=1e-6)
    assert found["alpha"].double() == pytest.approx(1 - tv, abs=1e-6)


def test_both_means_stand_on_the_terminal_and_can_differ(tiny_pair, tmp_path, capsys):
    rows = measured(options(tiny_pair, tmp_path)).values()
    macro, pooled = (measures.tar(rows, 0, "alpha", mean).value for mean in (True, False))
    assert macro == pytest.approx(sum(row["alpha"] / row["n_tokens"] for row in rows) / len(rows))
    assert pooled == pytest.approx(sum(row["alpha"] for row in rows) / sum(row["n_tokens"] for row in rows))
    first, second = capsys.readouterr().out.split("(Eq. 13)")
    assert f"{macro:.4f}" in first
    assert f"{pooled:.4f}" in second and "pooled over all response tokens" in second


def test_text_of_the_students_own_is_called_on_policy(tiny_pair, tmp_path, capsys):
    given = {"limit": 4, "max_new_tokens": 6, "threads": 1, "device": "cpu", "out": tmp_path / "answers"}
    answer.run(AnswerOptions(model=str(tiny_pair.student), prompts=str(tiny_pair.data), name="own", **given))
    (text,) = (tmp_path / "answers").glob("answer-*.jsonl")
    capsys.readouterr()
    students = (str(tiny_pair.student), str(tiny_pair.teacher))
    measured(options(tiny_pair, tmp_path / "tar", data=str(text), limit=4, student=students))
    out = capsys.readouterr().out
    assert f"written by {tiny_pair.student}: on-policy for {tiny_pair.student};" in out.replace("\n", ";")
    (path,) = (tmp_path / "tar").glob("tar-*.jsonl")
    (author,) = records.read(path).facts["written_by"]
    assert author["fingerprint"] == pair.load_model(str(tiny_pair.student)).card.fingerprint
    measured(options(tiny_pair, tmp_path / "given"))
    assert "written by" not in capsys.readouterr().out


def test_a_record_begun_without_a_breakdown_goes_on_without_one(tiny_pair, tmp_path):
    chosen = options(tiny_pair, tmp_path, batch_size=2)
    tar.run(chosen)
    (path,) = tmp_path.glob("tar-*.jsonl")
    header, *rows = (json.loads(line) for line in path.read_text().splitlines()[:3])
    for name in ("entropy_edges", "position_edges"):
        del header["facts"][name]
    for row in rows:
        del row["by_entropy"], row["by_position"]
    path.write_text("".join(records.canonical(line) + "\n" for line in (header, *rows)))
    tar.run(chosen)
    found = records.read(path)
    assert len(found.rows) == 7
    assert not any("by_entropy" in row for row in found.rows)
    assert measures.tar(found.rows, 0).value > 0
    assert measures.tar_by(found.rows, 0, "by_entropy", 7) is None


def test_a_stopped_run_measures_only_what_is_missing(tiny_pair, tmp_path):
    chosen = options(tiny_pair, tmp_path, batch_size=2)
    tar.run(chosen)
    (path,) = tmp_path.glob("tar-*.jsonl")
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:4]) + lines[4][:9])
    tar.run(chosen)
    assert path.read_text().splitlines(keepends=True) == lines


def test_a_trained_students_directory_stands_for_its_checkpoints_in_order(tiny_pair, tmp_path):
    student, loaded = tmp_path / "student", pair.load_model(str(tiny_pair.student))
    for seed, name in enumerate(("checkpoint-100", "checkpoint-20", "checkpoint-120")):
        tiny_llama(loaded.tokenizer, seed=seed).save_pretrained(student / name)
        loaded.tokenizer.save_pretrained(student / name)
    shutil.copytree(student / "checkpoint-120", student, dirs_exist_ok=True)
    names = tar.expand([str(student)])
    assert names == [str(student / "checkpoint-20"), str(student / "checkpoint-100"), str(student)]
    rows = measured(options(tiny_pair, tmp_path / "out", student=(str(student),), limit=2))
    assert [row["step"] for row in rows.values()] == [20, 20, 100, 100, None, None]


def test_prompts_without_answers_are_refused(tiny_pair, tmp_path):
    bare = tmp_path / "bare.jsonl"
    bare.write_text(json.dumps({"prompt": "Say 1 :"}) + "\n")
    with pytest.raises(InputError, match="without answers"):
        tar.run(options(tiny_pair, tmp_path, data=str(bare)))


@pytest.mark.parametrize("wrong", [{"k": 0}, {"batch_size": 0}, {"limit": 0}, {"student": ()}])
def test_impossible_requests_are_refused(tiny_pair, tmp_path, wrong):
    with pytest.raises(InputError):
        tar.run(options(tiny_pair, tmp_path, **wrong))
