"""The fleet's authority: what it signs, what it refuses to sign, how it is followed by the next one."""

from __future__ import annotations

import base64
import itertools
import ssl
import stat
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from servers import write_config

from edgekit.agent.identity import new_key, request
from edgekit.core.errors import BadInput
from edgekit.fleet import certificates as ca
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.enroll import (
    board_of,
    enroll,
    new_certificate,
    prepare,
    renew_certificate,
    revoke,
    token_hash,
)
from edgekit.fleet.schema import certificates
from edgekit.fleet.store import Store, open_store

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=timezone.utc)
BOARD = "demo/pi5"


def years(number: float) -> timedelta:
    return timedelta(days=365 * number)


@pytest.fixture
def authorities(tmp_path: Path) -> list[ca.Authority]:
    return ca.keep_authorities(tmp_path, "demo", NOW)


def test_the_authority_is_made_once_and_its_key_is_nobody_elses_to_read(tmp_path: Path) -> None:
    (first,) = ca.keep_authorities(tmp_path, "demo", NOW)
    (again,) = ca.keep_authorities(tmp_path, "demo", NOW + years(1))
    assert first.certificate == again.certificate
    assert stat.S_IMODE((tmp_path / "ca-1.pem").stat().st_mode) == 0o600
    assert "PRIVATE" not in repr(first)
    (tmp_path / "ca-1.pem").chmod(0o640)
    with pytest.raises(BadInput, match="others may read this private key"):
        ca.read_authorities(tmp_path)


def test_an_authority_is_followed_by_the_next_long_before_it_ends_and_servers_move_last(
    tmp_path: Path,
) -> None:
    numbers = {}
    for age in (0, 6, 7, 8, 9, 10.1, 14, 17):
        now = NOW + years(age)
        found = ca.keep_authorities(tmp_path, "demo", now)
        signing = ca.for_boards(found, now).number, ca.for_servers(found, now).number
        numbers[age] = ([one.number for one in found], *signing)
    assert numbers == {
        0: ([1], 1, 1),
        6: ([1], 1, 1),
        7: ([1, 2], 2, 1),
        8: ([1, 2], 2, 1),
        9: ([1, 2], 2, 2),
        10.1: ([2], 2, 2),
        14: ([2, 3], 3, 2),
        17: ([3], 3, 3),
    }


def test_a_certificate_never_outlives_its_authority(authorities: list[ca.Authority]) -> None:
    end = authorities[0].certificate.not_valid_after_utc
    issued = ca.issue(authorities, request(new_key(), BOARD), BOARD, end - timedelta(days=3))
    assert issued.expires == end.timestamp()


def test_a_clock_that_was_ahead_does_not_leave_an_authority_in_use_that_has_not_begun(tmp_path: Path) -> None:
    for now in (NOW, NOW + years(8), NOW):
        found = ca.keep_authorities(tmp_path, "demo", now)
    assert [one.number for one in found] == [1, 2]
    assert ca.for_boards(found, NOW).number == ca.for_servers(found, NOW).number == 1


@pytest.mark.parametrize(
    "names", [["127.0.0.1", "::1", "localhost"], ["fleet.example", "10.0.0.7"], ["bücher.example"]]
)
def test_a_servers_certificate_is_for_its_names_and_kept_until_two_thirds_of_its_life(
    authorities: list[ca.Authority], tmp_path: Path, names: list[str]
) -> None:
    path = tmp_path / "web.pem"
    made = [
        ca.keep_server(path, names, authorities, NOW + timedelta(days=days))
        for days in (0, 0, 59, 61, 62, 120, 122)
    ]
    assert made == [True, False, False, True, False, False, True]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in found] == [name.replace("bücher", "xn--bcher-kva") for name in names]
    assert ca.keep_server(path, [*names, "added.example"], authorities, NOW + timedelta(days=122))
    path.write_bytes(b"damaged")
    assert ca.keep_server(path, names, authorities, NOW)


def test_openssl_takes_what_is_signed_in_its_strict_mode(
    authorities: list[ca.Authority], tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_bytes(ca.trusted_pem(authorities))
    now = datetime.now(timezone.utc)
    ca.keep_server(tmp_path / "web.pem", ["localhost"], authorities, now)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "web.pem")
    client = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    client.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    caller = client.wrap_bio(back, there, server_hostname="localhost")
    called = server.wrap_bio(there, back, server_side=True)
    for end in (caller, called, caller, called):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert caller.getpeercert()
    assert caller.version() == "TLSv1.3"


# --- boards ---


def other_request(key: Any, address: str = BOARD) -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, address)])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return (
        x509.CertificateSigningRequestBuilder(name).sign(key, algorithm).public_bytes(Encoding.PEM).decode()
    )


