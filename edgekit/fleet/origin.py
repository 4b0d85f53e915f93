"""Which names this server answers to, and whether a browser's request comes from its own pages. Pure rules.

Without the first, a page of another site could let its name mean 127.0.0.1 and talk to a server that listens on
loopback (DNS rebinding). Without the second, it could send forms with a visitor's cookie (CSRF).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgekit.fleet.config import FleetConfig


@dataclass(frozen=True)
class Names:
    """hosts: names it answers to besides those of loopback; None: any, it does not listen on loopback alone.

    public: the origin and the host of public_url, where there is one.
    """

    hosts: frozenset[str] | None
    public_origin: str | None
    public_host: str | None

    def answers_to(self, host: str | None) -> bool:
        """Whether a Host header names this server."""
        if self.hosts is None:
            return True
        name = host_name(host)
        return name is not None and (name in self.hosts or _is_this_machine(name))

    def is_secure(self, scheme: str, host: str | None) -> bool:
        """Whether the browser speaks https, to this server or to the proxy in front of it."""
        behind = self.public_origin is not None and self.public_origin.startswith("https:")
        return scheme in {"https", "wss"} or (behind and host_name(host) == self.public_host)

    def is_own_page(self, headers: Mapping[str, str], scheme: str) -> bool:
        """Whether a request that changes something, or a websocket, was made by a page of this server.

        Programs that are no browsers say neither Origin nor Sec-Fetch-Site; they carry no visitor's cookie either.
        """
        if headers.get("sec-fetch-site", "none") not in {"same-origin", "none"}:
            return False
        origin = headers.get("origin")
        if origin is None or origin == self.public_origin:
            return True
        kind, _, where = origin.partition("://")
        plain = scheme in {"http", "ws"}  # a proxy may have taken the s off
        return where == headers.get("host") and (kind == "https" or (kind == "http" and plain))


def names_of(config: FleetConfig) -> Names:
    """The names in fleet.toml."""
    origin = host = None
    if config.public_url is not None:
        parts = urlsplit(config.public_url)
        origin, host = f"{parts.scheme}://{parts.netloc}".lower(), parts.hostname
    if not _is_this_machine(config.web.host):
        return Names(None, origin, host)
    return Names(frozenset({config.web.host.lower(), *([host] if host else [])}), origin, host)


def host_name(header: str | None) -> str | None:
    """The name in a Host header, without its port; None where there is none."""
    if not header:
        return None
    try:
        name = urlsplit(f"//{header}").hostname
    except ValueError:
        return None
    return name.rstrip(".").lower() if name else None


def _is_this_machine(name: str) -> bool:
    """No name that somebody else's name server could let mean 127.0.0.1 (RFC 6761 keeps .localhost)."""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
