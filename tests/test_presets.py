"""Judges as data: the table, the file of one's own, what the command line overrules, and how a request is worded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from judges import presets
from judges.judge import OPENAI, Judge
from judges.protocols import PROTOCOLS
from selectkd_eval.errors import InputError
from selectkd_eval.listing import run
from selectkd_eval.verbs import ListOptions, WinrateOptions

NOWHERE = Path(os.devnull)
SELECTKD = PROTOCOLS["selectkd"]


def named(judge: str, **options: object) -> Judge:
    return presets.find(WinrateOptions(judge=judge, **{"judge_file": NOWHERE, **options}))  # type: ignore[arg-type]


def written(directory: Path, text: str) -> Path:
    path = directory / "judges.toml"
    path.write_text(text)
    return path


def test_the_judges_of_figure_5_are_there_each_with_its_own_key_and_price() -> None:
    assert list(presets.PRESETS) == ["gpt-4o", "gpt-4o-mini", "deepseek-chat", "qwen-plus", "moonshot-v1-8k"]
    variables = [judge.key_variable for judge in presets.PRESETS.values()]
    assert variables == [f"{who}_API_KEY" for who in ("OPENAI", "OPENAI", "DEEPSEEK", "DASHSCOPE", "MOONSHOT")]
    for name, judge in presets.PRESETS.items():
        assert judge.name == name and judge.base_url.startswith("https://") and judge.noted
        assert 0 < (judge.price_in or 0) < (judge.price_out or 0)
        assert (judge.price_in_cached or 0) < (judge.price_in or 0) and judge.context >= 8192


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("judge", presets.PRESETS.values(), ids=lambda judge: judge.name)
def test_a_request_is_the_protocols_words_and_what_differs_is_said(judge: Judge, name: str) -> None:
    protocol = PROTOCOLS[name]
    if protocol.decoding.get("logprobs") and not judge.logprobs:
        with pytest.raises(InputError, match="log-probabilities"):
            judge.request(protocol, [])
        return
    request = judge.request(protocol, [{"role": "user", "content": "x"}])
    assert request["model"] == judge.model
    if not judge.deviations(protocol):
        assert {key: request[key] for key in request if key not in ("model", "messages")} == protocol.decoding


def test_a_judge_that_thinks_gets_no_temperature_and_its_length_by_another_name() -> None:
    judge = named("o3-mini")
    assert judge.base_url == OPENAI and judge.decoding(SELECTKD) == {"max_completion_tokens": presets.THINKING_REPLY}
    assert judge.deviations(SELECTKD) == [
        "temperature 0 is not sent: the judge takes none",
        f"a reply may have {presets.THINKING_REPLY} tokens instead of 1024",
    ]
    assert judge.facts(SELECTKD)["deviations"] == judge.deviations(SELECTKD)


def test_a_name_of_openai_needs_no_address_and_any_other_needs_one() -> None:
    assert named("gpt-4.1").base_url == OPENAI and named("gpt-4.1").temperature
    assert named("gpt-5-nano").temperature is False
    served = named("Qwen/Qwen2.5-72B-Instruct", base_url="http://localhost:8000/v1/")
    assert served.base_url == "http://localhost:8000/v1" and served.facts(SELECTKD)["family"] == "Qwen"
    with pytest.raises(InputError, match=r"did you mean 'qwen-plus'\? .* --base-url or a table \[qwen-pls\]"):
        named("qwen-pls")


def test_the_command_line_comes_before_the_table() -> None:
    judge = named("gpt-4o", base_url="http://localhost:1/v1", key_variable="MY_KEY")
    assert (judge.base_url, judge.key_variable, judge.model) == ("http://localhost:1/v1", "MY_KEY", "gpt-4o")
    # Another address is another account: OpenAI's limits for this one are not its limits.
    assert not judge.limited and not judge.states_limits and judge.price_in == 2.5
    judge = named("gpt-4o", requests_per_minute=7)
    assert (judge.requests_per_minute, judge.tokens_per_minute, judge.states_limits) == (7, 30_000, False)


def test_what_can_change_a_reply_is_the_judges_identity_and_nothing_else_is(tmp_path: Path) -> None:
    plain = presets.PRESETS["qwen-plus"]
    same = written(tmp_path, '["qwen-plus"]\nprice_in = 9\ntokens_per_minute = 5\nkey_variable = "OTHER"\n')
    assert named("qwen-plus", judge_file=same).sha256 == plain.sha256
    digests = {plain.sha256}
    for line in (
        'model = "qwen-plus-2025-04-28"',
        "max_tokens = 9",
        'base_url = "https://x/v1"',
        "temperature = false",
    ):
        digests.add(named("qwen-plus", judge_file=written(tmp_path, f"[qwen-plus]\n{line}\n")).sha256)
    digests.add(
        named("qwen-plus", judge_file=written(tmp_path, "[qwen-plus.extra_body]\nenable_thinking = true")).sha256
    )
    assert len(digests) == 6


def test_a_file_adds_judges_and_changes_known_ones(tmp_path: Path) -> None:
    file = written(
        tmp_path,
        '[mine]\nmodel = "Qwen/Qwen2.5-7B"\nbase_url = "http://localhost:8000/v1/"\nprice_in = 0\nprice_out = 0\n'
        "[mine.extra_body]\nchat_template_kwargs = {enable_thinking = false}\n"
        '["gpt-4.1"]\nprice_in = 2\nprice_out = 8.0\n[gpt-4o]\ntokens_per_minute = 450_000\n',
    )
    mine = named("mine", judge_file=file)
    assert mine.model == "Qwen/Qwen2.5-7B" and mine.base_url == "http://localhost:8000/v1" and mine.price_out == 0
    assert mine.decoding(SELECTKD)["chat_template_kwargs"] == {"enable_thinking": False}
    assert named("gpt-4.1", judge_file=file).price_out == 8 and named("gpt-4.1", judge_file=file).base_url == OPENAI
    assert named("gpt-4o", judge_file=file).tokens_per_minute == 450_000
    assert named("gpt-4o", judge_file=file).price_in == 2.5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[gpt-4o]\nprice_inn = 1", r"a field 'price_inn', which no judge has; did you mean 'price_in'\?"),
        ('[gpt-4o]\napi_key = "sk-secret"', "keys stay in the environment"),
        ('[gpt-4o]\nkey_variable = "sk-secret"', "no name of an environment variable"),
        ('[gpt-4o]\nprice_in = "sk-secret-free"', "must be a number"),
        ("[gpt-4o]\nrequests_per_minute = true", "must be a whole number"),
        ("[gpt-4o]\nrequests_per_minute = -1", "must be 0 or more"),
        ("[gpt-4o]\nprice_in = nan", "must be 0 or more"),
        ("[gpt-4o]\nbatch_discount = 50", "at most 1"),
        ('[gpt-4o]\nmax_tokens_name = "tokens"', "is max_tokens or max_completion_tokens"),
        ('[gpt-4o]\nbase_url = "localhost:8000"', r"\[gpt-4o\] in .* is no address"),
        ('[gpt-4o]\nbase_url = "https://me:sk-secret@x/v1"', "which would end up in the record"),
        ('[mine]\nmodel = "x"', "says not where the judge answers"),
        ('[gpt-4o]\nbase_url = ""', "base_url of .* is empty"),
        ('[gpt-4o]\nmodel = " "', "model of .* is empty"),
        ('[gpt-4o]\nextra_body = {messages = "x"}', "sets 'messages', which is the protocol's"),
        ("[gpt-4o]\nextra_body = {temperature = 0.7}", "sets 'temperature', which is the protocol's"),
        ("[gpt-4o]\nextra_body = {day = 2026-01-01}", "which no request can carry"),
        ("[gpt-4o]\nextra_body = {odd = nan}", "which no request can carry"),
        ('[gpt-4o]\nextra_body = {api_key = "sk-secret"}', "has 'api_key', which would end up in the record"),
        ('[gpt-4o]\nextra_body = {x = {Authorization = "sk-secret"}}', "x in extra_body of .* has 'Authorization'"),
        ("price_in = 1", "stands outside a table"),
        ("[gpt-4o", "is no TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says) as caught:
        named("gpt-4o", judge_file=written(tmp_path, text))
    assert "\n" not in str(caught.value) or "no TOML" in says
    assert "sk-secret" not in str(caught.value).replace("sk-secret-free", "")


def test_a_key_in_the_place_of_its_variables_name_is_not_repeated() -> None:
    with pytest.raises(InputError, match="--key-variable is no name") as caught:
        named("gpt-4o", key_variable="sk-secret")
    assert "sk-secret" not in str(caught.value)


@given(st.text(max_size=60))
def test_whatever_the_file_holds_only_a_sentence_is_raised(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "judges.toml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            presets.all_judges(path)
        except InputError as error:
            assert str(error)


def test_the_list_names_every_judge_and_its_example_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(ListOptions(what="judges", judge_file=NOWHERE)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(presets.PRESETS)
    assert all("US$" in line and " at " in line for line in lines)
    assert run(ListOptions(what="judges", explain="gpt-4o", judge_file=NOWHERE)) == 0
    fields, example = capsys.readouterr().out.split("for example:\n")
    assert "  price_in = 2.5\n" in fields and '  key_variable = "OPENAI_API_KEY"\n' in fields
    file = written(tmp_path, example)
    assert presets.all_judges(file)["my-judge"].context == 32768
    assert run(ListOptions(what="judges", judge_file=file)) == 0
    assert "my-judge" in capsys.readouterr().out


def test_the_list_waits_for_no_sdk() -> None:
    code = (
        "import sys; from selectkd_eval.listing import run; from selectkd_eval.verbs import ListOptions\n"
        "run(ListOptions(what='judges')); print(sorted({'torch', 'openai', 'scipy', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_seed_is_sent_only_to_a_judge_that_takes_one() -> None:
    from dataclasses import replace

    seeded = replace(SELECTKD, decoding=MappingProxyType({"temperature": 0.0, "max_tokens": 8, "seed": 3}))
    assert presets.PRESETS["gpt-4o"].decoding(seeded)["seed"] == 3
    assert "seed" not in presets.PRESETS["deepseek-chat"].decoding(seeded)
    assert presets.PRESETS["deepseek-chat"].deviations(seeded) == ["seed 3 is not sent: the judge takes none"]


def test_a_judge_file_that_was_named_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no judge file .*mine\.toml: correct --judge-file"):
        named("gpt-4o", judge_file=tmp_path / "mine.toml")
    assert named("gpt-4o", judge_file=WinrateOptions().judge_file).price_in == 2.5
