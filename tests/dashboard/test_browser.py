"""The dashboard in a real browser, which must be installed (Debian: chromium).

With ``DASHBOARD_PICTURES=1`` in the environment, ``test_screens`` writes the pictures
of the documentation, ``docs/_static/dashboard-*.png``.
"""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Callable
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from databases import program
from playwright.sync_api import Browser
from playwright.sync_api import expect
from playwright.sync_api import Page
from playwright.sync_api import sync_playwright
from prefork import Prefork
from waiting import wait_until

CHROMIUM = program("chromium")
APP = "dashboard_app:create_app()"

pytestmark = [
    pytest.mark.workers,
    pytest.mark.slow,
    *([] if CHROMIUM else [pytest.mark.absent]),
]

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update"),
    "--disable-sync",
]

#: Color scheme, width and height.
SCREENS = {
    "light": ("light", 1280, 1150),
    "dark": ("dark", 1280, 1150),
    "phone": ("light", 375, 812),
}

#: Milliseconds. The page asks every two seconds, and the machine may be slow.
PATIENCE = 20_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # It may run for this module only: meanwhile, an event loop runs in this thread.
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=CHROMIUM, args=ARGUMENTS, chromium_sandbox=False
        )
        yield chromium
        chromium.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complains of: errors, failed requests, violated policies."""
    return []


@pytest.fixture
def visit(browser: Browser, complaints: list[str]) -> Iterator[Callable[..., Page]]:
    """Open the dashboard of a group. Complaints that a test leaves are errors."""
    contexts = []

    def open_page(group: Prefork, screen: str = "light", **options: Any) -> Page:
        scheme, width, height = SCREENS[screen]
        context = browser.new_context(
            color_scheme=scheme,  # type: ignore[arg-type]
            viewport={"width": width, "height": height},
            **options,
        )
        contexts.append(context)
        page = context.new_page()
        # A violation of the policy is an error on the console.
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url))
        page.goto(f"{group.url}/pools/")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def chart_of(page: Page) -> Any:
    return page.get_by_role("img", name="checked out").first


def picture_of(page: Page) -> str:
    """Return what is drawn in the chart."""
    found = page.locator(".chart canvas").first.evaluate("each => each.toDataURL()")
    return str(found)


def test_a_leak_appears_and_a_killed_worker(prefork, visit):
    """Within seconds and without a reload; the chart moves."""
    env = {"FLASK_SCOPEDSESSION_HELD_LONG_AFTER": "0.1"}
    group = prefork(APP, count=2, env=env)
    pids = group.visit_all()
    page = visit(group)
    expect(page.get_by_text("All is well")).to_be_visible()
    expect(chart_of(page)).to_have_accessible_name(
        re.compile("Now: 0 checked out"), timeout=PATIENCE
    )
    before = picture_of(page)

    group.get("/leak", on=pids[0])
    expect(page.get_by_text("1 connection leaked")).to_be_visible(timeout=PATIENCE)
    row = page.get_by_role("table", name="Leaked").get_by_role("row").nth(1)
    expect(row).to_contain_text("1× leak")
    expect(row).to_contain_text("its request is over")
    expect(row).to_contain_text(str(pids[0]))
    expect(page.get_by_role("status")).to_contain_text("connections leaked")
    assert "Now: 1 checked out" in (chart_of(page).get_attribute("aria-label") or "")
    assert picture_of(page) != before
    assert page.title() == "Warning · Pools of live_app"

    folder = group.log_path.parent
    wait_until(lambda: list(folder.rglob(f"{pids[0]}-*.json")), what="its snapshot")
    group.kill(pids[0], signal.SIGKILL)
    expect(page.get_by_text("1 worker gone (killed)")).to_be_visible(timeout=PATIENCE)
    row = page.get_by_role("row").filter(has_text=str(pids[0])).first
    expect(row).to_contain_text("gone")
    table = page.get_by_role("table", name="Last held by workers that are gone")
    expect(table).to_contain_text("1× leak")


def test_by_keyboard_only(prefork, visit):
    """Refreshes take away neither the focus nor what is unfolded."""
    group = prefork(APP, count=1)
    group.get("/leak")
    page = visit(group)
    expect(page.get_by_text("1 connection leaked")).to_be_visible(timeout=PATIENCE)
    focus = page.locator("*:focus")

    page.keyboard.press("Tab")
    expect(focus).to_have_text("Skip to the content")
    expect(focus).to_be_in_viewport()
    page.keyboard.press("Tab")
    expect(focus).to_have_text("Pause")
    page.keyboard.press("Enter")
    expect(focus).to_have_text("Resume")
    expect(page.get_by_text("Paused at")).to_be_visible()
    page.keyboard.press("Enter")
    expect(focus).to_have_text("Pause")
    page.keyboard.press("Tab")
    expect(focus).to_have_text("Use")
    wanted = page.get_by_text("Connection of 1× leak").and_(focus)
    for _ in range(30):
        if wanted.count():
            break
        page.keyboard.press("Tab")
    outline = focus.evaluate("each => getComputedStyle(each).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    opened = page.locator("details[open]")
    expect(opened).to_contain_text("connection 1, thread")
    group.get("/leak")
    expect(page.get_by_text("2 connections leaked")).to_be_visible(timeout=PATIENCE)
    expect(opened).to_have_count(1)
    expect(wanted).to_have_count(1)


@pytest.mark.parametrize("status", ["403", "200"])
def test_who_may_no_longer_see_it(prefork, visit, complaints, status):
    """The page says so, and asks no more; another visitor sees nothing."""
    group = prefork(APP, count=1)
    page = visit(group)
    expect(page.get_by_text("All is well")).to_be_visible()
    asked: list[str] = []
    cookie = {"name": "refuse", "value": status, "url": group.url}
    page.context.add_cookies([cookie])
    expect(page.get_by_text("You may no longer see this page").first).to_be_visible(
        timeout=PATIENCE
    )
    page.on("request", lambda request: asked.append(request.url))
    expect(page.get_by_role("button")).to_have_count(0)
    page.reload()
    expect(page.get_by_text("All is well")).to_have_count(0)
    assert asked[:1] == [f"{group.url}/pools/"]
    assert {url.removeprefix(group.url) for url in asked} <= {"/pools/", "/favicon.ico"}
    assert [each for each in complaints if not re.search("40[34] ", each)] == []
    complaints.clear()


def test_without_javascript(prefork, visit):
    group = prefork(APP, count=1)
    group.get("/leak")
    page = visit(group, java_script_enabled=False)
    expect(page.get_by_text("flask pool-status --watch")).to_be_visible()
    expect(page.get_by_role("table", name="Pools of each worker")).to_be_visible()
    expect(page.get_by_role("button")).to_have_count(0)


def test_a_server_that_does_not_answer(prefork, visit, complaints):
    """The page says so, and keeps what it has; it is not the last news."""
    group = prefork(APP, count=1)
    page = visit(group)
    expect(page.get_by_text("Updated")).to_be_visible(timeout=PATIENCE)
    group.stop()
    expect(page.get_by_text("The server does not answer.")).to_be_visible(
        timeout=PATIENCE
    )
    expect(page.get_by_role("table", name="Pools of each worker")).to_be_visible()
    complaints.clear()


def barriers_on(page: Page) -> list[str]:
    """Return what axe-core finds."""
    found = Axe().run(page).response
    assert len(found["passes"]) > 20
    return [
        f"{violation['id']}: {node['html']}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def test_screens(prefork, gates, visit):
    """Nobody meets a barrier, in light and dark and on a phone, whose page fits.

    The same pages are the pictures of the documentation.
    """
    options = "FLASK_SQLALCHEMY_ENGINE_OPTIONS__"
    env = {
        f"{options}pool_size": "2",
        f"{options}max_overflow": "1",
        "FLASK_SCOPEDSESSION_SHOW_SQL": "1",
    }
    group = prefork(APP, count=2, threads=8, env=env)
    first, second = group.visit_all()
    for _ in range(20):
        group.get("/ok", on=first)
        group.get("/hold?seconds=0.01", on=second)
    pages = {screen: visit(group, screen) for screen in SCREENS}
    group.get("/leak", on=first)
    for count in (1, 2):
        group.send("/block", on=first)
        gates.wait(count=count)
    group.send_many("/ok", 3, on=first)
    group.send("/block", on=second)
    for screen, page in pages.items():
        expect(page.get_by_text("3 threads waiting")).to_be_visible(timeout=PATIENCE)
        expect(page.get_by_text("1 connection leaked")).to_be_visible()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width == SCREENS[screen][1]
        unfold(page, True)
        assert barriers_on(page) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        unfold(page, False)
        if os.environ.get("DASHBOARD_PICTURES"):
            take(page, screen, group)


def unfold(page: Page, unfolded: bool) -> None:
    page.evaluate(
        "unfolded => document.querySelectorAll('details').forEach("
        "each => { each.open = unfolded; })",
        unfolded,
    )


def take(page: Page, screen: str, group: Prefork) -> None:
    """Write a picture, without what is only of this machine."""
    url = group.env["FLASK_SQLALCHEMY_DATABASE_URI"]
    # A refresh would bring it back.
    page.get_by_role("button", name="Pause").click()
    expect(page.get_by_text("Paused at")).to_be_visible()
    page.locator("body").click(position={"x": 1, "y": 1})
    page.mouse.move(1, 1)
    for before, after in {
        str(url).removeprefix("sqlite:///"): "/srv/shop/shop.db",
        f" on {socket.gethostname()} ": " on web-1 ",
        "Paused at": "Updated",
        "Resume": "Pause",
    }.items():
        page.evaluate(
            """([before, after]) => {
                const walker = document.createTreeWalker(document.body, 4);
                while (walker.nextNode()) {
                    const text = walker.currentNode;
                    text.data = text.data.replace(before, after);
                }
            }""",
            [before, after],
        )
    folder = Path(__file__).parents[2] / "docs" / "_static"
    page.screenshot(path=folder / f"dashboard-{screen}.png")
