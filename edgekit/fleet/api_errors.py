"""The API's errors: one line of JSON each, never a traceback."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from edgekit.core.errors import EdgekitError, WorldFailed, one_line
from edgekit.fleet.enroll import Taken
from edgekit.fleet.views import Unknown
from edgekit.repo.add import Conflict

log = logging.getLogger("edgekit.fleet.api")


def add_error_handlers(app: FastAPI) -> None:
    """Answer every error in one line."""
    app.add_exception_handler(EdgekitError, _edgekit_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _defect)


def _edgekit_error(_request: Request, err: Exception) -> Response:
    codes = ((Unknown, 404), (Conflict, 409), (Taken, 409), (WorldFailed, 503))
    status = next((code for kind, code in codes if isinstance(err, kind)), 400)
    if status == 503:
        log.warning("%s", one_line(err))
    return JSONResponse({"error": one_line(err)}, status)


def _validation_error(_request: Request, err: Exception) -> Response:
    found = err.errors() if isinstance(err, RequestValidationError) else []
    lines = [f"{'.'.join(str(part) for part in e['loc'][1:]) or 'body'}: {e['msg']}" for e in found]
    return JSONResponse({"error": "; ".join(lines)[:1000] or "the request cannot be read"}, 400)


def _http_error(_request: Request, err: Exception) -> Response:
    status = err.status_code if isinstance(err, HTTPException) else 500
    detail = err.detail if isinstance(err, HTTPException) else "error"
    return JSONResponse({"error": str(detail)}, status)


def _defect(_request: Request, err: Exception) -> Response:
    log.error("a request failed", exc_info=err)
    return JSONResponse({"error": "the server has a defect; its log says more"}, 500)
