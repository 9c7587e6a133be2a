"""Whatever stands in a foreign file, it is imported or refused: no other exception, whatever value is where."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selectkd_eval import records
from selectkd_eval.errors import InputError
from selectkd_eval.exchange.importing import run
from selectkd_eval.verbs import ImportOptions

Files = dict[str, Any]


def lm_eval() -> Files:
    samples = [
        {"doc_id": n, "doc": {"question": f"q{n}"}, "target": "1", "arguments": {}, "resps": [["1"]]}
        | {"filtered_resps": ["1"], "filter": "none", "metrics": ["acc"], "acc": float(n % 2)}
        | dict.fromkeys(("doc_hash", "prompt_hash", "target_hash"), "a" * 64)
        for n in range(2)
    ]
    results = {
        "results": {"sums": {"alias": "sums", "acc,none": 0.5}},
        "group_subtasks": {},
        "configs": {
            "sums": {"output_type": "generate_until", "generation_kwargs": {"until": ["\n"], "do_sample": False}}
        },
        "versions": {"sums": 1},
        "n-shot": {"sums": 0},
        "n-samples": {"sums": {"original": 2, "effective": 2}},
        "config": {"model": "hf", "model_args": "pretrained=m", "model_sha": "b"},
        "model_name": "m",
        "lm_eval_version": "0.4.13",
    }
    return {"results_d.json": results, "samples_sums_d.jsonl": samples}


def alpaca_eval() -> Files:
    sides = {"output_1": "a", "output_2": "b", "generator_1": "old", "generator_2": "new", "annotator": "j"}
    entries = [{"instruction": f"i{n}", **sides, "preference": 1.0, "dataset": "koala"} for n in range(2)]
    return {"annotations.json": entries}


def spec_bench() -> Files:
    def answers(lengths: list[int], model: str) -> list[Any]:
        turn = {"turns": ["t"], "decoding_steps": [len(lengths)], "new_tokens": [4], "wall_time": [0.5]}
        head = {"category": "qa", "answer_id": "x", "model_id": model, "tstamp": 0.0}
        choices = [{"index": 0, **turn, "accept_lengths": lengths}]
        return [{"question_id": n, **head, "choices": copy.deepcopy(choices)} for n in range(2)]

    return {"draft.jsonl": answers([2, 2], "draft"), "plain.jsonl": answers([1] * 4, "plain")}


def places(value: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a JSON value."""
    yield above
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from places(item, (*above, key))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = replaced(value[path[0]], path[1:], new)
    return value


def write(folder: Path, files: Files) -> None:
    for name, value in files.items():
        if name.endswith(".jsonl") and isinstance(value, list):
            (folder / name).write_text("".join(json.dumps(row) + "\n" for row in value))
        else:
            (folder / name).write_text(json.dumps(value))


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.just(2**70),
    st.floats(),
    st.text(max_size=3),
    st.just("\ud800"),
    st.just("temp-.."),
    st.just([]),
    st.just({}),
    st.lists(st.one_of(st.integers(-1, 2), st.text(max_size=2), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@pytest.mark.parametrize("make", [lm_eval, alpaca_eval, spec_bench], ids=lambda make: make.__name__)
@settings(max_examples=250, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_value_anywhere_is_imported_or_refused(make, data: st.DataObject) -> None:
    files = make()
    name = data.draw(st.sampled_from(sorted(files)))
    path = data.draw(st.sampled_from(list(places(files[name]))))
    files[name] = replaced(files[name], path, data.draw(ODD))
    with tempfile.TemporaryDirectory() as directory:
        folder, out = Path(directory) / "in", Path(directory) / "out"
        folder.mkdir()
        write(folder, files)
        kind = make.__name__.replace("_", "-")
        baseline = folder / "plain.jsonl" if make is spec_bench else None
        options = ImportOptions(files=(folder,), kind=kind, baseline=baseline, out=out)
        try:
            run(options)
        except InputError as error:
            assert "\n" not in str(error)
            assert not out.exists(), "nothing is half-written"
        else:
            found, *others = records.read_all(out)
            assert found
            assert not any(others)


@pytest.mark.parametrize("make", [lm_eval, alpaca_eval, spec_bench], ids=lambda make: make.__name__)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_bytes_lost_or_changed_are_imported_or_refused(make, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        folder, out = Path(directory) / "in", Path(directory) / "out"
        folder.mkdir()
        write(folder, make())
        path = folder / data.draw(st.sampled_from(sorted(file.name for file in folder.iterdir())))
        content = path.read_bytes()
        place = data.draw(st.integers(0, len(content)))
        path.write_bytes(
            data.draw(st.sampled_from([content[:place], content[place:]])) + data.draw(st.binary(max_size=3))
        )
        baseline = folder / "plain.jsonl" if make is spec_bench else None
        try:
            run(ImportOptions(files=(folder,), kind=make.__name__.replace("_", "-"), baseline=baseline, out=out))
        except InputError as error:
            assert "\n" not in str(error)
            assert not out.exists()
