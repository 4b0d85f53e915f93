"""One way of speaking TLS, for broker and repository: always verified, also by a board that does not know the time.

A certificate's dates are only as good as the clock they are compared with, and boards start in 1970. Where the clock
cannot be believed, or is not known to be right, OpenSSL checks everything but the dates, and the peer's certificate is
held against the latest time that is known to have passed: what had ended by then is refused, and what seems to begin
later than now is not, for then it is the clock that is late. Everything else (whose signature, which name) is checked
as ever.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgekit.agent import clock
from edgekit.agent.identity import Identities, Pair
from edgekit.core.errors import WorldFailed, one_line

NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME
SSL_ERROR = 1


def _unknown_time() -> float:
    return 0.0


class Tls:
    """Makes contexts. identities: what the board shows of itself; None: nothing. good_time: the latest time seen."""

    def __init__(
        self,
        identities: Identities | None = None,
        good_time: Callable[[], float] = _unknown_time,
        now: Callable[[], float] = time.time,
        synchronized: Callable[[], bool] = clock.synchronized,
    ) -> None:
        self.identities = identities
        self._good_time = good_time
        self._now = now
        self._synchronized = synchronized

    def context(self, ca: Path | None, where: str = "ca") -> ssl.SSLContext:
        """A client's context that checks peers against `ca` (PEM), or the system's where that is None.

        It follows the clock and the board's certificate: each connection is made by what holds when it is made.
        where: the key in the config. Raises WorldFailed where a file cannot be used.
        """
        context = _Context(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.follow(self)
        try:
            if ca is None:
                context.load_default_certs(ssl.Purpose.SERVER_AUTH)
            else:
                context.load_verify_locations(cafile=str(ca))
            context.refresh()
        except OSError as err:
            raise WorldFailed(f"{where}: {ca}: cannot be used: {err.strerror or one_line(err)}") from err
        return context

    def believed(self) -> bool:
        """Whether the clock is good enough for certificates' dates, both ends: believable, and set by somebody."""
        return clock.trusted(self._now(), self.floor()) is not None and self._synchronized()

    def floor(self) -> float:
        """A time that has passed for certain: seen before, or that of the board's own certificate."""
        issued = self.identities.current.issued if self.identities is not None else 0.0
        return max(clock.EARLIEST, self._good_time(), issued)

    def at_least(self) -> float:
        """The latest time that is known to have passed, the clock's among them where that can be true."""
        return clock.trusted(self._now(), self.floor()) or self.floor()


class _Socket(ssl.SSLSocket):
    """Checks after the handshake what OpenSSL was told not to."""

    def do_handshake(self, block: bool = False) -> None:
        super().do_handshake(block)
        context = self.context
        if isinstance(context, _Context):
            context.check_dates(self.getpeercert())


class _Context(ssl.SSLContext):
    sslsocket_class = _Socket
    _tls: Tls
    _shown: Pair | None

    def follow(self, tls: Tls) -> None:
        self._tls, self._shown = tls, None

    def refresh(self) -> None:
        """Take over what changed since the last connection: whether the clock is believed, what is shown."""
        believed = self._tls.believed()
        flags = self.verify_flags & ~NO_CHECK_TIME
        self.verify_flags = ssl.VerifyFlags(flags if believed else flags | NO_CHECK_TIME)
        pair = self._tls.identities.current if self._tls.identities is not None else None
        if pair is not None and pair != self._shown:
            self.load_cert_chain(pair.certificate, pair.key)
            if pair.authorities:
                with contextlib.suppress(ssl.SSLError):
                    self.load_verify_locations(cadata=pair.authorities)
            self._shown = pair

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        self.refresh()
        return super().wrap_socket(*args, **options)

    def check_dates(self, certificate: Any) -> None:
        """Refuse a certificate that had ended by a time which has passed for certain."""
        if not self.verify_flags & NO_CHECK_TIME:
            return
        end = (certificate or {}).get("notAfter")
        if end is None or ssl.cert_time_to_seconds(end) < self._tls.at_least():
            why = f"the certificate of the other side ended on {end}"
            raise ssl.SSLCertVerificationError(SSL_ERROR, f"certificate verify failed: {why}")
