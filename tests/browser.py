"""A headless Chromium, driven by its DevTools protocol over a pair of pipes: no driver, no port, no package."""

import json
import os
import select
import shutil
import subprocess
import sys

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
ON_PIPES = """
import os, sys
commands, answers = (os.dup(int(fd)) for fd in sys.argv[1:3])  # away from 3 and 4, where Chromium looks for them
spare = [os.dup2(commands, 103), os.dup2(answers, 104)]
os.dup2(103, 3), os.dup2(104, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
PATIENCE = 120.0
"""Seconds without a word from the browser after which it counts as dead."""


def program():
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


class Chromium:
    """One page of one browser. What it complains about, and what it requests, is kept for every page."""

    def __init__(self, folder):
        (read_commands, self._commands), (self._answers, write_answers) = os.pipe(), os.pipe()
        launch = [sys.executable, "-c", ON_PIPES, str(read_commands), str(write_answers)]
        with open(os.path.join(folder, "log.txt"), "wb") as log:
            self._process = subprocess.Popen(
                [*launch, program(), *FLAGS, f"--user-data-dir={os.path.join(folder, 'profile')}"],
                pass_fds=(read_commands, write_answers),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        os.close(read_commands)
        os.close(write_answers)
        self._received, self._number, self._session = b"", 0, {}
        self.errors, self.requests, self._loaded = [], [], False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self):
        os.close(self._commands)  # Chromium ends when nobody is left to command it
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._answers)

    def call(self, method, **parameters):
        """Sends a command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def open(self, url, *, width=1280, height=900):
        """Loads a page, and forgets what others complained about and requested."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.errors, self.requests, self._loaded = [], [], False
        failure = self.call("Page.navigate", url=url).get("errorText")
        assert not failure, f"{url}: {failure}"
        while not self._loaded:
            self._note(self._receive())
        self.run("document.fonts.ready.then(() => true)")

    def run(self, script):
        """The value of a JavaScript expression, or of the promise that it is."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def press(self, key, code):
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code)

    def _receive(self):
        while b"\0" not in self._received:
            if not select.select([self._answers], [], [], PATIENCE)[0]:
                raise TimeoutError(f"no word from the browser for {PATIENCE:.0f} seconds")
            if not (more := os.read(self._answers, 1 << 16)):
                raise ConnectionError("the browser has ended")
            self._received += more
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)

    def _note(self, event):
        about = event.get("params", {})
        match event.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requests.append(about["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(about["exceptionDetails"].get("exception", {}).get("description", str(about)))
            case "Runtime.consoleAPICalled" if about["type"] in ("error", "warning", "assert"):
                self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in about["args"]))
            case "Log.entryAdded" if about["entry"]["level"] in ("error", "warning"):
                self.errors.append(f"{about['entry']['text']} {about['entry'].get('url', '')}")
