"""A headless Chromium for tests, spoken to over two pipes: pages at any width and theme, what they print, pictures."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
"""None where this machine has none: then tests that need one are skipped."""
TALLEST = 16_000
"""Of a picture, in pixels."""


class Browser:
    """One page, opened anew by `show`."""

    def __init__(self) -> None:
        assert PROGRAM is not None
        self._home = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        ours_in, its_out = os.pipe()
        its_in, ours_out = os.pipe()

        def as_it_expects() -> None:
            above = fcntl.fcntl(its_in, fcntl.F_DUPFD, 10), fcntl.fcntl(its_out, fcntl.F_DUPFD, 10)
            os.dup2(above[0], 3)
            os.dup2(above[1], 4)

        self._process = subprocess.Popen(
            [PROGRAM, "--headless", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu", "--hide-scrollbars",
             "--no-first-run", f"--user-data-dir={self._home.name}", "about:blank"],
            preexec_fn=as_it_expects, pass_fds=(3, 4), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(its_in)
        os.close(its_out)
        self._read, self._write = os.fdopen(ours_in, "rb"), os.fdopen(ours_out, "wb", buffering=0)
        self._number, self._session = 0, ""
        self.said: list[str] = []
        """Errors and warnings of the page, its console and its policy; and whatever it asked the network for."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.terminate()
        self._process.wait(10)
        self._read.close()
        self._write.close()
        self._home.cleanup()

    def show(self, page: Path, width: int = 1200, theme: str = "light", scripts: bool = True, media: str = "") -> None:
        """Loads a file at this width, in the light or the dark theme."""
        self.said.clear()
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self._call("Emulation.setEmulatedMedia", media=media, features=features)
        self._call("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._call("Page.navigate", url=page.resolve().as_uri())
        self._wait_for("Page.loadEventFired")

    def ask(self, expression: str) -> Any:
        """What a JavaScript expression comes to, as plain data."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, to: Path, tallest: int = TALLEST) -> None:
        """Writes the page from its top on as a PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], tallest), "scale": 1}
        data = self._call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
        to.write_bytes(base64.b64decode(data))

    def _call(self, method: str, **given: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._hear(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _wait_for(self, event: str) -> None:
        while (heard := self._next()).get("method") != event:
            self._hear(heard)

    def _next(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _hear(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        if event.get("method") == "Log.entryAdded":
            self.said.append(given["entry"]["text"])
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.said.append(str(given["args"]))
        elif event.get("method") == "Runtime.exceptionThrown":
            self.said.append(str(given["exceptionDetails"]))
        elif event.get("method") == "Network.requestWillBeSent" and not given["request"]["url"].startswith("file:"):
            self.said.append(f"asked for {given['request']['url']}")
