"""The connections of the service: how many there may be, how long one may say nothing, and the end of the process.

Descriptors never run out: beyond the limits idle connections are closed for new ones, and where none is idle a few more
get answers from /health alone. What may happen a thousand times a second is one line of the log a minute.
"""

import asyncio
import errno
import logging
import os
import resource
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from common.errors import OptionError

MOST_CONNECTIONS = 1024  # unless an option says more
FEWEST_CONNECTIONS = 8
RESERVE = 16  # connections beyond the limits, on which /health is answered
SPARE = 24  # descriptors for files, decoders that start, and connections accepted before the limits are looked at
ACCEPTED_AT_ONCE, BACKLOG = 8, 1024
SWEEP_SECONDS = 0.25
MINUTE = 60.0
MOST_KINDS = 100  # of lines that are remembered
HEALTH = "/health"
NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
CLOSED = {
    "idle": "",
    "full": "there are as many connections as are served (--max-connections): an idle one was closed for another",
    "client": "a client has as many connections as one may have (--max-client-connections): an idle one was closed",
    "header": "a connection was closed: its request had no whole header in time (--header-timeout)",
    "answer": "a connection was closed: its client does not take the answer (--min-rate)",
    "refused": "a connection was refused: there are more than are served, and none of them is idle",
}
logger = logging.getLogger(__name__)


