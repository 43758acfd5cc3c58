"""A server on 127.0.0.1 that plays Google Drive for the real gdown code, and any other server for its plain addresses.

Requests to Drive's hosts are led here by an adapter in requests' sessions, below all of gdown; any other host is
refused, so that no test can reach the network.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from requests.adapters import HTTPAdapter

DRIVE_HOSTS = ("drive.google.com", "drive.usercontent.google.com", "docs.google.com")

# As Drive words them (2024): the form before large files, and the page when too many have come.
CONFIRMATION = """<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning</title></head><body>
<p class="uc-warning-caption">Google Drive can't scan this file for viruses.</p>
<form id="download-form" action="https://drive.usercontent.google.com/download" method="get">
<input type="submit" value="Download anyway"/><input type="hidden" name="id" value="ID">
<input type="hidden" name="export" value="download"><input type="hidden" name="confirm" value="t">
<input type="hidden" name="uuid" value="0123-4567"></form></body></html>""".replace("\n", "")
QUOTA = """<!DOCTYPE html><html><head><title>Google Drive - Quota exceeded</title></head><body>
<p class="uc-error-caption">Sorry, you can't view or download this file at this time.</p>
<p class="uc-error-subcaption">Too many users have viewed or downloaded this file recently. Please try later.</p>
</body></html>"""
NOT_FOUND = "<!DOCTYPE html><html><title>Error 404 (Not Found)!!1</title><p>That's an error.</p></html>"
BUSY = "<!DOCTYPE html><html><title>Sorry...</title><p>We're sorry... too many requests.</p></html>"

Answer = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: DriveServer

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Range")))
        answer = self.server.answers.pop(0) if self.server.answers else send()
        answer(self)

    def log_message(self, *_: Any) -> None:
        pass


class DriveServer(ThreadingHTTPServer):
    """Gives `answers` in order, one per request, and then always the file; `asked` has (path, Range) of each."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = b""
        self.answers: list[Answer] = []
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is part of what is tested: nothing is printed."""


def send(share: float = 1.0, *, pause: float = 0.0, stall: float = 0.0, ranges: bool = True) -> Answer:
    """The file from where Range says; after `share` of it hang up; `pause` between blocks, `stall` before the end."""

    def answer(handler: Handler) -> None:
        content = handler.server.content
        asked = handler.headers.get("Range") if ranges else None
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        handler.send_response(206 if asked else 200)
        handler.send_header("Content-Type", "application/octet-stream")
        handler.send_header("Content-Disposition", 'attachment; filename="features.pkl"')
        handler.send_header("ETag", '"one"')
        handler.send_header("Content-Length", str(len(content) - start))
        if asked:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        body = content[start:int(len(content) * share)]
        step = max(1, len(body) // 8)
        for at in range(0, len(body), step):
            handler.wfile.write(body[at:at + step])
            handler.wfile.flush()
            time.sleep(pause)
        if stall:
            time.sleep(stall)

    return answer


def page(html: str, status: int = 200, kind: str = "text/html; charset=utf-8") -> Answer:
    """A page, or any text, in place of the file."""

    def answer(handler: Handler) -> None:
        body = html.encode()
        handler.send_response(status)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


@contextmanager
def running(monkeypatch: pytest.MonkeyPatch) -> Iterator[DriveServer]:
    """The server, with every new session of requests led to it."""
    server = DriveServer()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    class ToServer(HTTPAdapter):
        def send(self, request: requests.PreparedRequest, *arguments: Any, **options: Any) -> requests.Response:
            parts = urlsplit(request.url)
            if parts.hostname in DRIVE_HOSTS:
                request.url = f"{server.address}{parts.path}?{parts.query}"
            elif parts.hostname != "127.0.0.1":
                raise AssertionError(f"a test asks the network for {request.url}")
            return super().send(request, *arguments, **options)

    original = requests.Session.__init__

    def init(session: requests.Session) -> None:
        original(session)
        session.trust_env = False  # no proxies of this machine
        session.mount("https://", ToServer())
        session.mount("http://", ToServer())

    monkeypatch.setattr(requests.Session, "__init__", init)
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
