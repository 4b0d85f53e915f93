"""Renew the board's certificate: a new key at two thirds of the life, signed by the server. Enrolls nobody."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Mapping
from typing import Any

import urllib3

from edgekit.agent.config import Repository
from edgekit.agent.identity import Identities, Pair, jitter_of, new_key, request
from edgekit.agent.repository.base import NetworkFailed
from edgekit.agent.repository.http import open_pool
from edgekit.agent.threads import Loop
from edgekit.agent.tls import Tls
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line

log = logging.getLogger(__name__)
EXPIRING = "certificate-expiring"
LOOK_S = 3600.0  # how often the clock is looked at
FIRST_RETRY_S, MAX_RETRY_S = 60.0, 6 * 3600.0
ALARM_EVERY_S = 86_400.0
_MAX_ANSWER = 2**18
Signed = tuple[str, str]  # the certificate and the authorities that count from now on, PEM


class Renewer(Loop):
    """Looks at the certificate's age for as long as the agent runs.

    An agent that does not know the time goes by the latest that has passed for certain: it may renew late, never early.
    """

    def __init__(
        self,
        *,
        identities: Identities,
        address: str,
        sign: Callable[[Mapping[str, str]], Signed],
        time_at_least: Callable[[], float],
        tell: Callable[[str, Mapping[str, object]], None],
        changed: Callable[[], None],
        draw: Callable[[], float] = random.random,
    ) -> None:
        """address: `fleet/device`. sign: asks the server. tell: puts an Event into the outbox.

        changed: called once a new certificate is in force.
        """
        super().__init__("renewer")
        self._identities = identities
        self._address = address
        self._sign = sign
        self._time_at_least = time_at_least
        self._tell = tell
        self._changed = changed
        self._draw = draw
        self._retry_s = FIRST_RETRY_S
        self._alarmed_at = -ALARM_EVERY_S

    def run(self) -> None:
        """The thread."""
        while not self._stopping:
            try:
                wait = self.look()
            except Exception:
                log.exception("renewer met a defect and goes on")
                wait = MAX_RETRY_S
            self._pause(wait)

    def look(self) -> float:
        """Renew where it is time; how long to wait then, in seconds."""
        pair = self._identities.current
        if self._time_at_least() < pair.due(jitter_of(pair)):
            return LOOK_S
        try:
            self.renew()
        except EdgekitError as err:
            log.warning("the board's certificate was not renewed: %s", one_line(err))
            self._warn(pair, one_line(err))
            wait, self._retry_s = self._retry_s, min(2 * self._retry_s, MAX_RETRY_S)
            return wait * (0.5 + self._draw())
        self._retry_s = FIRST_RETRY_S
        return LOOK_S

    def renew(self) -> None:
        """Get a certificate for a new key, now. Raises NetworkFailed, BadInput (the server refuses), WorldFailed."""
        key = new_key()
        csr = request(key, self._address)
        proof = self._identities.sign(csr.encode())
        before = self._identities.current
        certificate, authorities = self._sign({"csr": csr, "certificate": before.pem, "signature": proof})
        pair = self._identities.replace(key, certificate, authorities)
        days = (pair.expires - pair.issued) / 86_400
        log.info("the board has a new certificate, for %.0f days", days)
        self._changed()

    def _warn(self, pair: Pair, why: str) -> None:
        """Below a third of its life somebody must look: the server hears of it once a day."""
        now = self._time_at_least()
        if now >= pair.alarm and now - self._alarmed_at >= ALARM_EVERY_S:
            self._alarmed_at = now
            self._tell(EXPIRING, {"expires": pair.expires, "why": why})


def signer(repository: Repository, tls: Tls) -> Callable[[Mapping[str, str]], Signed]:
    """Ask the server beside the repository, as the board, over a connection of its own each time."""
    url = f"{repository.url.rpartition('/')[0]}/certificate"

    def sign(body: Mapping[str, str]) -> Signed:
        with open_pool(repository, tls=tls) as http:
            return _read(_post(http, url, body), url)

    return sign


def _post(http: urllib3.PoolManager, url: str, body: Mapping[str, str]) -> bytes:
    data = json.dumps(body).encode()
    headers = {**http.headers, "Content-Type": "application/json"}
    try:
        answer = http.request("POST", url, body=data, headers=headers, preload_content=False, redirect=False)
        content = answer.read(_MAX_ANSWER)
    except (urllib3.exceptions.HTTPError, OSError) as err:
        raise NetworkFailed(f"{url}: {type(err).__name__}: {one_line(err)[:200]}") from err
    if answer.status != 201:
        raise NetworkFailed(f"{url}: answered {answer.status}: {_line_in(content)}", answer.status)
    return content


def _line_in(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])[:200]
    except (ValueError, KeyError, TypeError, RecursionError):
        return "no reason given"


def _read(content: bytes, url: str) -> Signed:
    try:
        answer: Any = json.loads(content)
        certificate, ca = answer["certificate"], answer["ca"]
        if not isinstance(certificate, str) or not isinstance(ca, str):
            raise BadInput("no text")
    except (ValueError, KeyError, TypeError, RecursionError, BadInput) as err:
        raise WorldFailed(f"{url}: did not answer with a certificate") from err
    return certificate, ca
