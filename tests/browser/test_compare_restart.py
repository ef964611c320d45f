"""A server that is killed in the middle of a grid loses nothing that was done."""

import re

from playwright.sync_api import expect

from tests.browser.conftest import free_port, start_server
from tests.browser.test_compare import axis, ended, open_tab
from tests.browser.test_page import fill
from webui.library import Library


def kept(data_dir) -> int:
    """Pictures whose files can be opened."""
    return len(list((data_dir / "outputs").rglob("*.png")))


def test_a_grid_goes_on_where_a_killed_server_left_it(browser, tmp_path):
    port = free_port()
    server = start_server(tmp_path, port)
    context = browser.new_context(viewport={"width": 1366, "height": 900})
    try:
        page = context.new_page()
        page.set_default_timeout(20_000)
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_text("Ready on cpu").wait_for(timeout=60_000)
        open_tab(page)
        fill(page, prompt="a castle", width=64, height=64, num_inference_steps=3)
        axis(page, "x", "CFG scale", "1-10")
        axis(page, "y", "Seed", "1-10")
        expect(page.locator("#grid-plan")).to_contain_text(re.compile(r"Cells\s*100 \(10 × 10\)"))
        page.locator("#grid-run").click()
        while kept(tmp_path) < 40:
            assert server.poll() is None
        server.kill()
        server.wait(20)
        done = kept(tmp_path)
        assert 40 <= done < 100

        server = start_server(tmp_path, port)
        page.goto(f"http://127.0.0.1:{port}")
        page.get_by_text("Ready on cpu").wait_for(timeout=60_000)
        open_tab(page)
        page.get_by_role("button", name="Go on with the last grid: CFG scale × Seed").click()
        expect(page.locator("#axis-x-text textarea")).to_have_value("1-10")
        expect(page.locator("#axis-y-text textarea")).to_have_value("1-10")
        ended(page, "Done: 100 of 100 pictures")
        expect(page.locator("#grid .details")).to_contain_text(f"{done} known already")
        assert kept(tmp_path) == 100
        assert len(Library(tmp_path).recent(_owner(tmp_path), 200)) == 100
    finally:
        context.close()
        server.kill()
        server.wait(20)
        server.stdout.close()
    assert not (tmp_path / "server.log").read_text()


def _owner(data_dir) -> str:
    import sqlite3

    with sqlite3.connect(data_dir / "library.sqlite3") as db:
        ((owner,),) = db.execute("SELECT DISTINCT owner FROM pictures").fetchall()
    return owner
