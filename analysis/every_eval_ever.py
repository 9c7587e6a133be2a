"""pass@k and win rates as every-eval-ever JSON, schema 0.3.0 (github.com/evaleval/every_eval_ever, MIT).

Per record one aggregate file, with our intervals as its uncertainty, and one file of instances, a line per answer or
verdict, which the aggregate names with its sha256. A name, a number or a text that the record does not hold is left
out; where the schema insists, the field says "unknown". Scores are shares between 0 and 1.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID

from analysis.files import put
from analysis.load import Library
from selectkd_eval import pass_rates, passk_notes, stats, win_rates
from selectkd_eval.environment import sha256_file
from selectkd_eval.errors import InputError
from selectkd_eval.measures import Terms
from selectkd_eval.records import Record, canonical
from selectkd_eval.verbs import ExportOptions

SCHEMA = "0.3.0"
UNKNOWN = "unknown"
Json = dict[str, Any]


def export(library: Library, options: ExportOptions) -> list[str]:
    """Two files per record, where the project's own collection has them: data/BENCHMARK/DEVELOPER/MODEL/UUID."""
    found = [record for record in library.records if record.verb in ("passk", "regrade", "winrate")]
    if not found:
        raise InputError("there is no passk and no winrate record here: every-eval-ever takes scores of those")
    lines = []
    for record in found:
        place = _place(record)
        rows = "".join(canonical(instance) + "\n" for instance in instances(record))
        put(Path(options.out) / f"{place}_samples.jsonl", rows)
        content = json.dumps(aggregate(library, record, rows.encode()), indent=2, ensure_ascii=False, sort_keys=True)
        path = put(Path(options.out) / f"{place}.json", content + "\n")
        lines.append(f"{path}  {rows.count(chr(10)):,} instances")
    return lines


def aggregate(library: Library, record: Record, instance_file: bytes) -> Json:
    """The file of a record's scores; `instance_file` are the bytes that it is to name."""
    header, facts = record.header, record.facts
    when = str(int(record.path.stat().st_mtime))
    imported = facts.get("imported") or {}
    tool = {"name": imported.get("tool") or "selectkd-eval", "version": str(imported.get("version") or UNKNOWN)}
    if not imported:
        tool["version"] = str(header.get("version") or UNKNOWN)
    return {
        "schema_version": SCHEMA,
        "evaluation_id": _evaluation_id(record),
        # The only time that a record has: when its last row was written.
        "evaluation_timestamp": when,
        "retrieved_timestamp": when,
        "source_metadata": {
            "source_name": record.path.name,
            "source_type": "evaluation_run",
            "source_organization_name": UNKNOWN,
            "evaluator_relationship": "other",
            "additional_details": {"record_sha256": sha256_file(record.path), "record": record.path.name},
        },
        "eval_library": {
            **tool,
            "additional_details": _texts({"exported_by": f"selectkd-eval {header.get('version')}"}),
        },
        "model_info": _model_info(library, _card(record), not imported),
        "evaluation_results": list(_results(record)),
        "detailed_evaluation_results": {
            "format": "jsonl",
            "file_path": f"{_place(record)}_samples.jsonl",
            "hash_algorithm": "sha256",
            "checksum": hashlib.sha256(instance_file).hexdigest(),
            "total_rows": instance_file.count(b"\n"),
        },
    }


def instances(record: Record) -> Iterator[Json]:
    """One line per answer or verdict that is in the score: failed ones are not, nor ties where they are excluded."""
    if record.verb == "winrate" and win_rates.tie_rule(record) == "agreement":
        yield from _agreed(record)
        return
    make = _verdict if record.verb == "winrate" else _answer
    for row in record.good:
        if (made := make(record, row)) is not None:
            yield made


# ---- scores ------------------------------------------------------------


def _results(record: Record) -> Iterator[Json]:
    if record.verb == "winrate":
        yield _win_result(record)
        return
    for task in sorted(record.facts["tasks"]):
        for k in record.facts.get("k") or [1]:
            terms = pass_rates.pass_at(record.rows, task, k)
            if not terms.den.sum():
                continue
            told = record.facts["tasks"][task]
            metric = {
                "metric_id": "pass_at_k",
                "metric_name": f"pass@{k}",
                "metric_kind": "pass_rate",
                "metric_parameters": {"k": k},
                "evaluation_description": f"problems solved; grader {passk_notes.grader_of(record.facts, task)}",
            }
            yield {
                "evaluation_result_id": _result_id(record, task, k),
                "evaluation_name": task,
                "source_data": _source(task, {"sha256": told.get("sha256"), "n": told.get("n")}),
                "metric_config": {**metric, **_SHARE},
                "score_details": _score(terms),
                "generation_config": _generation(record, task),
            }


