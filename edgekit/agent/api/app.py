"""The local API as an ASGI application: routes, places, the way to the runner and back.

It runs on one event loop; only `done` and `read` of a call are the runner thread's. Knows no server.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from edgekit.agent.api import describe
from edgekit.agent.api.calls import Call, Signature, check, inputs_of, parse_call, signature_of, write_answer
from edgekit.agent.api.errors import Refusal
from edgekit.agent.api.http import (
    DISCARD_S,
    Body,
    Gone,
    Headers,
    Receive,
    Reply,
    Scope,
    Send,
    content_length,
    decoded,
    encoded,
    json_reply,
    time_limit,
    whole_number,
)
from edgekit.agent.runner import NothingServes, Request, RequestDefect, Runner, Sample
from edgekit.core.errors import BadBundle, BadInput, EdgekitError, one_line
from edgekit.core.manifest import Manifest
from edgekit.runtime.session import Answer

log = logging.getLogger(__name__)
_HELD_BYTES = 2**26  # bodies in memory at once
_NOTHING_RETRY_S = 5
_TOO_SLOW = 408


class _Asked:
    """One call on its way through the runner: told there what answered it, and when its turn came."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.gone = False
        self.signature: Signature | None = None
        self.policy = ""
        self.begun_s = 0.0

    def begun(self, _manifest: Manifest, policy: str) -> None:
        self.policy, self.begun_s = policy, self._clock()


