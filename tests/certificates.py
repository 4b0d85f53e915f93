"""Certificates of a fleet's authority, of any age, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from edgekit.agent.identity import key_pem, new_key, request
from edgekit.fleet.certificates import issue, keep_authorities, keep_server, trusted_pem


class Maker:
    """An authority in a folder. Its files: `ca` (public), and pairs of key and certificate in one file each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made = folder, 0
        born = datetime.now(timezone.utc) - timedelta(days=1000)
        self.authorities = keep_authorities(folder, "demo", born)
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(trusted_pem(self.authorities))

    def server(self, names: Sequence[str] = ("127.0.0.1", "localhost"), now: datetime | None = None) -> Path:
        """Good for 90 days from `now`."""
        path = self._path()
        keep_server(path, names, self.authorities, now or datetime.now(timezone.utc))
        return path

    def board(self, address: str, now: datetime | None = None) -> Path:
        """Good for 180 days from `now`."""
        key, pem = self.certify(address, now or datetime.now(timezone.utc))
        path = self._path()
        path.write_bytes(key_pem(key) + pem.encode())
        path.chmod(0o600)
        return path

    def certify(self, address: str, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, str]:
        key = new_key()
        return key, issue(self.authorities, request(key, address), address, now).pem

    def _path(self) -> Path:
        self.made += 1
        return self.folder / f"pair-{self.made}.pem"