def _win_result(record: Record) -> Json:
    facts = record.facts
    prompts, judge, protocol = (facts.get(name) or {} for name in ("prompts", "judge", "protocol"))
    asked = {"name": judge.get("name"), "kind": judge.get("kind"), "note": judge.get("note")}
    # The prompt of a protocol is known by its digest; published judgements do not hold it.
    scoring = {
        "judges": [{"model_info": _model_info(None, judge.get("model") or judge), "additional_details": _texts(asked)}],
        "input_prompt": f"protocol {protocol.get('name', UNKNOWN)}, sha256 {protocol.get('sha256', UNKNOWN)}",
        "additional_details": _texts({name: protocol.get(name) for name in ("order", "ties", "source")}),
    }
    baseline = facts.get("baseline") or {}
    return {
        "evaluation_result_id": _result_id(record, "winrate", 1),
        "evaluation_name": _evaluation(record),
        "source_data": _source(
            str(prompts.get("name") or UNKNOWN), {name: prompts.get(name) for name in ("sha256", "n")}
        ),
        "metric_config": {
            "metric_id": "win_rate",
            "metric_name": f"win rate over {baseline.get('name', UNKNOWN)}",
            "metric_kind": "win_rate",
            "evaluation_description": win_rates.TIES[win_rates.tie_rule(record)],
            "llm_scoring": scoring,
            **_SHARE,
        },
        "score_details": _score(win_rates.win_rate(record)),
    }


_SHARE = {
    "metric_unit": "proportion",
    "lower_is_better": False,
    "score_type": "continuous",
    "min_score": 0.0,
    "max_score": 1.0,
}


def _score(terms: Terms) -> Json:
    """The number with its interval and analytic standard error, both over prompts or problems."""
    found = terms.estimate()
    some = terms.den > 0
    uncertainty: Json = {"num_samples": int(found.n)}
    if found.spread:
        interval = {"lower": found.low, "upper": found.high, "confidence_level": 0.95, "method": found.method}
        uncertainty["confidence_interval"] = interval
        if "bootstrap" in found.method:
            uncertainty["num_bootstrap_samples"] = stats.RESAMPLES
    if int(some.sum()) > 1:
        error = float(stats.standard_error(terms.num[some], terms.den[some]))
        uncertainty["standard_error"] = {"value": error, "method": "linearised ratio, clustered by prompt"}
    return {"score": found.value, "uncertainty": uncertainty}


def _generation(record: Record, task: str) -> Json:
    generation = record.facts.get("generation") or {}
    told = (generation.get("decoding") or {}).get(task) or {}
    arguments = {name: told.get(name) for name in ("temperature", "top_p")}
    if isinstance(told.get("max_new_tokens"), int) and told["max_new_tokens"] > 0:
        arguments["max_tokens"] = told["max_new_tokens"]
    details = {
        "stops": canonical(told.get("stops") or []),
        "seeds": generation.get("seeds"),
        "chat": generation.get("chat"),
        "system": generation.get("system"),
        "shots": record.facts["tasks"][task].get("shots"),
    }
    return {"generation_args": arguments, "additional_details": _texts(details)}


# ---- instances ------------------------------------------------------------


def _answer(record: Record, row: Mapping[str, Any]) -> Json | None:
    if "problem" not in row:
        return None
    task, gold = str(row["task"]), row.get("gold")
    made = _instance(
        record, task, f"{row['problem']}/{row.get('seed', 0)}/{row.get('sample', 0)}", _result_id(record, task, 1)
    )
    reference = [] if gold is None else [str(gold)]
    made["input"] = {"raw": str(row.get("question") or ""), "reference": reference}
    made["output"] = {"raw": [str(row.get("completion") or "")]}
    extracted = {"turn_idx": 0, "source": "output.raw", "extracted_value": str(row.get("extracted") or "")}
    method = passk_notes.grader_of(record.facts, task)
    made["answer_attribution"] = [{**extracted, "extraction_method": method, "is_terminal": True}]
    made["evaluation"] = {"score": float(row.get("correct", 0)), "is_correct": bool(row.get("correct", 0))}
    if row.get("doc_hash"):
        made["sample_hash"] = str(row["doc_hash"])
    inside, out = row.get("n_prompt_tokens"), row.get("n_tokens")
    if isinstance(inside, int) and isinstance(out, int):
        made["token_usage"] = {"input_tokens": inside, "output_tokens": out, "total_tokens": inside + out}
    told = {"finish": row.get("finish"), "outcome": row.get("outcome"), "prompt_sha256": row.get("prompt_sha256")}
    made["metadata"] = _texts({**told, **(row.get("strata") or {})})
    return made


