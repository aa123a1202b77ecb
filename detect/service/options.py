"""Options of the HTTP service (tools/serve.py)."""

from dataclasses import dataclass

from config.groups import ModelOptions
from config.options import option


@dataclass(frozen=True)
class ServeOptions(ModelOptions):
    """Which model is served where, and what a request may cost."""

    thresh: float = option(
        0.5, "lowest score of an answer, unless a request says another", "model", minimum=0, maximum=1
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 = all of this machine's", "server")
    port: int = option(
        8000, "port to listen on; 0 = a free one, which the log tells", "server", minimum=0, maximum=65535
    )
    workers: int = option(2, "threads that decode images and draw pictures", "server", minimum=1, maximum=64)
    batch_size: int = option(
        8, "most images that the network runs at a time; 1 = no batches", "batches", minimum=1, maximum=256
    )
    max_wait_ms: float = option(
        5.0,
        "milliseconds that an image waits for others which are being decoded, to share a batch with them",
        "batches",
        minimum=0,
        maximum=10_000,
    )
    queue: int = option(
        64,
        "requests in progress at a time; further ones are answered with 503 and a time to try again",
        "limits",
        minimum=1,
    )
    max_size: float = option(16.0, "largest image file, MB", "limits", minimum=0.001, maximum=1024)
    max_pixels: float = option(25.0, "largest image, millions of pixels", "limits", minimum=0.001, maximum=64)
    timeout: float = option(
        30.0, "seconds for an image to arrive, and again until its answer is ready", "limits", minimum=0.001
    )
