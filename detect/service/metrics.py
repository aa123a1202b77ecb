"""What the service counts and measures, in the text format of Prometheus."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4 as CONTENT_TYPE
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from detect.detector import DECODING, StepStatistics

__all__ = ["CONTENT_TYPE", "Measured", "Metrics"]
Steps = Mapping[int, Mapping[str, StepStatistics]]
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counters and histograms of one service, in a registry of its own."""

    def __init__(self) -> None:
        """All at zero."""
        disable_created_metrics()  # a second series for each, which nothing reads
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self._requests = Counter("detector_requests", "Requests answered", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "detector_request_seconds", "From a request to its answer", ["path"], buckets=SECONDS, registry=registry
        )
        self._stages = Histogram(
            "detector_stage_seconds",
            "Parts of a request (receive, decode, wait, draw) and of a batch (detect)",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram("detector_batch_images", "Images run together", buckets=IMAGES, registry=registry)
        self.found = Counter("detector_detections", "Detections answered", ["class_name"], registry=registry)
        self.closed = Counter(
            "detector_connections_closed", "Connections closed by the limits", ["reason"], registry=registry
        )
        self._info = Info("detector_model", "The model served", registry=registry)

    def describe(self, **labels: str) -> None:
        """Labels of the model."""
        self._info.info(labels)

    def watch_steps(self, statistics: Callable[[], Steps]) -> None:
        """Figures of the detectors' steps, asked for when they are read."""
        self._registry.register(_StepCollector(statistics))

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """A gauge that asks for its value."""
        Gauge(name, text, registry=self._registry).set_function(value)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measures a part of a request that succeeds."""
        begin = time.perf_counter()
        yield
        self.spent(name, time.perf_counter() - begin)

    def spent(self, stage: str, seconds: float) -> None:
        """Seconds that a part of a request took."""
        self._stages.labels(stage).observe(seconds)

    def answered(self, path: str, status: int, seconds: float) -> None:
        """A request that has been answered."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self._registry)


class _StepCollector(Collector):
    """The latest runs of the steps, as Detector.statistics() has them."""

    def __init__(self, statistics: Callable[[], Steps]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """Median and 99th percentile of each step."""
        labels = ["batch_size", "step", "quantile"]
        family = GaugeMetricFamily("detector_step_seconds", "Latest runs of a step of the detector", labels=labels)
        for size, steps in self._statistics().items():
            for step, figures in steps.items():
                if figures.count and step != DECODING:  # images come decoded
                    family.add_metric([str(size), step, "0.5"], figures.median)
                    family.add_metric([str(size), step, "0.99"], figures.p99)
        yield family


class Measured:
    """Middleware that counts and times the requests of an app; paths other than `paths` are counted as one."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: frozenset[str]) -> None:
        """The app to measure."""
        self._app, self._metrics, self._paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves a request; what ends without an answer has the status 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begin = 500, time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, status, time.perf_counter() - begin)
