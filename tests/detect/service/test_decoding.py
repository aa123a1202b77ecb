"""Processes that decode: what they answer, and what ends them."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
from functools import partial

import numpy as np
import pytest

from detect.service.decoding import ROOT, DecodeLimits, Decoders, RefusedError, decode_image
from engines.preprocess import encode_image
from tests.detect.service.fakes import PHOTO, plain


def decode(decoders, content):
    return asyncio.run(decoders.decode(content))


@pytest.fixture(scope="module")
def decoders():
    with Decoders(1, DecodeLimits(max_pixels=26_000_000, seconds=30.0, megabytes=40)) as decoders:
        decode(decoders, PHOTO)  # it has started
        yield decoders


def test_pixels_and_refusals_are_those_of_this_process(decoders):
    limits = DecodeLimits(26_000_000, 0)
    np.testing.assert_array_equal(decode(decoders, PHOTO), decode_image(PHOTO, limits))
    for content in (b"", b"no image", PHOTO[:-30]):
        answers = []
        for get in (partial(decode, decoders), lambda one: decode_image(one, limits)):
            with pytest.raises(RefusedError) as refused:
                get(content)
            answers.append((refused.value.status, str(refused.value)))
        assert answers[0] == answers[1]


def test_an_image_gets_no_more_memory_than_a_decoder_may_have(decoders):
    large = encode_image(np.zeros((5000, 5000, 3), np.uint8), ".png")
    with pytest.raises(RefusedError, match="more than 40 MB to decode") as refused:
        decode(decoders, large)
    assert refused.value.status == 413
    assert decode(decoders, plain(3))[0, 0, 0] == 3


@pytest.mark.faults
def test_a_decoder_that_crashes_costs_its_own_image_alone(decoders):
    (process,) = decoders._free
    os.kill(process._process.pid, signal.SIGSTOP)
    threading.Timer(0.2, os.kill, (process._process.pid, signal.SIGSEGV)).start()
    threading.Timer(0.3, os.kill, (process._process.pid, signal.SIGCONT)).start()
    with pytest.raises(RefusedError, match="makes its decoder fail") as refused:
        decode(decoders, PHOTO)
    assert refused.value.status == 400
    assert decode(decoders, PHOTO).shape == (40, 60, 3)


@pytest.mark.faults
def test_a_decoder_that_was_killed_while_idle_is_replaced(decoders):
    (process,) = decoders._free
    process._process.kill()
    process._process.wait()
    assert decode(decoders, PHOTO).shape == (40, 60, 3)


def test_a_decoder_needs_neither_mxnet_nor_the_libraries_of_the_service():
    code = "import sys, detect.service.decoding; sys.exit(bool({'mxnet', 'starlette', 'uvicorn'} & {*sys.modules}))"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_who_is_cancelled_leaves_the_decoder_fit_for_the_next(decoders):
    async def leave_and_come_again():
        leaving = asyncio.ensure_future(decoders.decode(plain(9, 3000, 3000)))
        await asyncio.sleep(0.01)
        leaving.cancel()
        return [await decoders.decode(plain(value)) for value in (1, 2)]

    assert [pixels[0, 0, 0] for pixels in asyncio.run(leave_and_come_again())] == [1, 2]
