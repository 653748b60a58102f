"""What is asked: prompts of an exact number of words, and how long the answers shall be.

A prompt is common four-letter English words with single spaces: one word is one token for the simulator and for nearly
every BPE vocabulary (a leading space and four letters). As all words have one length, a prompt is a slice of one long
text. Its first three words are a serial number, so that no two prompts share a prefix that a server could have cached.
"""

from __future__ import annotations

import math
import random
from statistics import NormalDist
from typing import NamedTuple, Protocol

import stacks

_ENCODED = tuple(
    b"""
    able also area away back ball band bank base bell best bill bird blue boat body bone book born both call calm
    camp card care case cash city club coal coat cold come cook cool copy corn cost crew crop dark data date dawn
    deal dear deep desk dish door down draw drop dust each earn east easy edge even ever exit face fact fair fall
    farm fast feel file fill film find fine fire fish five flag flat flow food foot form four free from fuel full
    game gate gift girl give glad goal gold good grow half hall hand hard have head hear heat help here high hill
    hold home hope hour huge idea inch iron item join jump just keep kind king know lake land last late lead left
    less life lift like line list
    """.split()
)
_BASE = len(_ENCODED)
_WIDTH = 5
_SERIALS = _BASE**3
_TEXT_WORDS = 1 << 16
_LENGTHS = 4096
_GOLDEN = (math.sqrt(5) - 1) / 2


_FIRST = tuple(word + b" " for word in _ENCODED)
_PAIRS = tuple(a + b for b in _FIRST for a in _FIRST)


class Ask(NamedTuple):
    """One request to be: `content` is a prompt ready to stand within JSON quotes, or a JSON list of chat messages."""

    content: bytes
    output_tokens: int
    prompt_tokens: int
    messages: bool = False


class Source(Protocol):
    """Where the asks come from."""

    def __call__(self, serial: int) -> Ask:
        """The ask of that number; the same number and seed give the same ask."""
        ...


def lengths(tokens: stacks.Tokens, seed: int, limit: int = 1 << 30) -> list[int]:
    """4096 lengths with the asked mean and coefficient of variation, log-normal, shuffled by `seed`, each in 1..limit.

    They are the distribution's quantiles at evenly spaced shares and not random draws, so that two runs differ in order
    only and no run is faster than another because it drew shorter answers.
    """
    if tokens.cv == 0:
        return [min(limit, max(1, round(tokens.mean)))]
    sigma2 = math.log1p(tokens.cv**2)
    mu, sigma = math.log(tokens.mean) - sigma2 / 2, math.sqrt(sigma2)
    normal = NormalDist()
    drawn = [math.exp(mu + sigma * normal.inv_cdf((i + 0.5) / _LENGTHS)) for i in range(_LENGTHS)]
    # The tails that lie outside the outermost quantiles are missing from the mean: put them back.
    scale = tokens.mean / (sum(drawn) / _LENGTHS)
    whole = [min(limit, max(1, round(value * scale))) for value in drawn]
    random.Random(seed).shuffle(whole)
    return whole


class Synthetic:
    """Prompts and answer lengths from `stacks.Traffic`. `context_tokens` bounds prompt plus answer, if known."""

    def __init__(self, traffic: stacks.Traffic, seed: int, context_tokens: int | None = None) -> None:
        limit = context_tokens or 1 << 30
        outputs = lengths(traffic.output_tokens, seed, max(1, limit - 1))
        prompts = lengths(traffic.prompt_tokens, seed + 1, max(1, limit - 1))
        # Words of the prompt and tokens of the answer, of each serial number in turn: one pair where both are constant.
        self.lengths = [
            (min(prompts[i % len(prompts)], max(1, limit - outputs[i % len(outputs)])), outputs[i % len(outputs)])
            for i in range(max(len(prompts), len(outputs)))
        ]
        self._text = _text(seed, max(_TEXT_WORDS, 2 * max(prompts)))
        self._spare = len(self._text) // _WIDTH - max(prompts)
        self._first = seed * 1_000_003 % _SERIALS

    def __call__(self, serial: int) -> Ask:
        prompt, output = self.lengths[serial % len(self.lengths)]
        return Ask(self.words(serial, prompt), output, prompt)

    def words(self, serial: int, count: int) -> bytes:
        """`count` words that begin like no others; at most as many as the longest prompt has."""
        number = (self._first + serial) % _SERIALS
        # The first word changes fastest, so that prompts differ from their first token on.
        high, low = divmod(number, _BASE)
        head = _FIRST[low] + _PAIRS[high]
        if count <= 3:
            return head[: count * _WIDTH - 1]
        start = serial * 7919 % self._spare * _WIDTH
        return head + self._text[start : start + (count - 3) * _WIDTH - 1]


