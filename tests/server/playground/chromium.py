"""Headless Chromium over its DevTools protocol: enough to use a page as a person does, and to hear what it reports."""

import asyncio
import base64
import contextlib
import json
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from websockets.asyncio.client import ClientConnection, connect

SECONDS = 120.0  # before something counts as hung, on a busy machine
POLL = 0.05


@dataclass
class Page:
    """One tab."""

    socket: ClientConnection
    problems: list[str] = field(default_factory=list)  # the console's errors, exceptions, violated policies
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _last: int = 0

    async def call(self, method: str, **parameters: Any) -> Any:
        """One command of the protocol."""
        self._last += 1
        answer = self._answers[self._last] = asyncio.get_running_loop().create_future()
        await self.socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        return await asyncio.wait_for(answer, SECONDS)

    async def listen(self) -> None:
        """Sort what the browser says, until it ends."""
        async for text in self.socket:
            message = json.loads(text)
            if "id" in message:
                answer = self._answers.pop(message["id"])
                if "error" in message:
                    answer.set_exception(RuntimeError(message["error"]["message"]))
                else:
                    answer.set_result(message["result"])
                continue
            parameters = message.get("params", {})
            match message["method"]:
                case "Runtime.exceptionThrown":
                    self.problems.append(str(parameters["exceptionDetails"]))
                case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                    self.problems.append(str(parameters["args"]))
                case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                    self.problems.append(str(parameters["entry"]))
                case "Audits.issueAdded":
                    self.problems.append(str(parameters["issue"]))

    async def run(self, expression: str) -> Any:
        """A JavaScript expression's value."""
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait for an expression to be true."""
        async with asyncio.timeout(SECONDS):
            while not (value := await self.run(expression)):
                await asyncio.sleep(POLL)
        return value

    async def open(self, url: str) -> None:
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def type(self, selector: str, text: str) -> None:
        """Replace a field's text, as typed."""
        await self.run(f"(document.querySelector({selector!r}).focus(), document.activeElement.select?.(), null)")
        await self.call("Input.insertText", text=text)

    async def click(self, selector: str) -> None:
        x, y = await self._centre(selector)
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    async def drag(self, selector: str, *offsets: tuple[float, float]) -> None:
        """Press at the first offset from an element's centre, move along the others, let go."""
        x, y = await self._centre(selector)
        kinds = ["mousePressed", *["mouseMoved"] * (len(offsets) - 1), "mouseReleased"]
        for kind, (right, down) in zip(kinds, [*offsets, offsets[-1]], strict=True):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=x + right, y=y + down, button="left", buttons=1, clickCount=1
            )

    async def touch(self, selector: str, *moments: dict[int, tuple[float, float]]) -> None:
        """Fingers by number, at offsets from an element's centre, as they are at one moment after the other."""
        x, y = await self._centre(selector)
        await self.call("Emulation.setTouchEmulationEnabled", enabled=True)
        before: dict[int, tuple[float, float]] = {}
        for now in [*moments, {}]:
            kind = "touchStart" if now.keys() - before else "touchMove" if now else "touchEnd"
            points = [{"x": x + right, "y": y + down, "id": finger} for finger, (right, down) in now.items()]
            await self.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
            before = now

    async def drop(self, selector: str, text: str) -> None:
        """Drag a text from elsewhere onto an element."""
        x, y = await self._centre(selector)
        data = {"items": [{"mimeType": "text/plain", "data": text}], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            await self.call("Input.dispatchDragEvent", type=kind, x=x, y=y, data=data)

    async def press(self, key: str, **more: Any) -> None:
        for kind in ("keyDown", "keyUp"):
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, **more)

    async def _centre(self, selector: str) -> tuple[float, float]:
        script = (
            f"(() => {{ const element = document.querySelector({selector!r});"
            "element.scrollIntoView({block: 'center'});"
            "const box = element.getBoundingClientRect(); return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        x, y = await self.run(script)
        return x, y

    async def look(self, width: int, height: int, dark: bool = False, mobile: bool = False) -> None:
        """Set the window's size and the person's taste."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self, path: Path) -> None:
        result = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(result["data"]))


@asynccontextmanager
async def chromium(profile: Path) -> AsyncIterator[Page]:
    """A browser with a fresh profile and one tab, which watches for problems from the start."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert program, "Chromium is needed: apt-get install chromium"
    # The sandbox needs privileges that containers lack; the only page that is opened is our own.
    command = [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command += [
        "--disable-background-networking",
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        "about:blank",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port = await _port(profile, process)
        address = await _tab(port)
        async with connect(address, max_size=None, proxy=None, ping_interval=None) as socket:
            page = Page(socket)
            listening = asyncio.create_task(page.listen())
            for domain in ("Page", "Runtime", "Log", "Audits"):
                await page.call(f"{domain}.enable")
            await page.call("Emulation.setFocusEmulationEnabled", enabled=True)
            yield page
            listening.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await listening
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, SECONDS)


async def _port(profile: Path, process: subprocess.Popen[bytes]) -> int:
    """Chromium writes its port into a file once it listens."""
    file = profile / "DevToolsActivePort"
    async with asyncio.timeout(SECONDS):
        while not (file.exists() and (text := file.read_text().split())):
            assert process.poll() is None, "Chromium ended"
            await asyncio.sleep(POLL)
    return int(text[0])


async def _tab(port: int) -> str:
    async with httpx.AsyncClient(timeout=SECONDS, trust_env=False) as client, asyncio.timeout(SECONDS):
        while True:
            tabs = (await client.get(f"http://127.0.0.1:{port}/json")).json()
            for tab in tabs:
                if tab["type"] == "page":
                    address: str = tab["webSocketDebuggerUrl"]
                    return address
            await asyncio.sleep(POLL)
