"""`edgekit repo`, called as a person would."""

from __future__ import annotations

import json
import shutil
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from bundles import write_null_bundle

from edgekit.cli.main import run
from edgekit.repo.init import init


def call(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> tuple[str, str]:
    """Run one command line; what it printed and what it complained."""
    capsys.readouterr()
    assert run([str(argument) for argument in arguments]) == code
    out, err = capsys.readouterr()
    return out, err


@pytest.fixture
def repository(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    call(capsys, "repo", "init", tmp_path / "repo")
    return tmp_path / "repo"


def test_a_bundle_is_added_and_shown(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_null_bundle(tmp_path / "a.edge", version=1)
    write_null_bundle(tmp_path / "b.edge", version=2)
    out, _ = call(capsys, "repo", "add", repository, tmp_path / "a.edge", "--json")
    first = json.loads(out)
    assert (first["v"], first["target"], first["added"], first["targets_version"]) == (1, "toy/1", True, 2)
    again = json.loads(call(capsys, "repo", "add", repository, tmp_path / "a.edge", "--json")[0])
    assert (again["added"], again["targets_version"]) == (False, 2)
    call(capsys, "repo", "add", repository, tmp_path / "b.edge", "--key", repository / "keys/targets.pem")
    found = json.loads(call(capsys, "repo", "status", repository, "--json")[0])
    assert {t["label"]: t["state"] for t in found["targets"]} == {"toy/1": "allowed", "toy/2": "current"}
    table = call(capsys, "repo", "status", repository)[0]
    assert "toy/2" in table
    assert "current" in table


def test_a_damaged_file_is_a_problem_and_ends_with_1(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_null_bundle(tmp_path / "a.edge")
    call(capsys, "repo", "add", repository, tmp_path / "a.edge")
    stored = repository / "targets/run/toy/1.edge"
    stored.write_bytes(stored.read_bytes()[:-1])
    found = json.loads(call(capsys, "repo", "status", repository, "--json", code=1)[0])
    assert found["problems"] == [f"toy/1: {stored} is not the file that was signed"]


def test_what_is_wrong_is_one_line_and_nothing_is_half_written(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = write_null_bundle(tmp_path / "a.edge").path
    (tmp_path / "text.edge").write_text("hello")
    (tmp_path / "key.pem").write_text("hello")
    (tmp_path / "key.pem").chmod(0o600)
    before = sorted(path.name for path in repository.rglob("*"))
    for arguments, says in (
        (("init", repository), "is a repository already"),
        (("add", tmp_path / "none", good), "is no repository; make one with: edgekit repo init"),
        (("add", repository, tmp_path / "none.edge"), "no such file"),
        (("add", repository, tmp_path / "text.edge"), "not an edgekit bundle"),
        (("add", repository, good, "--key", tmp_path / "key.pem"), "must be a private key"),
        (("add", repository, good, "--key", tmp_path / "none.pem"), "there is none"),
        (("add", repository, good, "--key", repository / "keys/online.pem"), "signed by 0/1 keys"),
        (("status", tmp_path / "none"), "is no repository"),
    ):
        out, err = call(capsys, "repo", *arguments, code=2)
        assert out == ""
        assert says in err
        assert err.count("\n") == 1
    assert sorted(path.name for path in repository.rglob("*") if path.name != ".lock") == [
        n for n in before if n != ".lock"
    ]


def test_root_keys_in_three_hands_change_a_key_by_copies_that_are_carried(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [(repository / f"keys/root-{n}.pem").rename(tmp_path / f"root-{n}.pem") for n in (1, 2, 3)]
    said = call(capsys, "repo", "rotate", repository, "online", "--root-key", keys[0], code=1)[0]
    for words in (
        "online gets a new key once this is signed",
        "signed by root-1",
        "wants 1 more of the root keys root-2",
        f"edgekit repo sign {repository} COPY",
    ):
        assert words in said
    assert "waits: root 2" in call(capsys, "repo", "status", repository)[0]
    copy = tmp_path / "2.root.json"
    shutil.copy(repository / "pending/2.root.json", copy)
    said = call(capsys, "repo", "sign", copy, "--key", keys[1])[0]
    assert "signed by root-2" in said
    assert "root: 2 of root-1" in said
    done = json.loads(call(capsys, "repo", "sign", repository, copy, "--json")[0])
    assert (done["root_version"], done["enforced"], done["waiting"]) == (2, [2], [])
    found = json.loads(call(capsys, "repo", "status", repository, "--json")[0])
    assert {row["name"]: row["file"] is not None for row in found["keys"]} == {
        "root-1": False,
        "root-2": False,
        "root-3": False,
        "targets": True,
        "online": True,
        "measure": True,
    }
    assert "nothing waits to be signed" in call(capsys, "repo", "sign", repository)[0]


def test_what_waits_can_be_thrown_away(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        (repository / f"keys/root-{number}.pem").rename(tmp_path / f"root-{number}.pem")
    call(capsys, "repo", "rotate", repository, "root", "--which", "root-2", code=1)
    assert "thrown away: root 2" in call(capsys, "repo", "sign", repository, "--cancel")[0]
    assert "waits:" not in call(capsys, "repo", "status", repository)[0]


def test_refresh_ends_with_1_when_what_it_could_not_renew_is_near_its_end(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "nothing is due" in call(capsys, "repo", "refresh", repository)[0]
    long_ago = datetime.now(timezone.utc) - timedelta(days=250)
    init(tmp_path / "old", long_ago)
    kept = (tmp_path / "old/keys/targets.pem").rename(tmp_path / "targets.pem")
    said = call(capsys, "repo", "refresh", tmp_path / "old", code=1)[0]
    assert "root signed anew: version 2" in said
    assert "waits: targets wants the key targets" in said
    said = call(capsys, "repo", "refresh", tmp_path / "old", "--key", kept)[0]
    assert "targets signed anew: version 2" in said
    said = call(capsys, "repo", "refresh", tmp_path / "old", "--past", "timestamp=120")[0]
    assert "timestamp signed anew: version 121" in said
    found = json.loads(call(capsys, "repo", "status", tmp_path / "old", "--json")[0])
    assert found["roles"]["timestamp"]["version"] == 121


def test_what_was_revoked_stays_so(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_null_bundle(tmp_path / "a.edge")
    call(capsys, "repo", "add", repository, tmp_path / "a.edge")
    assert "toy/1 revoked (targets version 3)" in call(capsys, "repo", "revoke", repository, "toy/1")[0]
    assert "toy/1 was revoked before" in call(capsys, "repo", "revoke", repository, "toy/1")[0]
    found = json.loads(call(capsys, "repo", "status", repository, "--json")[0])
    assert [target["state"] for target in found["targets"]] == ["revoked"]


def test_what_cannot_be_done_with_keys_is_one_line(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGEKIT_SERVER", raising=False)
    (tmp_path / "text.json").write_text("hello")
    targets = repository / "keys/targets.pem"
    for arguments, says in (
        (("init", tmp_path / "n", "--root-keys", 2, "--root-threshold", 3), "must be from 1 to 2, got 3"),
        (("rotate", repository, "targets", "--which", "root-1"), "are for: edgekit repo rotate DIR root"),
        (("rotate", repository, "root", "--which", "root-9"), "no one root key called 'root-9'"),
        (("rotate", repository, "root", "--which", "root-1", "--root-keys", 2), "either one root key"),
        (("rotate", tmp_path / "none", "online"), "is no repository"),
        (("sign", repository, repository), "wanted one DIR and files"),
        (("sign", tmp_path / "text.json", "--key", targets), "must be TUF metadata"),
        (("sign", tmp_path / "text.json"), "--key FILE: a private root key is needed"),
        (("refresh", repository, "--past", "timestamp"), "must be ROLE=VERSION"),
        (("refresh", repository, "--past", "root=3"), "must be one of targets, snapshot"),
        (("revoke", "toy/1"), "wanted: edgekit repo revoke DIR NAME/VERSION"),
        (("revoke", "toy/1", "--server", "http://127.0.0.1:9"), "--key FILE"),
        (("revoke", repository, "toy/9"), "toy/9 is not published"),
    ):
        out, err = call(capsys, "repo", *arguments, code=2)
        assert out == ""
        assert says in err
        assert err.count("\n") == 1
