"""Which judge does a command name? The presets, a file of judges of one's own, or any model at an address.

The five judges of the paper's Figure 5 are a table. Their prices and limits were noted from public price pages on
the day that each row says, and change: check them. A table [NAME] of `judges.toml` adds a judge or changes fields of
a known one; options of the command line come before both. What stands in the file is checked field by field, so
that a misspelt limit is a sentence and not a surprise on the bill. Keys have no place in it.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from judges.judge import OPENAI, Judge
from judges.protocols import PROTOCOLS
from selectkd_eval.errors import InputError
from selectkd_eval.served import checked_url
from selectkd_eval.verbs import WinrateOptions

_OPENAI_NAMES = ("gpt-", "chatgpt-", "o1", "o3", "o4")
THINKING_REPLY = 8192  # tokens: what is thought before the answer counts
_THINKS = ("gpt-5", "o1", "o3", "o4")  # these fix the temperature and name the length limit otherwise
_OPENAI_NOTE = "2026-11, from copies of OpenAI's pages; limits are those of usage tier 1"

PRESETS: dict[str, Judge] = {
    judge.name: judge
    for judge in (
        Judge(
            name="gpt-4o",
            model="gpt-4o",
            base_url=OPENAI,
            requests_per_minute=500,
            tokens_per_minute=30_000,
            states_limits=True,
            price_in=2.5,
            price_in_cached=1.25,
            price_out=10.0,
            batch_discount=0.5,
            context=128_000,
            noted=_OPENAI_NOTE,
        ),
        Judge(
            name="gpt-4o-mini",
            model="gpt-4o-mini",
            base_url=OPENAI,
            requests_per_minute=500,
            tokens_per_minute=200_000,
            states_limits=True,
            price_in=0.15,
            price_in_cached=0.075,
            price_out=0.6,
            batch_discount=0.5,
            context=128_000,
            noted=_OPENAI_NOTE,
        ),
        Judge(
            name="deepseek-chat",
            model="deepseek-chat",
            base_url="https://api.deepseek.com/v1",
            key_variable="DEEPSEEK_API_KEY",
            price_in=0.30,
            price_in_cached=0.006,
            price_out=1.20,
            seed=False,
            context=64_000,
            noted="2026-10, from a copy of DeepSeek's page: its Flash model at peak hours, which is the dearest",
        ),
        Judge(
            name="qwen-plus",
            model="qwen-plus",
            base_url="https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
            key_variable="DASHSCOPE_API_KEY",
            requests_per_minute=600,
            tokens_per_minute=1_000_000,
            price_in=0.4,
            price_out=1.2,
            batch_discount=0.5,
            extra_body={"enable_thinking": False},
            context=131_072,
            noted="2025, from Alibaba's international page, not looked at since; a key of mainland China needs "
            "https://dashscope.aliyuncs.com/compatible-mode/v1",
        ),
        Judge(
            name="moonshot-v1-8k",
            model="moonshot-v1-8k",
            base_url="https://api.moonshot.ai/v1",
            key_variable="MOONSHOT_API_KEY",
            requests_per_minute=200,
            concurrency=50,
            price_in=0.2,
            price_out=2.0,
            seed=False,
            logprobs=False,
            context=8_192,
            noted="2025, from Moonshot's page, not looked at since; limits of tier 1 (without a payment: 3 requests a "
            "minute, one at a time); a key of mainland China needs https://api.moonshot.cn/v1",
        ),
    )
}


def find(options: WinrateOptions) -> Judge:
    """The judge that the options name: a preset, one of the judge file, or any model at --base-url.

    A name that OpenAI's models begin with is asked at OpenAI. Raises InputError with the nearest name otherwise.
    """
    known = all_judges(options.judge_file)
    address = checked_url(options.base_url)
    if options.judge in known:
        judge = known[options.judge]
    elif address or options.judge.startswith(_OPENAI_NAMES):
        judge = _unlisted(options.judge, address or OPENAI)
    else:
        near = difflib.get_close_matches(options.judge, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(
            f"there is no judge called {options.judge!r}; {hint}known: {', '.join(known)}; for any other served model "
            f"give its address with --base-url or a table [{options.judge}] in {options.judge_file}"
        )
    if address and address != judge.base_url:
        # Another address is another account: its limits are not known, its replies say nothing of OpenAI's.
        judge = replace(judge, base_url=address, requests_per_minute=0, tokens_per_minute=0, states_limits=False)
    if options.key_variable:
        _check_variable("--key-variable", options.key_variable)
        judge = replace(judge, key_variable=options.key_variable)
    return _with_limits(judge, options)


def _with_limits(judge: Judge, options: WinrateOptions) -> Judge:
    """The limits of the command line before the judge's own; what a server states does not overrule the user."""
    asked = {name: value for name in ("requests_per_minute", "tokens_per_minute") if (value := getattr(options, name))}
    return replace(judge, **asked, states_limits=False) if asked else judge


def _unlisted(name: str, address: str) -> Judge:
    thinks = name.startswith(_THINKS)
    judge = Judge(name=name, model=name, base_url=address)
    if address != OPENAI:
        return judge
    judge = replace(judge, states_limits=True, batch_discount=0.5)
    if not thinks:
        return judge
    return replace(
        judge, temperature=False, logprobs=False, max_tokens_name="max_completion_tokens", max_tokens=THINKING_REPLY
    )


