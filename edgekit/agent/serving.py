"""What is in force on the board: which bundle, under which policy, and why that differs from what was asked for."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from edgekit.agent.runner import Runner, Serving
from edgekit.core.bundle import Bundle
from edgekit.core.errors import BadInput, one_line
from edgekit.core.policy import PolicySpec, tightened
from edgekit.runtime.measure import golden_data, stage_costs
from edgekit.runtime.policy import Policy, StageCosts, make_policy
from edgekit.runtime.session import Session, open_session

log = logging.getLogger(__name__)
_COST_ROUNDS, _FEW_ROUNDS = 24, 4
_SLOW_MS = 20.0
FULL = PolicySpec()


@dataclass(frozen=True)
class Loaded:
    """A bundle ready to serve: opened, and its stages timed on this board."""

    label: str
    content_id: str
    session: Session
    costs: StageCosts


@dataclass(frozen=True)
class InForce:
    """label, content_id: of the bundle that serves. policy: the one that decides. why: it is not the wanted one."""

    label: str | None
    content_id: str | None
    policy: PolicySpec | None
    why: str | None


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
    ) -> None:
        self._runner = runner
        self._wanted = wanted
        self._factor = throttled_factor
        self._threads = threads
        self._providers = providers
        self._accepts_code = accepts_code
        self._lock = threading.RLock()
        self._throttled = False
        self._loaded: Loaded | None = None
        self.in_force = InForce(None, None, None, None)

    def open(self, bundle: Bundle) -> Loaded:
        """Open a bundle beside the one that serves, and time its stages on its golden inputs. Raises EdgekitError."""
        session = open_session(
            bundle.manifest,
            bundle.read,
            threads=self._threads,
            accepts_code=self._accepts_code,
            providers=self._providers,
        )
        data = golden_data(bundle.manifest, bundle.read)
        *_, (_, elapsed_ms) = session.stages(data.inputs(0))
        costs = stage_costs(session, data, _COST_ROUNDS if elapsed_ms < _SLOW_MS else _FEW_ROUNDS)
        return Loaded(bundle.label, bundle.content_id, session, costs)

    def serve(self, loaded: Loaded | None, wanted: PolicySpec) -> None:
        """Answer with `loaded` under `wanted` from the next request on. What served before is closed."""
        with self._lock:
            self._wanted, self._loaded = wanted, loaded
            if loaded is None:
                self.in_force = InForce(None, None, None, None)
                self._runner.swap(None)
                return
            spec, policy, why = self._policy(loaded)
            self.in_force = InForce(loaded.label, loaded.content_id, spec, why)
            self._runner.swap(Serving(loaded.session, loaded.label, policy, str(spec)))

    def want(self, wanted: PolicySpec) -> None:
        """Another policy for the bundle that serves."""
        with self._lock:
            self._wanted = wanted
            self._apply()

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
            self._runner.set_policy(policy, str(spec))

    def _policy(self, loaded: Loaded) -> tuple[PolicySpec, Policy, str | None]:
        """The controller to run under; where this bundle or board cannot have the wanted one, the full network."""
        spec, why = self._wanted, None
        if self._throttled and self._factor < 1:
            spec, why = (
                tightened(spec, self._factor),
                f"throttled: costs cut to {self._factor:g} of {self._wanted}",
            )
        try:
            return spec, make_policy(spec, loaded.session.manifest, loaded.costs), why
        except BadInput as err:
            log.warning("policy %s cannot be had: %s", spec, one_line(err))
            return FULL, make_policy(FULL, loaded.session.manifest, loaded.costs), one_line(err)