class App:
    """Answers what the protocol asks. At most the runner's capacity of inferences is taken in at once."""

    def __init__(self, runner: Runner, version: str, timeout_s: float) -> None:
        """timeout_s: for a request's body."""
        self._runner = runner
        self._version = version
        self._timeout_s = timeout_s
        self._signature: Signature | None = None
        self._statistics = describe.Statistics()
        self._places = self._held = 0
        self._waiting: set[asyncio.Future[Answer | Exception]] = set()
        self._stopping = False

    def refuse_all(self) -> None:
        """The agent ends: answer those who wait with a refusal, and whoever comes now."""
        self._stopping = True
        for answer in list(self._waiting):
            _settle(answer, Refusal(503, "the agent is stopping", 1))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        arrived_s, body = self._runner.clock(), Body(receive)
        try:
            try:
                reply = await self._reply(scope, body, receive, arrived_s)
            except Refusal as err:
                reply = _refused(err, err.status)
            except BadInput as err:
                reply = _refused(err, 400)
            if reply.status >= 400 and scope["method"] == "POST" and not body.complete:
                reply = await self._discarded(body, reply)
        except Gone:
            return
        except Exception as err:
            log.exception("a request to the local API met a defect")
            reply = json_reply(
                {"error": f"a defect of the agent, see its log: {type(err).__name__}"},
                500,
                connection="close",
            )
        length = (b"content-length", str(len(reply.body)).encode())
        start = {"type": "http.response.start", "status": reply.status, "headers": [*reply.headers, length]}
        await send(start)
        await send({"type": "http.response.body", "body": reply.body})

    async def _reply(self, scope: Scope, body: Body, receive: Receive, arrived_s: float) -> Reply:
        method, parts = scope["method"], scope["path"].strip("/").split("/")
        route = _route(parts)
        if route is None:
            raise Refusal(404, f"no such route: {method} /{'/'.join(parts)[:200]}")
        what, name, version = route
        wanted = "POST" if what in ("infer", "index", "load") else "GET"
        if method != wanted:
            error = {"error": f"{what} is asked for with {wanted}, got {method[:20]}"}
            return json_reply(error, 405, allow=wanted)
        if what == "infer":
            return await self._infer(scope, body, receive, (name or "", version), arrived_s)
        return self._tell(what, name, version)

    async def _discarded(self, body: Body, reply: Reply) -> Reply:
        """Take in the rest of a refused request; the connection ends where that does not come soon."""
        if reply.status != _TOO_SLOW:
            with suppress(TimeoutError), time_limit(min(DISCARD_S, self._timeout_s)):
                await body.discard()
        if body.complete:
            return reply
        return Reply(reply.body, reply.status, (*reply.headers, (b"connection", b"close")))

    def _tell(self, what: str, name: str | None, version: str | None) -> Reply:
        serving = self._runner.serving
        manifest = None if serving is None else serving.session.manifest
        if what == "live":
            return json_reply({"live": True})
        if what == "ready" and name is None:
            ready = manifest is not None and not self._stopping
            return json_reply({"ready": ready}, 200 if ready else 503)
        if what == "server":
            return json_reply(describe.server_metadata(self._version))
        if what == "index":
            return json_reply(describe.repository_index(manifest))
        if what == "stats":
            return json_reply(self._statistics.to_json(name, version))
        if what == "load":
            raise Refusal(
                400, "bundles come to this board through its fleet, they cannot be loaded or unloaded here"
            )
        signature = self._signature_for(name or "", version)
        if what == "ready":
            return json_reply({"name": signature.manifest.name, "ready": True})
        return json_reply((describe.model_config if what == "config" else describe.model_metadata)(signature))

    # --- inference -----------------------------------------------------------------------------------------------

    async def _infer(
        self, scope: Scope, body: Body, receive: Receive, model: tuple[str, str | None], arrived_s: float
    ) -> Reply:
        signature = self._signature_for(*model)
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        try:
            with self._place(content_length(headers), signature.max_body):
                call = await self._read_call(headers, body, signature)
                asked = _Asked(self._runner.clock)
                answer = await self._ask(call, asked, signature, receive, arrived_s)
                reply = _answered(call, asked.signature or signature, answer, asked.policy, headers)
        except Gone:
            self._statistics.cancelled(signature.manifest)
            raise
        except EdgekitError:
            self._statistics.failed(signature.manifest, self._runner.clock() - arrived_s)
            raise
        queue_s = asked.begun_s - arrived_s
        used = (asked.signature or signature).manifest
        total_s = self._runner.clock() - arrived_s
        self._statistics.answered(used, total_s, queue_s, max(0.0, answer.latency_ms / 1e3 - queue_s))
        return reply

    def _signature_for(self, name: str, version: str | None) -> Signature:
        """Of the bundle that serves, if that is the one asked for. Raises Refusal."""
        serving = self._runner.serving
        if serving is None or self._stopping:
            why = "the agent is stopping" if self._stopping else "nothing is installed on this board yet"
            raise Refusal(503, why, _NOTHING_RETRY_S)
        signature = self._signature_of(serving.session.manifest)
        if not _names(signature.manifest, name, version):
            label = name if version is None else f"{name}/{version}"
            raise Refusal(404, f"unknown model {label[:200]!r}; this board serves {serving.label}")
        return signature

    def _signature_of(self, manifest: Manifest) -> Signature:
        known = self._signature
        if known is None or known.manifest is not manifest:
            known = self._signature = signature_of(manifest)
        return known

    @contextmanager
    def _place(self, length: int | None, limit: int) -> Iterator[None]:
        """A place for one request and its body. Raises Refusal at once where there is none."""
        if length is not None and length > limit:
            raise Refusal(413, f"a request may have {limit} bytes for this bundle, got {length}")
        expected = limit if length is None else length
        full = self._places >= self._runner.capacity or (self._held and self._held + expected > _HELD_BYTES)
        if full:
            raise self._full()
        self._places += 1
        self._held += expected
        try:
            yield
        finally:
            self._places -= 1
            self._held -= expected

    def _full(self) -> Refusal:
        wait_s = max(1, math.ceil(self._runner.wait_s))
        return Refusal(
            503, f"the queue is full ({self._runner.capacity} requests): try again in {wait_s} s", wait_s
        )

    async def _read_call(self, headers: Headers, body: Body, signature: Signature) -> Call:
        try:
            with time_limit(self._timeout_s):
                data = await body.read(signature.max_body)
        except TimeoutError as err:
            raise Refusal(_TOO_SLOW, f"the request's body did not come within {self._timeout_s:g} s") from err
        data = decoded(data, headers.get(b"content-encoding", ""), signature.max_body)
        length = headers.get(b"inference-header-content-length")
        call = parse_call(
            data, None if length is None else whole_number(length, "Inference-Header-Content-Length")
        )
        check(call, signature)
        return call

    async def _ask(
        self, call: Call, asked: _Asked, signature: Signature, receive: Receive, arrived_s: float
    ) -> Answer:
        """Hand the call to the runner and wait for the answer, or for the client to hang up. Raises Refusal, Gone."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Answer | Exception] = loop.create_future()

        def read(manifest: Manifest) -> Sample:  # on the runner's thread
            now = signature if manifest is signature.manifest else _switched(call, signature, manifest)
            asked.signature = now
            return inputs_of(call, now), None

        def done(result: Answer | EdgekitError) -> None:  # on the runner's thread
            with suppress(RuntimeError):  # the loop has ended, and who asked with it
                loop.call_soon_threadsafe(_settle, answer, result)

        request = Request(read, done, call.policy, arrived_s, lambda: asked.gone, asked.begun)
        try:
            if not self._runner.call(request):
                raise Refusal(503, "the agent is stopping", 1) if self._stopping else self._full()
        except NothingServes as err:
            raise Refusal(503, one_line(err), _NOTHING_RETRY_S) from err
        self._waiting.add(answer)
        watch = loop.create_task(_watch(receive, answer))
        try:
            result = await answer
        finally:
            asked.gone = True
            self._waiting.discard(answer)
            watch.cancel()
        if isinstance(result, Answer):
            return result
        raise _as_refusal(result)


def _route(parts: list[str]) -> tuple[str, str | None, str | None] | None:
    """(what is asked for, model, version); None for what the protocol does not have."""
    match parts:
        case ["v2"]:
            return "server", None, None
        case ["v2", "health", ("live" | "ready") as what]:
            return what, None, None
        case ["v2", "models", "stats"]:
            return "stats", None, None
        case ["v2", "repository", "index"]:
            return "index", None, None
        case ["v2", "repository", "models", name, "load" | "unload"]:
            return "load", name, None
        case ["v2", "models", name, "versions", version]:
            return "model", name, version
        case ["v2", "models", name, "versions", version, ("ready" | "config" | "stats" | "infer") as what]:
            return what, name, version
        case ["v2", "models", name]:
            return "model", name, None
        case ["v2", "models", name, ("ready" | "config" | "stats" | "infer") as what]:
            return what, name, None
    return None


def _names(manifest: Manifest, name: str, version: str | None) -> bool:
    return name == manifest.name and version in (None, "", str(manifest.version))


def _switched(call: Call, before: Signature, manifest: Manifest) -> Signature:
    """The request waited while another bundle took over: the same question to it, if it can be put. Raises Refusal."""
    now = signature_of(manifest)
    try:
        if manifest.name != before.manifest.name:
            raise BadInput(f"it was meant for {before.manifest.name}")
        check(call, now)
    except BadInput as err:
        label = f"{manifest.name}/{manifest.version}"
        raise Refusal(409, f"{label} took over while the request waited: {err}") from err
    return now


def _settle(answer: asyncio.Future[Answer | Exception], result: Answer | Exception) -> None:
    if not answer.done():
        answer.set_result(result)


async def _watch(receive: Receive, answer: asyncio.Future[Answer | Exception]) -> None:
    """The body is read: what comes now is the end of the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    _settle(answer, Gone())


def _as_refusal(err: Exception) -> Exception:
    if isinstance(err, (Refusal, Gone)):
        return err
    if isinstance(err, NothingServes):
        return Refusal(503, one_line(err), _NOTHING_RETRY_S)
    ours = isinstance(err, (BadBundle, RequestDefect)) or not isinstance(err, BadInput)
    return Refusal(500 if ours else 400, one_line(err))


def _refused(err: BadInput, status: int) -> Reply:
    after = err.retry_after_s if isinstance(err, Refusal) else None
    headers = {} if after is None else {"retry_after": str(after)}
    return json_reply({"error": one_line(err)}, status, **headers)


def _answered(call: Call, signature: Signature, answer: Answer, policy: str, headers: Headers) -> Reply:
    body, json_length = write_answer(call, signature, answer, policy)
    named = {"content-type": "application/json"}
    if json_length is not None:
        named = {
            "content-type": "application/octet-stream",
            "inference-header-content-length": str(json_length),
        }
    body, encoding = encoded(body, headers.get(b"accept-encoding", ""))
    if encoding is not None:
        named["content-encoding"] = encoding
    return Reply(body, headers=tuple((name.encode(), text.encode()) for name, text in named.items()))
