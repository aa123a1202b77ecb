"""What a request may be: its parameters and its image; anything else is refused by a sentence."""

import asyncio
import io
import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image
from starlette.requests import Request

from dataset.image_check import FORMATS

MEGA = 1_000_000
DRAIN_SECONDS = 1.0
PARAMETERS = ("threshold", "format")
PICTURE_TYPES = {"image/jpeg": ".jpg", "image/png": ".png"}
HOW = "send the image file itself as the body: curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg URL"


class RefusedError(Exception):
    """A request that is not served: status, sentence, further headers."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        """Status of HTTP, and the sentence for the client."""
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


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


def check_type(request: Request) -> None:
    """RefusedError unless the body is declared an image, or nothing in particular."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind and not kind.startswith("image/") and kind != "application/octet-stream":
        raise RefusedError(415, f"Content-Type {kind!r:.80} is not served; {HOW}")


async def read_body(request: Request, limit: int) -> bytes:
    """The body; RefusedError as soon as it is known to be empty or to have more than `limit` bytes."""
    declared = request.headers.get("content-length", "")
    content = bytearray()
    if not declared.isdecimal() or int(declared) <= limit:
        async for chunk in request.stream():
            content += chunk
            if len(content) > limit:
                break
        else:
            if content:
                return bytes(content)
            raise RefusedError(400, f"the body is empty; {HOW}")
    await drain(request)
    raise RefusedError(413, f"the image file is larger than {limit / MEGA:g} MB; make a smaller image of it")


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


def check_header(content: bytes, max_pixels: int) -> None:
    """RefusedError unless the file begins as an image of at most max_pixels; the rest is read by engines.preprocess."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise RefusedError(413, f"the image has more than {max_pixels / MEGA:g} million pixels") from error
    except Image.UnidentifiedImageError as error:
        raise RefusedError(415, f"this is no image that can be read; send {', '.join(FORMATS)}") from error
    except (OSError, SyntaxError, ValueError, TypeError) as error:
        raise RefusedError(400, f"the image has a damaged header ({error})") from error
    if width * height > max_pixels:
        raise RefusedError(
            413, f"the image has {width} x {height} pixels, more than {max_pixels / MEGA:g} million; make it smaller"
        )
