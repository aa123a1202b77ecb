"""Serves a model over HTTP: an image in, JSON or a picture with boxes out.

python -m tools.serve --model output/mine-model
curl -H 'Content-Type: image/jpeg' --data-binary @photo.jpg http://127.0.0.1:8000/detect

GET / is a page on which to drop an image, GET /health what is served, GET /metrics figures for Prometheus. There is
neither authentication nor encryption: by default only this machine is served.
"""

import importlib.util
import logging
import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING

if not __package__:
    importlib.import_module("as_module")

from common.errors import InstallError, OptionError
from config.command_line import parse_options
from detect.service.batching import ServeOptions
from machine.command import exit_on_sigterm, log_to_terminal, run_command
from machine.cpu import configure_threads

if TYPE_CHECKING:
    from detect.service.app import Service

MEGA = 1_000_000
LIBRARIES = ("starlette", "uvicorn", "prometheus_client")  # of the extra `serve`
logger = logging.getLogger(__name__)


def main(argv: list[str]) -> None:
    """Serves until Ctrl-C or SIGTERM; the requests that are in progress then are still answered."""
    options = parse_options(
        ServeOptions, argv, "Serves a model over HTTP.", example="python tools/serve.py --model output/mine-model"
    )
    _check_installed()
    log_to_terminal()
    with bind(options.host, options.port) as listener:
        configure_threads()
        exit_on_sigterm()
        _serve(_service(options), listener, round(2 * options.timeout) + 1)


def _check_installed() -> None:
    for name in LIBRARIES:
        if importlib.util.find_spec(name) is None:
            raise InstallError(f"{name} is not installed: pip install -e '.[serve]'")


def _serve(service: "Service", listener: socket.socket, patience: int) -> None:
    """Serves until a signal, which is raised again when the last request is answered or `patience` seconds are over."""
    import uvicorn

    config = uvicorn.Config(
        service.app(),
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=patience,
    )
    _print_address(listener)
    uvicorn.Server(config).run(sockets=[listener])


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


def _print_address(listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    logger.info("serving on http://%s:%d", f"[{host}]" if ":" in host else host, port)
    if ip_address(host).is_loopback:
        logger.info("only this machine is served; --host 0.0.0.0 serves others, too, without any authentication")
    else:
        logger.warning("whoever reaches this address is served: there is neither authentication nor encryption")


def _service(options: ServeOptions) -> "Service":
    """The service of the options, its model loaded and measured."""
    from detect.detector import DEFAULT_THRESHOLD
    from detect.service.app import Limits, Service
    from detect.service.batching import describe, load_runner

    runner, detector = load_runner(options)
    limits = Limits(
        max_bytes=round(options.max_size * MEGA),
        max_pixels=round(options.max_pixels * MEGA),
        queue=options.queue,
        timeout=options.timeout,
        workers=options.workers,
        max_wait=options.max_wait_ms / 1e3,
    )
    about = describe(options, detector, runner)
    lowest = options.thresh if options.thresh is not None else detector.manifest.thresholds or DEFAULT_THRESHOLD
    return Service(runner, detector.class_names, limits, lowest, about, detector.manifest.bit_depth)


if __name__ == "__main__":
    run_command(main)
