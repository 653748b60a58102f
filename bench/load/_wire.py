"""The two dialects on the wire: a request as bytes, and what can be told from the bytes of a reply without parsing it.

A streamed reply is read raw. Frames are counted by the bytes that begin one, and only the first frames (is this a
token, or only the announcement of a role?) and the last ones (usage, end of stream) are looked into. JSON text cannot
contain a bare line break or an unescaped quote, so these byte patterns cannot occur inside a generated text.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

import orjson

import stacks

from ._prompts import Ask, Source, Synthetic

Engine = Literal["ollama", "vllm", "openai"]
TAIL_BYTES = 4096

# A frame with a token in it, however a server names the text.
_TOKEN = re.compile(
    rb'"(?:content|response|text|thinking|reasoning|reasoning_content)":\s*"[^"]|"tool_calls":\s*\[\s*\{'
)
_ROLE = re.compile(rb'"role":\s*"assistant"')
_SILENT = re.compile(rb'"choices":\s*\[\s*\]|"delta":\s*\{\s*\}|"done":\s*true')
_ERROR = re.compile(rb'(?:data:\s*|\n|^)\{\s*"(?:error"|object":\s*"error")')
_CHUNK = re.compile(rb"\r\n[0-9A-Fa-f]{1,8}\r\n")
# Of no more digits than 64 bits hold; a row of the records has 31 for a count.
_NUMBER = re.compile(rb":\s*(\d{1,18})(?!\d)")
_MOST_TOKENS = (1 << 31) - 1
_OLLAMA_TIMES = (b'"total_duration"', b'"load_duration"', b'"prompt_eval_duration"', b'"eval_duration"')
_DONE_OLLAMA = re.compile(rb'"done":\s*true')
_RETRY_AFTER = re.compile(rb"\r\nretry-after:[ \t]*([^\r\n]{1,40}?)[ \t]*\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,9})[ \t]*(?=\r\n|$)", re.IGNORECASE)
_UNUSUAL = re.compile(rb"\r\n(?:transfer-encoding:|connection:[ \t]*close|content-encoding:)", re.IGNORECASE)
REMEMBERED = 4096
UNKNOWN = -1
_NAN = float("nan")


@dataclass(frozen=True, kw_only=True)
class Target:
    """The service to load.

    `url`: http(s)://host[:port][/prefix]. `engine`: `ollama` speaks NDJSON on /api/…, `vllm` and `openai` speak SSE on
    /v1/…; `openai` leaves out what only vLLM knows (`ignore_eos`). `endpoint`: chat, or plain generation (Ollama
    generate, OpenAI completions). `headers` are added to every request, `api_key` as a bearer token. `extra`: keys
    added to every body. `ca_file`: trusted instead of the system's; `insecure`: any certificate is accepted.
    """

    url: str
    engine: Engine
    model: str
    endpoint: Literal["chat", "generate"] = "chat"
    stream: bool = True
    api_key: str = field(default="", repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    extra: dict[str, Any] = field(default_factory=dict)
    ca_file: str = ""
    insecure: bool = False

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            port_ok = parts.port is None or parts.port > 0
        except ValueError:
            port_ok = False
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok or parts.query or parts.fragment:
            raise stacks.InputError(
                where="url",
                got=parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
                allowed="http(s)://host[:port][/prefix]",
                fix="give the address of the service",
            )
        if "@" in parts.netloc:
            # An address stands in results, reports and evidence.
            raise stacks.InputError(
                where="url",
                got="an address with a user or a password in it",
                allowed="http(s)://host[:port][/prefix]",
                fix="give credentials as a header, or in $TOLLGATE_API_KEY",
            )
        for name, value in (*self.headers, ("api key", self.api_key)):
            if any(c in name + value for c in "\r\n\0"):
                raise stacks.InputError(where=f"header {name}", got="a line break", allowed="one line", fix="remove it")

    @property
    def host(self) -> str:
        return str(urlsplit(self.url).hostname)

    @property
    def port(self) -> int:
        parts = urlsplit(self.url)
        return parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def path(self) -> str:
        """What stands before the API's own paths."""
        return urlsplit(self.url).path.rstrip("/").removesuffix("/v1")

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context, or None for plain HTTP. Raises InputError when the CA file cannot be read."""
        if urlsplit(self.url).scheme != "https":
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise stacks.InputError(
                where="ca file", got=f"{self.ca_file}: {error}", allowed="a readable PEM file", fix="correct the path"
            ) from error
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def base_headers(self) -> list[tuple[str, str]]:
        """The headers of every request, Host first."""
        default = {"http": 80, "https": 443}[urlsplit(self.url).scheme]
        name = f"[{self.host}]" if ":" in self.host else self.host
        host = name if self.port == default else f"{name}:{self.port}"
        bearer = [("Authorization", f"Bearer {self.api_key}")] if self.api_key else []
        return [("Host", host), ("User-Agent", "tollgate-bench"), *bearer, *self.headers]


class Reply(NamedTuple):
    """What the last bytes of a reply tell. `problem`: empty, or why the reply is not one. Counts are UNKNOWN (-1) where
    the server did not say. `silent`: frames at the end that carry no token. `queued`: seconds the server says that the
    request waited, nan where it does not say."""

    problem: str
    tokens_in: int
    tokens_out: int
    silent: int
    cached: int = UNKNOWN
    queued: float = _NAN


class Wire:
    """Renders asks and reads replies for one target. Immutable, so that all connections share one."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.stream = target.stream
        self.ollama = target.engine == "ollama"
        self.marker = b'\n{"' if self.ollama else b"\ndata: {"
        chat = target.endpoint == "chat"
        path = {
            (True, True): "/api/chat",
            (True, False): "/api/generate",
            (False, True): "/v1/chat/completions",
            (False, False): "/v1/completions",
        }[self.ollama, chat]
        self.path = target.path + path
        lines = [f"POST {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in target.base_headers())]
        lines += ["Content-Type: application/json", "Content-Length: "]
        self._head = "\r\n".join(lines).encode()
        body = orjson.dumps({"model": target.model, **target.extra})[:-1]
        self._messages = body + b',"messages":' if chat else b""
        if chat:
            self._before, after = body + b',"messages":[{"role":"user","content":"', b'"}]'
        else:
            self._before, after = body + b',"prompt":"', b'"'
        if self.ollama:
            options = b',"stream":%b,"options":{"num_predict":' % (b"true" if self.stream else b"false")
            self._close = b"}}"
        else:
            usage = b',"stream":true,"stream_options":{"include_usage":true}' if self.stream else b""
            eos = b',"ignore_eos":true' if target.engine == "vllm" else b""
            options = usage + eos + b',"max_tokens":'
            self._close = b"}"
        # What has been read once need not be read again: heads with the length of their body.
        self.heads: dict[bytes, int] = {}
        self._frames: dict[tuple[int, int], tuple[bytes, bytes]] = {}
        self._after_messages, self._after = options, after + options

    def request(self, ask: Ask) -> bytes:
        """The whole HTTP request."""
        if ask.messages:
            body = b"%b%b%b%d%b" % (
                self._messages, ask.content, self._after_messages, ask.output_tokens, self._close,
            )  # fmt: skip
            return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        key = (len(ask.content), ask.output_tokens)
        before, after = self._frames.get(key) or self._frame(*key)
        return before + ask.content + after

    def requests(self, source: Source, serials: Iterable[int]) -> Iterator[bytes]:
        """`request` of one ask after the other."""
        return (
            self._synthetic(source, serials) if type(source) is Synthetic else map(self.request, map(source, serials))
        )

    def _synthetic(self, source: Synthetic, serials: Iterable[int]) -> Iterator[bytes]:
        """What most runs send: without an `Ask` in between, which costs as much as all the rest."""
        lengths, words, frames = source.lengths, source.words, self._frames
        for serial in serials:
            prompt, output = lengths[serial % len(lengths)]
            content = words(serial, prompt)
            before, after = frames.get((len(content), output)) or self._frame(len(content), output)
            yield before + content + after

    def _frame(self, length: int, output_tokens: int) -> tuple[bytes, bytes]:
        """Prompts of one length and answers of one length: everything but the words is the same."""
        after = b"%b%d%b" % (self._after, output_tokens, self._close)
        size = len(self._before) + length + len(after)
        if len(self._frames) >= REMEMBERED:
            self._frames.clear()
        frame = self._frames[length, output_tokens] = b"%b%d\r\n\r\n%b" % (self._head, size, self._before), after
        return frame

    def body_bytes(self, head: bytes) -> int:
        """How long the body of a good reply with this head is; -1 where only a parser can tell."""
        found = _LENGTH.findall(head)
        plain = head.startswith(b"HTTP/1.1 200") and len(found) == 1 and not _UNUSUAL.search(head)
        if len(self.heads) >= REMEMBERED:
            # A server that sends the time has new heads every second.
            self.heads.clear()
        self.heads[head] = int(found[0]) if plain else -1
        return self.heads[head]

    def is_token(self, frame: bytes) -> bool:
        """Whether a frame carries a token: text, or nothing but without being only a role, a usage or an end."""
        if _TOKEN.search(frame):
            return True
        return not (_ROLE.search(frame) and not self.ollama) and not _SILENT.search(frame)

    def reply(self, tail: bytes) -> Reply:
        """Read the end of a complete reply: at most TAIL_BYTES, and all of it when it is shorter."""
        if self.ollama:
            found = self._ollama(tail)
        elif self.stream:
            found = self._sse(tail)
        else:
            found = self._whole(tail)
        if found.problem or found.tokens_out == UNKNOWN:
            if b'"error"' in tail and _ERROR.search(tail):
                return Reply("stream_error" if self.stream else "error_body", UNKNOWN, UNKNOWN, 0)
            # A proxy may cut chunks anywhere, even within the words that are looked for.
            joined = _CHUNK.sub(b"", tail)
            if joined != tail and b"\r\n\r\n" not in joined:
                again = self.reply(joined)
                return found if again.problem else again
        return found

    def _ollama(self, tail: bytes) -> Reply:
        # After `done` come the numbers of the context, of which there may be thousands: then the durations say it.
        if b'"done":true' not in tail and b'"eval_duration"' not in tail and not _DONE_OLLAMA.search(tail):
            return Reply("unfinished_stream" if self.stream else "malformed", UNKNOWN, UNKNOWN, 0)
        last = tail[tail.rfind(b"\n{") + 1 :]
        total, *parts = (_last(key, last) for key in _OLLAMA_TIMES)
        return Reply(
            "",
            _count(b'"prompt_eval_count"', last),
            _count(b'"eval_count"', last),
            0 if _TOKEN.search(last) else 1,
            queued=max(0, total - sum(max(0, part) for part in parts)) / 1e9 if total > 0 else _NAN,
        )

    def _sse(self, tail: bytes) -> Reply:
        end = tail[-1024:]
        if b"data: [DONE]" not in end and b"data:[DONE]" not in end:
            return Reply("unfinished_stream", UNKNOWN, UNKNOWN, 0)
        into, out = _count(b'"prompt_tokens"', end), _count(b'"completion_tokens"', end)
        cached = _count(b'"cached_tokens"', end) if b"_tokens_details" in end else UNKNOWN
        return Reply("", into, out, _silent(end), cached)

    def _whole(self, tail: bytes) -> Reply:
        if b'"choices"' not in tail and b'"completion_tokens"' not in tail:
            return Reply("malformed", UNKNOWN, UNKNOWN, 0)
        into, out = _count(b'"prompt_tokens"', tail), _count(b'"completion_tokens"', tail)
        return Reply("", into, out, 0, _count(b'"cached_tokens"', tail[-1024:]))


def retry_after(data: bytes) -> float:
    """Seconds that the head of a reply asks to wait, in either form of RFC 9110, section 10.2.3; 0 where it says nothing."""
    found = _RETRY_AFTER.search(data)
    if found is None:
        return 0.0
    text = found[1].decode("latin-1")
    try:
        return max(0.0, float(text)) if text[0].isdigit() else max(0.0, _moment(text) - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _moment(text: str) -> float:
    return parsedate_to_datetime(text).timestamp()


def _silent(end: bytes) -> int:
    """How many frames without a token stand in the last bytes of a stream."""
    count = end.count(b'"choices":[]') + end.count(b'"delta":{}')
    if not count and (b'": [' in end or b'": {' in end):
        # Some servers write JSON with spaces; what costs more is done for them only.
        return len(_SILENT.findall(end))
    return count


def _count(key: bytes, data: bytes) -> int:
    """The number of tokens that follows the last `key`, or UNKNOWN: also where no row of the records could hold it."""
    found = _last(key, data)
    return found if found <= _MOST_TOKENS else UNKNOWN


def _last(key: bytes, data: bytes) -> int:
    """The number that follows the last `key`, or UNKNOWN."""
    at = data.rfind(key)
    found = _NUMBER.match(data, at + len(key)) if at >= 0 else None
    return int(found[1]) if found else UNKNOWN
