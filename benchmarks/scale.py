"""What several workers send, and how much of their time that leaves for training: calculated, not measured.

    python -m benchmarks.scale
    python -m benchmarks.scale --networks ssd_vgg16 --step 3.8 --workers 2,4,8

A step takes `--step` seconds of computing; then each worker sends its gradients to the servers and gets the sums back,
and nothing of that is done while it computes (ps-lite does some of it, so that real runs may be better). A link carries
both directions at once and as many bytes as it says. Each server has a link of its own and holds an equal part; the
slower of a worker's and a server's link counts. Loss of packets, latency and the exchange of a few numbers are left
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.common import print_table
from config.command_line import parse_options
from config.options import option
from machine.command import run_command
from model.weights.fit import expected_shapes

BYTES = 4  # of a float32
BITS = 8
GIGA, MEGA = 1e9, 1e6
CLASSES = 20


@dataclass(frozen=True)
class ScaleOptions:
    """What to calculate."""

    networks: tuple[str, ...] = option(
        ("vgg16_reduced", "resnet50", "mobilenet", "yolov3_spp", "efficientdet_d0"), "networks, of 20 classes"
    )
    data_shape: int = option(512, "side of the input, which decides the number of heads")
    step: float = option(1.0, "seconds of computing of a step", minimum=1e-3)
    workers: tuple[int, ...] = option((2, 4, 8, 16, 32, 64, 128, 256), "numbers of workers")
    gigabits: tuple[float, ...] = option((1.0, 10.0, 25.0), "Gbit/s of each link")


def gradient_bytes(network: str, data_shape: int) -> int:
    """Bytes of the gradients of all parameters of a network."""
    shapes, _ = expected_shapes(network, data_shape, CLASSES)
    return BYTES * sum(int(np.prod(shape)) for shape in shapes.values())


def seconds_of_exchange(size: int, workers: int, servers: int, gigabits: float) -> float:
    """Seconds to send `size` bytes from each worker and to get as many back."""
    busiest = size * max(1.0, workers / servers)  # of a worker's link and a server's
    return 2 * busiest * BITS / (gigabits * GIGA)


def efficiency(size: int, step: float, workers: int, servers: int, gigabits: float) -> float:
    """Share of the time in which a worker computes."""
    return step / (step + seconds_of_exchange(size, workers, servers, gigabits))


def main(argv: list[str]) -> None:
    """Prints the bytes of each network, then a table for each: rows numbers of workers, columns links and servers."""
    options = parse_options(ScaleOptions, argv, "Calculates what several workers send, and their efficiency.")
    sizes = {network: gradient_bytes(network, options.data_shape) for network in options.networks}
    print(f"gradients of networks at {options.data_shape} x {options.data_shape}, {CLASSES} classes, float32:\n")
    print_table(
        ["network", "million parameters", "MB a step sent by a worker", "MB got back"],
        [
            [name, f"{size / BYTES / MEGA:.2f}", f"{size / MEGA:.1f}", f"{size / MEGA:.1f}"]
            for name, size in sizes.items()
        ],
    )
    for name, size in sizes.items():
        print(f"\n{name}, a step of {options.step:g} s: efficiency with 1 server / as many servers as workers\n")
        _print_efficiency(size, options.step, options.workers, options.gigabits)


def _print_efficiency(size: int, step: float, workers: Sequence[int], gigabits: Sequence[float]) -> None:
    rows = []
    for count in workers:
        cells = [
            f"{efficiency(size, step, count, 1, speed):.0%} / {efficiency(size, step, count, count, speed):.0%}"
            for speed in gigabits
        ]
        rows.append([str(count), *cells])
    print_table(["workers", *(f"{speed:g} Gbit/s" for speed in gigabits)], rows)


if __name__ == "__main__":
    run_command(main)
