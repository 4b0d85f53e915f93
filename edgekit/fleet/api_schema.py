"""What the API says of itself in `/api/v1/openapi.json` (OpenAPI 3.1).

The routes' parameters and bodies come from FastAPI; here are the token, every error's answer, and the answers' shapes,
which are those of core.schemas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.core import schemas
from edgekit.core.schemas import (
    COUNT,
    COUNTS,
    FLAG,
    NUMBER,
    OUTPUTS,
    TEXT,
    TEXT_OR_NULL,
    Schema,
    output,
    rows,
    table,
)
from edgekit.fleet.context import PREFIX

ABOUT = (
    "What a fleet's boards run, did and measured, and everything that can be asked of them. A token of role `viewer` "
    "may read, one of role `operator` also change. Times are Unix seconds, latencies ms, energies mJ."
)
_ERRORS: Mapping[int, str] = {
    400: "what was asked cannot be: one line says what was wanted and what came",
    401: "no token, or one that does not count",
    403: "the token's role is not enough",
    404: "there is nothing of this name",
    409: "it does not go with what is there",
    411: "the request says no Content-Length",
    413: "the request is too large",
    421: "the server is not called what the request's Host says",
    503: "the database, the repository or a file cannot be reached now",
}
_EVERYWHERE = frozenset({400, 401, 403, 421, 503})
_BODY_CODES = frozenset({409, 411, 413})
_OTHER_CODES: Mapping[str, frozenset[int]] = {
    "get /stick": frozenset({409}),
    "get /events": frozenset({404}),
}
_BYTES: Schema = {"type": "string", "format": "binary"}
_OBJECT: Schema = {"type": "object"}
_SERIES: Schema = {"type": ["object", "array"]}
_METADATA: Schema = {"description": "signed metadata, as The Update Framework writes it", **_OBJECT}
_BOARD = table(
    name=TEXT, profile=TEXT_OR_NULL, tags=rows(TEXT), online=FLAG, last_seen=NUMBER, bundle=TEXT_OR_NULL
)
_JOB = output(
    job=table(
        job_id=TEXT, action=TEXT, target=TEXT_OR_NULL, to=TEXT, total=COUNT, devices=schemas.JOB_DEVICES
    )
)
_IN_FORCE = output(roles=schemas.ROLES, targets=rows(schemas.TARGET))
_EVENT = table(at=NUMBER, device=TEXT, kind=TEXT, detail=_OBJECT, text=TEXT)
_ROLLOUT = OUTPUTS["fleet rollout show"]

ANSWERS: Mapping[str, Schema] = {
    "get /status": OUTPUTS["fleet status"],
    "get /status/series": output(window_s=NUMBER, series=_SERIES),
    "get /fleet": output(fleet=TEXT, certificates=FLAG),
    "get /events": output(offset=COUNT, total=COUNT, events=rows(_EVENT)),
    "get /bundles": output(window_s=NUMBER, bundles=rows(_OBJECT)),
    "get /bundles/{name}": output(window_s=NUMBER, bundle=table(name=TEXT, versions=rows(_OBJECT))),
    "get /devices": output(offset=COUNT, total=COUNT, window_s=NUMBER, devices=rows(_BOARD)),
    "get /devices/{name}": output(window_s=NUMBER, device=_BOARD),
    "get /devices/{name}/events": output(offset=COUNT, total=COUNT, events=rows(_EVENT)),
    "get /devices/{name}/jobs": output(offset=COUNT, total=COUNT, jobs=rows(_OBJECT)),
    "post /devices": output(name=TEXT, mqtt_password=TEXT_OR_NULL, repo_token=TEXT, certificate=TEXT_OR_NULL),
    "post /devices/{name}/revoke": output(name=TEXT, revoked_at=NUMBER, broker_reloaded=FLAG),
    "get /jobs": output(offset=COUNT, total=COUNT, jobs=rows(schemas.JOB)),
    **dict.fromkeys(
        ("get /jobs/{job_id}", "post /jobs", "post /settings", "post /agents", "post /measure"), _JOB
    ),
    **dict.fromkeys(("get /repo", "post /repo/targets", "post /repo/measure"), _IN_FORCE),
    **dict.fromkeys(("get /repo/targets", "get /repo/measure"), _METADATA),
    "put /repo/bundles/{sha256}": output(sha256=TEXT, size=COUNT),
    "get /stick": output(fleet=TEXT, expires=NUMBER, metadata=_OBJECT, boards=_OBJECT, files=_OBJECT),
    "get /me": output(name=TEXT, role=TEXT),
    "post /login-links": output(path=TEXT, expires=NUMBER),
    "get /audit": OUTPUTS["fleet audit"],
    "get /users": OUTPUTS["fleet user list"],
    "post /users": OUTPUTS["fleet user add"],
    "post /users/{name}/remove": OUTPUTS["fleet user remove"],
    "post /users/{name}/role": OUTPUTS["fleet user role"],
    "post /users/{name}/password": OUTPUTS["fleet user password"],
    "get /tokens": OUTPUTS["fleet token list"],
    "post /tokens": output(name=TEXT, role=TEXT, expires=NUMBER, token=TEXT),
    "post /tokens/{name}/remove": OUTPUTS["fleet token remove"],
    "get /alerts": output(total=COUNT, counts=COUNTS, alerts=rows(schemas.ALERT)),
    "get /alerts/rules": output(rules=rows(_OBJECT), receivers=rows(_OBJECT)),
    "get /alerts/messages": output(messages=rows(_OBJECT)),
    "post /alerts/test": OUTPUTS["fleet alerts test"],
    "get /silences": output(silences=rows(schemas.SILENCE)),
    "post /silences": OUTPUTS["fleet alerts silence"],
    "delete /silences/{number}": OUTPUTS["fleet alerts unsilence"],
    "get /profiles/{name}/figures": output(profile=TEXT, window_s=NUMBER),
    "get /rollouts": OUTPUTS["fleet rollout list"],
    "get /rollouts/{rollout_id}": _ROLLOUT,
    "get /rollouts/{rollout_id}/boards": output(total=COUNT, boards=rows(table(name=TEXT, state=TEXT_OR_NULL))),
    "post /rollouts": _ROLLOUT,
    "post /rollouts/preview": output(preview=schemas.PREVIEW),
    **{f"post /rollouts/{{rollout_id}}/{verb}": _ROLLOUT for verb in ("pause", "resume", "abort", "rollback")},
}  # fmt: skip
_BODIES: Mapping[str, tuple[str, Schema]] = {  # of routes that read the request themselves
    "post /repo/targets": ("application/json", _METADATA),
    "post /repo/measure": ("application/json", _METADATA),
    "put /repo/bundles/{sha256}": ("application/octet-stream", _BYTES),
}
_TYPES: Mapping[str, Sequence[str]] = {  # where it is not JSON
    "get /repo/files/{path}": ("application/octet-stream",),
    "get /export": ("application/x-ndjson", "text/csv"),
}


def described(made: dict[str, Any]) -> dict[str, Any]:
    """What FastAPI made of the routes, completed in place. A route that ANSWERS does not know keeps its own."""
    made["info"]["description"] = ABOUT
    parts = made.setdefault("components", {})
    parts["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "the token in the server's data_dir/api.token, or one of `edgekit fleet token add`",
        }
    }
    made["security"] = [{"token": []}]
    found = parts.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own; errors here are one line
        found.pop(unused, None)
    found["Error"] = {"description": "one line that says what to do", **table(error={"type": "string"})}
    parts["responses"] = {str(code): _error(text) for code, text in _ERRORS.items()}
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            _complete(operation, method, path)
    return made


def _error(text: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {"description": text, "content": content}


def _complete(operation: dict[str, Any], method: str, path: str) -> None:
    key = f"{method} {path.removeprefix(PREFIX)}"
    answers = operation["responses"]
    answers.pop("422", None)
    for code in sorted(_codes(method, path, key)):
        answers[str(code)] = {"$ref": f"#/components/responses/{code}"}
    good = next(answer for code, answer in answers.items() if code.startswith("2"))
    good["description"] = "done" if method != "get" else "what was asked for"
    kinds = _TYPES.get(key, ("application/json",))
    if key in ANSWERS or key in _TYPES:
        good["content"] = {kind: {"schema": ANSWERS.get(key, _BYTES)} for kind in kinds}
    if key in _BODIES:
        kind, shape = _BODIES[key]
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": shape}}}


def _codes(method: str, path: str, key: str) -> frozenset[int]:
    codes = _EVERYWHERE | _OTHER_CODES.get(key, frozenset())
    if "{" in path:
        codes |= {404}
    if method == "put":
        codes |= {409}  # a body that is streamed has no length that must be said
    elif method != "get":
        codes |= _BODY_CODES
    return codes
