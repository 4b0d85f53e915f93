"""The agent: wires config, state, worker, runner, monitor, source, outbox and uplink, and ends them in order."""

from __future__ import annotations

import logging
import os
import random
import secrets
import threading
import time
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgekit.agent import clock
from edgekit.agent.api import open_api
from edgekit.agent.bench import time_candidates
from edgekit.agent.child import ChildLimits
from edgekit.agent.commands import Commands
from edgekit.agent.commit import Committer
from edgekit.agent.config import Config
from edgekit.agent.environments import STATE_COPY, Environments, Service, board_of, supervised
from edgekit.agent.feed import Feed
from edgekit.agent.identity import Identities
from edgekit.agent.install import Worker
from edgekit.agent.lock import hold
from edgekit.agent.measurer import Machine, Measurer
from edgekit.agent.monitor import Change, Monitor
from edgekit.agent.notify import Guard, Watched, notifier
from edgekit.agent.outbox import EVENT, JOB, RECORD, Outbox
from edgekit.agent.refresh import Refresh, Refresher
from edgekit.agent.repository.base import Repository
from edgekit.agent.repository.sticks import Sticks, StickWatch
from edgekit.agent.restore import Committed
from edgekit.agent.runner import Interval, Runner
from edgekit.agent.serving import Server
from edgekit.agent.settings import Settings
from edgekit.agent.shots import Shots
from edgekit.agent.sinks import Sinks
from edgekit.agent.slots import Slots
from edgekit.agent.sources import open_source
from edgekit.agent.sources.mqtt import MqttSource
from edgekit.agent.state import Job, State, StateFile
from edgekit.agent.supervisor import SWITCH
from edgekit.agent.threads import Pulse
from edgekit.agent.tls import Tls
from edgekit.agent.trial import How, TrialResult, try_out
from edgekit.agent.uplink import Uplink
from edgekit.agent.wheels import install
from edgekit.core import checks
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure
from edgekit.core.messages import Event, Info, JobEvent, Reported
from edgekit.core.policy import PolicySpec
from edgekit.core.profile import Profile
from edgekit.core.record import Record
from edgekit.core.target import parse_label, target_path
from edgekit.core.trust import Board
from edgekit.runtime import command
from edgekit.runtime.detect import installed_version
from edgekit.runtime.energy import estimated
from edgekit.runtime.health import Health, read_health
from edgekit.runtime.measure import machine_name
from edgekit.runtime.power import EnergyMeter, open_sensor

if TYPE_CHECKING:
    from edgekit.agent.renewal import Renewer

log = logging.getLogger(__name__)
FLUSH_S = 1.6  # what the end may take, all of it; the interpreter needs a moment after it
_STOP_S = 0.4
_INSTALL_S = 1800.0  # thousands of small files on a slow card
# How long a thread may be busy without a sign of life: a name that is not resolved; a large model opened. The monitor
# is not watched: a sensor that hangs is no reason to end what serves.
_CONNECTING_S, _STEP_S = 180.0, 900.0
_SHORTEST_S = 0.05  # an empty interval shorter than this is no Record
_MAX_TEXT = 500
_PACKAGES = ("onnxruntime", "onnxruntime-gpu", "ai-edge-litert", "tflite-runtime", "numpy")


@dataclass(frozen=True)
class Summary:
    """What one run of the agent came to. requests: of this run. records: over the life of the outbox."""

    boot_id: str
    requests: int
    records: Mapping[str, int]
    bundle: str | None

    def to_json(self) -> dict[str, Any]:
        """The object that `edgekit agent --json` ends with."""
        return {
            "boot_id": self.boot_id,
            "requests": self.requests,
            "records": dict(self.records),
            "bundle": self.bundle,
        }


