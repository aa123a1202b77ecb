"""The service under attack: connections that say nothing, bodies and headers that come slowly, what is stuck."""

import asyncio
import errno
import logging
import signal
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from common.errors import OptionError
from detect.service import connections
from detect.service.connections import OncePerMinute, client_of, most_connections
from tests.detect.service.fakes import plain
from tests.detect.service.serving import (
    PATIENCE,
    STUCK,
    connect,
    decoders_of,
    head,
    served,
    stop,
    until_closed,
)

IMAGE = plain(1)
OPTIONS = ("--header-timeout", "2", "--decode-timeout", "1", "--slow-start", "25", "--min-rate", "100")


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    """A service with 100 descriptors."""
    log = tmp_path_factory.mktemp("log") / "log"
    with served(*OPTIONS, "--max-client-connections", "20", descriptors=100, log=log) as (process, port):
        yield process, port, log


def get(port, path="/health"):
    return httpx.get(f"http://127.0.0.1:{port}{path}", timeout=PATIENCE)


def post(port, content=IMAGE):
    return httpx.post(f"http://127.0.0.1:{port}/detect", content=content, timeout=PATIENCE)


def closed(port, reason):
    """How many connections have been closed for a reason."""
    lines = get(port, "/metrics").text.splitlines()
    start = f'detector_connections_closed_total{{reason="{reason}"}} '
    return sum(float(line.removeprefix(start)) for line in lines if line.startswith(start))


def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def close_all(clients):
    for client in clients:
        client.close()


def test_idle_connections_beyond_the_descriptors_make_room_for_who_asks(service):
    process, port, log = service
    idle = [connect(port) for _ in range(150)]
    assert get(port).json()["status"] == "ready"
    assert post(port).status_code == 200
    assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < 100
    assert closed(port, "client") >= 100
    text = log.read_text()
    assert "Traceback" not in text
    assert text.count("one may have") == 1
    close_all(idle)


def test_slow_bodies_make_room_for_who_sends_quickly(service):
    """Even of the same address, long before --slow-start is over."""
    _, port, log = service
    slow, begin = [], time.monotonic()
    for _ in range(40):
        slow.append(connect(port))
        with suppress(ConnectionError):  # one of those that were too many
            slow[-1].sendall(head(len(IMAGE)) + IMAGE[:5])
        time.sleep(0.02)  # for its header to be read: an idle connection would make room for the next one
        assert get(port).json()["arriving"] > 0
    until(lambda: post(port).status_code == 200)
    assert time.monotonic() - begin < 15
    assert "Traceback" not in log.read_text()
    close_all(slow)


def test_a_header_has_to_be_whole_in_time(service):
    _, port, _ = service
    with connect(port) as client:
        client.sendall(head(5)[:30])
        begin = time.monotonic()
        assert until_closed(client) == b""
        assert 1 < time.monotonic() - begin < PATIENCE / 2
    assert closed(port, "header") >= 1


def test_answers_have_to_be_taken(service):
    """Hundreds of pages are asked for, none is read."""
    _, port, _ = service
    with connect(port) as client:
        client.settimeout(0.5)
        with suppress(TimeoutError):
            client.sendall(b"GET / HTTP/1.1\r\nHost: t\r\n\r\n" * 2000)
        until(lambda: closed(port, "answer") == 1)


def test_what_clients_send_fills_no_log(service):
    _, port, log = service
    for content in (b"nonsense\r\n\r\n", head(4, more="Content-Type: multipart/form-data; boundary=b\r\n") + b"--xx"):
        for _ in range(10):
            with connect(port) as client:
                client.sendall(content)
                assert client.recv(100).startswith(b"HTTP/1.1 400 ")
    assert log.read_text().count("Invalid HTTP request") == 1
    assert "boundary" not in log.read_text()


def test_a_key_of_the_file_is_needed(tmp_path):
    file = tmp_path / "keys"
    file.write_text("a-key-of-this-very-test\n", "ascii")
    file.chmod(0o600)
    with served("--api-key-file", str(file), log=tmp_path / "log") as (_, port):
        assert get(port).json()["key_needed"]
        assert post(port).status_code == 401
        answer = httpx.post(
            f"http://127.0.0.1:{port}/detect", content=IMAGE, headers={"X-API-Key": "a-key-of-this-very-test"}
        )
        assert answer.status_code == 200


def test_a_stuck_decoder_is_killed_and_the_next_image_gets_another(service):
    process, port, _ = service
    (decoder,) = decoders_of(process)
    stop(decoder)
    response = post(port)
    assert response.status_code == 413
    assert "takes more than 1 s to decode" in response.json()["error"]
    assert post(port).status_code == 200
    assert decoders_of(process) != [decoder]


@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_ends_the_service_in_time_whatever_runs(tmp_path, twice):
    """A network and a decoder that are stuck, half a body, and a connection that says nothing."""
    log = tmp_path / "log"
    grace = PATIENCE if twice else 1
    with served("--grace", str(grace), log=log) as (process, port):
        clients = [connect(port) for _ in range(4)]
        clients[0].sendall(head(len(plain(STUCK))) + plain(STUCK))
        until(lambda: get(port).json()["in_progress"] == 1)
        (decoder,) = decoders_of(process)
        stop(decoder)
        clients[1].sendall(head(len(IMAGE)) + IMAGE)
        clients[2].sendall(head(len(IMAGE)) + IMAGE[:9])
        until(lambda: get(port).json()["in_progress"] == 2 and get(port).json()["arriving"] == 1)
        process.send_signal(signal.SIGTERM)
        if twice:
            time.sleep(0.5)
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE / 2) == 143
        until(lambda: not Path(f"/proc/{decoder}/exe").exists())
        close_all(clients)
    last = log.read_text().splitlines()[-1]
    assert last == f"ended by signal 15 with 3 requests unfinished (--grace {grace:g})"
    assert "Traceback" not in log.read_text()


def test_more_connections_than_files_may_be_open_are_refused(monkeypatch):
    monkeypatch.setattr(connections.resource, "getrlimit", lambda kind: (100, 100))
    with pytest.raises(OptionError, match=r"the limit of 100 open files has room for -?\d+ connections, not for 90"):
        most_connections(90)
    monkeypatch.setattr(connections.resource, "getrlimit", lambda kind: (5000, 5000))
    assert most_connections(0) == 1024
    assert most_connections(2000) == 2000


def test_a_client_is_an_address_or_an_ipv6_network():
    assert client_of("2001:db8:1:2:3:4:5:6") == client_of("2001:db8:1:2::9") != client_of("2001:db8:1:3::9")
    assert client_of("::ffff:192.0.2.7") == client_of("192.0.2.7") == "192.0.2.7"
    assert client_of("fe80::1%eth0") == "fe80::"


def test_a_kind_of_line_is_logged_once_a_minute(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(connections.time, "monotonic", lambda: now[0])
    logger = logging.getLogger("a test of lines")
    logger.addFilter(OncePerMinute())
    for second in range(70):
        now[0] = float(second)
        logger.warning("too many of %s", "x" * second)
        logger.warning("another kind")
    assert len(caplog.messages) == 4
    assert caplog.messages[2].endswith("(and 59 more like this since the last line)")


def test_accepting_without_descriptors_is_a_line(caplog):
    error = OSError(errno.EMFILE, "Too many open files")
    connections._tell(asyncio.new_event_loop(), {"message": "socket.accept()", "exception": error})
    assert caplog.messages == [
        "no connection could be accepted: Too many open files; raise the limit of open files (ulimit -n)"
    ]
    assert caplog.records[0].exc_info is None
