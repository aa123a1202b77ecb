"""Which images are run together, and what becomes of each of them."""

import asyncio
import threading
import time

import numpy as np
import pytest

from detect.service.batching import Batcher, Runner, fewest_for_batch, seconds_of

PATIENCE = 20.0


class Network:
    """Answers an image with its first value; remembers the calls, waits for `gate`, fails for the value 13."""

    def __init__(self):
        self.calls = []
        self.gate = threading.Event()

    def __call__(self, images):
        self.calls.append([int(image[0]) for image in images])
        assert self.gate.wait(PATIENCE)
        if any(image[0] == 13 for image in images):
            raise ValueError("thirteen")
        return [np.full((1, 6), image[0]) for image in images]


def image(value):
    return np.array([value])


async def until(condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def collect(values, batch_size=4, cancel=(), **options):
    """(calls, answers) when image 0 is running while the others come, of which `cancel` leave again."""

    async def run():
        network = Network()
        batcher = Batcher(network, batch_size, **options)
        batcher.start()
        tasks = [asyncio.create_task(batcher.detect(image(0)))]
        await until(lambda: network.calls)
        tasks += [asyncio.create_task(batcher.detect(image(value))) for value in values]
        await until(lambda: batcher.waiting == len(values))
        for value in cancel:
            tasks[1 + values.index(value)].cancel()
        await asyncio.sleep(0)
        network.gate.set()
        answers = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), PATIENCE)
        assert batcher.waiting == 0
        await batcher.close()
        assert not batcher.running
        return network.calls, answers[1:]

    return asyncio.run(run())


def test_images_that_wait_are_run_together_in_their_order():
    calls, answers = collect([1, 2, 3, 4, 5, 6])
    assert calls == [[0], [1, 2, 3, 4], [5, 6]]
    assert [answer[0, 0] for answer in answers] == [1, 2, 3, 4, 5, 6]


def test_too_few_for_a_batch_are_run_one_by_one():
    assert collect([1, 2, 3, 4, 5, 6], least=3)[0] == [[0], [1, 2, 3, 4], [5], [6]]
    assert collect([1, 2, 3], batch_size=1)[0] == [[0], [1], [2], [3]]


def test_an_image_that_fails_leaves_the_others_of_its_batch_alone():
    calls, answers = collect([1, 13, 3])
    assert calls[1:] == [[1, 13, 3], [1], [13], [3]]
    assert answers[0][0, 0] == 1
    assert answers[2][0, 0] == 3
    assert isinstance(answers[1], ValueError)


def test_who_leaves_takes_the_image_along():
    calls, answers = collect([1, 2, 3], cancel=[2])
    assert calls == [[0], [1, 3]]
    assert isinstance(answers[1], asyncio.CancelledError)
    assert calls == collect([1, 3])[0]
    assert collect([1], cancel=[1])[0] == [[0]]


@pytest.mark.parametrize(("coming", "expected"), [(True, [[1, 2]]), (False, [[1], [2]])])
def test_an_image_waits_for_others_only_where_some_are_coming(coming, expected):
    async def run():
        network = Network()
        network.gate.set()
        batcher = Batcher(network, 2, max_wait=PATIENCE, more_are_coming=lambda: coming)
        batcher.start()
        first = asyncio.create_task(batcher.detect(image(1)))
        await (asyncio.sleep(0.02) if coming else first)
        await asyncio.gather(first, batcher.detect(image(2)))
        await batcher.close()
        return network.calls

    assert asyncio.run(run()) == expected


def test_the_wait_for_others_ends():
    async def run():
        network = Network()
        network.gate.set()
        waits = []
        batcher = Batcher(network, 2, max_wait=0.02, more_are_coming=lambda: True, waited=waits.append)
        batcher.start()
        await asyncio.wait_for(batcher.detect(image(1)), PATIENCE)
        await batcher.close()
        return waits

    assert 0.015 < asyncio.run(run())[0] < PATIENCE


def test_the_wait_ends_when_nobody_is_coming_any_more():
    async def run():
        network = Network()
        network.gate.set()
        coming = [True]
        batcher = Batcher(network, 2, max_wait=PATIENCE, more_are_coming=lambda: bool(coming))
        batcher.start()
        task = asyncio.create_task(batcher.detect(image(1)))
        await asyncio.sleep(0.02)
        assert not network.calls
        coming.clear()
        batcher.nudge()
        await asyncio.wait_for(task, PATIENCE / 2)
        await batcher.close()

    asyncio.run(run())


class Detector:
    """One whose batches take `seconds` each, however full."""

    def __init__(self, batch_size, seconds):
        self.batch_size, self.seconds = batch_size, seconds
        self.calls = []

    def stream(self, images, mapped=False):
        self.calls.append(len(images))
        return iter([np.zeros((0, 6))] * len(images))


@pytest.fixture
def _seconds(monkeypatch):
    monkeypatch.setattr("detect.service.batching.seconds_of", lambda detector, images: detector.seconds)


@pytest.mark.usefixtures("_seconds")
def test_batches_are_used_from_the_number_of_images_on_for_which_they_are_faster():
    single, several = Detector(1, 0.02), Detector(8, 0.05)
    runner = Runner(single, several, image(0))
    assert (runner.least, runner.batch_size) == (3, 8)
    for count in (1, 2, 3, 8):
        assert len(runner.detect([image(0)] * count)) == count
    assert (single.calls, several.calls) == ([1, 2], [3, 8])


@pytest.mark.usefixtures("_seconds")
def test_batches_that_are_no_faster_are_not_used():
    for several in (Detector(2, 0.03), None):
        runner = Runner(Detector(1, 0.01), several, image(0))
        assert runner.batch_size == 1
        assert len(runner.detect([image(0)] * 2)) == 2


def test_fewest_images_of_a_batch():
    assert [fewest_for_batch(1.0, seconds) for seconds in (0.5, 1.9, 2.0, 2.1, 7.9, 8.0)] == [2, 2, 3, 3, 8, 9]


def test_detectors_are_measured_after_they_have_warmed_up():
    class Warming:
        batch_size, runs = 2, 0

        def stream(self, images, mapped=False):
            assert len(images) == 2
            self.runs += 1
            time.sleep(0.2 if self.runs == 1 else 0)
            return iter([])

    assert seconds_of(Warming(), [image(0)] * 2) < 0.2