def _text(seed: int, count: int) -> bytes:
    return b" ".join(random.Random(seed).choices(_ENCODED, k=count)) + b" "


class SharedPrefix:
    """Prompts that begin alike, as those with one system prompt do: one of `groups` beginnings.

    Prompts are as long as the traffic says, prefix included; one that is shorter than the prefix is a part of it and a word of
    its own. `hit_rate`: the share of requests that begin so; the others have a beginning of their own. `context_tokens`
    bounds prompt plus answer, if known.
    """

    def __init__(
        self, traffic: stacks.Traffic, seed: int, *, prefix_tokens: int, groups: int = 1, hit_rate: float = 1.0,
        context_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self._whole = Synthetic(traffic, seed, context_tokens)
        long = traffic.model_copy(update={"prompt_tokens": stacks.Tokens(mean=float(max(1, prefix_tokens)))})
        self._own = Synthetic(long, seed + 7919)
        self._prefixes = [self._own(group).content for group in range(groups)]
        self._prefix_tokens, self._hit_rate = prefix_tokens, hit_rate

    def __call__(self, serial: int) -> Ask:
        whole = self._whole(serial)
        # Multiples of the golden ratio are spread evenly: any stretch of requests has the share.
        if serial * _GOLDEN % 1.0 < self._hit_rate:
            prefix = self._prefixes[serial % len(self._prefixes)]
        else:
            prefix = self._own(len(self._prefixes) + serial).content
        shared = min(self._prefix_tokens, whole.prompt_tokens - 1)
        if shared <= 0:
            return whole
        rest = self._whole.words(serial, whole.prompt_tokens - shared)
        return Ask(b"%b %b" % (prefix[: shared * _WIDTH - 1], rest), whole.output_tokens, whole.prompt_tokens)


class Conversation:
    """Synthetic conversations of several turns: each ask is a user's turn after all that was said before.

    `together` conversations go on at the same time, so that a turn follows the one before after as many other requests:
    what a prefix cache has to hold is what it would be with so many people. An assistant's earlier answers are as long as
    the traffic says answers are; the first turn's prompt is as long as the traffic says, each further one a quarter of it.
    Where all of it and the answer would not fit into `context_tokens`, the oldest turns are left out, as clients do.
    """

    def __init__(
        self, traffic: stacks.Traffic, seed: int, *, turns: int, together: int, context_tokens: int | None = None
    ) -> None:
        self._turns, self._together, self._limit = turns, together, context_tokens or 1 << 30
        self._first = Synthetic(traffic, seed, context_tokens)
        later = stacks.Tokens(mean=max(1.0, traffic.prompt_tokens.mean / 4), cv=traffic.prompt_tokens.cv)
        self._later = Synthetic(traffic.model_copy(update={"prompt_tokens": later}), seed + 15_485_863)
        answers = traffic.model_copy(update={"prompt_tokens": traffic.output_tokens})
        self._answers = Synthetic(answers, seed + 32_452_843)

    def __call__(self, serial: int) -> Ask:
        round_, place = divmod(serial, self._together)
        number, turn = round_ // self._turns * self._together + place, round_ % self._turns
        said: list[tuple[bytes, int]] = []
        for past in range(turn + 1):
            ask = (self._first if past == 0 else self._later)(number * self._turns + past)
            said.append((b'{"role":"user","content":"%b"}' % ask.content, ask.prompt_tokens))
            if past < turn:
                answer = self._answers(number * self._turns + past)
                said.append((b'{"role":"assistant","content":"%b"}' % answer.content, answer.prompt_tokens))
        tokens = sum(count for _, count in said)
        # A user's turn and its answer go together.
        while len(said) > 2 and tokens + ask.output_tokens > self._limit:
            tokens -= said[0][1] + said[1][1]
            del said[:2]
        return Ask(b"[" + b",".join(text for text, _ in said) + b"]", ask.output_tokens, tokens, True)
