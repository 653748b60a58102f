"""From rows of JSONL, CSV or Parquet to requests: read as a stream, so that memory does not grow with the file."""

from __future__ import annotations

import contextlib
import csv
import io
import string
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import IO, Any, Literal

import orjson

import stacks

from ._files import reading
from ._model import PATHS, Input

Format = Literal["auto", "jsonl", "csv", "parquet"]
_MOST_LINE_BYTES = 64 << 20
_MOST_ID_CHARS = 512
# Nothing but Arrow is called while a file is read, so each of these says that the file is broken: some come from Python itself,
# where values are turned into Python's, and not from Arrow's own class.
_NOT_PARQUET = (ArithmeticError, LookupError, MemoryError, NotImplementedError, OSError, TypeError, ValueError)
_CHAT = ("/v1/chat/completions", "/api/chat")
_TEXT_KEY = {"/v1/completions": "prompt", "/api/generate": "prompt"}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How rows become requests.

    `template`: the prompt with `{column}` for the row's values, `{{` and `}}` for braces; None: the column `prompt` (or the
    only one) is it. `system`: a system message with the same placeholders. `id_column`: gives custom_id; None: a column of
    that name, else `row-<number>` from 1. `path`: where rows are sent that do not say. `model`: replaces the row's own.
    `extra`: further keys of every body, such as max_tokens. Requests in OpenAI's Batch format need nothing of this.
    """

    model: str | None = None
    template: str | None = None
    system: str | None = None
    id_column: str | None = None
    path: str = "/v1/chat/completions"
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise stacks.InputError(where="--path", got=self.path, allowed=", ".join(PATHS), fix="name one of these")


class BadRow(ValueError):
    """A row that is no request. `number`: its line or row, from 1."""

    def __init__(self, number: int, got: str, allowed: str) -> None:
        self.number, self.got, self.allowed = number, got, allowed
        super().__init__(f"line {number}: {got}; allowed: {allowed}")


def read(location: str, recipe: Recipe, format: Format = "auto") -> Iterator[Input | BadRow]:
    """The requests at `location` (a file, `-`, s3:// or gs://), in order; what is none is handed out as BadRow.

    Raises InputError for a file that cannot be read at all.
    """
    kind = _kind(location) if format == "auto" else format
    make = _Maker(recipe)
    with (
        reading(location) as file,
        contextlib.closing({"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[kind](file, location)) as rows,
    ):
        for number, row in rows:
            if isinstance(row, BadRow):
                yield row
                continue
            try:
                yield make(number, row)
            except BadRow as bad:
                yield bad


def _kind(location: str) -> Literal["jsonl", "csv", "parquet"]:
    name = location.partition("?")[0].lower()
    if name.endswith((".jsonl", ".ndjson")) or name == "-":
        return "jsonl"
    if name.endswith(".csv"):
        return "csv"
    if name.endswith((".parquet", ".pq")):
        return "parquet"
    raise stacks.InputError(
        where=location, got="a name that does not tell its format", allowed="….jsonl, ….csv, ….parquet",
        fix="say --format jsonl, csv or parquet",
    )  # fmt: skip


_Rows = Generator[tuple[int, "dict[str, Any] | BadRow"]]


def _jsonl(file: IO[bytes], location: str) -> _Rows:
    number = 0
    while line := file.readline(_MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > _MOST_LINE_BYTES:
            raise stacks.InputError(
                where=f"{location}, line {number}", got=f"more than {_MOST_LINE_BYTES >> 20} MiB in one line",
                allowed="a request in each line", fix="is it JSONL? A JSON array has to be written as lines",
            )  # fmt: skip
        if line.isspace():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            cut = "" if line.endswith(b"\n") else " (the file ends in the middle of it)"
            yield number, BadRow(number, f"not JSON: {error}{cut}", "one JSON object in each line")
            continue
        if isinstance(row, dict):
            yield number, row
        elif isinstance(row, str):
            yield number, {"prompt": row}
        else:
            yield number, BadRow(number, f"a JSON {type(row).__name__}", "an object or a string")


def _csv(file: IO[bytes], location: str) -> _Rows:
    csv.field_size_limit(_MOST_LINE_BYTES)
    # A byte-order mark is what spreadsheets write first.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    reader = csv.DictReader(text, strict=True)
    try:
        for number, row in enumerate(reader, 1):
            if None in row or None in row.values():
                yield number, BadRow(number, "another number of fields than the header has", "one field per column")
            else:
                yield number, dict(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise stacks.InputError(
            where=f"{location}, line {reader.line_num}",
            got=str(error),
            allowed="CSV in UTF-8 with a header",
            fix="correct it",
        ) from None
    finally:
        text.detach()


def _parquet(file: IO[bytes], location: str) -> _Rows:
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError:
        raise stacks.TollgateError(
            "Parquet needs the package pyarrow\n  fix: pip install 'tollgate[parquet]'"
        ) from None
    try:
        # Buffered: pages are read as they are needed, not whole column chunks of a row group.
        found = parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False)
        number = 0
        for batch in found.iter_batches(batch_size=512, use_threads=False):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (arrow.ArrowException, *_NOT_PARQUET) as error:
        raise stacks.InputError(
            where=location,
            got=(str(error) or "an end within it").splitlines()[0][:200],
            allowed="a Parquet file",
            fix="correct or convert it",
        ) from None


class _Maker:
    """Turns one row into a request by a recipe, with what does not change from row to row worked out once."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._prompt = _filler("--template", recipe.template) if recipe.template is not None else None
        self._system = _filler("--system", recipe.system) if recipe.system is not None else None

    def __call__(self, number: int, row: dict[str, Any]) -> Input:
        if isinstance(row.get("body"), dict):
            return self._openai(number, row)
        return self._plain(number, row)

    def _openai(self, number: int, row: dict[str, Any]) -> Input:
        path = row.get("url", self._recipe.path)
        if path not in PATHS:
            raise BadRow(number, f"url {str(path)[:100]!r}", ", ".join(PATHS))
        if row.get("method", "POST") != "POST":
            raise BadRow(number, f"method {row['method']!r}", "POST")
        if self._recipe.template is not None:
            raise BadRow(number, "a whole request, and a --template", "one of them")
        return Input(self._id(number, row.get("custom_id")), path, self._body(number, path, row["body"]))

    def _plain(self, number: int, row: dict[str, Any]) -> Input:
        path = self._recipe.path
        given = row.get(self._recipe.id_column or "custom_id")
        if self._recipe.id_column is not None and self._recipe.id_column not in row:
            raise BadRow(number, f"no column {self._recipe.id_column!r}", ", ".join(map(repr, row)))
        named = self._id(number, str(given) if given is not None else f"row-{number}")
        if self._prompt is None and isinstance(row.get("messages"), list) and path in _CHAT:
            # What stands beside the messages belongs to the body: temperature, max_tokens.
            body = {key: value for key, value in row.items() if key != "custom_id"}
            return Input(named, path, self._body(number, path, body))
        text = self._prompt(number, row) if self._prompt is not None else self._only(number, row)
        body = {}
        if path in _CHAT or path == "/v1/responses":
            messages = [{"role": "user", "content": text}]
            if self._system is not None:
                messages.insert(0, {"role": "system", "content": self._system(number, row)})
            body["input" if path == "/v1/responses" else "messages"] = messages
        else:
            body[_TEXT_KEY.get(path, "input")] = text
            if self._system is not None:
                raise stacks.InputError(
                    where="--system", got=path, allowed=", ".join(_CHAT), fix="put it into the template"
                )
        return Input(named, path, self._body(number, path, body))

    def _only(self, number: int, row: dict[str, Any]) -> str:
        columns = [key for key in row if key not in ("custom_id", self._recipe.id_column)]
        key = "prompt" if "prompt" in row else columns[0] if len(columns) == 1 else None
        if key is None:
            raise BadRow(number, f"columns {', '.join(columns) or 'none'}", "a column prompt, or a --template")
        if not isinstance(row[key], str) or not row[key]:
            raise BadRow(number, f"{key} is {type(row[key]).__name__} {str(row[key])[:40]!r}", "text")
        return str(row[key])

    def _id(self, number: int, given: Any) -> str:
        if not isinstance(given, str) or not given or len(given) > _MOST_ID_CHARS:
            raise BadRow(number, f"custom_id {str(given)[:60]!r}", f"text of 1 to {_MOST_ID_CHARS} characters")
        if "\0" in given:
            raise BadRow(number, "a custom_id with a zero byte", "text without")
        return given

    def _body(self, number: int, path: str, body: dict[str, Any]) -> bytes:
        recipe = self._recipe
        if recipe.extra:
            body = {**body, **recipe.extra}
        if recipe.model is not None:
            body = {**body, "model": recipe.model}
        if not isinstance(body.get("model"), str) or not body["model"]:
            raise BadRow(number, "no model", "a model in the body, or --model")
        if body.get("stream") or "stream_options" in body:
            # An answer is kept whole; nobody watches it grow.
            body = {key: value for key, value in body.items() if key not in ("stream", "stream_options")}
        if path.startswith("/api/"):
            # Ollama's own paths stream unless told not to.
            body = {**body, "stream": False}
        try:
            return orjson.dumps(body)
        except TypeError as error:
            raise BadRow(number, str(error), "values that JSON has") from None


def _filler(where: str, template: str) -> Callable[[int, Mapping[str, Any]], str]:
    """The template as a function of row number and row. Raises InputError for one that cannot be used."""
    parts: list[tuple[str, str | None]] = []
    try:
        for text, name, spec, conversion in string.Formatter().parse(template):
            if name is not None and (spec or conversion or not name):
                raise ValueError(f"{{{name}{'!' + conversion if conversion else ''}{':' + spec if spec else ''}}}")
            parts.append((text, name))
    except ValueError as error:
        raise stacks.InputError(
            where=where,
            got=str(error),
            allowed="{column}, and {{ }} for braces",
            fix="name a column in each pair of braces",
        ) from None

    def fill(number: int, row: Mapping[str, Any]) -> str:
        out = []
        for text, name in parts:
            out.append(text)
            if name is None:
                continue
            if name not in row:
                raise BadRow(number, f"{where} names {name!r}", f"columns {', '.join(map(repr, row))}")
            value = row[name]
            out.append(value if isinstance(value, str) else "" if value is None else str(value))
        return "".join(out)

    return fill
