"""Where do open-ended instructions come from when there is no network?  mini-stories, a small grammar.

One item is an instruction with one of its very many good answers::

    Instruction: Write about a dog who lost a red ball.
    Story: One day a small dog ran quickly to the busy park. She lost her red ball near the tall gate. ...

It stands in for the instruction-following half of the paper (evol-instruct, judged win rates). On
arithmetic a teacher is nearly certain of every token and token acceptance starts near 1; here many words
are real choices (over 1 nat per token on average), while who the story is about, what happened to which
thing, the mood and the pronoun must be carried from the instruction to the end.

The split is by the hash of the instruction's content (character, event, adjective, thing), so no held-out
content is trained on. Not here: tokens and sets of fixed size (`corpus`), judging (`judges`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

# ruff: noqa: SIM905 - word lists read better as text

_CHARACTERS = "dog cat girl boy bear frog mouse fox duck king rabbit bird queen pig".split()
_THINGS = "ball hat book cake boat kite bell drum key coin shoe lamp".split()
_ADJECTIVES = "red blue big tiny golden shiny green soft".split()
_EVENTS = {"lost": "sad", "broke": "sad", "forgot": "sad", "found": "glad", "made": "glad", "won": "glad"}

_TIMES = (
    "One day",
    "One morning",
    "Once",
    "Long ago",
    "Last night",
    "Early today",
    "On Sunday",
    "In spring",
    "After lunch",
    "At noon",
)
_SIZES = "small young kind hungry brave quiet lazy clever funny sleepy gentle silly wise proud".split()
_GOING = "went walked ran came hurried flew jumped sailed wandered raced climbed moved strolled crept".split()
_MANNERS = "slowly quickly happily alone again quietly early late straight back softly gladly loudly today".split()
_PLACES = "park river forest market garden beach school farm castle lake hill bridge village mill tower zoo".split()
_LOOKS = "dark sunny cold wide empty pretty noisy distant strange busy foggy green famous secret".split()
_KINDS = "tall broken round heavy white black wooden lovely dusty brown narrow mossy yellow stone".split()
_SPOTS = "tree gate rock wall door bush well house bench cart fence shed stairs post".split()
_NEAR = ("near", "behind", "under", "beside", "by", "at", "close to")
_FEELINGS = {
    "sad": ("sad", "angry", "worried", "upset", "lonely", "sorry"),
    "glad": ("happy", "proud", "excited", "glad", "cheerful", "lucky"),
}
_ACTIONS = {
    "sad": (
        "cried",
        "sat down",
        "looked around",
        "called for help",
        "sighed",
        "searched all night",
        "asked everyone",
    ),
    "glad": ("smiled", "danced", "sang a song", "laughed", "told everyone", "jumped up", "clapped"),
}
_FRIEND_ACTS = {
    "sad": (
        "helped to look for",
        "brought back",
        "paid for",
        "fixed",
        "dreamed about",
        "drew",
        "talked about",
    ),
    "glad": ("played with", "looked at", "painted", "cleaned", "admired", "carried", "talked about"),
}
_ENDINGS = (
    "They were {feeling} {until}.",
    "In the end they {together}.",
    "The {who} said {thanks} to the {friend}.",
    "Then they {together} {until}.",
    "After that the {who} {together} {until}.",
    "The {friend} and the {who} {together}.",
)
_UNTIL = ("until night", "all day", "for a week", "the next day", "until winter", "for hours", "every summer")
_TOGETHER = (
    "went home",
    "ate soup",
    "became friends",
    "had tea",
    "slept well",
    "shared a pie",
    "played games",
    "went fishing",
)
_THANKS = ("thanks", "goodbye", "hello", "sorry", "yes", "nothing")
_INSTRUCTIONS = (
    "Write about a {who} who {event} a {adjective} {thing}.",
    "Tell me about the {who} that {event} a {adjective} {thing}.",
    "Write a story about a {adjective} {thing} that a {who} {event}.",
    "Make up a tale of a {who} who {event} the {adjective} {thing}.",
)


@dataclass(frozen=True)
class Content:
    """What an instruction asks for; the answer must be about it."""

    who: str
    event: str
    adjective: str
    thing: str

    @property
    def key(self) -> str:
        """The content as text, e.g. `dog,lost,red,ball`."""
        return ",".join((self.who, self.event, self.adjective, self.thing))

    def split(self) -> str:
        """`train`, `validation` or `test`: 86 : 4 : 10 by hash of the key, the same on every machine."""
        bucket = int.from_bytes(hashlib.sha256(self.key.encode()).digest()[:4], "big") % 100
        return "test" if bucket < 10 else "validation" if bucket < 14 else "train"


@dataclass(frozen=True)
class Story:
    """One instruction with one of its good answers."""

    instruction: str
    answer: str
    content: Content


def _pick(rng: Random, options: Sequence[str]) -> str:
    """A choice that prefers earlier options mildly (weight 1 / (8 + rank)): words differ in frequency."""
    return rng.choices(options, weights=[1 / (8 + rank) for rank in range(len(options))])[0]


def _opening(rng: Random, words: dict[str, str]) -> str:
    start = f"{_pick(rng, _TIMES)} a {_pick(rng, _SIZES)} {{who}} {_pick(rng, _GOING)}"
    start += f" {_pick(rng, _MANNERS)} to the {_pick(rng, _LOOKS)} {_pick(rng, _PLACES)}"
    if rng.random() < 0.5:
        start += f" with a {_pick(rng, _SIZES)} {{friend}}"
    return (start + ".").format(**words)


def _incident(rng: Random, words: dict[str, str]) -> str:
    article = _pick(rng, ("the", "{her}", "a"))
    where = f"{_pick(rng, _NEAR)} the {_pick(rng, _KINDS)} {_pick(rng, _SPOTS)}"
    return f"{{She}} {{event}} {article} {{adjective}} {{thing}} {where}.".format(**words)


def _reaction(rng: Random, words: dict[str, str], mood: str) -> str:
    verb, action = _pick(rng, ("was", "felt", "looked", "seemed")), _pick(rng, _ACTIONS[mood])
    subject = _pick(rng, ("The {who}", "{She}", "The {who}"))
    degree = _pick(rng, ("very", "so", "quite", "rather", "truly", "really"))
    return f"{subject} {verb} {degree} {{feeling}} and {action}.".format(**words)


def _help(rng: Random, words: dict[str, str], mood: str) -> str:
    friend = _pick(rng, ("The {friend}", "A {size} {friend}", "Then the {friend}")).format(
        size=_pick(rng, _SIZES), **words
    )
    return f"{friend} {_pick(rng, _FRIEND_ACTS[mood])} the {words['thing']}."


def _tell(content: Content, rng: Random) -> str:
    """Three to five sentences about the content."""
    she, her = rng.choice((("She", "her"), ("He", "his")))
    friend = _pick(rng, [name for name in _CHARACTERS if name != content.who])
    mood = _EVENTS[content.event]
    words = {
        "who": content.who,
        "event": content.event,
        "adjective": content.adjective,
        "thing": content.thing,
    }
    words |= {"She": she, "her": her, "friend": friend, "feeling": _pick(rng, _FEELINGS[mood])}
    sentences = [_opening(rng, words), _incident(rng, words), _reaction(rng, words, mood)]
    if rng.random() < 0.6:
        sentences.append(_help(rng, words, mood))
    ending = {"until": _pick(rng, _UNTIL), "together": _pick(rng, _TOGETHER), "thanks": _pick(rng, _THANKS)}
    sentences.append(_pick(rng, _ENDINGS).format(**words, **ending))
    return " ".join(sentences)


def stories(split: str, seed: str, *, repeat_content: bool = True) -> Iterator[Story]:
    """A stream of stories of one split, a pure function of the arguments; endless if contents may repeat.

    Args:
        split: `train`, `validation` or `test`.
        seed: any text; different seeds give different streams over the same split.
        repeat_content: whether two instructions may ask for the same content (in other words).
    """
    rng = Random(f"mini-stories/{split}/{seed}")
    seen: set[str] = set()
    limit = 0 if repeat_content else sum(content.split() == split for content in all_contents())
    while repeat_content or len(seen) < limit:
        content = Content(
            rng.choice(_CHARACTERS), rng.choice(sorted(_EVENTS)), rng.choice(_ADJECTIVES), rng.choice(_THINGS)
        )
        if content.split() != split or (not repeat_content and content.key in seen):
            continue
        seen.add(content.key)
        instruction = rng.choice(_INSTRUCTIONS).format(**vars(content))
        yield Story(instruction, _tell(content, rng), content)


def all_contents() -> Iterator[Content]:
    """Every content that an instruction can ask for."""
    for who in _CHARACTERS:
        for event in sorted(_EVENTS):
            for adjective in _ADJECTIVES:
                for thing in _THINGS:
                    yield Content(who, event, adjective, thing)
