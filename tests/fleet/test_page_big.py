"""The page in headless Chromium, over 10,000 boards: one is found, its charts are read, its alert is silenced."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from agents import until
from big_store import Size, fill, in_force, name_of, profile_of
from servers import Broker, FleetServer, write_config

from edgekit.client import Client
from edgekit.fleet import schema as db
from edgekit.fleet.config import read_config
from edgekit.fleet.enroll import prepare
from edgekit.fleet.screens.style import COLOURS
from edgekit.fleet.store import open_store

playwright = pytest.importorskip("playwright.sync_api", reason="playwright comes with the extra `dev`")
CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
SIZE = Size(hours=4, minute_boards=1, minutes=60, records=0, events=200, jobs=1)
PASSWORD = "a password for a test"
ENDING = name_of(205)  # its certificate ends within two weeks
RULES = f"""\
[send]
[rules.ending]
kind = "board-expiry"
to = "name={ENDING}"
above = "60d"
"""


class Site:
    """A server over a store with 10,000 boards, which say nothing more."""

    def __init__(self, folder: Path) -> None:
        self.broker = Broker(folder / "broker")
        write_config(folder, self.broker.port)
        (folder / "alerts.toml").write_text(RULES)
        with (folder / "fleet.toml").open("a") as file:
            file.write('[alerts]\nrules = "alerts.toml"\n')
        self.config = read_config(folder / "fleet.toml")
        prepare(self.config)
        self.store = open_store(self.config.database_url)
        fill(self.store, time.time(), SIZE)
        self.server = FleetServer(self.config)
        self.client = Client(self.server.url, self.server.token)

    def end(self) -> None:
        self.server.end()
        self.broker.stop()
        self.store.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (tools/setup installs it)")
    site = Site(tmp_path_factory.mktemp("page"))
    try:
        yield site
    finally:
        site.end()


@pytest.fixture(scope="module")
def browser(site: Site) -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(site: Site, browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """A browser without cookies. Its parameter: light or dark."""
    context = browser.new_context(color_scheme=getattr(request, "param", "light"))
    page = context.new_page()
    page.set_default_timeout(20_000)
    page.problems = []
    page.heard = []  # what came over the websocket
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("dialog", lambda dialog: page.problems.append(f"a dialog: {dialog.message}"))
    page.on("websocket", lambda socket: socket.on("framereceived", lambda frame: hear(page, frame)))
    yield page
    context.close()


def hear(page: Any, frame: str | bytes) -> None:
    page.heard.append(frame if isinstance(frame, str) else frame.decode())


def log_in(site: Site, page: Any, name: str, path: str) -> None:
    page.goto(f"{site.server.url}/login?next={path}")
    page.get_by_label("Name", exact=True).fill(name)
    page.get_by_label("Password", exact=True).fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    page.goto(f"{site.server.url}{path}")


def choose(page: Any, label: str, option: str) -> None:
    page.get_by_label(label, exact=True).click()
    page.get_by_role("option").filter(has_text=re.compile(rf"^{re.escape(option)}( \(|$)")).click()


CHARTS = """() => [...document.querySelectorAll('.nicegui-echart')].map(e => {
  const chart = getElement(Number(e.id.slice(1))).chart;
  return chart ? chart.getOption().series.map(s => [s.name, s.data.filter(d => d[1] !== null).length]) : [];
})"""
PIXELS = """(colour) => [...document.querySelectorAll('canvas')].map(c => {
  const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
  let n = 0;
  for (let i = 0; i < d.length; i += 4)
    if (d[i + 3] > 200 && colour.every((v, k) => Math.abs(v - d[i + k]) < 8)) n++;
  return n;
})"""


def check_charts(page: Any, mode: str) -> None:
    """Data of every chart, and the colour of its first line among what is drawn."""
    page.get_by_text("Latency over time").wait_for()
    page.wait_for_function(f"() => ({CHARTS})().every(c => c.length && c.every(([name, n]) => n > 0))")
    drawn = dict(line for chart in page.evaluate(CHARTS) for line in chart)
    assert {"p50", "p95", "p99", "energy per request", "temperature", "exit1", "exit3"} <= set(drawn)
    assert all(points >= 2 for points in drawn.values())
    for index, name in ((0, "p50"), (0, "p99"), (1, "exit-0"), (2, "one"), (3, "p99")):
        text = COLOURS[name][mode == "dark"]
        colour = [int(text[place : place + 2], 16) for place in (1, 3, 5)]
        page.wait_for_function(f"colour => ({PIXELS})(colour)[{index}] > 20", arg=colour)


def test_a_board_is_found_among_ten_thousand_and_its_charts_are_drawn(site: Site, page: Any) -> None:
    page.goto(site.server.login_link("/boards"))
    page.get_by_text(re.compile(r"1-50 of 1000[0-9]")).wait_for()
    for label, option in (
        ("Profile", "pynq-z2"),
        ("Bundle", "toy/2"),
        ("Tag", "site-3"),
    ):
        choose(page, label, option)
    meant = [
        board
        for board in range(1, SIZE.boards + 1)
        if (profile_of(SIZE, board), in_force(SIZE, board)) == ("pynq-z2", "toy/2")
        and board % 20 == 3
        and board % 1000 != 999  # revoked
    ]
    page.get_by_text(f"1-50 of {len(meant)}").wait_for()
    page.wait_for_url("**/boards?profile=pynq-z2&bundle=toy%2F2&tag=site-3")
    column = page.get_by_role("columnheader", name="p99")
    column.click()
    page.wait_for_url("**sort=p99**")
    page.locator("th.sorted").filter(has_text="p99").wait_for()
    column.click()
    page.wait_for_url("**sort=p99&descending=True**")
    with site.store.read() as connection:
        table = db.standings
        query = sa.select(table.c.device, table.c.p99).where(table.c.device.in_(meant))
        p99 = {name_of(device): value for device, value in connection.execute(query)}
    slowest = sorted(p99.values(), reverse=True)[:50]
    rows = page.locator("tbody tr")

    def shown() -> list[str]:
        return re.findall(r"\bb[0-9]{5}\b", " ".join(rows.all_inner_texts()))

    until(lambda: [p99.get(name) for name in shown()] == slowest, "the slowest fifty, slowest first")
    assert max(len(set(re.findall(r"\bb[0-9]{5}\b", frame))) for frame in page.heard) == 50

    page.goto(f"{site.server.url}/boards")
    page.get_by_text("1-50 of 10000").wait_for()
    page.get_by_label("Search").fill(name_of(1)[1:])
    page.get_by_text("1-1 of 1", exact=True).wait_for()
    page.get_by_role("link", name=name_of(1)).click()
    check_charts(page, "light")


@pytest.mark.parametrize("page", ["dark"], indirect=True)
def test_dark_mode_reaches_the_charts(site: Site, page: Any) -> None:
    page.goto(site.server.login_link(f"/board/{name_of(1)}"))
    check_charts(page, "dark")
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == "rgb({}, {}, {})".format(*bytes.fromhex(COLOURS["page"][1][1:]))
    assert page.problems == []


# --- alerts ---


def test_an_operator_silences_an_alert_and_a_viewer_may_not(site: Site, page: Any, browser: Any) -> None:
    for name, role in (("olga", "operator"), ("vera", "viewer")):
        site.client.add_user(name, role, PASSWORD)
    log_in(site, page, "olga", "/alerts")
    page.get_by_role("link", name=ENDING).wait_for(timeout=45_000)
    page.get_by_role("button", name="Silence").click()
    page.get_by_label("Why").fill("renewed on Friday")
    page.get_by_role("dialog").get_by_role("button", name="Silence").click()
    page.get_by_text(f"ending for name={ENDING} until").wait_for()
    assert [(row["by"], row["why"]) for row in site.client.silences()] == [("olga", "renewed on Friday")]

    other = browser.new_context()
    watched = other.new_page()
    log_in(site, watched, "vera", "/alerts")
    watched.get_by_text("renewed on Friday").wait_for()
    assert watched.get_by_role("main").get_by_role("button").count() == 0
    body = {"for_s": 60, "why": "no", "to": "all"}
    answer = other.request.post(f"{site.server.url}/api/v1/silences", data=body)
    assert answer.status in {401, 403}
    other.close()