class Agent:
    """One run of the daemon. `run` returns after `stop`; everything else happens in threads of its own."""

    def __init__(self, config: Config, version: str, environ: MutableMapping[str, str] | None = None) -> None:
        """Open everything that can fail for the config's sake: raises BadInput, or WorldFailed for the state folder.

        environ: what the supervisor or the service manager told this process; None: its own environment.
        """
        environ = os.environ if environ is None else environ
        self._supervised, self._notifier = supervised(environ), notifier(environ)
        self.exit_code = 0
        self._log_level = logging.getLogger("edgekit").level
        self._config = config
        self._version = version
        source = _named(config, "source", lambda: open_source(config.source))
        self._sinks = _named(
            config, "sink", lambda: Sinks(config.sinks, lambda: self._uplink, self._time, self._tell)
        )
        sysroot = config.sensors.sysroot
        self._run_command = command.runner(sysroot)
        sensor, own_sensor = (
            _named(
                config, "sensors.power", lambda: open_sensor(config.sensors.power, sysroot, self._run_command)
            )
            for _ in range(
                2
            )  # one for the Records, one for what a request costs: some remember their last value
        )
        self._commands = Commands(config)
        self._lock = hold(config.state_dir)
        self.boot_id = secrets.token_hex(8)
        self._started_s = time.monotonic()
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._requests = 0
        self._machine = machine_name()
        self._runtimes = {name: found for name in _PACKAGES if (found := installed_version(name)) is not None}
        self._repository: Repository | None = None
        self._opening = threading.Lock()
        self._outbox = Outbox(
            config.state_dir / "outbox.db", self.boot_id, config.telemetry.outbox_bytes, self._put
        )
        self._slots = Slots(config.state_dir / "slots", config.limits.max_bundle_bytes)
        self._state = StateFile(config.state_dir / "state.json", self._repaired_state)
        self._settings = Settings(config, self._state.current.config)
        config = self._settings.config
        identity = config.identity
        self._identities = (
            None
            if identity is None
            else _named(config, "identity", lambda: Identities(identity, config.state_dir))
        )
        self._tls = Tls(self._identities, lambda: self._state.current.good_time)
        self._runner = Runner(on_closed=self._wake.set)
        providers = _providers(config.profile)
        limits, policy = config.limits, self._state.current.policy or config.policy
        self._server = Server(
            self._runner,
            policy,
            limits.throttled_factor,
            limits.threads,
            providers,
            accepts_code=limits.accepts_code,
            sensor=own_sensor,
        )
        committed = Committed(self._state, self._slots, self._server, config.policy, self._tell)
        committer = Committer(
            state=self._state,
            slots=self._slots,
            server=self._server,
            committed=committed,
            try_out=self._try_out,
            live=lambda: self._settings.config.trial,
            policy=config.policy,
            tell=self._tell,
        )
        self._sticks = Sticks(config.update.sticks)
        self._worker = Worker(
            state=self._state,
            slots=self._slots,
            repository=self._open_repository,
            server=self._server,
            committed=committed,
            committer=committer,
            board=self._board(),
            limits=limits,
            policy=config.policy,
            report=self._report_job,
            changed=self._changed,
            judge=self._settings.judge,
            jitter=self._jitter,
        )
        self._refresher = Refresher(
            state=self._state,
            repository=self._open_repository,
            every_s=lambda: self._settings.config.update.refresh_h * 3600,
            withdraw=self._worker.withdraw,
            tell=self._tell,
            changed=self._changed,
        )
        self._shots = Shots(
            state=self._state,
            actions={
                "refresh": Refresh(self._refresher),
                "measure": self._make_measurer(),
                "update-agent": self._make_environments(),
            },
            report=self._report_job,
        )
        self._commands.attach(self._state, self._worker, self._shots, self._report_refusal)
        self._stick_watch = StickWatch(
            self._sticks,
            config.address,
            self._commands.receive,
            newest=lambda: self._state.current.n,
            appeared=self._worker.try_now,
        )
        self._api = _named(config, "api", lambda: open_api(config.api, self._runner, version))
        self._meter = EnergyMeter(sensor, time.monotonic)
        health = partial(read_health, sysroot, self._run_command)
        self._monitor = Monitor(
            self._meter,
            health,
            self._board_changed,
            config.sensors.sample_s,
            activity=lambda: self._runner.activity,
        )
        self._uplink = Uplink(
            config.broker,
            config.address,
            self._outbox,
            ack=config.telemetry.ack,
            resend_s=config.telemetry.resend_s,
            current={"info": lambda: self._info().to_json(), "reported": lambda: self._reported().to_json()},
            on_message=self._commands.receive,
            inputs=source if isinstance(source, MqttSource) else None,
            tls=self._tls,
        )
        self._renewer = None if self._identities is None else self._make_renewer(self._identities)
        self._feed = Feed(source, self._sinks, self._runner, ended=self._source_ended, tell=self._tell)
        self._pulse = Pulse()
        self._guard = Guard(
            self._notifier,
            {
                "main": Watched(self._pulse, self._wake.set),
                "runner": Watched(self._runner.pulse, self._runner.poke),
                "uplink": Watched(self._uplink.pulse, self._uplink.announce, _CONNECTING_S),
                "worker": Watched(self._worker.pulse, self._worker.poke, _STEP_S),
                "shots": Watched(self._shots.pulse, self._shots.poke, _STEP_S),
            },
        )

    def _try_out(self, bundle: Path, policy: PolicySpec, check: Callable[[], None]) -> TrialResult:
        trial, sensors = self._settings.config.trial, self._config.sensors
        how = How(trial.requests, trial.seconds, policy, sensors.power, sensors.sysroot)
        limits = self._child_limits(self._settings.config.limits.golden_timeout_s + trial.seconds)
        return try_out(bundle, how, limits, check)

    def _child_limits(self, timeout_s: float) -> ChildLimits:
        """As the bundle would be served, for so long."""
        limits = self._settings.config.limits
        providers = _providers(self._config.profile)
        return ChildLimits(timeout_s, limits.golden_memory_mb, limits.threads, providers, limits.accepts_code)

    def _make_measurer(self) -> Measurer:
        config, simulated = self._config, self._config.sensors.simulated
        sensors, limits = config.sensors, config.limits
        return Measurer(
            folder=config.state_dir / "measure",
            repository=self._open_repository,
            time_candidates=lambda folder, check: time_candidates(
                folder, self._child_limits(limits.measure_timeout_s), sensors.power, sensors.sysroot, check
            ),
            board=self._board,
            machine=Machine(
                config.name,
                config.profile.name,
                "simulated" if simulated else "measured",
                config.profile.name if simulated else self._machine,
                lambda: self._server.in_force.label is not None,
            ),
            max_bytes=limits.max_bundle_bytes,
        )

    def _make_environments(self) -> Environments:
        config, most = self._config, self._config.limits.max_bundle_bytes
        child = self._child_limits(_INSTALL_S)
        return Environments(
            site=self._supervised,
            repository=self._open_repository,
            install=lambda file, folder, check: install(file, folder, most, child, check),
            board=board_of(config.profile.name),
            max_bytes=most,
            state_file=config.state_dir / "state.json",
            idle=lambda: self._worker.idle,
            service=lambda: Service(self._server.in_force.content_id, self._uplink.connected.is_set()),
            unhealthy=self._unhealthy,
            steady_s=config.trial.live_seconds,
            leave=self._give_way,
            passed=self._start_worker,
            tell=self._tell,
            say=self._notifier.status,
        )

    def _make_renewer(self, identities: Identities) -> Renewer:
        # It brings urllib3: only where there is a certificate to renew.
        from edgekit.agent.renewal import Renewer, signer

        return Renewer(
            identities=identities,
            address=self._config.address,
            sign=signer(self._config.repository, self._tls),
            time_at_least=self._tls.at_least,
            tell=self._tell,
            changed=self._has_new_certificate,
        )

    # --- life ----------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Let `run` end; safe in a signal handler."""
        self._stopped.set()
        self._wake.set()

    def run(self) -> Summary:
        """Serve until `stop`; then flush and say goodbye."""
        self._set_log_level()
        self._runner.start()
        if self._api is not None:
            self._api.start()
        self._tell_what_was_repaired()
        self._worker.restore()
        self._shots.restore()
        self._uplink.start()
        if self._supervised is None or self._supervised.job is None:
            self._start_worker()
        self._refresher.start()
        if self._sticks:
            self._stick_watch.start()
        if self._renewer is not None:
            self._renewer.start()
        self._shots.start()
        self._monitor.start()
        self._sinks.start()
        self._feed.start()
        bundle = self._server.in_force.label or "nothing yet"
        log.info("%s is ready: serves %s (boot %s)", self._config.address, bundle, self.boot_id)
        self._notifier.say("READY=1", f"STATUS=serves {bundle}")
        self._guard.start()
        self._tick()
        self._notifier.say("STOPPING=1")
        self._guard.stop()
        return self._end()

    def _start_worker(self) -> None:
        """Work on bundles. Under an environment on trial they wait: what they change is not taken back with it."""
        self._worker.start()

    def _unhealthy(self) -> str | None:
        return self._guard.unhealthy()

    def _give_way(self) -> None:
        """End for the supervisor to start another environment."""
        self.exit_code = SWITCH
        self.stop()

    def _tick(self) -> None:
        """Make Records: at every interval's end, and where a switch or another policy has closed one."""
        due = time.monotonic() + self.interval_s
        while not self._stopped.is_set():
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            self._pulse.beat()
            now = time.monotonic()
            due = min(due, now + self.interval_s)  # it may have been shortened
            if now < due:
                self._record(self._runner.collect_closed())
                continue
            self._record(self._runner.collect())
            self._outbox.report_drops(self._time())
            self._worker.report_again()
            self._shots.report_again()
            due = max(due + self.interval_s, now)

    def _end(self) -> Summary:
        end = time.monotonic() + FLUSH_S
        self._feed.stop()
        if self._api is not None:
            self._api.begin_stop()
        self._shots.stop(_STOP_S)
        self._refresher.stop(0.0)
        self._stick_watch.stop(0.0)
        if self._renewer is not None:
            self._renewer.stop(0.0)
        self._worker.stop(_STOP_S)
        self._monitor.stop()
        if self._api is not None:
            self._api.stop(_STOP_S)
        self._runner.drain(_STOP_S)
        self._runner.stop(_STOP_S)
        self._sinks.finish(_STOP_S)
        self._feed.join(_STOP_S)
        self._record(self._runner.collect())
        sent = self._uplink.finish(max(0.1, end - time.monotonic() - 0.5))
        counts = self._outbox.counts(RECORD)
        if not sent:
            self._tell_what_is_held()
        durable = self._outbox.durable
        self._outbox.close()
        held, lost = (counts.held, 0) if durable else (0, counts.held)
        records = {"made": counts.made, "acked": counts.acked, "held": held, "dropped": counts.dropped + lost}
        active = self._state.current.active
        os.close(self._lock)
        return Summary(self.boot_id, self._requests, records, active.label if active else None)

    def _tell_what_is_held(self) -> None:
        held = self._outbox.counts(RECORD, EVENT, JOB).held
        if self._outbox.durable:
            log.info("%d items were not acknowledged; they are kept and sent at the next start", held)
        else:
            log.warning("%d items were not acknowledged and are lost: the outbox was in memory", held)

    @property
    def interval_s(self) -> float:
        """The interval in force."""
        return self._state.current.interval_s or self._config.telemetry.interval_s

    def _source_ended(self, inputs: int) -> None:
        self._tell("source-ended", {"requests": inputs})
        if self._config.source.exit_at_end:
            log.info("the source has no more, and source.exit_at_end is set")
            self.stop()

    # --- what threads call ---------------------------------------------------------------------------------------

    def _put(self) -> None:
        self._uplink.wake()

    def _changed(self) -> None:
        if self._settings.take(self._state.current.config):
            self._obey(self._settings.config)
        self._uplink.announce("info", "reported")
        self._wake.set()

    def _obey(self, config: Config) -> None:
        """Let settings hold that are read only now and then; others are read where they are used."""
        limits = config.limits
        self._worker.obey(limits, self._board())
        self._server.obey(limits.throttled_factor, limits.threads, accepts_code=limits.accepts_code)
        self._monitor.sample_s = config.sensors.sample_s
        self._set_log_level()

    def _set_log_level(self) -> None:
        """As the command line asked, or more where config or settings say so."""
        ours = logging.getLogger("edgekit")
        ours.setLevel(logging.DEBUG if self._settings.config.log.verbose else self._log_level)

    def _board(self) -> Board:
        """What this board accepts now."""
        limits = self._settings.config.limits
        return Board(
            self._config.profile.name, limits.accepts_measure, limits.accepts_code, self._config.name
        )

    def _has_new_certificate(self) -> None:
        self._changed()
        self._uplink.reconnect()

    def _time(self) -> float | None:
        return clock.trusted_now(self._state.current.good_time)

    def _tell(self, kind: str, detail: Mapping[str, object]) -> None:
        short = {key: _short(value) if isinstance(value, str) else value for key, value in detail.items()}
        self._outbox.put(Event(self.boot_id, 1, kind, self._time(), short))

    def _report_job(self, job: Job) -> bool:
        detail = _short(job.detail)
        event = JobEvent(self.boot_id, 1, job.job_id, job.state, job.target, self._time(), job.reason, detail)
        return self._outbox.put(replace(event, reports=job.reports)) is not None

    def _report_refusal(self, job_id: str, target: str | None, reason: str, detail: str) -> None:
        event = JobEvent(self.boot_id, 1, job_id, "refused", target, self._time(), reason, _short(detail))
        self._outbox.put(event)

    def _board_changed(self, change: Change) -> None:
        """Something that slows the board began or is over: an event each; the budget follows the whole of them."""
        health = change.health
        if change.turned:
            self._throttle(change.slowed, health)
        for word, begins in change.words.items():
            log.warning("%s %s", word, "begins" if begins else "is over")
            self._tell(
                "condition",
                {
                    "what": word,
                    "on": begins,
                    "flags": list(health.flags),
                    "temperature_c": health.temperature_c,
                    "over_current_events": health.over_current_events,
                },
            )

    def _throttle(self, throttled: bool, health: Health) -> None:
        log.warning(
            "throttled: %s" if throttled else "no longer throttled: %s", ", ".join(health.flags) or "no flags"
        )
        self._server.throttle(throttled)
        policy = self._server.in_force.policy
        detail = {
            "on": throttled,
            "flags": list(health.flags),
            "temperature_c": health.temperature_c,
            "policy": None if policy is None else str(policy),
        }
        self._tell("throttle", detail)
        self._changed()

    def _tell_what_was_repaired(self) -> None:
        if self._state.repaired is not None:
            active = self._state.current.active
            self._tell(
                "state-repaired", {"why": self._state.repaired, "active": active.label if active else None}
            )
        if self._outbox.damaged is not None:
            self._tell("outbox-damaged", {"why": self._outbox.damaged})

    def _repaired_state(self) -> State:
        """What can be known without the state file.

        Where an environment on trial wrote one that this version does not read: as it was before that trial. Else: what
        passed its trial here last, and before that.
        """
        copy = self._config.state_dir / STATE_COPY
        with suppress(OSError, BadInput):
            return State.parse(checks.parse_json(copy.read_bytes(), str(copy)), str(copy))
        committed = self._slots.committed()
        slots = [slot for _, slot in committed[:2]] + [None, None]
        return State(active=slots[0], previous=slots[1], commits=committed[0][0] if committed else 0)

    def _jitter(self, job: Job) -> float:
        """Seconds until a new job begins: at once where its bundle lies on a stick, for then it asks no server."""
        if job.target is None or self._sticks.bring(target_path(*parse_label(job.target, "target"))):
            return 0.0
        return random.uniform(0.0, self._settings.config.update.jitter_s)

    def _bundles(self) -> Sequence[Path]:
        state = self._state.current
        return self._slots.bundles([slot.content_id for slot in (state.active, state.previous) if slot])

    def _rate(self) -> float | None:
        rate_kb_s = self._settings.config.update.rate_kb_s
        return None if rate_kb_s is None else rate_kb_s * 1000

    def _open_repository(self) -> Repository:
        with self._opening:
            if self._repository is None:
                from edgekit.agent.repository.client import (
                    RepositoryClient,  # python-tuf, not before a job needs it
                )

                self._repository = RepositoryClient(
                    self._config.repository,
                    self._config.trust.root,
                    self._config.state_dir / "metadata",
                    self._state,
                    self._tls,
                    held=self._bundles,
                    sticks=self._sticks,
                    rate=self._rate,
                )
            return self._repository

    # --- what is said --------------------------------------------------------------------------------------------

    def _info(self) -> Info:
        state = self._state.current
        return Info(
            profile=self._config.profile.name,
            agent=self._version,
            boot_id=self.boot_id,
            runtimes=self._runtimes,
            sensors=() if self._config.sensors.power == "none" else (self._config.sensors.power,),
            simulated=self._config.sensors.simulated,
            slots=tuple(slot.label for slot in (state.active, state.previous) if slot is not None),
            metadata=state.metadata,
            metadata_expires=state.metadata_expires,
            certificate_expires=None if self._identities is None else self._identities.current.expires,
            accepts_measure=self._settings.config.limits.accepts_measure,
            environment=self._supervised.label if self._supervised else None,
        )

    def _reported(self) -> Reported:
        state, now = self._state.current, self._server.in_force
        job = state.next or state.job
        about_job = None
        if job is not None and job.state in ("failed", "refused", "expired"):
            about_job = f"{job.target or 'policy'} {job.state}: {job.reason or ''} {job.detail or ''}".strip()
        elif job is not None and not job.ended:
            about_job = self._worker.waiting_for
        committed = self._worker.committed
        reasons = (about_job, committed.unserved, committed.damaged, state.lost, now.why)
        why = "; ".join(filter(None, reasons))
        return Reported(
            rev=state.rev,
            job_id=job.job_id if job else None,
            state=job.state if job else None,
            bundle=now.label,
            content_id=now.content_id,
            policy=now.policy,
            interval_s=self.interval_s,
            why=_short(why),
            config=self._settings.effective.taken,
            config_refused={key: why[:_MAX_TEXT] for key, why in self._settings.effective.refused.items()},
        )

    def _record(self, intervals: Sequence[Interval]) -> None:
        """Store closed intervals as Records. Energy is known where it was measured over exactly that interval."""
        kept = [
            interval
            for interval in intervals
            if interval.requests or interval.errors or interval.ended_s - interval.started_s >= _SHORTEST_S
        ]
        if not kept:
            return
        window = self._meter.close_window()
        energy, why = window.energy_mj, window.why
        if len(kept) > 1:
            energy, why = None, "a switch fell into the sensor's window"
        dropped, lost = self._feed.take_counts()
        for interval in kept:
            self._requests += interval.requests
            record = self._as_record(interval, self._energy(energy, interval), why)
            record = replace(record, energy_updates=window.updates, idle_power_mw=self._meter.idle_power_mw)
            if interval is kept[-1]:  # what was counted beside the runner goes with the latest
                record = replace(record, inputs_dropped=dropped, answers_lost=lost)
            self._outbox.put(record)

    def _energy(self, energy_mj: float | None, interval: Interval) -> Figure:
        """What was measured; the profile's estimate where the board has no sensor, never where one fails."""
        if energy_mj is None and self._config.sensors.power == "none":
            profile = self._config.profile
            seconds = interval.ended_s - interval.started_s
            return estimated(profile.power, seconds, interval.busy_s, profile.name)
        if energy_mj is None:
            return Figure(None, "mJ")
        if self._config.sensors.simulated:
            return Figure(energy_mj, "mJ", "simulated", on=self._config.profile.name)
        return Figure(energy_mj, "mJ", "measured", on=self._machine)

    def _as_record(self, interval: Interval, energy: Figure, why: str | None) -> Record:
        health, now = self._monitor.health, self._time()
        return Record(
            seq=1,
            uptime_s=round(time.monotonic() - self._started_s, 3),
            time=now,
            clock_synced=now is not None and clock.synchronized(),
            interval_s=round(interval.ended_s - interval.started_s, 6),
            bundle=interval.bundle,
            policy=interval.policy,
            requests=interval.requests,
            errors=interval.errors,
            deadline_missed=interval.deadline_missed,
            labelled=interval.labelled,
            correct=interval.correct,
            exit_counts=dict(interval.exit_counts),
            latency=interval.latency,
            energy=energy,
            energy_why=why,
            busy_s=round(interval.busy_s, 6),
            temperature_c=health.temperature_c,
            throttled=health.throttled,
            under_voltage=health.under_voltage,
            memory_mb=_resident_mb(),
            cancelled=interval.cancelled,
            nan_confidences=interval.nan_confidences,
        )


def _short(text: str | None) -> str | None:
    """A text as messages carry it: none is None, a long one is cut."""
    return text[:_MAX_TEXT] if text else None


def _named(config: Config, key: str, make: Callable[[], Any]) -> Any:
    """What `make` makes; its error says which key of which file it is about."""
    try:
        return make()
    except BadInput as err:
        raise BadInput(f"{config.path}: {key}: {err}") from err


def _providers(profile: Profile) -> tuple[str, ...]:
    """onnxruntime's providers in the profile's order; the processor where the profile says nothing."""
    named = [backend.providers for backend in profile.backends if backend.name == "onnxruntime"]
    return (named[0] if named else ()) or ("CPUExecutionProvider",)


def _resident_mb() -> float | None:
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)
