"""tools/serve.py as a process: it answers, and ends only when it has answered."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import httpx
import pytest

from common.errors import InstallError, OptionError
from deploy.main import export
from engines.preprocess import encode_image
from tests.model.tiny import CLASSES, picture, save_tiny
from tools.serve import _serve, bind, main

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
PAUSE = 0.3  # seconds between a signal and the rest of a body


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export(save_tiny(folder.parent / "tiny"), 3, folder)
    return folder


def start(folder, *words):
    command = [sys.executable, "-m", "tools.serve", "--model", str(folder), "--cpu", "--batch-size", "2", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder.parent)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def address_of(process):
    """What the log says that it serves on."""
    lines = []
    for line in process.stderr:
        lines.append(line)
        if found := re.match(r"serving on (http://\S+)$", line):
            return found[1]
    raise AssertionError("".join(lines))


def interrupted_body(photo, process, number, address):
    """A body; the signal comes when a part of it has arrived."""
    yield photo[:100]
    end = time.monotonic() + PATIENCE
    while httpx.get(f"{address}/health").json()["arriving"] < 1:
        assert time.monotonic() < end
    process.send_signal(number)
    time.sleep(PAUSE)
    yield photo[100:]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_service_when_it_has_answered(folder, number, status):
    photo = encode_image(picture(0, 90, 120), ".jpg")
    process = start(folder, "--port", "0", "--thresh", "0.2")
    try:
        address = address_of(process)
        health = httpx.get(f"{address}/health").json()
        assert (health["model"], health["classes"]) == ("model", list(CLASSES))
        body = interrupted_body(photo, process, number, address)
        answer = httpx.post(f"{address}/detect", content=body, timeout=PATIENCE)
        assert answer.status_code == 200
        assert answer.json()["detections"]
        rest = process.stderr.read()
        assert process.wait(PATIENCE) == status, rest
        assert "Traceback" not in rest
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_an_address_that_is_taken_or_not_there_is_named():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OptionError, match=rf"--host 127\.0\.0\.1 --port {port}: Address already in use; choose"):
            bind("127.0.0.1", port)
    with pytest.raises(OptionError, match=r"--host 192\.0\.2\.1 --port 0: "):  # RFC 5737: of nobody
        bind("192.0.2.1", 0)
    for host in ("..", "a" * 64):  # DNS has no such labels
        with pytest.raises(OptionError, match="this is no name of a host; choose another address or port"):
            bind(host, 0)


def test_a_bound_address_refuses_who_comes_before_the_model_is_loaded():
    with bind("127.0.0.1", 0) as listener, pytest.raises(ConnectionRefusedError):
        socket.create_connection(listener.getsockname())


def test_who_comes_when_the_address_is_told_is_not_refused(monkeypatch):
    def tell(listener, keys):
        with socket.create_connection(listener.getsockname()):
            told.append(keys)

    told, run = [], []
    monkeypatch.setattr("tools.serve._print_address", tell)
    monkeypatch.setattr("detect.service.connections.Server.run", lambda server, sockets: run.extend(sockets))
    options = SimpleNamespace(keep_alive=5, api_key_file="", grace=1)
    with bind("127.0.0.1", 0) as listener:
        _serve(options, MagicMock(), MagicMock(), listener)
        assert (told, run) == ([False], [listener])


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("tools.serve.LIBRARIES", ("starlette", "no_such_library"))
    with pytest.raises(InstallError, match=r"no_such_library is not installed: pip install -e '\.\[serve\]'"):
        main(["--model", "none"])


def test_the_service_itself_needs_no_mxnet():
    code = "import sys, detect.service.app, detect.service.batching, tools.serve; sys.exit('mxnet' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
