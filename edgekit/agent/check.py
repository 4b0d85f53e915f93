"""What is wrong with a board's set-up, one line each. Looks and connects; changes nothing that stays."""

from __future__ import annotations

import errno
import os
import ssl
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.reasoncodes import ReasonCode

from edgekit.agent.check_board import PACKAGES, Problem, board_problems, no_permission, state_of
from edgekit.agent.config import Broker, Config
from edgekit.agent.control import load_control_key
from edgekit.agent.identity import Identities
from edgekit.agent.lock import is_held
from edgekit.agent.repository.base import NetworkFailed
from edgekit.agent.sinks import open_sink
from edgekit.agent.sinks.mqtt import Post
from edgekit.agent.sources import open_source
from edgekit.agent.tls import Tls
from edgekit.agent.uplink import CONNECT_S, PROTOCOLS, connect, hung_up, new_client
from edgekit.core.errors import BadInput, EdgekitError, WorldFailed, one_line
from edgekit.core.messages import ANSWER, INPUT, topic
from edgekit.core.profile import HOST
from edgekit.runtime import command
from edgekit.runtime.detect import board_profile, installed_version
from edgekit.runtime.power import open_sensor
from edgekit.runtime.sysfs import text_or_none

_MODEL_FILES = ("proc/device-tree/model", "sys/firmware/devicetree/base/model")


class _AgentRuns(EdgekitError):
    """Something cannot be tried beside a running agent."""


def problems(config: Config) -> Iterator[Problem]:
    """Everything that is wrong, as it is found."""
    for key in config.unknown:
        yield Problem("config", f"{config.path}: {key} is not known to this version and ignored", 1)
    yield from _secrets(config)
    yield from _state_folder(config)
    yield from board_problems(config)
    yield from _profile(config)
    yield from _runtimes(config)
    yield from _sensor(config)
    yield from _messages(config)
    yield from _identity(config)
    yield from _sinks(config)
    for what, look in (
        ("trust", _trust),
        ("source", _source),
        ("broker", _broker),
        ("repository", _repository),
    ):
        try:
            look(config)
        except _AgentRuns as err:
            yield Problem(what, one_line(err), 0)
        except EdgekitError as err:
            yield Problem(what, one_line(err), err.exit_code)
    yield from _api(config)


def exit_code(found: list[Problem]) -> int:
    """The command's exit code: the gravest of them."""
    return max((problem.exit_code for problem in found), default=0)


def _secrets(config: Config) -> Iterator[Problem]:
    for path in config.secret_files:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            yield Problem(
                "secrets", f"{path}: mode is {mode:o}, others can read it: chmod 600 {path.name}", 1
            )


def _state_folder(config: Config) -> Iterator[Problem]:
    folder = config.state_dir
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as err:
        advice = {
            errno.EROFS: ": look at the card (dmesg), and mount it for writing",
            errno.EACCES: ": chown it to the agent's user",
            errno.ENOSPC: ": free some room",
        }.get(err.errno or 0, "")
        detail = f"{folder}: cannot be written: {err.strerror}{advice}"
        yield Problem("state", detail, WorldFailed.exit_code)


def _profile(config: Config) -> Iterator[Problem]:
    if config.sensors.simulated:
        return
    model = next(
        (text for file in _MODEL_FILES if (text := text_or_none(config.sensors.sysroot / file))), None
    )
    board = board_profile(model)
    if board is not None and config.profile.name not in (board, HOST):
        yield Problem("profile", f"this is a {model}, whose profile is {board}, not {config.profile.name}", 2)


def _runtimes(config: Config) -> Iterator[Problem]:
    wanted = [backend.name for backend in config.profile.backends if backend.name in PACKAGES]
    if wanted and not any(installed_version(package) for name in wanted for package in PACKAGES[name]):
        packages = " or ".join(PACKAGES[name][0] for name in wanted)
        yield Problem("runtime", f"no runtime is installed: pip install {packages}", 2)


