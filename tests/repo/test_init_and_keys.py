from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from repositories import NOW, BoardClient

from edgekit.core.errors import BadInput
from edgekit.repo.init import init
from edgekit.repo.keys import make_key, read_key
from edgekit.repo.status import status


def test_a_new_repository_is_one_that_boards_refresh_from(repository: Path, board: BoardClient) -> None:
    board.refresh()
    assert status(repository, NOW)["problems"] == []


def test_lives_are_a_year_a_month_and_two_weeks(repository: Path) -> None:
    roles = status(repository, NOW)["roles"]
    assert {role: facts["days_left"] for role, facts in roles.items()} == {
        "root": 365,
        "targets": 365,
        "snapshot": 30,
        "timestamp": 14,
    }


def test_private_keys_are_for_their_owner_alone(repository: Path) -> None:
    modes = {path.name: path.stat().st_mode & 0o777 for path in (repository / "keys").iterdir()}
    assert modes == dict.fromkeys(
        ("root-1.pem", "root-2.pem", "root-3.pem", "targets.pem", "measure.pem", "online.pem"), 0o600
    )
    assert (repository / "keys").stat().st_mode & 0o777 == 0o700


def test_a_repository_is_not_made_over_another(repository: Path) -> None:
    with pytest.raises(BadInput, match="is a repository already"):
        init(repository, NOW)


def test_keys_that_lie_there_are_used(tmp_path: Path) -> None:
    keys = tmp_path / "repo" / "keys"
    keys.mkdir(parents=True)
    own = make_key(keys / "targets.pem")
    init(tmp_path / "repo", NOW)
    assert read_key(keys / "targets.pem").private_bytes_raw() == own.private_bytes_raw()


def test_a_key_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    make_key(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(0o640)
    with pytest.raises(BadInput, match=r"others may read this private key; run: chmod 600 .*k\.pem"):
        read_key(tmp_path / "k.pem")


def test_what_is_no_ed25519_key_is_refused_in_one_line(tmp_path: Path) -> None:
    wrong = generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content, says in ((b"hello", "must be a private key"), (wrong, "must be an ed25519 key")):
        (tmp_path / "k.pem").write_bytes(content)
        (tmp_path / "k.pem").chmod(0o600)
        with pytest.raises(BadInput, match=says):
            read_key(tmp_path / "k.pem")
    with pytest.raises(BadInput, match="there is none"):
        read_key(tmp_path / "missing.pem")


def test_status_says_what_expires_and_which_file_is_wrong(repository: Path) -> None:
    soon = status(repository, NOW + timedelta(days=10))
    assert soon["problems"] == ["timestamp expires on 2026-05-15: less than a third of its life is left"]
    late = status(repository, NOW + timedelta(days=400))["problems"]
    assert [line.split()[0] for line in late] == ["root", "targets", "snapshot", "timestamp"]
    assert late[3] == "timestamp has expired on 2026-05-15: boards take no update"


def test_a_folder_that_is_no_repository_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is no repository; make one with: edgekit repo init"):
        status(tmp_path, NOW)
