"""What the server changes on a running board besides its bundle: settings, and what was revoked."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from agents import Site, make_site, until
from bundles import null_bundle

from edgekit.agent.repository import metadata


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(metadata, "_RETRY_S", 0.0)
    with make_site(tmp_path) as made:
        yield made


def reported(site: Site, **wanted: Any) -> Mapping[str, Any]:
    def there() -> Mapping[str, Any] | None:
        last = site.server.last("reported")
        return last if last and all(last[key] == value for key, value in wanted.items()) else None

    return until(there, f"reported {wanted}")


def test_settings_hold_at_once_are_reported_and_last_over_a_restart(site: Site) -> None:
    agent = site.board.start()
    end = site.run(None, 1, config={"sensors.sample_s": 0.5, "limits.threads": 64, "trust.root": "x"})
    assert (end["state"], end["reason"]) == ("active", "settings-refused")
    assert "at most 1" in end["detail"]
    said = reported(site, config={"sensors.sample_s": 0.5})
    assert set(said["config_refused"]) == {"limits.threads", "trust.root"}
    assert agent._monitor.sample_s == 0.5
    site.board.stop()
    again = site.board.start()
    reported(site, config={"sensors.sample_s": 0.5})
    assert again._monitor.sample_s == 0.5
    end = site.run(None, 2, config={"limits.throttled_factor": 0.3})
    assert (end["state"], end["reason"]) == ("active", None)
    reported(site, config={"limits.throttled_factor": 0.3}, config_refused={})
    assert again._monitor.sample_s != 0.5, "what is no longer asked for is as the file says"


def test_a_setting_that_comes_with_a_bundle_holds_once_that_is_committed(site: Site) -> None:
    site.board.start()
    end = site.run(site.add(version=1), 1, config={"log.verbose": True})
    assert (end["state"], end["reason"]) == ("active", None)
    reported(site, bundle="toy/1", config={"log.verbose": True})


def look(site: Site) -> Mapping[str, Any]:
    shot = site.server.order(site.board.name, "toy/1", action="refresh")
    return site.server.ended(shot.job_id)


def test_a_revoked_bundle_gives_way_to_the_one_before_at_the_next_look(site: Site) -> None:
    site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    assert site.run(site.add(version=2), 2)["state"] == "active"
    assert look(site)["state"] == "done"
    assert reported(site, bundle="toy/2")["why"] is None
    site.repository.set_state("toy/2", "revoked")
    assert look(site)["state"] == "done"
    said = reported(site, bundle="toy/1")
    assert "revoked" in said["why"]
    until(lambda: [e for e in site.server.events("rollback") if e["detail"]["reason"] == "revoked"])
    site.board.stop()
    site.board.start()
    assert reported(site, bundle="toy/1")


def test_when_all_that_is_here_was_revoked_it_serves_nothing_and_says_so(site: Site) -> None:
    site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    site.repository.set_state("toy/1", "revoked")
    assert look(site)["state"] == "done"
    assert "revoked" in reported(site, bundle=None)["why"]
    until(lambda: not [name for name in site.board.slots if not name.startswith(".")], "its slot to go")
    site.board.stop()
    site.board.start()
    assert "revoked" in reported(site, bundle=None)["why"]
    assert site.run(site.add(version=2), 3)["state"] == "active"
    assert reported(site, bundle="toy/2")["why"] is None


def test_a_look_waits_for_a_repository_that_is_away(site: Site) -> None:
    site.board.start()
    until(lambda: site.server.last("reported"), "the board")
    kept = site.repository.files
    site.repository.files = {}
    shot = site.server.order(site.board.name, "toy/1", action="refresh")
    until(lambda: [path for path, _ in site.repository.requests if path.endswith("timestamp.json")])
    site.repository.files = kept
    assert site.server.ended(shot.job_id)["state"] == "done"


def test_a_setting_refused_once_is_not_said_again_by_jobs_about_something_else(site: Site) -> None:
    site.board.start()
    refused = {"limits.threads": 64}
    assert site.run(None, 1, config=refused)["reason"] == "settings-refused"
    end = site.run(None, 2, config={**refused, "trial.requests": 5})
    assert (end["state"], end["reason"]) == ("active", None)
    end = site.run(None, 3, config={**refused, "trial.requests": 5})
    assert end["reason"] == "settings-refused", "asked for again and nothing else: it is said"
    assert set(reported(site, config={"trial.requests": 5})["config_refused"]) == {"limits.threads"}


def test_a_board_that_was_told_not_to_measure_does_not_also_after_a_restart(site: Site) -> None:
    site.board.write(limits={"accepts_measure": True})
    site.board.start()
    assert site.run(None, 1, config={"limits.accepts_measure": False})["state"] == "active"
    label = site.repository.add_round(site.folder, [null_bundle(profiles=("raspberrypi5",))])
    for _ in range(2):
        until(lambda: (i := site.server.last("info")) and not i["accepts_measure"], "the board")
        end = site.server.ended(site.server.order(site.board.name, label).job_id)
        assert (end["state"], end["reason"]) == ("refused", "measure-not-accepted")
        site.board.stop()
        site.server.heard.clear()
        site.board.start()


def test_a_log_that_was_made_verbose_stays_so_over_a_restart_and_is_taken_back(site: Site) -> None:
    ours = logging.getLogger("edgekit")
    asked = ours.level
    try:
        site.board.start()
        assert site.run(None, 1, config={"log.verbose": True})["state"] == "active"
        until(lambda: ours.level == logging.DEBUG, "more words")
        site.board.stop()
        ours.setLevel(asked)
        site.board.start()
        until(lambda: ours.level == logging.DEBUG, "more words again")
        assert site.run(None, 2)["state"] == "active"
        until(lambda: ours.level == asked, "as the command line asked")
    finally:
        ours.setLevel(asked)
