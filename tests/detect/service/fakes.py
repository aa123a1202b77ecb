"""A service with a network of our own, and a client within this process."""

import asyncio
import math
import threading
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import httpx
import numpy as np

from detect.detector import StepStatistics
from detect.service.app import Limits, Service
from detect.service.decoding import DecodeLimits, decode_image
from detect.service.requests import ApiKeys
from engines.preprocess import encode_image

CLASSES = ("red", "grün", "blue")
LIMITS = Limits(max_bytes=100_000, max_pixels=50_000, queue=8, timeout=20.0, workers=2, max_wait=0.0)
ABOUT = {"model": "m", "network": "n", "engine": "e"}
PATIENCE = 20.0
PHOTO = encode_image(np.random.default_rng(1).integers(0, 128, (40, 60, 3), np.uint8), ".png")


class FakeRunner:
    """Finds one object of the class of the image's first pixel; waits for `gate`."""

    batch_size, least = 4, 2

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()
        self.gate.set()

    def detect(self, images):
        self.calls.append(len(images))
        assert self.gate.wait(PATIENCE)
        return [self._rows(image) for image in images]

    def statistics(self):
        return {
            4: {"network": StepStatistics(7, 0.02, 0.01, 0.03), "post-processing": StepStatistics(0, *[math.nan] * 3)}
        }

    def _rows(self, image):
        if image[0, 0, 0] > 200:
            raise RuntimeError("secret cause")
        return np.array([[image[0, 0, 0] % 3, 0.75, 1, 2, 30.25, 40], [0, 0.25, 0, 0, 5, 5]], np.float32)


class InThisProcess:
    """Decodes as the service's processes do."""

    def __init__(self, limits, bit_depth=""):
        self.limits = DecodeLimits(limits.max_pixels, 0, bit_depth=bit_depth)

    async def decode(self, content):
        return await asyncio.to_thread(decode_image, content, self.limits)


def plain(value, height=4, width=8):
    """A PNG of one grey value."""
    return encode_image(np.full((height, width, 3), value, np.uint8), ".png")


@asynccontextmanager
async def client_of(service):
    """A client that talks to the service within this process."""
    app = service.app()
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        yield client


def fake(runner=None, keys=None, public_metrics=False, threshold=0.5, **limits):
    limits = replace(LIMITS, **limits)
    keys = keys and ApiKeys(keys)
    decoder = InThisProcess(limits)
    return Service(runner or FakeRunner(), CLASSES, limits, threshold, ABOUT, decoder, keys, public_metrics)


def talk(service, conversation):
    """What conversation(client) returns."""

    async def run():
        async with client_of(service) as client:
            return await asyncio.wait_for(conversation(client), PATIENCE)

    return asyncio.run(run())


def post(service, content=PHOTO, path="/detect", **headers):
    """The response to one request."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return talk(service, lambda client: client.post(path, content=content, headers=named))


async def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)
