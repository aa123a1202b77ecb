"""Serves a model over HTTP: an image in, JSON or a picture with boxes out.

python -m tools.serve --model output/mine-model
curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg http://127.0.0.1:8000/detect
curl -F image=@one.jpg -F image=@two.jpg http://127.0.0.1:8000/detect

GET / is a page on which to drop an image, GET /health what is served, GET /metrics figures for Prometheus, GET
/openapi.json the description of all this. There is no encryption, and without --api-key-file everybody who reaches the
address is served: by default this machine only.
"""

import importlib.util
import logging
import socket
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:
    importlib.import_module("as_module")

from common.errors import InstallError, OptionError
from config.command_line import parse_options
from detect.detector import Detector
from detect.service.batching import Runner, ServeOptions, describe, load_runner
from machine.command import exit_on_sigterm, log_to_terminal, run_command
from machine.cpu import configure_threads

if TYPE_CHECKING:
    from detect.service.app import Service
    from detect.service.connections import ConnectionLimits
    from detect.service.decoding import Decoders
    from detect.service.requests import ApiKeys

MEGA = 1_000_000
LIBRARIES = ("starlette", "uvicorn", "prometheus_client", "python_multipart")  # of the extra `serve`
logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    """Serves until Ctrl-C or SIGTERM; the requests that are in progress then are still answered."""
    options = parse_options(
        ServeOptions, argv, "Serves a model over HTTP.", example="python tools/serve.py --model output/mine-model"
    )
    _check_installed()
    _check(options)
    log_to_terminal()
    keys = _keys(options.api_key_file)
    with bind(options.host, options.port) as listener:
        configure_threads()
        exit_on_sigterm()
        runner, detector = load_runner(options)
        with _decoders(options, detector.manifest.bit_depth) as decoders:
            limits = _connection_limits(options)
            service = _service(options, runner, detector, decoders, keys, limits.most)
            _serve(options, service, limits, listener)


def _check(options: ServeOptions) -> None:
    if options.public_metrics and not options.api_key_file:
        raise OptionError("--public-metrics goes with --api-key-file; without keys everything is public")


def _keys(path: str) -> "ApiKeys | None":
    from detect.service.requests import read_keys

    return read_keys(Path(path)) if path else None


def _check_installed() -> None:
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            raise InstallError(f"{name} is not installed: pip install -e '.[serve]'")


def _serve(options: ServeOptions, service: "Service", limits: "ConnectionLimits", listener: socket.socket) -> None:
    """Serves until a signal, which is raised again when the last request is answered."""
    import uvicorn

    from detect.service.connections import ACCEPTED_AT_ONCE, Guard, Server, quiet_logs

    guard = Guard(limits, lambda reason: service.metrics.closed.labels(reason).inc(), service.uploads.make_room)
    service.metrics.watch("detector_connections", "Open connections", lambda: len(guard))
    config = uvicorn.Config(
        service.app(),
        http=guard.protocol(),
        ws="none",
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=ACCEPTED_AT_ONCE,
        timeout_keep_alive=options.keep_alive,
    )
    quiet_logs()
    listener.listen(ACCEPTED_AT_ONCE)  # who comes when the address is told waits, and is not refused
    _print_address(listener, bool(options.api_key_file))
    Server(config, options.grace, lambda: service.unfinished).run(sockets=[listener])


def _connection_limits(options: ServeOptions) -> "ConnectionLimits":
    from detect.service.connections import ConnectionLimits, most_connections

    most = most_connections(options.max_connections)
    logger.info("at most %d connections", most)
    of_client = options.max_client_connections or (most + 1) // 2
    return ConnectionLimits(most, of_client, options.header_timeout, options.timeout, 1e3 * options.min_rate)


def bind(host: str, port: int) -> socket.socket:
    """A socket with this address, not yet listening: who comes before the model is loaded is refused.

    OptionError where there is no such address or it is taken.
    """
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except (OSError, UnicodeError) as error:
        if listener:
            listener.close()
        reason = error.strerror if isinstance(error, OSError) else "this is no name of a host"
        raise OptionError(f"--host {host} --port {port}: {reason}; choose another address or port") from error
    return listener


def _print_address(listener: socket.socket, keys: bool) -> None:
    host, port = listener.getsockname()[:2]
    logger.info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    lacking = "no encryption" if keys else "neither authentication nor encryption"
    if ip_address(host).is_loopback:
        logger.info("only this machine is served; --host 0.0.0.0 serves others, too: there is %s", lacking)
    elif keys:
        logger.warning("whoever has a key is served, and whoever listens reads it: there is no encryption")
    else:
        logger.warning("whoever reaches this address is served: there is %s", lacking)


def _decoders(options: ServeOptions, bit_depth: str) -> "Decoders":
    from detect.service.decoding import DecodeLimits, Decoders

    limits = DecodeLimits(round(options.max_pixels * MEGA), options.decode_timeout, bit_depth=bit_depth)
    return Decoders(options.workers, limits)


def _service(
    options: ServeOptions,
    runner: Runner,
    detector: Detector,
    decoders: "Decoders",
    keys: "ApiKeys | None",
    connections: int,
) -> "Service":
    """The service of the options; bodies being received leave half of the connections to others."""
    from detect.detector import DEFAULT_THRESHOLD
    from detect.service.app import Limits, Service

    limits = Limits(
        max_bytes=round(options.max_size * MEGA),
        max_pixels=round(options.max_pixels * MEGA),
        queue=options.queue,
        timeout=options.timeout,
        workers=options.workers,
        max_wait=options.max_wait_ms / 1e3,
        max_images=min(options.max_images, options.queue),
        decode_timeout=options.decode_timeout,
        max_uploads=min(options.max_uploads, connections // 2),
        slow_start=options.slow_start,
        min_rate=1e3 * options.min_rate,
    )
    about = describe(options, detector, runner)
    lowest = options.thresh if options.thresh is not None else detector.manifest.thresholds or DEFAULT_THRESHOLD
    return Service(runner, detector.class_names, limits, lowest, about, decoders, keys, options.public_metrics)


if __name__ == "__main__":
    run_command(main)
