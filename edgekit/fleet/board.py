"""What a board asks the server for itself, with its own token: its next certificate."""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from edgekit.core.errors import BadInput
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.enroll import board_of, renew_certificate
from edgekit.fleet.guard import CERTIFICATE, bearer
from edgekit.fleet.store import Store

log = logging.getLogger("edgekit.fleet.board")

_PEM = 8192


class Renewal(BaseModel):
    """The request (CSR, PEM) for the next certificate, signed (base64) with the key of the present one (PEM)."""

    model_config = ConfigDict(extra="ignore", strict=True)
    csr: str = Field(max_length=_PEM)
    certificate: str = Field(max_length=_PEM)
    signature: str = Field(max_length=512)


def board_router(config: FleetConfig, store: Store, clock: Callable[[], float] = time.time) -> APIRouter:
    """POST /certificate. The guard has checked the board's token."""
    router = APIRouter(include_in_schema=False)

    @router.post(CERTIFICATE, status_code=201)
    def renew(renewal: Renewal, request: Request) -> dict[str, Any]:
        """Sign a board's next certificate; the answer says as well whom it may trust from now on."""
        try:
            signature = base64.b64decode(renewal.signature, validate=True)
        except binascii.Error as err:
            raise BadInput("signature must be base64") from err
        with store.write() as connection:
            board = board_of(connection, bearer(request.headers) or "")
            if board is None:  # revoked since the guard looked
                raise BadInput("this board is not enrolled")
            issued = renew_certificate(config, connection, board, renewal.csr, renewal.certificate, signature)
        log.info(
            "%s has a new certificate, good for %.0f days", board[1], (issued.expires - clock()) / 86_400
        )
        ca = config.ca_file.read_text(encoding="ascii")
        return {"v": 1, "certificate": issued.pem, "expires": issued.expires, "ca": ca}

    return router
