"""The HTTP service: an image comes in, detections as JSON or a picture with boxes go out; and its page.

The page (page.html) is where an image is dropped; its own script and style are the only ones that may run.
"""

import asyncio
import base64
import hashlib
import json
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from common.version import __version__
from detect.detector import class_thresholds
from detect.outputs import PictureRecord, make_record
from detect.service.batching import Batcher, Runner
from detect.service.decoding import Decoder, RefusedError
from detect.service.metrics import CONTENT_TYPE, Measured, Metrics
from detect.service.requests import (
    PICTURE_TYPES,
    ApiKeys,
    FormFile,
    RequestedAnswer,
    Uploads,
    drain,
    files_of,
    is_form,
    requested_answer,
    too_many,
    wait_for_disconnect,
)
from drawing.boxes import draw
from engines.preprocess import encode_image

PAGE = Path(__file__).with_name("page.html")
DESCRIPTION = Path(__file__).with_name("openapi.json")
SERVED = "POST /detect, GET /, /health, /metrics and /openapi.json"
FAILURE = "the image could not be processed; the server's log says why"
T = TypeVar("T")
logger = logging.getLogger(__name__)
CLIENT_GONE = 499  # nobody reads it; by custom the status of such requests in logs and metrics


def read_page() -> tuple[bytes, dict[str, str]]:
    """The page and its headers: nothing is loaded from anywhere, no other site can show it in a frame."""
    text = PAGE.read_text(encoding="utf-8")
    policy = {
        "default-src": "'none'",
        "script-src": _hashes(text, "script"),
        "style-src": _hashes(text, "style"),
        "img-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    return text.encode("utf-8"), {
        "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in policy.items()),
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def _hashes(text: str, tag: str) -> str:
    """The sources of a Content-Security-Policy for the elements of a page (CSP level 3, section 2.3.1)."""
    contents = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    digests = (hashlib.sha256(content.encode("utf-8")).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


@dataclass(frozen=True)
class Limits:
    """What requests may cost.

    Bytes of a body, pixels of an image, images of a request, images in progress, seconds for the answer and for
    decoding; bodies being received, and the seconds before they have to come at min_rate bytes a second. `workers`
    images are decoded at a time.
    """

    max_bytes: int
    max_pixels: int
    queue: int
    timeout: float
    workers: int
    max_wait: float
    max_images: int = 16
    decode_timeout: float = 10.0
    max_uploads: int = 64
    slow_start: float = 5.0
    min_rate: float = 10_000.0


def read_description() -> bytes:
    """The OpenAPI description of the routes."""
    description = json.loads(DESCRIPTION.read_text(encoding="utf-8"))
    description["info"]["version"] = __version__
    return json.dumps(description, ensure_ascii=False).encode("utf-8")


class Service:
    """The routes and what they share."""

    def __init__(
        self,
        runner: Runner,
        class_names: Sequence[str],
        limits: Limits,
        threshold: float | Mapping[str, float],
        about: dict[str, Any],
        decoder: Decoder,
        keys: ApiKeys | None = None,
        public_metrics: bool = False,
    ) -> None:
        """Serves a model; threshold is the lowest score, or that of each class, unless a request says another, `about`
        is shown by /health.

        keys: who is served, None = everybody. public_metrics: /metrics needs no key.
        """
        self._names, self._limits, self._threshold, self._about = tuple(class_names), limits, threshold, about
        self._runner, self._decoder, self._keys = runner, decoder, keys
        self._lowest = class_thresholds(threshold, self._names)
        self._metrics_keys = None if public_metrics else keys
        self._uploads = Uploads(limits.max_uploads, limits.slow_start, limits.min_rate, limits.timeout)
        self._in_progress = self._preparing = 0
        self._metrics = Metrics()
        self._metrics.describe(**{name: str(about[name]) for name in ("model", "network", "engine")})
        self._metrics.watch("detector_images_waiting", "Decoded images that wait", lambda: self._batcher.waiting)
        self._metrics.watch("detector_requests_in_progress", "Images in progress", lambda: self._in_progress)
        self._metrics.watch("detector_bodies_arriving", "Bodies being received", lambda: len(self._uploads))
        self._metrics.watch_steps(runner.statistics)
        self._page, self._description = read_page(), read_description()

    @property
    def metrics(self) -> Metrics:
        """What is counted."""
        return self._metrics

    @property
    def uploads(self) -> Uploads:
        """The bodies that are being received."""
        return self._uploads

    @property
    def unfinished(self) -> int:
        """Images that are in progress, and bodies that are being received."""
        return self._in_progress + len(self._uploads)

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/", self._show_page),
            Route("/detect", self._detect, methods=["POST"]),
            Route("/health", self._show_health),
            Route("/metrics", self._show_metrics),
            Route("/openapi.json", self._show_description),
        ]
        paths = frozenset(route.path for route in routes)
        return Starlette(
            routes=routes,
            middleware=[Middleware(Measured, metrics=self._metrics, paths=paths)],
            exception_handlers={RefusedError: _refuse, HTTPException: _refuse_route, Exception: _fail},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        size = self._runner.batch_size
        self._batcher = Batcher(
            self._run,
            size,
            least=self._runner.least,
            max_wait=self._limits.max_wait,
            more_are_coming=lambda: self._preparing > 0,
            waited=lambda seconds: self._metrics.spent("wait", seconds),
        )
        # Encoded images wait outside, so that only these few are in memory as pixels.
        self._decoded = asyncio.Semaphore(2 * size + self._limits.workers)
        self._batcher.start()
        with ThreadPoolExecutor(self._limits.workers, thread_name_prefix="images") as self._pool:
            yield
            await self._batcher.close()

    def _run(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        self._metrics.batches.observe(len(images))
        with self._metrics.stage("detect"):
            return self._runner.detect(images)

    async def _show_page(self, request: Request) -> Response:
        content, headers = self._page
        return _answer(content, "text/html", headers=headers)

    async def _show_health(self, request: Request) -> Response:
        running = self._batcher.running
        content = {
            "status": "ready" if running else "failed",
            **self._about,
            "classes": self._names,
            "threshold": self._threshold,
            "key_needed": self._keys is not None,
            "limits": asdict(self._limits),
            "in_progress": self._in_progress,
            "arriving": len(self._uploads),
        }
        return JSONResponse(content, 200 if running else 503, {"Cache-Control": "no-store"})

    async def _show_metrics(self, request: Request) -> Response:
        if self._metrics_keys:
            self._metrics_keys.check(request)
        return Response(self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _show_description(self, request: Request) -> Response:
        return _answer(self._description, "application/json")

    async def _detect(self, request: Request) -> Response:
        try:
            wanted, form = await self._check(request)
            with self._metrics.stage("receive"):
                content = await self._uploads.receive(request, self._limits.max_bytes)
            if not form:
                return await self._within_limits(request, 1, self._answer(content, wanted))
            files = await self._in_pool(files_of, content, request.headers["content-type"], self._limits.max_images)
            if wanted.picture and len(files) > 1:
                raise RefusedError(400, "a picture is answered for one image; send one, or ask for JSON")
            if wanted.picture:
                return await self._within_limits(request, 1, self._answer(bytes(files[0].content), wanted))
            return await self._within_limits(request, len(files), self._answer_all(files, wanted))
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)

    async def _check(self, request: Request) -> tuple[RequestedAnswer, bool]:
        """What a request wants, and whether it has a form; one that is refused is so before its body is kept."""
        try:
            if self._keys:
                self._keys.check(request)
            if self._in_progress >= self._limits.queue:
                raise self._busy()
            return requested_answer(request), is_form(request)
        except RefusedError:
            await drain(request)
            raise

    def _busy(self) -> RefusedError:
        return too_many(f"{self._in_progress} images are in progress")

    async def _within_limits(self, request: Request, images: int, work: Coroutine[Any, Any, T]) -> T:
        """The result of work on so many images, whose bodies are there; RefusedError if there are too many, or late."""
        if self._in_progress + images > self._limits.queue:
            work.close()
            raise self._busy()
        self._in_progress += images
        try:
            async with asyncio.timeout(self._limits.timeout):
                return await _while_connected(request, work)
        except TimeoutError:
            seconds = self._limits.timeout
            raise RefusedError(504, f"no answer within {seconds:g} s; send fewer images at a time") from None
        finally:
            self._in_progress -= images

    async def _answer_all(self, files: Sequence[FormFile], wanted: RequestedAnswer) -> Response:
        """A list with a record or an error for each file, in the order given."""
        return JSONResponse(await asyncio.gather(*(self._record(file, wanted) for file in files)))

    async def _record(self, file: FormFile, wanted: RequestedAnswer) -> PictureRecord:
        head = {"name": file.name}
        try:
            async with self._detected(bytes(file.content), wanted) as (picture, rows):
                return make_record(head, picture, rows, self._names)
        except RefusedError as error:
            return {**head, "error": str(error), "status": error.status}
        except Exception:
            logger.exception("an image of a form could not be processed")
            return {**head, "error": FAILURE, "status": 500}

    async def _answer(self, content: bytes, wanted: RequestedAnswer) -> Response:
        async with self._detected(content, wanted) as (picture, rows):
            if wanted.picture is None:
                return JSONResponse(make_record({}, picture, rows, self._names))
            with self._metrics.stage("draw"):
                return await self._in_pool(self._draw, picture, rows, wanted.picture)

    @asynccontextmanager
    async def _detected(self, content: bytes, wanted: RequestedAnswer) -> AsyncIterator[tuple[np.ndarray, np.ndarray]]:
        """Pixels and detections of a file, one of the few that are in memory as pixels."""
        async with self._decoded:
            self._preparing += 1
            try:
                with self._metrics.stage("decode"):
                    picture = await self._decoder.decode(content)
            finally:
                self._preparing -= 1
                self._batcher.nudge()
            rows = await self._batcher.detect(picture)
            lowest = self._lowest[rows[:, 0].astype(int)] if wanted.threshold is None else wanted.threshold
            rows = rows[rows[:, 1] >= lowest]
            self._count(rows)
            yield picture, rows

    async def _in_pool(self, work: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    def _draw(self, picture: np.ndarray, rows: np.ndarray, kind: str) -> Response:
        content = encode_image(draw(picture, rows, self._names), PICTURE_TYPES[kind])
        return _answer(content, kind)

    def _count(self, rows: np.ndarray) -> None:
        ids, counts = np.unique(rows[:, 0].astype(int), return_counts=True)
        for number, count in zip(ids, counts, strict=True):
            self._metrics.found.labels(self._names[number]).inc(int(count))


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client of the request goes; ClientDisconnect then."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})


def _answer(content: bytes, kind: str, headers: Mapping[str, str] | None = None) -> Response:
    """A body that is of this type, whatever a browser thinks of it."""
    return Response(content, media_type=kind, headers={"X-Content-Type-Options": "nosniff", **(headers or {})})


def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return JSONResponse({"error": str(error)}, error.status, error.headers)


def _refuse_route(request: Request, error: Exception) -> Response:
    """A path or method that there is not."""
    assert isinstance(error, HTTPException)
    sentence = f"{request.method} {request.url.path:.80}: {error.detail}; there are {SERVED}"
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


def _fail(request: Request, error: Exception) -> Response:
    """The client hears nothing of the cause; the server's log has the traceback."""
    return JSONResponse({"error": FAILURE}, 500)
