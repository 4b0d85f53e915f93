"""What is in force on the board: which bundle, under which policy, and why that differs from what was asked for."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace
from functools import partial

from edgekit.agent.live import Before, Watch
from edgekit.agent.runner import Runner, Serving
from edgekit.agent.trial import private_mb
from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput, EdgekitError, one_line
from edgekit.core.policy import PolicySpec, tightened
from edgekit.runtime.data import Data
from edgekit.runtime.energy import metered, per_unit
from edgekit.runtime.measure import golden_data, stage_costs
from edgekit.runtime.policy import Policy, StageCosts, make_policy
from edgekit.runtime.power import PowerSensor
from edgekit.runtime.session import Session, open_session

log = logging.getLogger(__name__)
_COST_ROUNDS, _FEW_ROUNDS = 24, 4
_SLOW_MS = 20.0
_ENERGY_S = (1.25, 5.0)  # the longer one where the sensor, or a busy board, gave too few figures in the first
FULL = PolicySpec()


@dataclass(frozen=True)
class Loaded:
    """A bundle ready to serve: opened, and its stages timed on this board."""

    label: str
    content_id: str
    session: Session
    costs: StageCosts
    bundle: Bundle
    no_energy: str | None = None  # why a request's energy is not known, where a policy asked for it
    before_mb: float | None = None  # private memory of the agent before it was opened


@dataclass(frozen=True)
class InForce:
    """label, content_id: of the bundle that serves. policy: the one that decides. why: it is not the wanted one."""

    label: str | None
    content_id: str | None
    policy: PolicySpec | None
    why: str | None


@dataclass(frozen=True)
class _Kept:
    """What served before the bundle on trial, still open."""

    loaded: Loaded | None
    wanted: PolicySpec
    serving: Serving | None


class Server:
    """Decides what the runner serves under. Called from the worker and the monitor; the runner only obeys."""

    def __init__(
        self,
        runner: Runner,
        wanted: PolicySpec,
        throttled_factor: float,
        threads: int,
        providers: tuple[str, ...],
        *,
        accepts_code: bool,
        sensor: PowerSensor,
    ) -> None:
        """sensor: nobody else's; read only to find out what a request costs, where a budget is in mJ."""
        self._runner = runner
        self._wanted = wanted
        self._factor = throttled_factor
        self._threads = threads
        self._providers = providers
        self._accepts_code = accepts_code
        self._sensor = sensor
        self._lock = threading.RLock()
        self._throttled = False
        self._loaded: Loaded | None = None
        self._kept: _Kept | None = None
        self.in_force = InForce(None, None, None, None)

    def open(self, bundle: Bundle) -> Loaded:
        """Open a bundle beside the one that serves, and time its stages on its golden inputs. Raises EdgekitError."""
        before_mb = private_mb()
        session = self._session(bundle)
        data = golden_data(bundle.manifest, bundle.read)
        *_, (_, elapsed_ms) = session.stages(data.inputs(0))
        costs = stage_costs(session, data, _COST_ROUNDS if elapsed_ms < _SLOW_MS else _FEW_ROUNDS)
        return Loaded(bundle.label, bundle.content_id, session, costs, bundle, before_mb=before_mb)

    def _session(self, bundle: Bundle) -> Session:
        return open_session(
            bundle.manifest,
            bundle.read,
            threads=self._threads,
            accepts_code=self._accepts_code,
            providers=self._providers,
        )

    def serve(self, loaded: Loaded | None, wanted: PolicySpec) -> None:
        """Answer with `loaded` under `wanted` from the next request on. What served before is closed."""
        if loaded is not None and _in_energy(wanted):
            loaded = self._with_energy(loaded, loaded.session)
        with self._lock:
            self._switch(loaded, wanted, Watch())

    def _switch(
        self,
        loaded: Loaded | None,
        wanted: PolicySpec,
        watch: Watch,
        *,
        keep: bool = False,
        learnt: Policy | None = None,
    ) -> None:
        """See serve. keep: what served before stays open. learnt: the controller that the bundle had before."""
        self._wanted, self._loaded = wanted, loaded
        if loaded is None:
            self.in_force = InForce(None, None, None, None)
            self._runner.swap(None, keep=keep)
            return
        spec, policy, why = self._policy(loaded, learnt)
        self.in_force = InForce(loaded.label, loaded.content_id, spec, why)
        now = Serving(loaded.session, loaded.label, policy, str(spec), loaded.costs, self._limited, watch)
        self._runner.swap(now, keep=keep)

    # --- on trial ------------------------------------------------------------------------------------------------

    def try_live(self, loaded: Loaded, wanted: PolicySpec, watch: Watch) -> Before | None:
        """As `serve`, but what served before stays open, so that `go_back` takes no loading; `keep` closes it.

        Gives what served before, to compare with; None where nothing did.
        """
        if _in_energy(wanted):
            loaded = self._with_energy(loaded, loaded.session)
        with self._lock:
            serving, old = self._runner.serving, self._wanted
            self._kept = _Kept(self._loaded, old, serving)
            self._switch(loaded, wanted, watch, keep=True)
        if serving is None:
            return None
        return Before(serving.watch, same_policy=wanted.deadline_ms == old.deadline_ms)

    def keep(self) -> None:
        """The bundle on trial stays; the one before is closed."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None and kept.loaded is not None:
            kept.loaded.session.close()

    def go_back(self) -> None:
        """From the next request on what served before the trial answers again, with what its policy had learnt.

        The one on trial is closed. Nothing happens where none is on trial.
        """
        with self._lock:
            kept, self._kept = self._kept, None
            if kept is None:
                return
            watch = Watch() if kept.serving is None else kept.serving.watch
            learnt = None if kept.serving is None else kept.serving.policy
            self._switch(kept.loaded, kept.wanted, watch, learnt=learnt)

    # --- policies ------------------------------------------------------------------------------------------------

    def want(self, wanted: PolicySpec) -> None:
        """Another policy for the bundle that serves."""
        loaded = self._loaded
        if loaded is not None and _in_energy(wanted) and loaded.costs.mj_per_ms is None:
            loaded = self._measured_beside(loaded)
        with self._lock:
            self._wanted, self._loaded = wanted, loaded
            self._apply()

    def _measured_beside(self, loaded: Loaded) -> Loaded:
        """The bundle that serves with its energy, measured in a session of its own: the other one is the runner's."""
        try:
            session = self._session(loaded.bundle)
        except EdgekitError as err:
            return replace(loaded, no_energy=one_line(err))
        try:
            return self._with_energy(loaded, session)
        finally:
            session.close()

    def _with_energy(self, loaded: Loaded, session: Session) -> Loaded:
        """Measure what the board takes while it runs the bundle's whole network."""
        why: str | None = self._sensor.read().why
        try:
            data = golden_data(loaded.bundle.manifest, loaded.bundle.read)
            for seconds in _ENERGY_S if why is None else ():
                busy_ms, window = metered(self._sensor, partial(_run_for, seconds, session, data))
                energy = per_unit(window, busy_ms)
                if energy.mj is not None:
                    return replace(loaded, costs=replace(loaded.costs, mj_per_ms=energy.mj), no_energy=None)
                why = energy.why
        except EdgekitError as err:
            why = one_line(err)
        return replace(loaded, no_energy=f"a budget in mJ needs a power sensor that can be read: {why}")

    def obey(self, throttled_factor: float, threads: int, *, accepts_code: bool) -> None:
        """Other limits: of costs while throttled at once, of threads and code from the next bundle on."""
        with self._lock:
            self._factor, self._threads, self._accepts_code = throttled_factor, threads, accepts_code
            self._apply()

    @property
    def throttled(self) -> bool:
        """Whether the board is slowed down."""
        return self._throttled

    def throttle(self, throttled: bool) -> None:
        """Tighten the policy while the board is throttled; back to the wanted one when that ends."""
        with self._lock:
            if throttled != self._throttled:
                self._throttled = throttled
                self._apply()

    def _apply(self) -> None:
        if self._loaded is None:
            return
        spec, policy, why = self._policy(self._loaded)
        if (spec, why) != (self.in_force.policy, self.in_force.why):
            self.in_force = InForce(self._loaded.label, self._loaded.content_id, spec, why)
            self._runner.set_policy(policy, str(spec), self._loaded.costs)

    def _limited(self, spec: PolicySpec) -> PolicySpec:
        """What becomes of a policy, the board's or a request's own, while the board is throttled."""
        return tightened(spec, self._factor) if self._throttled and self._factor < 1 else spec

    def _policy(self, loaded: Loaded, learnt: Policy | None = None) -> tuple[PolicySpec, Policy, str | None]:
        """The controller to run under; where this bundle or board cannot have the wanted one, the full network."""
        spec, why = self._limited(self._wanted), None
        if spec != self._wanted:
            why = f"throttled: costs cut to {self._factor:g} of {self._wanted}"
        serving = self._runner.serving
        before = serving.policy if serving is not None and serving.session is loaded.session else learnt
        try:
            return spec, make_policy(spec, loaded.session.manifest, loaded.costs, before), why
        except BadInput as err:
            reason = loaded.no_energy if _in_energy(spec) and loaded.no_energy else one_line(err)
            log.warning("policy %s cannot be had: %s", spec, reason)
            why = f"policy {spec} cannot be had, the full network runs: {reason}"
            return FULL, make_policy(FULL, loaded.session.manifest, loaded.costs), why


def _run_for(seconds: float, session: Session, data: Data) -> float:
    """Run the whole network for that long; the ms spent inside it."""
    busy_ms, row, end = 0.0, 0, time.monotonic() + seconds
    while time.monotonic() < end:
        *_, (_, elapsed_ms) = session.stages(data.inputs(row % data.count))
        busy_ms, row = busy_ms + elapsed_ms, row + 1
    return busy_ms


def _in_energy(spec: PolicySpec) -> bool:
    return spec.budget is not None and spec.budget.unit == "mJ"
