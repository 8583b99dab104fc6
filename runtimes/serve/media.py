"""Pictures that a request names by an address of the web: fetched from hosts that the server's owner allows.

A host is resolved once, its addresses are checked, and the connection goes to what was checked: a name that leads
elsewhere a moment later leads nowhere here. The same holds behind each redirect.
"""

from __future__ import annotations

import asyncio
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from threading import Timer
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from edgeglm.runtimes.serve.bodies import MAX_BODY_BYTES, Bodies
from edgeglm.runtimes.serve.errors import ApiError
from edgeglm.runtimes.text.messages import PICTURES, PLACES
from edgeglm.units import format_size

ANY = "*"  # host whose addresses are public
SCHEMES = {"http": 80, "https": 443}
# Of one picture, in all: names, connections, redirects and reading.
SECONDS, REDIRECTS, MAX_BYTES = 10.0, 3, 20 << 20
# Of one request; as data URLs they would be in its body.
MAX_PICTURES, MAX_REQUEST_BYTES = 16, MAX_BODY_BYTES
AT_ONCE, PIECE = 4, 1 << 16
HEADERS = {"User-Agent": "edgeglm", "Accept": "image/webp, image/png, image/jpeg", "Accept-Encoding": "identity"}


class MediaError(ValueError):
    """Raised where a picture cannot be had; the message says why, and nothing of what was read."""


class Media:
    """Fetches the pictures of requests.

    Args:
        hosts: From which they may come, by name or address; ``*`` is any whose addresses are public. None: nothing is
            fetched.
        bodies: Among which fetched pictures count.
    """

    def __init__(self, hosts: Sequence[str], bodies: Bodies) -> None:
        self.hosts, self.bodies = frozenset(host.lower() for host in hosts), bodies
        self.pool = ThreadPoolExecutor(AT_ONCE, "media")

    @asynccontextmanager
    async def fetched(self, messages: Sequence[Any] | None) -> AsyncIterator[None]:
        """Put the bytes of pictures in the place of their addresses; they count until this is left.

        Raises:
            ApiError: A picture cannot be had, or there are too many.
        """
        places = list(web_pictures(messages or ())) if self.hosts else []
        if len(places) > MAX_PICTURES:
            raise ApiError(400, f"more than {MAX_PICTURES} images are named by addresses", param="messages")
        before = self.bodies.held
        try:
            await asyncio.gather(*(self._put(*place) for place in places))
            taken = [len(holder[key]) for holder, key in places]
        except MediaError as error:
            raise ApiError(400, f"an image {error}", param="messages") from error
        if sum(taken) > MAX_REQUEST_BYTES or before + sum(taken) > self.bodies.most:
            raise ApiError(400, f"the images are larger than {format_size(MAX_REQUEST_BYTES)}", param="messages")
        self.bodies.held += sum(taken)
        try:
            yield
        finally:
            self.bodies.held -= sum(taken)

    async def _put(self, holder: dict[str, Any], key: str) -> None:
        loop = asyncio.get_running_loop()
        holder[key] = await loop.run_in_executor(self.pool, fetch, holder[key], self.hosts)


def web_pictures(messages: Sequence[Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield each place of messages where a picture is named by an address: an object, and its key."""
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    for part in [part for content in contents if isinstance(content, list) for part in content]:
        if not isinstance(part, dict) or part.get("type", PICTURES[0]) not in PICTURES:
            continue
        place = next((place for place in PLACES if part.get(place) is not None), PLACES[0])
        holder, key = (part[place], "url") if isinstance(part.get(place), dict) else (part, place)
        if str(holder.get(key)).partition(":")[0].lower() in SCHEMES:
            yield holder, key


def fetch(url: str, hosts: frozenset[str]) -> bytes:
    """Return what an address has.

    Args:
        url: Of http or https.
        hosts: That are allowed.

    Raises:
        MediaError: It is not allowed, or cannot be had within `SECONDS` and `MAX_BYTES`.
    """
    end = time.monotonic() + SECONDS
    try:
        for _ in range(1 + REDIRECTS):
            found = _get(url, hosts, end)
            if time.monotonic() >= end:
                raise TimeoutError  # what was cut may look like an end
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
    except (OSError, http.client.HTTPException, ValueError) as error:
        if isinstance(error, MediaError):
            raise
        late = time.monotonic() >= end
        raise MediaError(f"takes more than {SECONDS:g} seconds" if late else "cannot be fetched") from error
    raise MediaError(f"is behind more than {REDIRECTS} redirects")


def _get(url: str, hosts: frozenset[str], end: float) -> bytes | str:
    """Return what an address has, or the address that it redirects to."""
    split = urlsplit(url)
    if split.scheme not in SCHEMES or not split.hostname or split.username is not None:
        raise MediaError("is at no address of http or https")
    address = _resolve(split, hosts)
    with closing(_Pinned(split, address, end)) as connection, _ending(connection, end):
        path = split._replace(scheme="", netloc="", fragment="", path=split.path or "/").geturl()
        connection.request("GET", path, headers=HEADERS)
        with connection.getresponse() as response:
            if response.status in (301, 302, 303, 307, 308) and (to := response.headers.get("Location")):
                return str(to)
            if response.status != 200:
                raise MediaError(f"is answered with {response.status} by its server")
            return _read(response)


def _read(response: http.client.HTTPResponse) -> bytes:
    data = bytearray()
    while piece := response.read(PIECE):
        data += piece
        if len(data) > MAX_BYTES:
            raise MediaError(f"is larger than {format_size(MAX_BYTES)}")
    return bytes(data)


def _resolve(split: SplitResult, hosts: frozenset[str]) -> tuple[str, int]:
    """Return the address and port to connect to.

    Raises:
        MediaError: The host is not allowed, or is no public one and not allowed by its name.
    """
    host, port = str(split.hostname), split.port or SCHEMES[split.scheme]
    if host not in hosts and ANY not in hosts:
        raise MediaError("is from a host that --allowed-media-domains does not name")
    addresses = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if host not in hosts and not all(map(is_public, addresses)):
        raise MediaError("is from a host whose addresses are not public")
    return addresses[0], port


def is_public(address: str) -> bool:
    """Return whether an address is of the internet at large, also where IPv6 carries one of IPv4."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo or (None, None))[1]
        if inner is not None and not is_public(str(inner)):
            return False
        if found in NAT64 and not is_public(str(ipaddress.IPv4Address(found.packed[-4:]))):
            return False
    return found.is_global and not found.is_multicast


# Well-known prefix by which gateways carry addresses of IPv4.
NAT64 = ipaddress.ip_network("64:ff9b::/96")


class _Pinned(http.client.HTTPConnection):
    """Connects to an address that was checked, and asks it for the host of a URL."""

    def __init__(self, split: SplitResult, address: tuple[str, int], end: float) -> None:
        super().__init__(str(split.hostname), address[1], timeout=max(0.1, end - time.monotonic()))
        self.address, self.is_secure = address, split.scheme == "https"
        self.opened: socket.socket | None = None  # also when the response alone has it

    def connect(self) -> None:
        """Connect."""
        self.opened = self.sock = socket.create_connection(self.address, self.timeout)
        if self.is_secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
        self.opened = self.sock


@contextmanager
def _ending(connection: _Pinned, end: float) -> Iterator[None]:
    """End a connection at a time, however slowly it speaks until then."""

    def cut() -> None:
        with suppress(OSError):  # it is closed already
            if connection.opened:
                connection.opened.shutdown(socket.SHUT_RDWR)

    timer = Timer(max(0.0, end - time.monotonic()), cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
