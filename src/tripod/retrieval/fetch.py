"""Web pages by URL, fetched so that a page cannot reach what only this machine or its network may reach (SSRF).

Every address that a host name stands for is checked, the connection goes to the very address that was checked (a second look-up
could answer otherwise), each redirect is a new check, and size and time have bounds.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from typing import TYPE_CHECKING, TypeAlias

from tripod.errors import ConfigError, ConversionError
from tripod.retrieval.converters.registry import suffix_of

if TYPE_CHECKING:
    import httpx

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({404, 410})
_SUFFIXES = {  # of media types that say more than a URL does
    "text/html": ".html",
    "application/xhtml+xml": ".xhtml",
    "application/pdf": ".pdf",
    "text/markdown": ".md",
    "text/csv": ".csv",
    "application/json": ".json",
    "application/epub+zip": ".epub",
    "application/rtf": ".rtf",
    "text/rtf": ".rtf",
    "message/rfc822": ".eml",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UrlPolicy:
    """What may be fetched, and what a page may cost."""

    allowed_networks: tuple[str, ...] = ()  # private ones that may be reached all the same, such as "10.1.0.0/16" for an intranet
    ports: frozenset[int] = frozenset({80, 443, 8000, 8080, 8443})
    timeout_s: float = 20.0  # for a page, with its redirects
    max_bytes: int = 32 << 20
    max_redirects: int = 5
    user_agent: str = "tripod"

    def __post_init__(self) -> None:
        for network in self.allowed_networks:
            try:
                ipaddress.ip_network(network)
            except ValueError as error:
                raise ConfigError(
                    f"allowed_networks holds {network!r}, which is no network ({error}); give one such as '10.1.0.0/16'"
                ) from None
        if self.timeout_s <= 0 or self.max_bytes < 1 or self.max_redirects < 0:
            raise ConfigError("timeout_s and max_bytes must be more than 0, and max_redirects 0 or more")

    def allows(self, address: Address) -> bool:
        """Whether an address is public, or in a network that was allowed. What is packed into an address counts too."""
        if any(address in ipaddress.ip_network(network) for network in self.allowed_networks):
            return True
        if isinstance(address, ipaddress.IPv6Address):
            inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
            if inner is None and address in _NAT64:
                inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
            if inner is not None:
                return self.allows(inner)
        return address.is_global and not address.is_multicast


@dataclass(frozen=True, slots=True, kw_only=True)
class WebPage:
    """What a server sent."""

    content: bytes  # of a text in another encoding than UTF-8 that only the server named: as UTF-8 with a mark
    suffix: str  # of the converter for its media type
    changed_at_ns: int  # by its Last-Modified; -1 where it has none


def fetch(url: str, policy: UrlPolicy, *, unless_changed_since_ns: int = -1) -> WebPage | None:
    """Fetch a page; None if the server says that it has not changed since. Blocks.

    Raises:
        ConversionError: the URL, a redirect or an address is refused by the policy, the page is gone (404, 410) or too large.
        OSError: the server cannot be reached, takes too long, or answers with another error: what the index has of the page is kept.
    """
    import httpx

    deadline = time.monotonic() + policy.timeout_s
    headers = {"User-Agent": policy.user_agent, "Accept-Encoding": "identity"}
    if unless_changed_since_ns > 0:
        headers["If-Modified-Since"] = formatdate(unless_changed_since_ns / 1e9, usegmt=True)
    # trust_env=False: a proxy from the environment would connect to addresses that nobody checked.
    with httpx.Client(trust_env=False, follow_redirects=False) as client:
        try:
            for _ in range(policy.max_redirects + 1):
                request = _checked_request(client, url, policy, headers, deadline)
                response = client.send(request, stream=True)
                try:
                    if response.status_code in _REDIRECTS and "location" in response.headers:
                        url = str(httpx.URL(url).join(response.headers["location"]))
                        continue
                    if response.status_code == 304:
                        return None
                    if response.status_code in _GONE:
                        raise ConversionError(f"the page is gone: the server answers {response.status_code}")
                    if response.status_code != 200:
                        raise OSError(f"the server answers {response.status_code} {response.reason_phrase}")
                    return _page(response, url, policy, deadline)
                finally:
                    response.close()
        except httpx.TimeoutException:
            raise OSError(f"the server took more than {policy.timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise OSError(f"the server cannot be reached: {error}") from None
    raise ConversionError(f"it leads through more than {policy.max_redirects} redirects")


def _checked_request(client: httpx.Client, url: str, policy: UrlPolicy, headers: Mapping[str, str], deadline: float) -> httpx.Request:
    """A request to an address that was checked, in the name of the host that was asked for."""
    import httpx

    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConversionError(f"{url} is no http or https URL")
    if parsed.userinfo:
        raise ConversionError("its URL holds a password, which would be kept in the index; leave it out")
    port = parsed.port or (443 if parsed.scheme == "https" else 80)
    if port not in policy.ports:
        raise ConversionError(f"port {port} of {parsed.host} is not allowed; allow it by UrlPolicy(ports=...)")
    address = _checked_address(parsed.host, port, policy)
    left_s = max(0.001, deadline - time.monotonic())
    return client.build_request(
        "GET",
        parsed.copy_with(host=str(address), fragment=None),
        headers={**headers, "Host": parsed.netloc.decode("ascii")},
        timeout=httpx.Timeout(left_s),
        extensions={"sni_hostname": parsed.raw_host.decode("ascii")},  # the certificate is checked against the name, not the address
    )


def _checked_address(host: str, port: int, policy: UrlPolicy) -> Address:
    """The first address of a host, if all of them may be reached: one bad one among them is an attempt, or a mistake."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise OSError(f"the host {host} is not known: {error}") from None
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    for address in addresses:
        if not policy.allows(address):
            raise ConversionError(
                f"{host} stands for {address}, which is not a public address; if that is meant, allow it by UrlPolicy(allowed_networks=...)"
            )
    return addresses[0]


def _page(response: httpx.Response, url: str, policy: UrlPolicy, deadline: float) -> WebPage:
    import httpx

    content = bytearray()
    for chunk in response.iter_bytes():
        content += chunk
        if len(content) > policy.max_bytes:
            raise ConversionError(f"it has more than {policy.max_bytes} bytes; raise UrlPolicy(max_bytes=...) to read it")
        if time.monotonic() > deadline:
            raise OSError(f"the server took more than {policy.timeout_s:g} s")
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    suffix = _SUFFIXES.get(media_type) or suffix_of(httpx.URL(url).path) or (".txt" if media_type == "text/plain" else "")
    if not suffix:
        raise ConversionError(f"its media type {media_type!r} is not known")
    return WebPage(
        content=_as_utf8(bytes(content), response.charset_encoding, media_type), suffix=suffix, changed_at_ns=_changed_at(response)
    )


def _as_utf8(content: bytes, charset: str | None, media_type: str) -> bytes:
    """What the server says of a text's encoding is believed, and told to the converter by a mark."""
    if charset is None or charset.lower() in ("utf-8", "utf8", "us-ascii") or not (media_type.startswith("text/") or "xhtml" in media_type):
        return content
    try:
        return content.decode(charset).encode("utf-8-sig")
    except (LookupError, ValueError):
        return content  # the converter looks for itself


def _changed_at(response: httpx.Response) -> int:
    try:
        return int(parsedate_to_datetime(response.headers["last-modified"]).timestamp()) * 1_000_000_000
    except (KeyError, ValueError, TypeError):
        return -1