class OncePerMinute(logging.Filter):
    """Lets a line of each kind pass in a minute; the next one tells how many were like it.

    A kind is the text before its arguments are put in, with the type of an exception.
    """

    def __init__(self) -> None:
        """Nothing has been logged."""
        super().__init__()
        self._since: dict[tuple[str, Any], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is logged."""
        kind, now = (str(record.msg)[:200], record.exc_info and record.exc_info[0]), time.monotonic()
        since, count = self._since.get(kind, (-MINUTE, 0))
        if now - since < MINUTE:
            self._since[kind] = since, count + 1
            return False
        if len(self._since) > MOST_KINDS:
            self._since.clear()
        self._since[kind] = now, 0
        if count:
            record.msg = f"{str(record.msg).rstrip()} (and {count} more like this since the last line)"
        return True


def quiet_logs() -> None:
    """One line a kind and minute of all that clients can cause."""
    once = OncePerMinute()
    parts = ("connections", "requests", "app")
    for name in (*(f"detect.service.{part}" for part in parts), "uvicorn.error", "asyncio"):
        logging.getLogger(name).addFilter(once)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # what is wrong with a form, its client is told


@dataclass(frozen=True)
class ConnectionLimits:
    """Connections in all and of one client; seconds for a whole header and for an answer to be taken; bytes a second
    at which an answer is taken."""

    most: int
    of_client: int
    header: float
    timeout: float
    rate: float


def most_connections(wanted: int) -> int:
    """So many connections, 0 = MOST_CONNECTIONS or as many as the limit of open files has room for.

    OptionError where there is no room.
    """
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    opened = len(list(Path("/proc/self/fd").iterdir()))
    room = sys.maxsize if soft == resource.RLIM_INFINITY else soft - opened - RESERVE - SPARE
    if room < max(wanted, FEWEST_CONNECTIONS):
        raise OptionError(
            f"the limit of {soft} open files has room for {max(0, room)} connections, not for "
            f"{max(wanted, FEWEST_CONNECTIONS)}: raise it (ulimit -n) or lower --max-connections"
        )
    return wanted or min(MOST_CONNECTIONS, room)


def client_of(host: str) -> str:
    """Who counts as one client: an IPv4 address, or the network of 64 bits that an IPv6 one belongs to."""
    with suppress(ValueError):
        address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address):
            mapped = address.ipv4_mapped
            return str(mapped) if mapped else str(IPv6Address(int(address) >> 64 << 64))
    return host


class Guard:
    """All connections; closes what is too many or too slow."""

    def __init__(
        self, limits: ConnectionLimits, closed: Callable[[str], None], make_room: Callable[[str | None], bool]
    ) -> None:
        """closed is called with a key of CLOSED for each connection that the guard ends.

        make_room: ends a request of this client, None = of anybody, that holds its connection for too long, if any.
        """
        self.limits, self._closed, self._make_room = limits, closed, make_room
        self._all: set[_Connection] = set()
        self._of_client: Counter[str] = Counter()
        self._sweeping = False

    def __len__(self) -> int:
        """How many connections there are."""
        return len(self._all)

    def protocol(self) -> type[H11Protocol]:
        """The class of connections that this guards."""
        return type("GuardedConnection", (_Connection,), {"guard": self})

    def admit(self, new: "_Connection") -> None:
        """Takes a connection, or makes room for it, or leaves it /health alone, or ends it."""
        self._all.add(new)
        self._of_client[new.host] += 1
        self._sweep_later(new.loop)
        many = self._of_client[new.host] > self.limits.of_client
        if not many and len(self._all) <= self.limits.most:
            return
        idle = [one for one in self._all if one.idle and one is not new and (not many or one.host == new.host)]
        if idle:
            self.end(min(idle, key=lambda one: one.since), "client" if many else "full")
        elif self._make_room(new.host if many else None):
            return
        elif sum(one.reserved for one in self._all) >= RESERVE:
            self.end(new, "refused")
        else:
            new.reserved = True
            new.app = OnlyHealth(new.app)

    def leave(self, connection: "_Connection") -> None:
        """A connection is no more."""
        if connection in self._all:
            self._all.discard(connection)
            self._of_client[connection.host] -= 1
            if not self._of_client[connection.host]:
                del self._of_client[connection.host]

    def end(self, connection: "_Connection", reason: str) -> None:
        """Closes a connection at once, for a reason of CLOSED."""
        self.leave(connection)
        self._closed(reason)
        if CLOSED[reason]:
            logger.warning(CLOSED[reason])
        connection.transport.abort()

    def _sweep_later(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._sweeping:
            self._sweeping = True
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in list(self._all):
            if now > connection.deadline(self.limits):
                self.end(connection, connection.fault)
        self._sweeping = False
        if self._all:
            self._sweep_later(loop)


class _Connection(H11Protocol):
    """A connection that its guard watches.

    Attributes:
        since: when it was made, its last request was answered, or a new one began (loop.time()).
        reserved: it is one of the few beyond the limits.
    """

    guard: ClassVar[Guard]
    host = ""
    since = 0.0
    reserved = _heard = False
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.host, self.since = client_of(self.client[0] if self.client else ""), self.loop.time()
        self.guard.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.guard.leave(self)

    def data_received(self, data: bytes) -> None:
        if not self._heard:
            self._heard, self.since = True, self.loop.time()
        super().data_received(data)

    def on_response_complete(self) -> None:
        self.since, self._heard = self.loop.time(), False
        self._unsent = self.transport.get_write_buffer_size()
        super().on_response_complete()

    @property
    def idle(self) -> bool:
        """Whether no request is being received, worked on or answered."""
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.get_write_buffer_size()

    @property
    def fault(self) -> str:
        """What is wrong with a connection whose deadline has passed, as a key of CLOSED."""
        if self.transport.get_write_buffer_size():
            return "answer"
        return "header" if self._heard else "idle"

    def deadline(self, limits: ConnectionLimits) -> float:
        """When it is to be closed: without a whole header, or with an answer that is not taken.

        A body and the answer to it have deadlines of their own (detect/service/requests.py, app.py); after an answer
        uvicorn waits for the first byte of the next request (--keep-alive).
        """
        if self.transport.get_write_buffer_size():
            return self.since + min(limits.header + self._unsent / limits.rate, max(limits.timeout, limits.header))
        waits = self.idle and (self._heard or self.cycle is None)
        return self.since + limits.header if waits else float("inf")


class OnlyHealth:
    """An application of which /health alone is served."""

    def __init__(self, app: ASGIApp) -> None:
        """The whole application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] == "http" and scope["path"] != HEALTH:
            sentence = "there are as many connections as are served; come again"
            headers: Mapping[str, str] = {"Retry-After": "1", "Connection": "close"}
            await JSONResponse({"error": sentence}, 503, headers)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class Server(uvicorn.Server):
    """A server that ends `grace` seconds after a signal whatever runs, and at once after a second one."""

    def __init__(self, config: uvicorn.Config, grace: float, unfinished: Callable[[], int]) -> None:
        """unfinished: how many requests are not answered yet."""
        super().__init__(config)
        self._grace, self._unfinished = grace, unfinished

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens; a few connections are accepted at a time, so that the guard sees them before there are more."""
        asyncio.get_running_loop().set_exception_handler(_tell)
        await super().startup(sockets)
        for one in sockets or []:
            one.listen(BACKLOG)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends when the requests at hand are answered, or the time is over, or another signal comes."""
        if self.should_exit:
            self._end_at_once(sig)
        super().handle_exit(sig, frame)
        timer = threading.Timer(self._grace, self._end_at_once, (sig,))
        timer.daemon = True
        timer.start()

    def _end_at_once(self, number: int) -> None:
        """Ends the process without waiting for any lock, thread or decoder; decoders end with it."""
        line = f"ended by signal {number} with {self._unfinished()} requests unfinished (--grace {self._grace:g})\n"
        with suppress(OSError):
            os.set_blocking(sys.stderr.fileno(), False)
            os.write(sys.stderr.fileno(), line.encode())
        os._exit(128 + number)


def _tell(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Logs what the event loop could not do; a line where it could accept no connection."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTOR:
        logger.warning("no connection could be accepted: %s; raise the limit of open files (ulimit -n)", error.strerror)
    else:
        loop.default_exception_handler(context)
