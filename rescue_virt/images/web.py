"""Images on HTTP servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import unquote, urljoin

import urllib3
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, make_headers, parse_url

from rescue_virt.errors import BadRequest, ImageError, NotFound
from rescue_virt.images.source import Body, SourceFacts
from rescue_virt.settings import Settings

_MAX_REDIRECTS = 3
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_GONE = frozenset({HTTPStatus.NOT_FOUND, HTTPStatus.GONE})


def parse(location: str) -> Url:
    """:raises BadRequest: if it is no http or https URL with a host."""
    try:
        url = parse_url(location)
    except LocationParseError as exc:
        raise BadRequest("the image's URL cannot be understood; check its spelling") from exc
    if url.scheme not in ("http", "https") or not url.host:
        raise BadRequest(f"{display_name(url)}: not an http or https URL with a host name")
    return url._replace(fragment=None)


def display_name(url: Url) -> str:
    """The URL without what may be secret: its user, its password, a signature in its query."""
    return url._replace(auth=None, query="…" if url.query else None, fragment=None).url


@dataclass(frozen=True, slots=True)
class HttpSource:
    """One URL, as returned by `parse`."""

    url: Url
    settings: Settings

    def stat(self) -> SourceFacts:
        return SourceFacts(name=display_name(self.url), identity=self.url.url)

    @contextmanager
    def open(self, offset: int) -> Iterator[Body]:
        timeout = urllib3.Timeout(
            connect=self.settings.connect_timeout, read=self.settings.read_timeout
        )
        name = display_name(self.url)
        with urllib3.PoolManager(timeout=timeout, retries=False) as pool:
            response = _follow(pool, self.url, offset)
            try:
                _check_answer(response, name, offset)
                yield _HttpBody(name, response, response.length_remaining)
            finally:
                response.close()


@dataclass(frozen=True, slots=True)
class _HttpBody:
    name: str
    response: urllib3.BaseHTTPResponse
    size: int | None

    @property
    def space(self) -> int | None:
        return self.size

    def read(self, count: int, /) -> bytes:
        try:
            return self.response.read(count)
        except HTTPError as exc:
            raise ImageError(f"image {self.name} broke off: {exc}; try again") from exc


def _follow(pool: urllib3.PoolManager, url: Url, offset: int) -> urllib3.BaseHTTPResponse:
    name, auth = display_name(url), url.auth
    for _ in range(_MAX_REDIRECTS + 1):
        response = _get(pool, url, auth, offset)
        location = response.headers.get("Location")
        if response.status not in _REDIRECTS or not location:
            return response
        response.close()
        target = _redirected(url, location, name)
        if (url.scheme, target.scheme) == ("https", "http"):
            raise ImageError(f"image {name} redirects from https to http; use a safer address")
        if (url.scheme, url.host, url.port) != (target.scheme, target.host, target.port):
            auth = None
        url = target
    raise ImageError(f"image {name} redirects more than {_MAX_REDIRECTS} times; use its address")


def _redirected(url: Url, location: str, name: str) -> Url:
    try:
        return parse(urljoin(url.url, location))
    except (BadRequest, ValueError) as exc:
        raise ImageError(f"image {name} redirects to what is no http or https URL") from exc


def _get(
    pool: urllib3.PoolManager, url: Url, auth: str | None, offset: int
) -> urllib3.BaseHTTPResponse:
    # A server that compresses would make the digest, the size and the offset mean something else.
    headers = {"Accept-Encoding": "identity"}
    if auth:
        headers |= make_headers(basic_auth=unquote(auth))
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        return pool.request(
            "GET", url._replace(auth=None).url, headers=headers, redirect=False,
            preload_content=False, decode_content=False,
        )  # fmt: skip
    except HTTPError as exc:
        reason = str(exc).rpartition(": ")[2]
        raise ImageError(f"image {display_name(url)} cannot be fetched: {reason}") from exc


def _check_answer(response: urllib3.BaseHTTPResponse, name: str, offset: int) -> None:
    if response.status in _GONE:
        raise NotFound(f"image {name} does not exist (HTTP {response.status})")
    if response.status != (HTTPStatus.PARTIAL_CONTENT if offset else HTTPStatus.OK):
        raise ImageError(f"image {name} cannot be fetched: HTTP {response.status}")
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise ImageError(f"image {name} is sent compressed; have the server send it as it is")
    begins = f"bytes {offset}-"
    if offset and not response.headers.get("Content-Range", "").startswith(begins):
        raise ImageError(f"image {name} is sent from another place than asked for; try again")
