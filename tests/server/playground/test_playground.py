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


PROBLEM = "!document.querySelector('#problem').hidden && document.querySelector('#problem').textContent"
ASK = "document.querySelector('#ask').requestSubmit()"


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


async def test_a_text_is_dropped_into_the_prompt(page: Page, server: Any) -> None:
    await opened(page, server.url)
    await page.drop("#prompt", "apple and pear")
    assert "apple and pear" in await page.run("document.querySelector('#prompt').value")


async def test_a_second_finger_does_not_draw(page: Page, server: Any) -> None:
    await opened(page, server.url)
    first, second = (-60, -60), (60, 60)
    moves: list[dict[int, tuple[float, float]]] = [{1: (right, -60), 2: second} for right in (-60, -20, 60)]
    await page.touch("#canvas", {1: first}, *moves)
    # Grey levels in the middle of the first finger's way, at its end, and at the second finger.
    drawn = """[[0, -60], [58, -60], [60, 60]].map(([right, down]) => {
      const canvas = document.querySelector('#canvas');
      const scale = canvas.width / canvas.getBoundingClientRect().width;
      const [x, y] = [canvas.width / 2 + scale * right, canvas.height / 2 + scale * down];
      return canvas.getContext('2d').getImageData(x, y, 1, 1).data[0];
    })"""
    assert await page.run(drawn) == [255, 255, 0]
    await page.drag("#canvas", (0, 55), (60, 60))
    assert await page.run(drawn) == [255, 255, 255]


async def test_a_seed_that_cannot_be_is_not_sent(page: Page, server: Any) -> None:
    await opened(page, server.url)
    before = await page.run(INPUT)
    for seed in ("-5", "1.5", "99999999999999999999", ""):
        await page.run("(document.querySelector('#problem').hidden = true, null)")
        await page.type("#seed", seed)
        if not seed:
            await page.press("Delete", windowsVirtualKeyCode=46)
        assert "seed must be a whole number from 0 to" in await page.until(PROBLEM)
        assert await page.run("document.querySelector('#seed').getAttribute('aria-invalid')") == "true"
    await page.type("#seed", "8")
    await page.until(f"{INPUT} > {before}")
    assert await page.run(INPUT) == before + 1 and not await page.run(PROBLEM)
    assert await page.run("document.querySelector('#seed').getAttribute('aria-invalid')") == "false"
    assert "seed 8" in await page.run("document.querySelector('#figures').value")


async def test_a_picture_hides_no_error_that_came_after_its_input(page: Page, server: Any) -> None:
    await opened(page, server.url)
    before = await page.run(INPUT)
    await page.run(f"({ASK}, document.querySelector('#seed').value = -5, {ASK}, null)")
    await page.until(f"{INPUT} > {before}")
    assert await page.run(PROBLEM)


async def test_a_picture_is_called_by_the_prompt_that_it_follows(page: Page, server: Any) -> None:
    await opened(page, server.url)
    prompt = "document.querySelector('#prompt').value"
    before = await page.run(INPUT)
    await page.run(f"({prompt} = 'a green frog', {ASK}, {prompt} = 'a green frog sits', null)")
    await page.until(f"{INPUT} > {before}")
    assert await page.run("document.querySelector('#picture').alt") == "a green frog"
    await page.until("document.querySelector('#history button')?.title === 'a green frog, seed 7'")


async def test_the_drawing_keys_are_shown_to_who_comes_with_the_keyboard(page: Page, server: Any) -> None:
    await opened(page, server.url)
    height = "document.querySelector('#canvas-help').getBoundingClientRect().height"
    assert await page.run(height) <= 1
    await page.run("document.querySelector('#canvas').focus()")
    assert await page.run(height) > 10
    assert await page.run("document.querySelector('#canvas').getAttribute('role')") == "application"


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
        # Were a key only tried when a timer is due, it would never be.
        await page.call("Page.addScriptToEvaluateOnNewDocument", source="globalThis.setTimeout = () => 0;")
        await page.look(390, 844, mobile=True)
        await page.open(running.url)
        await page.until("!document.querySelector('#key-form').hidden")
        box = "document.querySelector({!r}).getBoundingClientRect()"
        assert await page.run("document.activeElement.id") == "key"
        assert await page.run(f"{box.format('#key-form')}.bottom <= {box.format('.stage')}.top")

        # Whoever goes on typing elsewhere is left there.
        status = "document.querySelector('#connection').textContent"
        await page.run(f"(document.querySelector('#prompt').focus(), {status} = '', {ASK})")
        await page.until(f"{status}.includes('needed')")
        assert await page.run("document.activeElement.id") == "prompt"

        await page.type("#key", "wrong")
        await page.click("#key-form button")
        await page.until(f"{status}.includes('not valid')")
        assert await page.run("document.activeElement.id") == "key"

        await page.type("#key", text)
        await page.click("#key-form button")
        await page.until(f"{STATE} === 'open' && {SHOWN} > 0")
        assert await page.run("document.querySelector('#key-form').hidden")
        assert await page.run("document.activeElement.id") == "prompt"


async def test_what_came_too_fast_for_the_key_is_asked_again(tmp_path: Path, start_server: Callable[..., Any]) -> None:
    text, key = keys.create("alice", rate=0.5)
    keys.write(tmp_path / "keys.json", [key])
    running = start_server(PIXART_API_KEYS=str(tmp_path / "keys.json"))
    async with chromium(tmp_path / "profile") as page:
        await page.open(running.url)
        await page.until("!document.querySelector('#key-form').hidden")
        await page.type("#key", text)
        await page.click("#key-form button")
        await page.until(f"({PROBLEM}) || {SHOWN} > 0")
        await page.until(f"{SHOWN} > 0")


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
