"""The playground in a real browser: typing, drawing, dropping pictures, coming back after a restart."""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from server import keys
from tests.server.playground.chromium import Page, chromium
from tests.server.realtime.client import drawing

pytestmark = pytest.mark.system

SHOWN = "document.querySelector('#picture').naturalWidth"
INPUT = "Number(document.querySelector('#picture').dataset.input ?? 0)"
STATE = "document.querySelector('#connection').dataset.state"
# The shown picture's pixels, as a text that can be compared.
PIXELS = """(() => {
  const image = document.querySelector('#picture');
  const canvas = new OffscreenCanvas(image.naturalWidth, image.naturalHeight);
  const pen = canvas.getContext('2d');
  pen.drawImage(image, 0, 0);
  return [...pen.getImageData(0, 0, canvas.width, canvas.height).data].join();
})()"""


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with chromium(tmp_path / "profile") as page:
        yield page
        assert page.problems == []


async def opened(page: Page, url: str) -> None:
    """The page with its first picture."""
    await page.open(url)
    await page.until(f"{STATE} === 'open' && {SHOWN} > 0 && {INPUT} > 0")


async def next_picture(page: Page, before: int) -> str:
    """The pixels shown once an input after `before` was answered."""
    await page.until(f"{INPUT} > {before}")
    return str(await page.run(PIXELS))


async def test_typing_and_drawing(page: Page, server: Any) -> None:
    await opened(page, server.url)
    first = await page.run(PIXELS)

    before = await page.run(INPUT)
    await page.type("#prompt", "the quick brown fox")
    typed = await next_picture(page, before)
    assert typed != first
    assert await page.run("document.querySelector('#picture').alt") == "the quick brown fox"

    before = await page.run(INPUT)
    await page.drag("#canvas", (-40, -40), (0, 0), (40, 10), (50, 50))
    assert await next_picture(page, before) != typed

    await page.click("#clear")
    await page.until(f"document.querySelector('#picture').naturalWidth && {PIXELS} === {typed!r}")

    # With the keyboard alone.
    await page.run("document.querySelector('#canvas').focus()")
    await page.press(" ")
    for _ in range(5):
        await page.press("ArrowRight")
    await page.until(f"{PIXELS} !== {typed!r}")
    await page.press("z", modifiers=2)
    await page.until(f"{PIXELS} === {typed!r}")


async def test_settings_and_history(page: Page, server: Any) -> None:
    await opened(page, server.url)
    await page.until("document.querySelectorAll('#history button').length === 1")
    first = await page.run(PIXELS)
    assert await page.run("document.querySelector('#size').options.length") == 2

    await page.click("#another")
    await page.until(f"{PIXELS} !== {first!r}")
    await page.until("document.querySelectorAll('#history button').length === 2")
    assert await page.run("document.querySelector('#announcer').textContent.startsWith('Picture of')")

    # The oldest stands last.
    await page.click("#history li:last-child button")
    await page.until(f"document.querySelector('#seed').value === '7' && {PIXELS} === {first!r}")

    name = await page.run("document.querySelector('#download').download")
    assert re.fullmatch(r"pixart-7\.jpg", name)
    await page.run(
        "(document.querySelector('#size').value = '96x48',"
        "document.querySelector('#size').dispatchEvent(new Event('change')), null)"
    )
    await page.until(f"{SHOWN} === 96")


async def test_a_dropped_picture_is_followed(page: Page, server: Any, rng: Any) -> None:
    await opened(page, server.url)
    first = await page.run(PIXELS)
    png = list(drawing(rng, 80))
    await page.run(f"""(() => {{
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array({png})], 'a.png', {{type: 'image/png'}}));
      document.querySelector('#drop').dispatchEvent(new DragEvent('drop', {{dataTransfer: transfer, bubbles: true}}));
    }})()""")
    await page.until(f"{PIXELS} !== {first!r}")


async def test_it_comes_back_after_a_restart(tmp_path: Path, start_server: Callable[..., Any]) -> None:
    async with chromium(tmp_path / "profile") as page:
        running = start_server()
        await opened(page, running.url)
        await page.type("#prompt", "a lazy dog")
        await page.until("document.querySelector('#picture').alt === 'a lazy dog'")
        pixels = await page.run(PIXELS)
        running.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(running.process.wait, 60)
        await page.until(f"{STATE} === 'waiting'")
        assert "trying again" in await page.run("document.querySelector('#connection').textContent")
        await page.run("(document.querySelector('#picture').dataset.input = 0, null)")
        start_server(port=running.url.rpartition(":")[2])
        await page.until(f"{STATE} === 'open' && {INPUT} > 0 && {PIXELS} === {pixels!r}")
        # While the server was away, the browser reported that it could not connect; nothing else went wrong.
        assert [each for each in page.problems if not re.search("net::ERR_|WebSocket connection to", each)] == []


async def test_it_asks_for_a_key_if_the_server_does(tmp_path: Path, start_server: Callable[..., Any]) -> None:
    text, key = keys.create("alice")
    keys.write(tmp_path / "keys.json", [key])
    running = start_server(PIXART_API_KEYS=str(tmp_path / "keys.json"))
    async with chromium(tmp_path / "profile") as page:
        await page.open(running.url)
        await page.until("!document.querySelector('#key-form').hidden")
        await page.type("#key", text)
        await page.click("#key-form button")
        await page.until(f"{STATE} === 'open' && {SHOWN} > 0")
        assert await page.run("document.querySelector('#key-form').hidden")


def test_what_the_page_may_do(client: httpx.Client) -> None:
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy and "default-src 'none'" in policy
    assert "<style" not in page.text and " style=" not in page.text and "onclick" not in page.text
    for path in re.findall(r'(?:src|href)="(/[^"]*)"', page.text):
        file = client.get(path)
        assert file.status_code == 200
        kind = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}[path.rpartition(".")[2]]
        assert file.headers["content-type"].startswith(kind)
        assert file.headers["x-content-type-options"] == "nosniff"
