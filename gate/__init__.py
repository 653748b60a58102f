"""The toll gate: signed evidence of what was measured, statistics over runs, and the yes or no of a promotion."""

from ._admission import Admission, check, newest, promote, table
from ._envelope import KEY_VARIABLE, Keys, LocalKey, Signer, load_keys, seal, unseal
from ._errors import EvidenceBroken, GateRefused
from ._evidence import Evidence, record, result_of
from ._judge import Criterion, Verdict, judge
from ._store import Entry, Store, open_store

__all__ = [
    "KEY_VARIABLE",
    "Admission",
    "Criterion",
    "Entry",
    "Evidence",
    "EvidenceBroken",
    "GateRefused",
    "Keys",
    "LocalKey",
    "Signer",
    "Store",
    "Verdict",
    "check",
    "judge",
    "load_keys",
    "newest",
    "open_store",
    "promote",
    "record",
    "result_of",
    "seal",
    "table",
    "unseal",
]
