"""The page in headless Chromium: what a visitor sees, and what a stranger does not."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import until
from servers import Broker, FakeBoard, FleetServer, write_config

from edgekit.client import Client

playwright = pytest.importorskip("playwright.sync_api", reason="playwright comes with the extra `dev`")
CHROMIUM = shutil.which("chromium")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]


class Site:
    def __init__(self, folder: Path) -> None:
        self.broker = Broker(folder / "broker")
        self.config = write_config(folder, self.broker.port)
        self.server = FleetServer(self.config)
        client = Client(self.server.url, self.server.token)
        made = client.enroll("pi5-a", "raspberrypi5", ["site-a"])
        self.board = FakeBoard(
            self.broker.port, "pi5-a", made["mqtt_password"], made["control_key"], profile="raspberrypi5"
        )
        self.board.bundle = "toy/1"
        self.board.start()
        for latency in (1.0, 2.0, 4.0):
            self.board.record(100, latency, labelled=100, correct=93)
        self.board.send()
        self.board.event("throttle", temperature_c=81.0)
        self.board.event("rollback", reason="<img src=x onerror=alert(1)>", detail="trial failed")
        until(lambda: not self.board.outbox, "the acks")

    def end(self) -> None:
        self.board.close()
        self.server.end()
        self.broker.stop()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (tools/setup installs it)")
    site = Site(tmp_path_factory.mktemp("page"))
    try:
        yield site
    finally:
        site.end()


@pytest.fixture
def page(site: Site) -> Iterator[playwright.Page]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page()
        page.set_default_timeout(20_000)
        page.problems = []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda said: page.problems.append(said.text) if "Security" in said.text else None)
        page.on("requestfailed", lambda request: page.problems.append(request.url))
        page.on(
            "request",
            lambda request: page.problems.append(request.url) if not local(site, request.url) else None,
        )
        yield page
        browser.close()


def local(site: Site, url: str) -> bool:
    return url.startswith((site.server.url, site.server.url.replace("http", "ws"), "data:", "blob:"))


def test_a_visitor_logs_in_and_sees_the_fleet_a_board_and_its_charts(
    site: Site, page: playwright.Page
) -> None:
    page.goto(site.server.url)
    assert page.url.endswith("/login")
    assert "pi5-a" not in page.content()
    page.get_by_text("With the server's token").click()
    page.get_by_label("Token").fill("wrong")
    page.get_by_role("button", name="Open the fleet").click()
    page.get_by_text("That is not this server's token.").wait_for()
    page.get_by_label("Token").fill(site.server.token)
    page.get_by_role("button", name="Open the fleet").click()
    page.get_by_role("heading", name="Overview").wait_for()
    page.get_by_role("link", name="Boards", exact=True).click()
    row = page.get_by_role("row").filter(has_text="pi5-a")
    row.wait_for()
    text = row.inner_text()
    for shown in ("raspberrypi5", "site-a", "toy/1", "300", "93.00 %", "4.00 mJ", "simulated", "98 · 2 %"):
        assert shown in text, shown
    assert row.get_by_role("img", name="online").is_visible()
    row.get_by_role("link").click()
    page.get_by_text("Latency over time").wait_for()
    page.locator("canvas").first.wait_for()
    page.get_by_role("listitem").filter(has_text="81").wait_for()
    assert page.locator("canvas").count() == 4
    drawn = page.locator("canvas").evaluate_all(
        "all => all.map(c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some(v => v))"
    )
    assert all(drawn)
    assert page.problems == []


def test_a_page_speaks_to_its_server_alone(site: Site, page: playwright.Page) -> None:
    page.goto(site.server.login_link("/boards"))
    page.get_by_role("row").filter(has_text="pi5-a").wait_for()
    assert page.problems == []
    tried = """url => new Promise(done => {
        addEventListener('securitypolicyviolation', event => done(event.violatedDirective), {once: true});
        fetch(url).catch(() => 0);
    })"""
    assert page.evaluate(tried, "http://elsewhere.example/") == "connect-src"


def test_figures_arrive_without_reloading(site: Site, page: playwright.Page) -> None:
    page.goto(site.server.login_link("/boards"))
    assert "token" not in page.url
    page.get_by_role("row").filter(has_text="pi5-a").wait_for()
    before = site.board.next_seq
    site.board.record(1000)
    site.board.send()
    page.get_by_role("row").filter(has_text="1\u202f300").wait_for()
    assert site.board.next_seq == before + 1
    site.board.die()
    page.get_by_role("img", name="offline").wait_for()
    assert page.problems == []


def test_revoked_boards_and_jobs_of_settings_are_named(site: Site, page: playwright.Page) -> None:
    client = Client(site.server.url, site.server.token)
    client.enroll("pi5-b", "raspberrypi5", [])
    job = client.configure("name=pi5-b", {"log.verbose": True})
    client.revoke("pi5-b")
    page.goto(site.server.login_link("/boards"))
    row = page.get_by_role("row").filter(has_text="pi5-b")
    row.get_by_text("revoked", exact=True).wait_for()
    page.goto(f"{site.server.url}/job/{job['job_id']}")
    page.get_by_text("configure log.verbose=true to name=pi5-b").wait_for()
    assert page.problems == []


def test_a_stranger_reaches_neither_pages_nor_the_websocket_behind_them(site: Site) -> None:
    import urllib.error
    import urllib.request

    for path in ("/jobs", "/board/pi5-a", "/_nicegui_ws/socket.io/?EIO=4&transport=polling", "/_nicegui/x"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{site.server.url}{path}", timeout=10)
        assert raised.value.code == 401


def test_filters_are_in_the_address_and_what_a_board_says_is_text(site: Site, page: playwright.Page) -> None:
    page.goto(site.server.login_link("/boards?search=nobody"))
    page.get_by_text("No board is like this").wait_for()
    page.get_by_label("Search").fill("pi5")
    page.get_by_role("row").filter(has_text="pi5-a").wait_for()
    page.wait_for_url("**/boards?search=pi5")
    page.goto(f"{site.server.url}/events")
    page.get_by_text("onerror=alert(1)").wait_for()
    assert page.locator("main img, [role=main] img").count() == 0
    assert page.problems == []


@pytest.mark.parametrize(
    "path", ["/", "/boards", "/board/pi5-a", "/bundles", "/jobs", "/alerts", "/events", "/account"]
)
def test_no_screen_is_wider_than_a_phone(site: Site, page: playwright.Page, path: str) -> None:
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto(site.server.login_link(path))
    page.get_by_role("heading", level=1).wait_for()
    content = (
        "[...document.querySelectorAll('[role=main] > *')].every(e => e.getBoundingClientRect().right <= 401)"
    )
    assert page.evaluate(content)
    assert page.problems == []
