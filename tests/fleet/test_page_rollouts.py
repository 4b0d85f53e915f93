"""Rollouts on the page in headless Chromium: an operator starts and steers one, a viewer only looks."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agents import free_port, until
from bundles import write_null_bundle
from fleet.rollouts import simulated
from servers import FleetServer, write_config

from edgekit.cli.push import publish_bundle
from edgekit.client import Client
from edgekit.core.errors import BadInput
from edgekit.fleet import accounts, passwords, visitor
from edgekit.fleet.context import Context
from edgekit.fleet.enroll import prepare
from edgekit.fleet.rollouts import commands
from edgekit.fleet.screens import rollout_actions, rollout_new
from edgekit.fleet.screens.rollout_form import defaults
from edgekit.fleet.sessions import open_session
from edgekit.fleet.store import open_store
from edgekit.repo.metadata import key_file

playwright = pytest.importorskip("playwright.sync_api", reason="playwright comes with the extra `dev`")
CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
PASSWORD = "correct horse battery"
OPERATES = ("Pause", "Resume", "Accept this wave", "Abort", "Roll back", "New rollout", "Start")


class Site:
    """A server over a store in which one rollout was stopped by its canary's gate; its boards say nothing more."""

    def __init__(self, folder: Path) -> None:
        self.config = write_config(folder, free_port())
        prepare(self.config)
        store = open_store(self.config.database_url)
        fleet = simulated.Fleet(store, 60, slow={simulated.PROFILES[2]: 2.0})
        self.stopped = fleet.start(to="name=b0000?", canary_gate={"on_failure": "pause"})
        fleet.run(self.stopped)
        store.close()
        self.server = FleetServer(self.config)
        self.client = Client(self.server.url, self.server.token)
        for version in (1, 2):
            path = folder / f"toy-{version}.edge"
            made = write_null_bundle(path, name="toy", version=version, profiles=simulated.PROFILES)
            publish_bundle(self.client, made, key_file(self.config.repository, "targets"))
        for name, role in (("anna", "operator"), ("olga", "operator"), ("vic", "viewer")):
            self.client.add_user(name, role, PASSWORD)

    def state(self, rollout_id: str) -> str:
        return str(self.client.rollout(rollout_id)["state"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (tools/setup installs it)")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simulated, "START", time.time() - 4 * 3600)
        site = Site(tmp_path_factory.mktemp("page"))
    try:
        yield site
    finally:
        site.server.end()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    visit = browser.new_context()
    page = visit.new_page()
    page.set_default_timeout(20_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    yield page
    visit.close()


def log_in(site: Site, page: Any, name: str) -> None:
    page.goto(f"{site.server.url}/login")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Overview").wait_for()


def press(page: Any, name: str, confirm: str, said: str) -> None:
    """A button, the question behind it, which says `said`, and yes."""
    page.get_by_role("button", name=name, exact=True).click()
    page.get_by_role("dialog").get_by_text(said).wait_for()
    page.get_by_role("dialog").get_by_role("button", name=confirm).click()


def off_this_loop(handler: Coroutine[Any, Any, None]) -> None:
    """Run it in a thread of its own: playwright's loop runs in this one."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, handler).result()


def test_an_operator_previews_starts_pauses_resumes_aborts_and_rolls_back(site: Site, page: Any) -> None:
    log_in(site, page, "anna")
    page.get_by_role("link", name="Rollouts", exact=True).click()
    page.get_by_role("button", name="New rollout").click()
    page.get_by_text("boards in 3 waves").wait_for()
    page.get_by_label("Boards", exact=True).fill("name=b0001?")
    page.get_by_label("Canary", exact=True).fill("0%")
    page.get_by_text("a share such as").wait_for()
    page.get_by_label("Canary", exact=True).fill("3")
    page.get_by_text("10 boards in 3 waves").wait_for()
    page.get_by_text("10 boards could not be rolled back: toy/1: changed-content").wait_for()
    press(page, "Start", "Start it", "10 boards in 3 waves. The canary, 3 boards, is asked at once.")
    page.wait_for_url("**/rollout/*")
    rollout_id = page.url.rpartition("/")[2]
    until(lambda: site.state(rollout_id) == "running", "the canary's jobs")
    page.get_by_text("boards at work").wait_for()
    press(page, "Pause", "Pause it", "At work, and going on: 3 boards.")
    page.get_by_role("status").get_by_text("paused").wait_for()
    press(page, "Resume", "Resume it", "7 boards have not been asked yet")
    page.get_by_text("resumed by anna").first.wait_for()
    press(page, "Abort", "Abort it", "7 boards have not been asked and will not be")
    page.get_by_role("status").get_by_text("aborted").wait_for()
    press(page, "Roll back", "Roll it back", "0 boards that took it, 3 boards at work")
    page.get_by_role("status").get_by_text("rolled back").wait_for()
    asked = [(line["who"], line["action"]) for line in site.client.rollout(rollout_id)["audit"]][::-1]
    by_anna = [action.removeprefix("rollout.") for who, action in asked if who == "anna"]
    assert by_anna == ["create", "pause", "resume", "abort", "roll-back"]
    page.get_by_text("anna: roll back").wait_for()
    assert page.problems == []


def test_a_rollout_that_its_canary_stopped_says_which_figure_on_which_profile(site: Site, page: Any) -> None:
    page.goto(site.server.login_link("/"))
    page.get_by_role("link", name="toy/2 to name=b0000?").click()
    page.get_by_text("stopped at its gate").wait_for()
    row = page.get_by_role("row").filter(has_text="too high")
    text = row.inner_text().replace("\t", " ")
    for shown in (simulated.PROFILES[2], "p99", "4.30 ms", "2.00 times", "1.5 times"):
        assert shown in text, shown
    page.get_by_role("combobox", name="State").click()
    page.get_by_role("option", name="took it").click()
    page.wait_for_url("**state=took*")
    boards = page.get_by_role("row").filter(has_text="took it")
    boards.first.wait_for()
    until(lambda: boards.count() == 3, "the canary's boards alone")
    assert page.problems == []


def test_jobs_and_bundles_lead_to_their_rollout(site: Site, page: Any) -> None:
    job = site.client.rollout(site.stopped)["waves"][0]["job_id"]
    page.goto(site.server.login_link(f"/job/{job}"))
    page.get_by_role("link", name="The rollout it belongs to").click()
    page.wait_for_url(f"**/rollout/{site.stopped}")
    page.get_by_role("link", name="toy/2", exact=True).click()
    page.get_by_role("link", name="toy/2 to name=b0000?").wait_for()


def test_a_viewer_sees_rollouts_and_nothing_to_press(site: Site, page: Any) -> None:
    log_in(site, page, "vic")
    for path in ("/rollouts", f"/rollout/{site.stopped}", "/bundle/toy", "/rollouts/new"):
        page.goto(f"{site.server.url}{path}")
        page.get_by_role("heading", level=1).wait_for()
        for name in OPERATES:
            assert page.get_by_role("button", name=name, exact=True).count() == 0, (path, name)
    page.get_by_text("Operators start rollouts; your role is viewer.").wait_for()
    assert page.locator("input").count() == 0


def test_a_screen_that_is_still_open_is_asked_again_who_presses(site: Site, page: Any) -> None:
    log_in(site, page, "olga")
    page.goto(f"{site.server.url}/rollout/{site.stopped}")
    page.get_by_role("button", name="Roll back", exact=True).click()
    page.get_by_role("dialog").wait_for()
    site.client.set_role("olga", "viewer")
    page.get_by_role("dialog").get_by_role("button", name="Roll it back").click()
    page.get_by_text("your session has ended: log in again").wait_for()
    assert site.state(site.stopped) == "paused"


def test_a_viewers_session_may_neither_start_nor_steer(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "LOG2_N", 4)
    monkeypatch.setattr(commands, "published", lambda _: dict(simulated.TARGETS))
    fleet = simulated.Fleet(context.store, 9)
    rollout_id = fleet.start(to="name=b00000")
    with context.store.write() as connection:
        accounts.add_user(connection, "vic", "viewer", passwords.hash_password(PASSWORD), context.clock())
        user = accounts.known_user(connection, "vic").id
        session = open_session(connection, user, context.token, context.clock())
    request = SimpleNamespace(state=SimpleNamespace(session=session))
    seen = SimpleNamespace(context=SimpleNamespace(client=SimpleNamespace(request=request)))
    monkeypatch.setattr(visitor, "ui", seen)
    form = defaults(simulated.NEW) | {"to": "name=b00001"}
    for handler in (
        *(rollout_actions.change(context, rollout_id, action) for action in rollout_actions.COMMANDS),
        rollout_new.begin(context, form, []),
    ):
        with pytest.raises(BadInput, match="this is for operators; your role is viewer"):
            off_this_loop(handler)
    assert fleet.state(rollout_id) == "waiting"
    assert len(fleet.detail(rollout_id)["audit"]) == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_screen_of_rollouts_is_wider_than_a_phone(site: Site, page: Any, scheme: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.emulate_media(color_scheme=scheme)
    grounds = set()
    for path in ("/rollouts", f"/rollout/{site.stopped}", "/rollouts/new"):
        page.goto(site.server.login_link(path))
        page.locator(".ek-card").first.wait_for()
        content = (
            "[...document.querySelectorAll('[role=main] *')].filter(e => !e.closest('.ek-scroll, .q-table__container'))"
            ".every(e => e.getBoundingClientRect().right <= 401)"
        )
        assert page.evaluate(content), path
        grounds.add(page.evaluate("getComputedStyle(document.querySelector('.ek-card')).backgroundColor"))
    assert grounds == {{"light": "rgb(255, 255, 255)", "dark": "rgb(25, 31, 38)"}[scheme]}
    assert page.problems == []
