"""The toll gate: signed evidence of what was measured, statistics over runs, and the yes or no of a promotion.

Names are imported on first use: a preview of a stack that is not gated needs neither cryptography nor statistics.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._admission import Admission, assess, check, table
    from ._admission import newest_evidence as newest
    from ._approvals import Approval, approvable, approve
    from ._envelope import seal, unseal
    from ._errors import EvidenceBroken, GateRefused
    from ._evidence import Evidence, Measuring, pool, record, result_of
    from ._history import Event, history
    from ._judge import Criterion, Verdict, judge
    from ._keys import KEY_VARIABLE, Keys, LocalKey, Signer, load_keys
    from ._promotion import Decision, promote, rollback
    from ._pullrequest import PullRequest, propose
    from ._regression import Calibration, Noise, calibrate
    from ._sessions import record_calibration, to_measure
    from ._store import Entry, Store, open_store

# public name -> (module, name there)
_HOMES = {
    "Admission": ("_admission", "Admission"),
    "Approval": ("_approvals", "Approval"),
    "Calibration": ("_regression", "Calibration"),
    "Criterion": ("_judge", "Criterion"),
    "Decision": ("_promotion", "Decision"),
    "Entry": ("_store", "Entry"),
    "Event": ("_history", "Event"),
    "Evidence": ("_evidence", "Evidence"),
    "EvidenceBroken": ("_errors", "EvidenceBroken"),
    "GateRefused": ("_errors", "GateRefused"),
    "KEY_VARIABLE": ("_keys", "KEY_VARIABLE"),
    "Keys": ("_keys", "Keys"),
    "LocalKey": ("_keys", "LocalKey"),
    "Measuring": ("_evidence", "Measuring"),
    "Noise": ("_regression", "Noise"),
    "PullRequest": ("_pullrequest", "PullRequest"),
    "Signer": ("_keys", "Signer"),
    "Store": ("_store", "Store"),
    "Verdict": ("_judge", "Verdict"),
    "approvable": ("_approvals", "approvable"),
    "approve": ("_approvals", "approve"),
    "assess": ("_admission", "assess"),
    "calibrate": ("_regression", "calibrate"),
    "check": ("_admission", "check"),
    "history": ("_history", "history"),
    "judge": ("_judge", "judge"),
    "load_keys": ("_keys", "load_keys"),
    "newest": ("_admission", "newest_evidence"),
    "open_store": ("_store", "open_store"),
    "pool": ("_evidence", "pool"),
    "promote": ("_promotion", "promote"),
    "propose": ("_pullrequest", "propose"),
    "record": ("_evidence", "record"),
    "record_calibration": ("_sessions", "record_calibration"),
    "result_of": ("_evidence", "result_of"),
    "rollback": ("_promotion", "rollback"),
    "seal": ("_envelope", "seal"),
    "table": ("_admission", "table"),
    "to_measure": ("_sessions", "to_measure"),
    "unseal": ("_envelope", "unseal"),
}

__all__ = [
    "KEY_VARIABLE",
    "Admission",
    "Approval",
    "Calibration",
    "Criterion",
    "Decision",
    "Entry",
    "Event",
    "Evidence",
    "EvidenceBroken",
    "GateRefused",
    "Keys",
    "LocalKey",
    "Measuring",
    "Noise",
    "PullRequest",
    "Signer",
    "Store",
    "Verdict",
    "approvable",
    "approve",
    "assess",
    "calibrate",
    "check",
    "history",
    "judge",
    "load_keys",
    "newest",
    "open_store",
    "pool",
    "promote",
    "propose",
    "record",
    "record_calibration",
    "result_of",
    "rollback",
    "seal",
    "table",
    "to_measure",
    "unseal",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gate' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(import_module(f".{module}", __name__), attribute)
    globals()[name] = value
    return value