def tampered() -> str:
    pem = request(new_key(), BOARD).splitlines()
    der = bytearray(base64.b64decode("".join(pem[1:-1])))
    der[-5] ^= 1
    text = base64.b64encode(der).decode()
    return f"{pem[0]}\n{text}\n{pem[-1]}\n"


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (lambda: request(new_key(), "demo/other"), "csr must be for demo/pi5, got 'demo/other'"),
        (lambda: request(new_key(), "other/pi5"), "csr must be for demo/pi5, got 'other/pi5'"),
        (lambda: other_request(ec.generate_private_key(ec.SECP384R1())), "EC key on the curve P-256"),
        (lambda: other_request(ed25519.Ed25519PrivateKey.generate()), "EC key on the curve P-256"),
        (tampered, "csr must be"),
        (lambda: "nonsense", "csr must be a certificate signing request in PEM"),
        (lambda: "x" * 9000, "at most 8192 bytes"),
    ],
)
def test_a_request_is_signed_only_as_it_should_be(
    authorities: list[ca.Authority], made: Callable[[], str], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        ca.issue(authorities, made(), BOARD, NOW)


def test_nothing_of_a_request_is_taken_but_its_key(authorities: list[ca.Authority]) -> None:
    key = new_key()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, BOARD),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "root"),
        ]
    )
    wish = x509.CertificateSigningRequestBuilder(name).add_extension(
        x509.BasicConstraints(ca=True, path_length=None), critical=True
    )
    pem = wish.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
    issued = x509.load_pem_x509_certificate(ca.issue(authorities, pem, BOARD, NOW).pem.encode())
    assert issued.public_key() == key.public_key()
    assert not issued.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert issued.subject.rfc4514_string() == f"CN={BOARD}"
    assert issued.not_valid_after_utc - NOW == ca.BOARD_LIFE


def test_the_longest_names_are_signed_too(authorities: list[ca.Authority]) -> None:
    address = f"{'f' * 64}/{'d' * 64}"
    pem = ca.issue(authorities, request(new_key(), address), address, NOW).pem
    assert ca.serial_if_ours(authorities, pem, address)


def test_each_list_of_revoked_begins_later_than_the_one_before_it_and_never_later_than_now(
    authorities: list[ca.Authority],
) -> None:
    lists = [ca.revoked_pem(authorities, [], NOW)]
    for count in range(1, 4):
        lists.append(
            ca.revoked_pem(authorities, [(f"{n:x}", 1.7e9) for n in range(1, count + 1)], NOW, lists[-1])
        )
    begins = [ca._begin_of(pem) for pem in lists]
    assert all(later - earlier >= timedelta(seconds=1) for earlier, later in itertools.pairwise(begins))
    assert begins[-1] < NOW
    assert len(ca.revoked_in(lists[-1])) == 4
    (end,) = {part.next_update_utc for part in ca._lists(lists[-1])}
    assert end == authorities[0].certificate.not_valid_after_utc


# --- a board's life on the server ---


class Site:
    """A prepared server without processes, and a board's key."""

    def __init__(self, folder: Path) -> None:
        self.config: FleetConfig = write_config(folder, 1, tls=True)
        prepare(self.config)
        self.store: Store = open_store(self.config.database_url)
        self.key = new_key()
        self.token = ""

    def enroll(self, *, again: bool = False) -> str:
        issued = new_certificate(self.config, "pi5", request(self.key, BOARD))
        assert issued is not None
        with self.store.write() as connection:
            told = enroll(connection, "pi5", None, [], 1.0, again=again, certificate=issued)
        self.token = told.repo_token
        assert told.repo_token not in repr(told)
        return issued.pem

    def renew(self, old: str, signed_with: ec.EllipticCurvePrivateKey | None = None) -> ca.Issued:
        csr = request(new_key(), BOARD)
        signature = (signed_with or self.key).sign(csr.encode(), ec.ECDSA(hashes.SHA256()))
        with self.store.write() as connection:
            board = board_of(connection, self.token)
            assert board is not None
            return renew_certificate(self.config, connection, board, csr, old, signature)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_board_renews_with_the_key_it_has_and_the_old_certificate_goes_on_counting(site: Site) -> None:
    old = site.enroll()
    first, second = site.renew(old), site.renew(old)  # the first answer was lost
    with site.store.read() as connection:
        rows = connection.execute(certificates.select()).all()
    assert len(rows) == 3
    assert {row.revoked_at for row in rows} == {None}
    assert first.serial != second.serial


def test_a_stolen_token_alone_gets_no_certificate(site: Site) -> None:
    old = site.enroll()
    with pytest.raises(BadInput, match="with the key of the certificate in force"):
        site.renew(old, signed_with=new_key())


def test_a_certificate_of_somebody_else_renews_nothing(site: Site, tmp_path: Path) -> None:
    site.enroll()
    folder = tmp_path / "other"
    folder.mkdir()
    stranger = ca.keep_authorities(folder, "demo", NOW)
    with pytest.raises(BadInput, match="one that this fleet's authority signed"):
        site.renew(ca.issue(stranger, request(site.key, BOARD), BOARD, NOW).pem)
    ours = ca.read_authorities(site.config.tls_dir)
    with pytest.raises(BadInput, match="certificate must be demo/pi5's, got 'demo/b'"):
        site.renew(ca.issue(ours, request(site.key, "demo/b"), "demo/b", NOW).pem)
    with pytest.raises(BadInput, match="is not known here"):
        site.renew(ca.issue(ours, request(site.key, BOARD), BOARD, NOW).pem)


def test_a_revoked_board_has_no_token_and_its_certificates_renew_nothing_also_after_it_is_back(
    site: Site,
) -> None:
    old = site.enroll()
    token = site.token
    with site.store.write() as connection:
        assert revoke(connection, "pi5", 5.0) == 5.0
        assert revoke(connection, "pi5", 9.0) == 5.0
        assert board_of(connection, token) is None
    site.enroll(again=True)
    with site.store.read() as connection:
        assert board_of(connection, token) is None
        assert board_of(connection, site.token) is not None
    with pytest.raises(BadInput, match="was revoked"):
        site.renew(old)
    assert len(token_hash(token)) == 64