def _sensor(config: Config) -> Iterator[Problem]:
    sysroot = config.sensors.sysroot
    try:
        sensor = open_sensor(config.sensors.power, sysroot, command.runner(sysroot))
    except BadInput as err:
        yield Problem("sensor", f"{config.path}: sensors.power: {one_line(err)}", 2)
        return
    why = sensor.read().why
    if why is not None and config.sensors.power != "none":
        yield Problem("sensor", f"{config.sensors.power} gives no power: {why}{no_permission(why)}", 1)


def _trust(config: Config) -> None:
    from tuf.api.exceptions import RepositoryError
    from tuf.api.metadata import Metadata, Root

    load_control_key(config.trust.control_key, f"{config.path}: trust.control_key")
    try:
        Metadata[Root].from_bytes(config.trust.root).verify_delegate(
            "root", Metadata[Root].from_bytes(config.trust.root)
        )
    except (RepositoryError, ValueError, KeyError) as err:
        raise BadInput(f"{config.path}: trust.root must be a signed TUF root.json: {one_line(err)}") from err


def _source(config: Config) -> None:
    open_source(config.source)


def _messages(config: Config) -> Iterator[Problem]:
    """Inputs and answers by message: their topics, which the broker's ACL must allow, and what is missing."""
    source, answers = config.source, any(sink.kind == "mqtt" for sink in config.sinks)
    if source.kind == "mqtt":
        detail = f"at most {source.max_waiting} wait, of {source.max_input_bytes} bytes at most"
        yield Problem("source", f"takes inputs from {topic(config.fleet, config.name, INPUT)}: {detail}", 0)
        if not answers:
            yield Problem("source", "inputs come by message, and no sink of kind mqtt answers them", 1)
    if answers:
        yield Problem("sink", f"sends answers to {topic(config.fleet, config.name, ANSWER)}", 0)
    if config.sinks and source.kind == "none":
        yield Problem("sink", "there is a sink, and no source whose answers it would get", 1)


def _sinks(config: Config) -> Iterator[Problem]:
    for sink in config.sinks:
        try:
            open_sink(sink, _no_uplink)
            if sink.path is not None:
                with tempfile.TemporaryFile(dir=sink.path.parent):
                    pass
                if sink.path.exists() and not os.access(sink.path, os.W_OK):
                    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except EdgekitError as err:
            yield Problem("sink", f"{config.path}: sink: {one_line(err)}", err.exit_code)
        except OSError as err:
            yield Problem("sink", f"{sink.path}: cannot be written: {err.strerror}", WorldFailed.exit_code)


def _no_uplink() -> Post:
    raise WorldFailed("nothing is sent by a check")


def _api(config: Config) -> Iterator[Problem]:
    """What the local API would listen on, and whether it can; its address is tried, but not beside a running agent."""
    if config.api is None:
        return
    try:
        from edgekit.agent.api.listen import try_listen
        from edgekit.agent.api.server import Api  # noqa: F401  (raises MissingExtra)

        if not is_held(config.state_dir):
            try_listen(config.api)
    except EdgekitError as err:
        yield Problem("api", one_line(err), err.exit_code)
        return
    yield Problem("api", f"listens on {config.api.address}, {config.api.openness}", 0)


def _broker(config: Config) -> None:
    """Connect as the board would, but not beside a running agent.

    A broker that takes the user name for the client id would send that one away.
    """
    if is_held(config.state_dir):
        raise _AgentRuns(
            f"not tried: the agent is running (it holds {config.state_dir}); its log tells how it gets on"
        )
    *first, last = [
        version for name, version in PROTOCOLS.items() if config.broker.protocol in (name, "auto")
    ]
    for protocol in first:
        with suppress(WorldFailed):
            return _greet(config, protocol)
    return _greet(config, last)