def all_judges(file: Path) -> dict[str, Judge]:
    """The presets, with what the judge file changes or adds. Only one that was named must exist."""
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if file != WinrateOptions.judge_file:  # named, so meant: its limits and prices must not be missing in silence
            raise InputError(f"there is no judge file {file}: correct --judge-file") from None
        return dict(PRESETS)
    except OSError as error:
        raise InputError(f"cannot read the judge file {file} ({error.strerror}): give another --judge-file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"the judge file {file} is no TOML ({error}): correct it") from None
    return PRESETS | {name: _from_table(file, name, table) for name, table in tables.items()}


def _from_table(file: Path, name: str, table: Any) -> Judge:
    """One table of the judge file, over the preset of its name where there is one."""
    if not isinstance(table, dict):
        raise InputError(f"{name!r} in {file} stands outside a table: put a line [NAME] above the judge's fields")
    where = f"[{name}] in {file}"
    for key, value in table.items():
        if key not in _TYPES:
            near = difflib.get_close_matches(key, _TYPES, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(_TYPES)}"
            if "key" in key and key != "key_variable":
                hint = "keys stay in the environment: name the variable with key_variable"
            raise InputError(f"{where} has a field {key!r}, which no judge has; {hint}")
        _check(where, key, value)
    given = {**table, **({"base_url": checked_url(table["base_url"], where)} if "base_url" in table else {})}
    if name in PRESETS:
        return replace(PRESETS[name], **given)
    if "base_url" not in given and not name.startswith(_OPENAI_NAMES):
        raise InputError(f'{where} says not where the judge answers: add base_url = "https://.../v1"')
    return replace(_unlisted(given.get("model", name), given.get("base_url", OPENAI)), name=name, **given)


_TYPES: dict[str, tuple[type, ...]] = {
    field.name: {
        "str": (str,), "int": (int,), "float | None": (int, float), "bool": (bool,), "Mapping[str, Any]": (dict,)
    }.get(str(field.type), (str,))
    for field in fields(Judge)
    if field.name != "name"
}  # fmt: skip
_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


def _check(where: str, name: str, value: Any) -> None:
    wanted: Any = _TYPES[name]
    if not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted):
        raise InputError(f"{name} of {where} must be {_WORDS[wanted[-1]]}, but {value!r} was given")
    if isinstance(value, int | float) and not 0 <= value < float("inf"):
        raise InputError(f"{name} of {where} must be 0 or more, but {value!r} was given")
    if name in ("model", "base_url") and not value.strip():
        raise InputError(f"{name} of {where} is empty: say which, or leave the line out")
    if name == "extra_body":
        _check_extra(f"{name} of {where}", value)
    if name == "key_variable":
        _check_variable(f"{name} of {where}", value)
    if name == "batch_discount" and value > 1:
        raise InputError(f"batch_discount of {where} is a share of the price, at most 1, but {value!r} was given")
    if name == "max_tokens_name" and value not in ("max_tokens", "max_completion_tokens"):
        raise InputError(f"{name} of {where} is max_tokens or max_completion_tokens, but {value!r} was given")


# What a request says already, or what would change the form of its reply.
_TAKEN = {"model", "messages", "stream", "stream_options", "n"}.union(*(one.decoding for one in PROTOCOLS.values()))
_SECRET = re.compile(r"api[_-]?key|secret|password|authorization|credential|bearer|^key$", re.IGNORECASE)


def _check_extra(what: str, value: Any) -> None:
    """Fields that are sent with every request: they stand in the record, and none may undo what the protocol says."""
    for name, entry in value.items():
        if name in _TAKEN:
            raise InputError(f"{what} sets {name!r}, which is the protocol's or the program's to say: leave it out")
        if _SECRET.search(name):
            raise InputError(f"{what} has {name!r}, which would end up in the record: keys stay in the environment")
        if isinstance(entry, dict):
            _check_extra(f"{name} in {what}", entry)
            continue
        try:
            json.dumps(entry, allow_nan=False)
        except (TypeError, ValueError):
            raise InputError(f"{what} has {name} = {entry!r}, which no request can carry: correct it") from None


def _check_variable(what: str, value: str) -> None:
    # Whoever puts the key itself here must not read it again in an error, or in a record.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise InputError(f"{what} is no name of an environment variable: export the key, and give the variable's name")


def line(judge: Judge) -> str:
    """One judge in one line: model, host, price, limits."""
    model = "" if judge.model == judge.name else f"{judge.model} "
    return f"{model}at {judge.host}, {prices(judge)}, {limits(judge)}"


def limits(judge: Judge) -> str:
    """How fast it may be asked, in words."""
    numbers = ((judge.requests_per_minute, "requests"), (judge.tokens_per_minute, "tokens"))
    said = " and ".join(f"{n:,} {what}" for n, what in numbers if n)
    return f"{said} a minute" if said else "no limit of its own"


def prices(judge: Judge) -> str:
    """Price per million tokens in words."""
    if judge.price_in is None or judge.price_out is None:
        return "price unknown"
    return f"US$ {judge.price_in:g} in and {judge.price_out:g} out per million tokens"


def explained(judge: Judge) -> str:
    """Every field, and how to write a judge of one's own."""
    rows = asdict(judge)
    lines = [line(judge), *(f"  {name} = {_toml(value)}" for name, value in rows.items() if name != "name")]
    example = [
        "",
        "A judge of your own, or another value for a known one, goes into judges.toml (--judge-file), for example:",
        "",
        "  [my-judge]",
        '  model = "Qwen/Qwen2.5-72B-Instruct"',
        '  base_url = "http://localhost:8000/v1"',
        '  key_variable = "MY_KEY"',
        "  price_in = 0.0",
        "  price_out = 0.0",
        "  context = 32768",
        "",
        f"  [{judge.name}]" if "." not in judge.name else f'  ["{judge.name}"]',
        "  tokens_per_minute = 450000",
    ]
    return "\n".join(lines + example)


def _toml(value: Any) -> str:
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {_toml(entry)}" for name, entry in value.items()) + "}"
    return f'"{value}"' if isinstance(value, str) else str(value)
