"""Images are decoded in processes of their own: one has a limit of memory, and is killed when an image takes too long.

A decoder is `python -m detect.service.decoding SOCKET MEMORY MAX_PIXELS MEGABYTES BIT_DEPTH` (two descriptors first).
It gets one file after the other, and writes pixels to memory that it shares with the service, or refuses. Decoders in C
hold Python's lock or cannot be stopped: in a thread of the service one hostile file would stop everything. What ends a
decoder costs that file an answer, and nobody else's.
"""

import asyncio
import ctypes
import io
import mmap
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from common.errors import DataError
from dataset.image_check import FORMATS
from dataset.workers import ONE_THREAD
from engines.preprocess import read_image

ROOT = Path(__file__).parents[2]
MEGA = 1_000_000
READY_SECONDS = 120.0  # for a process to start on a busy machine
STOP_SECONDS = 5.0
BASE_MEGABYTES, BYTES_A_PIXEL = 256, 20  # measured: 490 MB for 25 million pixels of 16 bits RGBA, the most of all
# Of glibc (mallopt(3)): pixels reuse memory that is there already, which saves 400 page faults, 0.7 ms, an image.
KEPT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(64 << 20)}
PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
FAILED = 500  # status of a reply that is a traceback
_LENGTH = struct.Struct("<Q")
_REPLY = struct.Struct("<HIIQ")  # status, 0 = pixels; height; width; bytes of a sentence that follows
KEPT_BYTES = 8 << 20  # of the shared memory; what larger images took is given back
READY = b"r"


