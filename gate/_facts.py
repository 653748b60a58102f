"""What each kind of statement has to say, so that whatever reads the store finds it there.

A trusted key may sign anything. What it signs that is none of our statements closes the gate, in one place and in words. Keys
that came later may be missing in old statements, and more than these may be there.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, field_validator

_Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
_Share = Annotated[float, Field(ge=0, allow_inf_nan=False, lt=1e6)]
_Plain = str | int | float | bool | None


class _Facts(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    stack: str
    # ISO 8601 with its offset.
    signed_at: str

    @field_validator("signed_at", "expires", check_fields=False)
    @classmethod
    def _moment(cls, text: str) -> str:
        if datetime.fromisoformat(text).utcoffset() is None:
            raise ValueError("a moment without its offset")
        return text


class _Verdict(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    outcome: str
    runs: int


class _Measured(BaseModel):
    """Of a result, what is read without making it one; the rest is validated where it is judged."""

    model_config = ConfigDict(extra="allow", strict=True)

    traffic: dict[str, Any]
    environment: dict[str, _Plain]
    server: dict[str, _Plain]
    replicas: int
    runs: list[dict[str, Any]]


class _Measurement(_Facts):
    kind: Literal["measurement"]
    verdict: _Verdict
    result: _Measured
    release: dict[str, Any]
    objectives: dict[str, Any]
    source: dict[str, str | bool]
    tools: dict[str, str]
    price_book: dict[str, str]
    attempt: Annotated[int, Field(ge=0)]
    earlier: list[_Digest]


class _Policy(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    objectives: dict[str, Any]
    criteria: dict[str, Any]


class _Back(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)

    why: str


class _Promotion(_Facts):
    kind: Literal["promotion"]
    source: Annotated[str, Field(alias="from")]
    evidence: _Digest
    baseline: _Digest | None
    policy: _Policy
    approvals: list[_Digest]
    rollback: _Back | None = None


class _Approval(_Facts):
    kind: Literal["approval"]
    who: str
    why: str
    criteria: list[str]
    expires: str


class _Noise(BaseModel):
    model_config = ConfigDict(extra="forbid")

    within: _Share
    apart: _Share
    between: _Share
    sessions: Annotated[int, Field(ge=2, lt=10**6, strict=True)]
    runs: Annotated[int, Field(ge=1, lt=10**6, strict=True)]
    naive_alarms: _Share


class _Calibration(_Facts):
    kind: Literal["calibration"]
    surroundings: dict[str, Any]
    sessions: int
    noise: dict[str, _Noise]


_STATEMENTS: TypeAdapter[Any] = TypeAdapter(
    Annotated[_Measurement | _Promotion | _Approval | _Calibration, Field(discriminator="kind")]
)


def check(facts: Mapping[str, Any]) -> None:
    """Raises ValueError (pydantic's) for what is no statement of ours."""
    _STATEMENTS.validate_python(facts)
