"""What a request may be: its key, its parameters and its images; anything else is refused by a sentence."""

import asyncio
import hashlib
import hmac
import logging
import math
import os
import stat
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from common.errors import OptionError
from detect.service.connections import client_of
from detect.service.decoding import MEGA, RefusedError

DRAIN_SECONDS = 1.0
RETRY_SECONDS = 1
SPARED_SECONDS = 1.0  # a body that has just begun makes no room for another
SLOW = 10  # times the lowest rate: a body slower than that makes room for others when there are too many
PARAMETERS = ("threshold", "format")
PICTURE_TYPES = {"image/jpeg": ".jpg", "image/png": ".png"}
FORM = "multipart/form-data"
MIN_KEY, MAX_KEY_FILE = 16, 1 << 16  # characters, bytes
HOW = (
    "send the image file itself as the body: curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg URL, "
    "or files in a form: curl -F image=@photo.jpg URL"
)

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestedAnswer:
    """What a request asks for: the lowest score, None = the service's, and the picture's type, None = JSON."""

    threshold: float | None
    picture: str | None


def requested_answer(request: Request) -> RequestedAnswer:
    """The parameters of a request; RefusedError for others."""
    for name in request.query_params:
        if name not in PARAMETERS:
            raise RefusedError(400, f"unknown parameter {name!r:.80}; there are {' and '.join(PARAMETERS)}")
    text = request.query_params.get("threshold")
    return RequestedAnswer(None if text is None else _threshold(text), _picture(request))


def _threshold(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if math.isfinite(value) and 0 <= value <= 1:
            return value
    raise RefusedError(400, f"threshold={text!r:.80}: expected a number from 0 to 1")


def _picture(request: Request) -> str | None:
    """The type by `format`, or without it by Accept: the first of the types that can be answered."""
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    pictures = [part for part in accepted if part in PICTURE_TYPES]
    form = request.query_params.get("format")
    if form not in (None, "json", "picture"):
        raise RefusedError(400, f"format={form!r:.80}: expected json or picture")
    if form == "picture":
        return pictures[0] if pictures else "image/jpeg"
    first = next((part for part in accepted if part in PICTURE_TYPES or part in ("application/json", "*/*")), None)
    return first if form is None and first in PICTURE_TYPES else None


def is_form(request: Request) -> bool:
    """Whether the body is a form with files; RefusedError unless it is that, an image, or nothing in particular."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and kind != FORM and not kind.startswith("image/") and kind != "application/octet-stream":
        raise RefusedError(415, f"Content-Type {kind!r:.80} is not served; {HOW}")
    return kind == FORM


async def read_body(request: Request, limit: int, arrived: Callable[[int], None] = lambda count: None) -> bytes:
    """The body; RefusedError as soon as it is known to be empty or to have more than `limit` bytes.

    arrived: called with the number of bytes so far.
    """
    declared = request.headers.get("content-length", "")
    content = bytearray()
    if not declared.isdecimal() or int(declared) <= limit:
        async for chunk in request.stream():
            content += chunk
            arrived(len(content))
            if len(content) > limit:
                break
        else:
            if content:
                return bytes(content)
            raise RefusedError(400, f"the body is empty; {HOW}")
    await drain(request)
    raise RefusedError(413, f"the body has more than {limit / MEGA:g} MB; send smaller images, or fewer at a time")


async def drain(request: Request) -> None:
    """Takes what is left of a body, at most for a moment: who still sends would not read the answer.

    A client that waits for leave to send (Expect: 100-continue) reads it.
    """
    if "expect" in request.headers:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            while (await request.receive()).get("more_body"):
                pass


async def wait_for_disconnect(request: Request) -> None:
    """Returns when the client of a request, whose body has been read, has closed its connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(eq=False)
class _Upload:
    """A body that is being received; the clock ends it."""

    clock: asyncio.Timeout
    client: str
    begin: float = field(default_factory=time.monotonic)
    received: int = 0
    dropped: bool = False

    def rate(self, now: float) -> float:
        """Bytes a second."""
        return self.received / max(now - self.begin, 1e-3)

    def end_in(self, seconds: float) -> None:
        """Moves the deadline."""
        with suppress(RuntimeError):  # it has passed just now
            self.clock.reschedule(asyncio.get_running_loop().time() + seconds)


class Uploads:
    """The bodies that are being received, none of them slowly for long.

    A body has `grace` seconds and what its bytes take at `rate` bytes a second, `timeout` at most. When `most` are
    coming, one that begins takes the place of the slowest of those that come at less than SLOW times that rate.
    """

    def __init__(self, most: int, grace: float, rate: float, timeout: float) -> None:
        """Nothing is coming yet."""
        self._most, self._grace, self._rate, self._timeout = most, grace, rate, timeout
        self._coming: set[_Upload] = set()

    def __len__(self) -> int:
        """How many are coming."""
        return len(self._coming)

    async def receive(self, request: Request, limit: int) -> bytes:
        """The body of a request, at most `limit` bytes; RefusedError as read_body, 408 if slow, 503 if too many."""
        if len(self._coming) >= self._most and not self.make_room():
            await drain(request)
            raise too_many(f"{self._most} bodies are being received")
        client = client_of(request.client.host if request.client else "")
        upload = _Upload(asyncio.timeout(min(self._grace, self._timeout)), client)
        self._coming.add(upload)
        try:
            async with upload.clock:
                return await read_body(request, limit, lambda count: self._arrived(upload, count))
        except TimeoutError:
            raise RefusedError(408, self._lateness(upload)) from None
        finally:
            self._coming.discard(upload)

    def _arrived(self, upload: _Upload, count: int) -> None:
        upload.received = count
        if not upload.dropped:
            allowed = min(self._grace + count / self._rate, self._timeout)
            upload.end_in(upload.begin + allowed - time.monotonic())

    def make_room(self, client: str | None = None) -> bool:
        """Gives up the slowest body, of this client or of all; False where none is slow and older than a moment."""
        now = time.monotonic()
        own = (one for one in self._coming if client in (None, one.client))
        slow = [one for one in own if now - one.begin > SPARED_SECONDS and one.rate(now) < SLOW * self._rate]
        if not slow:
            return False
        slowest = min(slow, key=lambda one: one.rate(now))
        slowest.dropped = True
        slowest.end_in(0)
        self._coming.discard(slowest)
        logger.warning("a slow body was given up to make room for another request (--max-uploads)")
        return True

    def _lateness(self, upload: _Upload) -> str:
        if upload.dropped:
            return "the body came so slowly that it had to make room for others; come again"
        seconds = time.monotonic() - upload.begin
        if seconds >= self._timeout:
            return f"the body has not arrived within {self._timeout:g} s; send smaller images, or fewer at a time"
        logger.warning("a body that came too slowly was given up (--min-rate)")
        return f"the body came too slowly: {upload.received} bytes in {seconds:.1f} s"


def too_many(what: str) -> RefusedError:
    """The refusal of what could be served later."""
    return RefusedError(503, f"{what}, as many as are taken; come again", {"Retry-After": str(RETRY_SECONDS)})


@dataclass
class FormFile:
    """A file of a form: the name that the client gave it, and its bytes."""

    name: str
    content: bytearray = field(default_factory=bytearray)


class _FormReader:
    """What the parser of a form calls."""

    def __init__(self, most: int) -> None:
        self.files: list[FormFile] = []
        self._most, self.ended = most, False
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self.on_part_begin,
            "on_header_field": self.on_header_field,
            "on_header_value": self.on_header_value,
            "on_header_end": self.on_header_end,
            "on_headers_finished": self.on_headers_finished,
            "on_part_data": self.on_part_data,
            "on_end": self.on_end,
        }

    def on_part_begin(self) -> None:
        self._disposition = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"filename" not in options:
            name = options.get(b"name", b"").decode("utf-8", "replace")
            raise RefusedError(
                400,
                f"the field {name!r:.80} is no file; parameters stand in the address: /detect?threshold=0.3",
            )
        if len(self.files) == self._most:
            raise RefusedError(413, f"more than {self._most} images; send fewer at a time")
        self.files.append(FormFile(options[b"filename"].decode("utf-8", "replace")))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.files[-1].content += data[start:end]

    def on_end(self) -> None:
        self.ended = True