class RefusedError(Exception):
    """A request that is not served: status, sentence, further headers."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        """Status of HTTP, and the sentence for the client."""
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


class Decoder(Protocol):
    """What makes pixels of a file."""

    async def decode(self, content: bytes) -> np.ndarray:
        """(h, w, 3) uint8 RGB; RefusedError for what is no sound image."""
        ...


@dataclass(frozen=True)
class DecodeLimits:
    """What an image may be and cost: pixels, seconds, and megabytes beyond those of an idle decoder; 0 = by pixels.

    bit_depth is the model's.
    """

    max_pixels: int
    seconds: float
    megabytes: int = 0
    bit_depth: str = ""

    @property
    def memory(self) -> int:
        """Megabytes."""
        return self.megabytes or BASE_MEGABYTES + BYTES_A_PIXEL * self.max_pixels // MEGA


def decode_image(content: bytes, limits: DecodeLimits) -> np.ndarray:
    """(h, w, 3) uint8 RGB of a file, in this process; RefusedError for what is no sound image or too large."""
    check_header(content, limits.max_pixels)
    try:
        return read_image(content, "the image", limits.bit_depth)
    except DataError as error:
        raise RefusedError(400, str(error)) from error


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


class Decoders:
    """Processes that decode, started beforehand and started again when they have ended; a context that ends them."""

    def __init__(self, count: int, limits: DecodeLimits) -> None:
        """Starts `count` processes; they end with this thread."""
        self._limits = limits
        self._free: list[_Process | None] = [_Process(limits) for _ in range(count)]
        self._places = asyncio.Semaphore(count)
        self._at_work: set[asyncio.Future[np.ndarray]] = set()

    def __enter__(self) -> "Decoders":
        return self

    def __exit__(self, *error: object) -> None:
        for process in filter(None, self._free):
            process.stop(0)

    async def decode(self, content: bytes) -> np.ndarray:
        """As Decoder says; 413 for an image that takes too long or too much memory, 400 for one that ends its decoder.

        Waits until a decoder is free. One that has begun ends its work, also when who waits for it is cancelled.
        """
        await self._places.acquire()
        work = asyncio.ensure_future(self._decode(content))
        self._at_work.add(work)
        work.add_done_callback(self._done)
        return await asyncio.shield(work)

    def _done(self, work: asyncio.Future[np.ndarray]) -> None:
        self._at_work.discard(work)
        self._places.release()
        if not work.cancelled():
            work.exception()  # nobody may wait for it any more

    async def _decode(self, content: bytes) -> np.ndarray:
        process = self._free.pop()
        try:
            if process is None or process.ended:  # killed while it was idle, for want of memory perhaps
                process = None
                process = _Process(self._limits)
            try:
                return await process.ask(content)
            except (OSError, EOFError) as error:
                ended, process = process, None
                raise await asyncio.to_thread(ended.refusal, error) from error
        finally:
            self._free.append(process)


class _Process:
    """One process that decodes."""

    def __init__(self, limits: DecodeLimits) -> None:
        self._limits, self._ready = limits, False
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        memory = os.memfd_create("pixels")
        os.ftruncate(memory, 3 * limits.max_pixels)
        self._memory = mmap.mmap(memory, 3 * limits.max_pixels)
        words = (theirs.fileno(), memory, limits.max_pixels, limits.memory, limits.bit_depth)
        paths = [str(ROOT), *(path for path in sys.path if path)]
        with theirs, os.fdopen(memory):
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [sys.executable, "-P", "-m", "detect.service.decoding", *map(str, words)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
                process_group=0,
                env=os.environ | ONE_THREAD | KEPT_MEMORY | {"PYTHONPATH": os.pathsep.join(paths)},
            )

    @property
    def ended(self) -> bool:
        """Whether it is no more; its socket is closed then."""
        if self._process.poll() is None:
            return False
        self._socket.close()
        return True

    async def ask(self, content: bytes) -> np.ndarray:
        """The pixels; OSError or EOFError when the process has ended or has to: it is of no use any more."""
        if not self._ready:
            async with asyncio.timeout(READY_SECONDS):
                await self._receive(len(READY))
            self._ready = True
        async with asyncio.timeout(self._limits.seconds):
            message = _LENGTH.pack(len(content)) + content
            await asyncio.get_running_loop().sock_sendall(self._socket, message)
            status, height, width, length = _REPLY.unpack(await self._receive(_REPLY.size))
            text = (await self._receive(length)).decode()
        if status == FAILED:
            raise RuntimeError(f"a decoder failed:\n{text}")
        if status:
            raise RefusedError(status, text)
        if 3 * height * width > KEPT_BYTES:
            return await asyncio.to_thread(self._pixels, height, width)
        return self._pixels(height, width)

    async def _receive(self, length: int) -> bytearray:
        """So many bytes; EOFError where the process has ended."""
        content, filled = bytearray(length), 0
        while filled < length:
            count = await asyncio.get_running_loop().sock_recv_into(self._socket, memoryview(content)[filled:])
            if not count:
                raise EOFError
            filled += count
        return content

    def _pixels(self, height: int, width: int) -> np.ndarray:
        """(h, w, 3), copied out of the shared memory."""
        size = 3 * height * width
        pixels = np.frombuffer(self._memory, np.uint8, size).reshape(height, width, 3).copy()
        if size > KEPT_BYTES:
            self._memory.madvise(mmap.MADV_REMOVE)
        return pixels

    def refusal(self, error: Exception) -> Exception:
        """Ends the process; what to say of the image that it failed at."""
        late = isinstance(error, TimeoutError)
        status = self.stop(0 if late else STOP_SECONDS)
        if late and self._ready:
            seconds = self._limits.seconds
            return RefusedError(413, f"the image takes more than {seconds:g} s to decode; save it anew and smaller")
        if not self._ready:
            return RuntimeError("a decoder does not start; the lines above may say why")
        if status == -signal.SIGKILL:
            return RefusedError(413, "decoding the image was ended for want of memory; make it smaller")
        return RefusedError(400, "the image makes its decoder fail; save it anew")

    def stop(self, patience: float = STOP_SECONDS) -> int:
        """Ends the process, by force after some seconds, and returns its status."""
        self._socket.close()
        try:
            return self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


def receive(connection: socket.socket, length: int) -> bytearray:
    """So many bytes; EOFError where the other end has closed."""
    content, filled = bytearray(length), 0
    while filled < length:
        count = connection.recv_into(memoryview(content)[filled:])
        if not count:
            raise EOFError
        filled += count
    return content


def reply_to(content: bytes, limits: DecodeLimits, memory: mmap.mmap) -> bytes:
    """The reply to one file; pixels are written to the memory."""
    try:
        pixels = decode_image(content, limits)
        np.frombuffer(memory, np.uint8, pixels.size).reshape(pixels.shape)[...] = pixels
        return _REPLY.pack(0, *pixels.shape[:2], 0)
    except RefusedError as error:
        status, text = error.status, str(error)
    except MemoryError:
        status, text = 413, f"the image takes more than {limits.memory} MB to decode; make it smaller"
    except Exception:
        status, text = FAILED, traceback.format_exc()
    sentence = text.encode("utf-8", "replace")
    return _REPLY.pack(status, 0, 0, len(sentence)) + sentence


def bind_process(megabytes: int) -> None:
    """Limits the memory of this process to so much more, lets it end with its parent, and silences its decoders."""
    ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGKILL)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    size = pages * resource.getpagesize() + megabytes * MEGA
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)


def main(connection: str, memory: str, max_pixels: str, megabytes: str, bit_depth: str) -> None:
    """Decodes until the parent closes its end of the connection."""
    limits = DecodeLimits(int(max_pixels), 0, int(megabytes), bit_depth)
    shared = mmap.mmap(int(memory), 3 * limits.max_pixels)
    bind_process(limits.memory)
    with socket.socket(fileno=int(connection)) as parent:
        try:
            parent.sendall(READY)
            while True:
                content = bytes(receive(parent, *_LENGTH.unpack(receive(parent, _LENGTH.size))))
                parent.sendall(reply_to(content, limits, shared))
                del content
        except (EOFError, ConnectionError):
            return


if __name__ == "__main__":
    main(*sys.argv[1:])
