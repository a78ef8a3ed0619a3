"""Fetching pages: what must not be reached is not, however it is named; what may be is read within its bounds."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

import tripod
from tripod.errors import ConfigError, ConversionError
from tripod.retrieval.fetch import UrlPolicy, WebPage, fetch
from tripod.retrieval.index import Index
from tripod.retrieval.sync import SyncReport


class Site(ThreadingHTTPServer):
    """A server on loopback that answers a path with what a test put there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    def policy(self, **options: Any) -> UrlPolicy:
        return UrlPolicy(allowed_networks=("127.0.0.0/8",), ports=frozenset({self.port, 80}), **options)


class Page(BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        status, headers, body = self.server.pages.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.path == "/slow":
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                time.sleep(0.05)
            return
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None: ...

    def handle(self) -> None:
        with suppress(ConnectionError):  # who asked has gone
            super().handle()


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Host names and what each look-up of them answers, in turn; the last answer stays. Other names are looked up as ever."""
    answers: dict[str, list[list[str]]] = {}
    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host not in answers:
            return look_up(host, port, *arguments, **options)
        addresses = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
        return [entry for address in addresses for entry in look_up(address, port, type=socket.SOCK_STREAM)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return answers


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.8.8.8", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "198.18.0.1"),
        *("224.0.0.1", "255.255.255.255", "::", "::1", "fc00::1", "fe80::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:0:7f00:1::80ff:fffe"),
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not UrlPolicy().allows(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8"])
def test_a_public_address_may_be_reached(address: str) -> None:
    assert UrlPolicy().allows(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "127.1", "0177.0.0.1", "[::1]", "[::ffff:7f00:1]", "0"]
)
def test_this_machine_is_not_reached_however_it_is_written(site: Site, host: str) -> None:
    policy = UrlPolicy(ports=frozenset({site.port}))
    with pytest.raises((ConversionError, OSError), match=r"not a public address|not known|cannot be reached"):
        fetch(site.url("/", host), policy)
    assert site.requests == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("ftp://example.org/a", "no http or https URL"),
        ("file:///etc/passwd", "no http or https URL"),
        ("http:///nowhere", "no http or https URL"),
        ("http://example.org:22/", "port 22 of example.org is not allowed"),
        ("https://ann:secret@example.org/", "holds a password"),
    ],
)
def test_what_is_no_web_page_is_refused(url: str, reason: str) -> None:
    with pytest.raises(ConversionError, match=reason):
        fetch(url, UrlPolicy())


def test_a_name_is_refused_if_any_of_its_addresses_is(site: Site, names: dict[str, list[list[str]]]) -> None:
    names["mixed.example"] = [["127.0.0.1", "10.0.0.1"]]
    with pytest.raises(ConversionError, match=r"mixed.example stands for 10\.0\.0\.1"):
        fetch(site.url("/", "mixed.example"), site.policy())
    assert site.requests == []


def test_the_connection_goes_to_the_address_that_was_checked(site: Site, names: dict[str, list[list[str]]]) -> None:
    site.pages["/"] = (200, {"Content-Type": "text/plain"}, b"hello")
    names["rebind.example"] = [["127.0.0.1"], ["10.0.0.1"]]  # a second look-up would lead elsewhere
    page = fetch(site.url("/", "rebind.example"), site.policy(timeout_s=2))
    assert page == WebPage(content=b"hello", suffix=".txt", changed_at_ns=-1)
    assert site.requests[0][1]["Host"] == f"rebind.example:{site.port}"


@pytest.mark.parametrize(
    "target", ["http://10.0.0.1/", "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "http://127.0.0.1:1/"]
)
def test_a_redirect_is_checked_anew(site: Site, target: str) -> None:
    site.pages["/"] = (302, {"Location": target}, b"")
    with pytest.raises(ConversionError, match=r"not a public address|no http|port 1 of"):
        fetch(site.url("/"), site.policy())
    assert len(site.requests) == 1


def test_redirects_are_followed_and_end(site: Site) -> None:
    site.pages["/a"] = (301, {"Location": "b?x=1"}, b"")
    site.pages["/b?x=1"] = (200, {"Content-Type": "text/html; charset=utf-8"}, b"<p>there")
    page = fetch(site.url("/a"), site.policy())
    assert page is not None
    assert (page.content, page.suffix) == (b"<p>there", ".html")
    site.pages["/loop"] = (302, {"Location": "/loop"}, b"")
    with pytest.raises(ConversionError, match="more than 5 redirects"):
        fetch(site.url("/loop"), site.policy())
    assert [path for path, _ in site.requests].count("/loop") == 1 + 5


def test_a_proxy_of_the_environment_is_not_asked(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/"] = (200, {"Content-Type": "text/plain"}, b"direct")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    page = fetch(site.url("/"), site.policy())
    assert page is not None
    assert page.content == b"direct"


def test_a_page_that_is_too_large_or_too_slow_is_given_up(site: Site) -> None:
    site.pages["/large"] = (200, {"Content-Type": "text/plain"}, b"x" * 300_000)
    with pytest.raises(ConversionError, match="more than 100000 bytes"):
        fetch(site.url("/large"), site.policy(max_bytes=100_000))
    site.pages["/slow"] = (200, {"Content-Type": "text/plain"}, b"")
    started_s = time.monotonic()
    with pytest.raises(OSError, match=r"more than 0\.3 s"):
        fetch(site.url("/slow"), site.policy(timeout_s=0.3))
    assert time.monotonic() - started_s < 4


@pytest.mark.parametrize(
    ("status", "kind", "reason"),
    [(404, ConversionError, "gone"), (410, ConversionError, "gone"), (500, OSError, "500"), (403, OSError, "403")],
)
def test_a_page_that_is_not_there_says_so(site: Site, status: int, kind: type[Exception], reason: str) -> None:
    site.pages["/"] = (status, {}, b"")
    with pytest.raises(kind, match=reason):
        fetch(site.url("/"), site.policy())


def test_an_encoding_that_only_the_server_names_is_believed(site: Site) -> None:
    site.pages["/"] = (200, {"Content-Type": "text/html; charset=koi8-r"}, "<p>Привет".encode("koi8-r"))
    page = fetch(site.url("/"), site.policy())
    assert page is not None
    assert page.content.decode("utf-8-sig") == "<p>Привет"


@pytest.mark.parametrize(
    ("path", "media_type", "suffix"),
    [
        ("/a", "application/pdf", ".pdf"),
        ("/a.md", "text/plain; charset=utf-8", ".md"),
        ("/a.php?x=.md", "text/html", ".html"),
        ("/a", "text/plain", ".txt"),
        ("/a.docx", "application/octet-stream", ".docx"),
    ],
)
def test_a_converter_is_chosen_by_media_type_then_by_name(site: Site, path: str, media_type: str, suffix: str) -> None:
    site.pages[path] = (200, {"Content-Type": media_type}, b"x")
    page = fetch(site.url(path), site.policy())
    assert page is not None
    assert page.suffix == suffix


def test_a_network_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'10\.0\.0\.1/8', which is no network"):
        UrlPolicy(allowed_networks=("10.0.0.1/8",))


def test_a_sync_of_pages_adds_changes_removes_and_keeps_what_it_cannot_reach(site: Site, tmp_path: Any) -> None:
    dated = {"Content-Type": "text/html", "Last-Modified": "Mon, 04 Mar 2024 10:00:00 GMT"}
    site.pages["/a"] = (200, dated, b"<h1>Quartz</h1>")
    site.pages["/b"] = (200, {"Content-Type": "text/plain"}, b"basalt")
    site.pages["/c"] = (200, {"Content-Type": "text/plain"}, b"granite")
    urls = [site.url(path) for path in ("/a", "/b", "/c", "/none")]

    async def go(urls: list[str]) -> SyncReport:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            return await index.sync(urls, urls=site.policy())

    first = tripod.run(go(urls))
    assert (first.added, [source for source, _ in first.failed], first.seen) == (3, [site.url("/none")], 4)
    site.requests.clear()
    site.pages["/a"] = (304, {}, b"")
    site.pages["/b"] = (200, {"Content-Type": "text/plain"}, b"basalt, changed")
    site.pages["/c"] = (500, {}, b"")
    second = tripod.run(go(urls))
    assert (second.added, second.changed, second.unchanged, second.removed, len(second.failed)) == (0, 1, 1, 0, 2)
    assert dict(site.requests)["/a"]["If-Modified-Since"] == dated["Last-Modified"]
    assert "If-Modified-Since" not in dict(site.requests)["/b"]
    site.pages["/c"] = (410, {}, b"")
    third = tripod.run(go(urls[1:3]))
    assert (third.unchanged, third.removed, len(third.failed)) == (1, 1, 1)

    async def held() -> list[str]:
        async with Index(tmp_path / "kb.db", embedder=None) as index:
            return await index.sources()

    assert tripod.run(held()) == [site.url("/b")]
