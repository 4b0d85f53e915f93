"""The fleet's JSON API as functions. Keeps no state but the address and the token."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import quote, urlencode, urlsplit

from edgekit.core.checks import parse_json
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line
from edgekit.core.policy import PolicySpec

PREFIX = "/api/v1"
TIMEOUT_S = 30.0
_MAX_ANSWER = 64 * 2**20
_SHOWN = 300
_PAGE = 200  # rows in one answer
_CHUNK = 1 << 16


class Conflict(BadInput):
    """What is on the server does not go with what was asked: somebody was first, or a name or version is taken."""


class Writable(Protocol):
    """What an answer can be written into: an open file, or what looks like one."""

    @property
    def name(self) -> Any: ...

    def write(self, data: bytes, /) -> Any: ...


@dataclass(frozen=True)
class Client:
    """A server and the token to it. ca: PEM file to check its certificate against; None: the system's.

    Every method raises WorldFailed where the server cannot be reached or fails, and BadInput, with the server's own
    line, where it refuses what was asked.
    """

    url: str
    token: str = field(repr=False)
    timeout_s: float = TIMEOUT_S
    ca: Path | None = None

    def fleet(self) -> dict[str, Any]:
        """What a board's request for a certificate must know: `fleet`, and whether `certificates` are wanted."""
        return self._json("GET", "/fleet")

    def status(self, window_s: float | None = None) -> dict[str, Any]:
        """The whole fleet in one object."""
        return self._json("GET", "/status", query={"window_s": window_s})

    def devices(
        self, window_s: float | None = None, most: int | None = None, **filters: Any
    ) -> list[dict[str, Any]]:
        """One row per board, by name: all of them, in as many requests as it takes, or the first `most`.

        filters: search, profile, bundle, state, tag, sort, descending, as GET /api/v1/devices takes them.
        """
        return self._paged("/devices", "devices", {"window_s": window_s, **filters}, most)

    def device_count(self, **filters: Any) -> int:
        """How many boards the filters mean."""
        return int(self._json("GET", "/devices", query={"limit": 1, **filters})["total"])

    def events(self, most: int = 100, **filters: Any) -> list[dict[str, Any]]:
        """The newest events of all boards, newest first. filters: kind, device, since, before."""
        return self._paged("/events", "events", filters, most)

    def export(self, what: str, file: Writable, **wanted: Any) -> None:
        """Write all rows of a kind (core.exported) into an open file, as they come: lines of JSON, or CSV.

        wanted: since, until (Unix seconds), to (selector), format ("ndjson" or "csv"), cursor (of the last row that
        there is already). Raises WorldFailed also where the answer breaks off; what came until then is in the file.
        """
        known = {key: value for key, value in wanted.items() if value is not None}
        self._request("GET", f"/export?{urlencode({'what': what, **known})}", None, into=file)

    def bundles(self, window_s: float | None = None) -> list[dict[str, Any]]:
        """Every bundle version that boards run or ran within the window."""
        return _list(self._json("GET", "/bundles", query={"window_s": window_s}), "bundles")

    def bundle(self, name: str, window_s: float | None = None) -> dict[str, Any]:
        """A bundle's versions by profile and over time, and boards before and after they changed version."""
        return _table(
            self._json("GET", f"/bundles/{quote(name, '')}", query={"window_s": window_s}), "bundle"
        )

    def device(self, name: str, window_s: float | None = None) -> dict[str, Any]:
        """A board with its figures over time, events and jobs."""
        return _table(
            self._json("GET", f"/devices/{quote(name, '')}", query={"window_s": window_s}), "device"
        )

    def enroll(
        self,
        name: str,
        profile: str | None = None,
        tags: Sequence[str] = (),
        *,
        again: bool = False,
        csr: str | None = None,
    ) -> dict[str, Any]:
        """Enroll a board: the answer holds what it needs, its secrets among them. Raises Conflict: it is known.

        csr: its request for a certificate (PEM), where the fleet wants one.
        """
        body = {"name": name, "profile": profile, "tags": list(tags), "again": again, "csr": csr}
        return self._json("POST", "/devices", body)

    def revoke(self, name: str) -> dict[str, Any]:
        """Let a board's certificate, password and token count no more; its history stays."""
        return self._json("POST", f"/devices/{quote(name, '')}/revoke", {})

    def jobs(self, most: int = 100) -> list[dict[str, Any]]:
        """The newest jobs first."""
        return self._paged("/jobs", "jobs", {}, most)

    def job(self, job_id: str, **filters: Any) -> dict[str, Any]:
        """A job; `devices` maps each board to its state. filters: state, search."""
        where = f"/jobs/{quote(job_id, '')}"
        return self._whole(_table(self._json("GET", where, query=filters), "job"), **filters)

    def create_job(
        self,
        target: str,
        to: str,
        policy: PolicySpec | None = None,
        interval_s: float | None = None,
        expires_s: float | None = None,
    ) -> dict[str, Any]:
        """Ask the boards that `to` selects to run a published target; the job."""
        body: dict[str, Any] = {"target": target, "to": to, "interval_s": interval_s}
        if policy is not None:
            body["policy"] = policy.to_json()
        if expires_s is not None:
            body["expires_s"] = expires_s
        return self._whole(_table(self._json("POST", "/jobs", body), "job"))

    def configure(
        self,
        to: str,
        config: Mapping[str, Any],
        *,
        policy: PolicySpec | None = None,
        interval_s: float | None = None,
        reset: bool = False,
    ) -> dict[str, Any]:
        """Change settings of the boards that `to` selects; the job. None as a value takes a setting back."""
        body: dict[str, Any] = {"to": to, "config": dict(config), "interval_s": interval_s, "reset": reset}
        if policy is not None:
            body["policy"] = policy.to_json()
        return self._whole(_table(self._json("POST", "/settings", body), "job"))

    def update_agents(self, target: str, to: str, expires_s: float | None = None) -> dict[str, Any]:
        """Ask the boards that `to` selects to put their agent into a published environment; the job."""
        body: dict[str, Any] = {"target": target, "to": to}
        if expires_s is not None:
            body["expires_s"] = expires_s
        return self._whole(_table(self._json("POST", "/agents", body), "job"))

    def measure(self, target: str, expires_s: float | None = None) -> dict[str, Any]:
        """Ask the board that a published round is called after to time it; the job. Raises Conflict: it is busy."""
        body: dict[str, Any] = {"target": target}
        if expires_s is not None:
            body["expires_s"] = expires_s
        return self._whole(_table(self._json("POST", "/measure", body), "job"))

    def start_rollout(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Begin a rollout (plan: docs/rollouts.md); how it stands. Raises Conflict: its boards are in another."""
        return _table(self._json("POST", "/rollouts", plan), "rollout")

    def preview_rollout(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """What a plan would do, and what should be known before."""
        return _table(self._json("POST", "/rollouts/preview", plan), "preview")

    def rollouts(self, limit: int | None = None, offset: int | None = None) -> list[dict[str, Any]]:
        """The newest rollouts first."""
        return _list(self._json("GET", "/rollouts", query={"limit": limit, "offset": offset}), "rollouts")

    def rollout(self, rollout_id: str) -> dict[str, Any]:
        """A rollout with its waves, their gates and its audit log."""
        return _table(self._json("GET", f"/rollouts/{quote(rollout_id, '')}"), "rollout")

    def change_rollout(self, rollout_id: str, action: str, *, accept: bool = False) -> dict[str, Any]:
        """action: pause, resume (accept: whatever the gate said), abort, rollback. Raises Conflict: not now."""
        body = {"accept": accept} if action == "resume" else {}
        return _table(
            self._json("POST", f"/rollouts/{quote(rollout_id, '')}/{quote(action, '')}", body), "rollout"
        )

    def repository(self) -> dict[str, Any]:
        """The metadata in force: versions, expiry, targets."""
        return self._json("GET", "/repo")

    def targets_metadata(self) -> bytes:
        """The signed targets metadata in force."""
        return self._request("GET", "/repo/targets", None)

    def measure_metadata(self) -> bytes:
        """The signed measure metadata in force."""
        return self._request("GET", "/repo/measure", None)

    def publish_rounds(self, metadata: bytes) -> dict[str, Any]:
        """Put signed measure metadata in force. Raises Conflict where it is not the next version."""
        return self._parse(self._request("POST", "/repo/measure", metadata))

    def upload_bundle(self, path: Path, sha256: str) -> None:
        """Hand a bundle's file over, to be published next. Raises BadInput where the file is gone."""
        try:
            with path.open("rb") as file:
                self._request("PUT", f"/repo/bundles/{sha256}", file, length=path.stat().st_size)
        except FileNotFoundError as err:
            raise BadInput(f"{path}: no such file") from err

    def publish(self, metadata: bytes) -> dict[str, Any]:
        """Put signed targets metadata in force. Raises Conflict where it is not the next version."""
        return self._parse(self._request("POST", "/repo/targets", metadata))

    def me(self) -> dict[str, Any]:
        """Whose token this client shows (`name`), and its `role`."""
        return self._json("GET", "/me")

    def login_link(self, path: str = "/") -> dict[str, Any]:
        """A `path` on the server that lets one browser in, once, until `expires`. Only with the server's own token."""
        return self._json("POST", "/login-links", {"path": path})

    def users(self) -> list[dict[str, Any]]:
        """Who may log in: `name`, `role`, `created`."""
        return _list(self._json("GET", "/users"), "users")

    def add_user(self, name: str, role: str, password: str) -> dict[str, Any]:
        """Add a user. Raises Conflict: there is one of that name."""
        return self._json("POST", "/users", {"name": name, "role": role, "password": password})

    def remove_user(self, name: str) -> dict[str, Any]:
        """Remove a user; its sessions end."""
        return self._json("POST", f"/users/{quote(name, '')}/remove", {})

    def set_role(self, name: str, role: str) -> dict[str, Any]:
        """Give a user another role; its sessions end."""
        return self._json("POST", f"/users/{quote(name, '')}/role", {"role": role})

    def set_password(self, name: str, password: str) -> dict[str, Any]:
        """Give a user another password; its sessions end."""
        return self._json("POST", f"/users/{quote(name, '')}/password", {"password": password})

    def tokens(self) -> list[dict[str, Any]]:
        """The API's tokens: `name`, `role`, `created`, `expires`."""
        return _list(self._json("GET", "/tokens"), "tokens")

    def add_token(self, name: str, role: str, expires_s: float | None = None) -> dict[str, Any]:
        """Make a token; `token` in the answer is told this once. Raises Conflict: there is one of that name."""
        return self._json("POST", "/tokens", {"name": name, "role": role, "expires_s": expires_s})

    def remove_token(self, name: str) -> dict[str, Any]:
        """Let a token count no more."""
        return self._json("POST", f"/tokens/{quote(name, '')}/remove", {})

    def audit(
        self, subject: str | None = None, before: int | None = None, limit: int | None = None
    ) -> dict[str, Any]:
        """`lines` of the audit log, the newest first; `next`, given as `before`, leads to older ones."""
        return self._json("GET", "/audit", query={"subject": subject, "before": before, "limit": limit})

    def stick(self, to: str) -> dict[str, Any]:
        """What goes on a stick for the boards that `to` selects: metadata, signed commands, which bundles."""
        return self._json("GET", "/stick", query={"to": to})

    def fetch_target(self, path: str, file: IO[bytes]) -> None:
        """Write a published bundle's file into an open one. Whether it is the right one is the caller's to check."""
        self._request("GET", f"/repo/files/{quote(path)}", None, into=file)

    def alerts(
        self,
        state: str | None = None,
        *,
        rule: str | None = None,
        severity: str | None = None,
        subject: str | None = None,
        offset: int = 0,
        limit: int = 50,
    ) -> dict[str, Any]:
        """A page of alerts, firing first. state: open, pending, firing, clearing or resolved."""
        query = {"state": state, "rule": rule, "severity": severity, "subject": subject}
        return self._json("GET", "/alerts", query={**query, "offset": offset, "limit": limit})

    def alert_rules(self) -> dict[str, Any]:
        """`rules` in force, each with a `note` where it cannot see all it should; `receivers`: who is told."""
        return self._json("GET", "/alerts/rules")

    def alert_messages(self, batch: str | None = None) -> list[dict[str, Any]]:
        """The newest messages about alerts, sent or waiting; those of one batch."""
        return _list(self._json("GET", "/alerts/messages", query={"batch": batch}), "messages")

    def test_alerts(self) -> dict[str, Any]:
        """Send everybody who is told of alerts a message that says nothing else; its `batch`."""
        return self._json("POST", "/alerts/test", {})

    def silences(self) -> list[dict[str, Any]]:
        """The silences in force."""
        return _list(self._json("GET", "/silences"), "silences")

    def silence(self, for_s: float, why: str, rule: str | None = None, to: str = "all") -> dict[str, Any]:
        """Tell nobody of a rule's alerts (None: of any rule's) about the boards that `to` selects, for so long."""
        body = {"rule": rule, "to": to, "for_s": for_s, "why": why}
        return _table(self._json("POST", "/silences", body), "silence")

    def unsilence(self, number: int) -> None:
        """Take a silence back."""
        self._json("DELETE", f"/silences/{number}", {})

    def profile_figures(self, profile: str, window_s: float | None = None) -> dict[str, Any]:
        """What boards of a profile measured: `rows` by board, bundle and hour, `bundles` with their work."""
        return self._json("GET", f"/profiles/{quote(profile, '')}/figures", query={"window_s": window_s})

    def _whole(self, job: dict[str, Any], **filters: Any) -> dict[str, Any]:
        """A job with the boards that did not fit into its first page."""
        boards = dict(_table(job, "devices"))
        while len(boards) < job.get("total", 0):
            query = {**filters, "offset": len(boards)}
            where = f"/jobs/{quote(str(job['job_id']), '')}"
            more = _table(_table(self._json("GET", where, query=query), "job"), "devices")
            if not more.keys() - boards.keys():
                break
            boards |= more
        return {**job, "devices": boards}

    def _paged(self, path: str, key: str, query: Mapping[str, Any], most: int | None) -> list[dict[str, Any]]:
        """The rows of all pages, or the first `most`."""
        rows: list[dict[str, Any]] = []
        while most is None or len(rows) < most:
            limit = _PAGE if most is None else min(_PAGE, most - len(rows))
            answer = self._json("GET", path, query={**query, "offset": len(rows), "limit": limit})
            found = _list(answer, key)
            rows += found
            if not found or len(rows) >= answer.get("total", 0):
                break
        return rows

    def _json(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        known = {key: value for key, value in (query or {}).items() if value is not None}
        where = f"{path}?{urlencode(known)}" if known else path
        data = None if body is None else json.dumps(body).encode()
        return self._parse(self._request(method, where, data))

    def _parse(self, data: bytes) -> dict[str, Any]:
        try:
            answer = parse_json(data, "answer")
        except BadInput as err:
            raise WorldFailed(f"{self.url}: did not answer like an edgekit server: {one_line(err)}") from err
        if not isinstance(answer, dict) or answer.get("v") != 1:
            raise WorldFailed(f"{self.url}: did not answer like an edgekit server of API version 1")
        return answer

    def _request(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None,
        length: int | None = None,
        into: Writable | None = None,
    ) -> bytes:
        """The answer's bytes; those of a good one go `into` a file where one is given."""
        headers = {"Authorization": f"Bearer {self.token}", "Accept": "application/json"}
        if body is not None:
            headers["Content-Length"] = str(len(body) if isinstance(body, bytes) else length)
            headers["Content-Type"] = (
                "application/json" if isinstance(body, bytes) else "application/octet-stream"
            )
        connection, base = self._connection()
        try:
            # A server that has enough answers before it has read everything: then hear what it says.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, f"{base}{PREFIX}{path}", body, headers)
            answer = connection.getresponse()
            good = into is not None and answer.status == http.client.OK
            data = b"" if good else answer.read(_MAX_ANSWER)
            while into is not None and good and (chunk := answer.read(_CHUNK)):
                _write(into, chunk)
        except (OSError, http.client.HTTPException) as err:
            why = f"{one_line(err)}{self._hint(err)}"
            raise WorldFailed(f"{self.url}: no answer from the fleet server: {why}") from err
        finally:
            connection.close()
        if answer.status >= 400:
            raise self._error(answer.status, data)
        if answer.status >= 300:
            raise WorldFailed(f"{self.url}: answered {answer.status}: is this the fleet server's address?")
        return data

    def _connection(self) -> tuple[http.client.HTTPConnection, str]:
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if not host or parts.scheme not in {"http", "https"}:
            raise BadInput(f"--server must be an address such as http://127.0.0.1:8080, got {self.url!r}")
        base = parts.path.rstrip("/")
        if parts.scheme == "https":
            context = self._context()
            return http.client.HTTPSConnection(host, port, timeout=self.timeout_s, context=context), base
        return http.client.HTTPConnection(host, port, timeout=self.timeout_s), base

    def _context(self) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(cafile=None if self.ca is None else str(self.ca))
        except (OSError, ValueError) as err:  # ssl's errors are some
            raise BadInput(f"{self.ca}: must be the server's ca.pem, a file of certificates") from err
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context

    def _hint(self, err: Exception) -> str:
        """What to do about the two mistakes that an encrypted server invites."""
        if isinstance(err, ssl.SSLCertVerificationError):
            return "; --ca must name the server's data_dir/ca.pem, and --server one of its names"
        cut = isinstance(err, (http.client.RemoteDisconnected, http.client.BadStatusLine, ConnectionError))
        answered = cut and not isinstance(err, ConnectionRefusedError)
        return "; does it want https://?" if answered and self.url.startswith("http://") else ""

    def _error(self, status: int, data: bytes) -> EdgekitError:
        """The server's line as the error it stands for."""
        try:
            line = str(json.loads(data)["error"])[:_SHOWN]
        except (ValueError, KeyError, TypeError, RecursionError):
            line = f"answered {status}"
        if status == 401:
            return BadInput(f"{self.url}: the token is not this server's, or has expired: {line}")
        if status == 409:
            return Conflict(line)
        return WorldFailed(f"{self.url}: {line}") if status >= 500 else BadInput(line)


def _write(file: Writable, data: bytes) -> None:
    """Raises WorldFailed that tells the disk from the server."""
    try:
        file.write(data)
    except OSError as err:
        raise WorldFailed(f"{file.name}: could not be written: {err.strerror or err}") from err


def _list(answer: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = answer.get(key)
    if not isinstance(found, list):
        raise WorldFailed(f"the server's answer has no {key}")
    return found


def _table(answer: dict[str, Any], key: str) -> dict[str, Any]:
    found = answer.get(key)
    if not isinstance(found, dict):
        raise WorldFailed(f"the server's answer has no {key}")
    return found
