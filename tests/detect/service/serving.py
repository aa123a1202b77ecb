"""tools/serve.py as a process whose network needs no model, and clients of bare sockets.

`python -m tests.detect.service.serving DESCRIPTORS WORDS...`: with so many file descriptors.
"""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np

ROOT = Path(__file__).parents[3]
PATIENCE = 60.0
STUCK = 77  # the grey value of an image for which the network never ends


class Network:
    """A Runner that finds one object."""

    batch_size, least, several_size = 1, 2, 1
    single_seconds = batch_seconds = 0.001

    def detect(self, images):
        if images[0][0, 0, 0] == STUCK:
            threading.Event().wait()
        return [np.array([[0, 0.75, 1, 2, 3, 4]], np.float32) for _ in images]

    def statistics(self):
        return {}


def serve():
    from machine.command import run_command
    from tools import serve

    descriptors = int(sys.argv.pop(1))
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, descriptors))
    manifest = SimpleNamespace(network="n", dtype="float32", size=(8, 8), bit_depth="", thresholds={})
    detector = SimpleNamespace(manifest=manifest, engine="e", class_names=("thing",))
    serve.load_runner = lambda options: (Network(), detector)
    run_command(serve.main)


@contextmanager
def served(*words, descriptors=1000, log):
    """(process, port) of a service; its log is in the file `log`."""
    command = [sys.executable, "-m", "tests.detect.service.serving", str(descriptors), "--port", "0", "--workers", "1"]
    with open(log, "wb") as file:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen([*command, *words], cwd=ROOT, env=environment, stderr=file)
    try:
        yield process, _port(process, log)
    finally:
        process.kill()
        process.wait()


def _port(process, log):
    for _ in range(round(PATIENCE / 0.05)):
        if found := re.search(r"serving on http://\S+:(\d+)$", log.read_text(), re.MULTILINE):
            return int(found[1])
        if process.poll() is not None:
            break
        threading.Event().wait(0.05)
    raise AssertionError(log.read_text())


def connect(port):
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def head(length, path="/detect", more=""):
    return f"POST {path} HTTP/1.1\r\nHost: t\r\nContent-Length: {length}\r\n{more}\r\n".encode()


def until_closed(connection):
    """What comes until the other end closes."""
    content = b""
    try:
        while part := connection.recv(1 << 16):
            content += part
    except ConnectionError:
        pass
    return content


def decoders_of(process):
    """Process ids of the children of a process."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def stop(pid):
    """Makes a process do nothing any more, as one does that is stuck."""
    os.kill(pid, signal.SIGSTOP)


if __name__ == "__main__":
    serve()