def _verdict(record: Record, row: Mapping[str, Any]) -> Json | None:
    words = {"candidate": 1.0, "baseline": 0.0}
    if win_rates.tie_rule(record) != "excluded":
        words["tie"] = 0.5
    share = words.get(str(row.get("verdict")))
    if share is not None and row.get("preference") is not None:
        share = row["preference"]
    if share is None:
        return None
    told = {name: row.get(name) for name in ("verdict", "order", "reason", "task")}
    return _judged(record, str(row["key"]), str(row["prompt"]), float(share), str(row["verdict"]), told)


def _agreed(record: Record) -> Iterator[Json]:
    """An instance per prompt: under this rule the two orders are one verdict."""
    terms = win_rates.win_rate(record)
    for prompt, num, den in zip(terms.prompts, terms.num, terms.den, strict=True):
        if den:
            share = float(num / den)
            word = {1.0: "candidate", 0.0: "baseline"}.get(share, "tie")
            rows = [row for row in record.good if str(row["prompt"]) == prompt]
            told = {"orders": ", ".join(f"{row.get('order')}: {row['verdict']}" for row in rows)}
            yield _judged(record, prompt, prompt, share, word, told)


def _judged(record: Record, sample: str, prompt: str, share: float, word: str, told: Json) -> Json:
    made = _instance(record, _evaluation(record), sample, _result_id(record, "winrate", 1))
    # Rows of verdicts hold no texts; the prompt is named by its digest.
    made["input"] = {"raw": f"prompt {prompt}", "reference": []}
    made["output"] = {"raw": []}
    found: Json = {"turn_idx": 0, "source": "judge", "extracted_value": word}
    found["extraction_method"] = str((record.facts.get("judge") or {}).get("kind") or UNKNOWN)
    made["answer_attribution"] = [{**found, "is_terminal": True}]
    made["evaluation"] = {"score": share, "is_correct": share > 0.5}
    made["metadata"] = _texts(told)
    return made


def _instance(record: Record, name: str, sample: str, result: str) -> Json:
    return {
        "schema_version": SCHEMA,
        "evaluation_id": _evaluation_id(record),
        "model_id": str(_card(record).get("name") or UNKNOWN),
        "evaluation_name": name,
        "evaluation_result_id": result,
        "sample_id": sample,
        "interaction_type": "single_turn",
    }


# ---- names ------------------------------------------------------------


def _place(record: Record) -> str:
    """Where a record's files go. The UUID is made of the record's digest, so that the same record has the same."""
    name = str(_card(record).get("name") or UNKNOWN)
    developer, _, model = name.rpartition("/")
    # A model of the hub is called after who made it; the folder of a directory on this machine says no such thing.
    folders = [
        _evaluation(record),
        developer if name.count("/") == 1 and developer not in ("", ".", "..") else UNKNOWN,
        model,
    ]
    words = [re.sub(r"[^\w.+-]+", "-", folder).strip(".-") or UNKNOWN for folder in folders]
    digest = UUID(bytes=bytes.fromhex(sha256_file(record.path))[:16], version=4)
    return "/".join(("data", *words, str(digest)))


def _card(record: Record) -> Mapping[str, Any]:
    return record.facts.get("candidate") or record.facts.get("model") or {}


def _evaluation(record: Record) -> str:
    if record.verb == "winrate":
        return f"{(record.facts.get('prompts') or {}).get('name') or UNKNOWN} win rate"
    return "+".join(sorted(record.facts["tasks"]))


def _evaluation_id(record: Record) -> str:
    return f"{_evaluation(record)}/{_card(record).get('name') or UNKNOWN}/{int(record.path.stat().st_mtime)}"


def _result_id(record: Record, task: str, k: int) -> str:
    return f"{record.path.stem}/{task}/{k}"


def _model_info(library: Library | None, card: Mapping[str, Any], weighed: bool = True) -> Json:
    """A model by its card; `weighed`: the card's digest is one of its weights, which an imported card's is not."""
    name = str(card.get("name") or UNKNOWN)
    details = {"deployment_type": UNKNOWN, "model_availability": UNKNOWN}
    told = {
        "weights_sha256": card.get("fingerprint") if weighed else None,
        "parameters": card.get("parameters"),
        "method": library.label(library.method(card)) if library and card else None,
        "training_seed": card.get("seed"),
    }
    return {"name": name, "id": name, "additional_details": {**details, **_texts(told)}}


def _source(name: str, told: Mapping[str, Any]) -> Json:
    return {"dataset_name": name, "source_type": "other", "additional_details": _texts(told)}


def _texts(told: Mapping[str, Any]) -> dict[str, str]:
    """The schema's further details are texts; what is not known is left out."""
    return {
        name: value if isinstance(value, str) else canonical(value)
        for name, value in told.items()
        if value not in (None, "")
    }