def _greet(config: Config, protocol: MQTTProtocolVersion) -> None:
    broker = config.broker
    codes: list[ReasonCode] = []
    answered = threading.Event()
    client = new_client(broker, f"{config.address}/check", protocol, tls=_tls(config))

    def on_connect(
        _client: object, _data: object, _flags: object, code: ReasonCode, _properties: object
    ) -> None:
        codes.append(code)
        answered.set()

    client.on_connect = on_connect
    client.on_disconnect = lambda *_: answered.set()
    try:
        connect(client, broker)
    except WorldFailed as err:
        advice = _about_certificates(err.__cause__, broker)
        if advice is None:
            raise
        raise BadInput(f"broker {broker.host}:{broker.port}: {advice}") from err
    client.loop_start()
    try:
        if not answered.wait(CONNECT_S):
            raise WorldFailed(f"broker {broker.host}:{broker.port}: no answer within {CONNECT_S:g} s")
        if not codes:
            raise WorldFailed(hung_up(broker, broker.username))
        if codes[0].is_failure:
            raise WorldFailed(f"broker {broker.host}:{broker.port} refuses {broker.username}: {codes[0]}")
    finally:
        client.disconnect()
        client.loop_stop()


def _about_certificates(err: BaseException | None, broker: Broker) -> str | None:
    """What is wrong with the broker's certificate, by the codes of X509_V_ERR (OpenSSL); None: something else is."""
    if isinstance(err, ssl.SSLCertVerificationError):
        ca = "the system's authorities" if broker.ca is None else str(broker.ca)
        return {
            62: f"its certificate is for another name: broker.host must be one that it holds, got {broker.host}",
            64: f"its certificate is for another address: broker.host must be one that it holds, got {broker.host}",
            18: f"it signed its certificate itself, and {ca} does not hold that: set broker.ca to it",
            19: f"its certificate comes from an authority that {ca} does not hold: set broker.ca to that authority's",
            20: f"its certificate comes from an authority that {ca} does not hold: set broker.ca to that authority's",
            10: "its certificate has expired: the server needs another one",
            9: "its certificate is not valid yet: is this board's clock right?",
        }.get(err.verify_code, f"its certificate is not accepted: {err.verify_message}")
    if broker.tls and isinstance(err, ssl.SSLError | ConnectionResetError):
        return f"hangs up on TLS ({one_line(err)}): is TLS spoken on that port? else broker.tls = false"
    return None


def _tls(config: Config) -> Tls:
    """As the agent speaks it. Raises BadInput where the board's certificate and key are none."""
    identity = config.identity
    identities = None if identity is None else Identities(identity, config.state_dir)
    good_time = state_of(config).good_time
    return Tls(identities, lambda: good_time)


def _identity(config: Config) -> Iterator[Problem]:
    """The board's certificate: whether it is one, and how long it lasts."""
    if config.identity is None:
        if config.broker.tls:
            yield Problem("identity", f"{config.path}: there is no [identity]: the broker may want one", 0)
        return
    try:
        tls = _tls(config)
    except BadInput as err:
        yield Problem("identity", one_line(err), err.exit_code)
        return
    if tls.identities is not None:
        pair, now = tls.identities.current, tls.at_least()
        until = time.strftime("%Y-%m-%d", time.gmtime(pair.expires))
        if now >= pair.expires:
            yield Problem(
                "identity", f"the board's certificate ended on {until}; the agent asks for another", 3
            )
        elif now >= pair.alarm:
            yield Problem("identity", f"the board's certificate ends on {until} and was not renewed", 1)


def _repository(config: Config) -> None:
    from edgekit.agent.repository.client import reachable

    try:
        reachable(config.repository, _tls(config))
    except NetworkFailed as err:
        if err.status in (401, 403):
            raise BadInput(f"{one_line(err)}: is the token in repository.token_file right?") from err
        if "CERTIFICATE_VERIFY_FAILED" in one_line(err):
            raise BadInput(f"{one_line(err)}: is repository.ca the server's data_dir/ca.pem?") from err
        raise