def files_of(content: bytes, content_type: str, most: int) -> list[FormFile]:
    """The files of a form in the order given, at least one and at most `most`; RefusedError for other forms."""
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    reader = _FormReader(most)
    try:
        MultipartParser(boundary, reader.callbacks()).write(content)
    except FormParserError as error:
        raise RefusedError(400, f"the form is damaged ({error}); {HOW}") from error
    if not boundary or not reader.ended:
        raise RefusedError(400, f"the form is cut off, or Content-Type does not tell its boundary; {HOW}")
    if not reader.files:
        raise RefusedError(400, f"the form has no file; {HOW}")
    return reader.files


class ApiKeys:
    """The keys of those who are served."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Only digests are kept, of one length, so that a comparison's time tells nothing."""
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def check(self, request: Request) -> None:
        """RefusedError 401 unless the request has a key, as `Authorization: Bearer KEY` or as `X-API-Key: KEY`."""
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else request.headers.get("x-api-key", "")
        digest = hashlib.sha256(given.encode()).digest()
        if not any([hmac.compare_digest(digest, one) for one in self._digests]):
            logger.warning("a request without a valid key was refused")
            raise RefusedError(
                401,
                "a key is needed: send the header Authorization: Bearer KEY, or X-API-Key: KEY",
                {"WWW-Authenticate": "Bearer"},
            )


def read_keys(path: Path) -> ApiKeys:
    """The keys of a file, one on each line; OptionError for what cannot be one.

    A file that everybody on this machine can read is told.
    """
    with open(path, "rb") as file:
        content = file.read(MAX_KEY_FILE + 1)
        everybody = os.fstat(file.fileno()).st_mode & stat.S_IROTH
    keys = [line.strip() for line in content.decode("ascii", "replace").splitlines() if line.strip()]
    bad = len(content) > MAX_KEY_FILE or any(len(key) < MIN_KEY or not _is_word(key) for key in keys)
    if bad or not keys:
        raise OptionError(
            f"--api-key-file {path}: each line is a key of at least {MIN_KEY} letters and digits without spaces; "
            "make one: python3 -c 'import secrets; print(secrets.token_urlsafe())'"
        )
    if everybody:
        logger.warning("%s: everybody on this machine can read the keys; chmod 600 %s", path, path)
    return ApiKeys(keys)


def _is_word(key: str) -> bool:
    return key.isascii() and key.isprintable() and " " not in key
