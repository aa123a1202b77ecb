"""The service as a client sees it: answers, refusals, limits, figures."""

import asyncio
import io
import re
import time

import numpy as np
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from deploy.main import export
from detect.detector import Detector
from detect.service.app import Service
from detect.service.batching import ServeOptions, describe, load_runner
from drawing.boxes import draw
from engines.preprocess import encode_image, read_image
from tests.detect.service.fakes import (
    CLASSES,
    LIMITS,
    PATIENCE,
    PHOTO,
    FakeRunner,
    InThisProcess,
    fake,
    plain,
    post,
    talk,
    until,
)
from tests.model.tiny import picture, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export(save_tiny(folder.parent / "tiny"), 3, folder)
    return folder


@pytest.fixture(scope="module")
def real(folder):
    """A service of a real model; its Runner uses batches from two images on."""
    options = ServeOptions(model=str(folder), cpu=True, batch_size=3)
    runner, detector = load_runner(options)
    about = describe(options, detector, runner)
    runner.__init__(detector, Detector(folder, threshold=0.0, batch_size=3), picture(0, 96, 80))
    runner.least, runner.batch_size = 2, 3
    return Service(runner, detector.class_names, LIMITS, 0.3, about, InThisProcess(LIMITS))


def test_concurrent_answers_are_those_of_the_detector(real, folder):
    photos = [encode_image(picture(seed, 60 + 5 * seed, 90), (".png", ".jpg", ".bmp")[seed % 3]) for seed in range(8)]

    async def together(client):
        return await asyncio.gather(*(client.post("/detect", content=photo) for photo in photos))

    detector = Detector(folder, threshold=0.3)
    for photo, response in zip(photos, talk(real, together), strict=True):
        pixels = read_image(photo, "photo")
        answer = response.json()
        assert (answer["height"], answer["width"]) == pixels.shape[:2]
        found = [[one["id"], one["score"], *one["box"]] for one in answer["detections"]]
        np.testing.assert_allclose(np.reshape(found, (-1, 6)), detector.detect(pixels), rtol=1e-4, atol=2e-3)
        assert all(one["class"] == CLASSES[one["id"]] for one in answer["detections"])
        assert answer["detections"]


def test_a_model_may_have_a_threshold_for_each_class():
    everything = post(fake(), path="/detect?threshold=0").json()["detections"]
    lowest = {name: 0.0 if k == everything[0]["id"] else 1.0 for k, name in enumerate(CLASSES)}
    service = fake(threshold=lowest)
    found = post(service, path="/detect").json()["detections"]
    assert found == [one for one in everything if one["id"] == everything[0]["id"] or one["score"] >= 1]


def test_a_threshold_is_that_of_the_request_or_the_service():
    counts = {path: len(post(fake(), path=path).json()["detections"]) for path in ("/detect", "/detect?threshold=0.25")}
    assert list(counts.values()) == [1, 2]
    assert post(fake(), path="/detect?threshold=1").json()["detections"] == []
    one = {"class": "red", "id": 0, "score": 0.75, "box": [1.0, 2.0, 30.25, 40.0]}
    assert post(fake(), plain(0)).json() == {"width": 8, "height": 4, "detections": [one]}


@pytest.mark.parametrize(
    ("path", "accept", "kind"),
    [
        ("/detect?format=picture", "*/*", "image/jpeg"),
        ("/detect?format=picture", "image/png", "image/png"),
        ("/detect", "image/jpeg;q=0.9, */*", "image/jpeg"),
        ("/detect", "application/json, image/png", "application/json"),
        ("/detect?format=json", "image/png", "application/json"),
        ("/detect", "", "application/json"),
    ],
)
def test_the_answer_is_a_picture_where_one_is_asked_for(path, accept, kind):
    response = post(fake(), path=path, accept=accept)
    assert response.headers["content-type"] == kind
    if kind == "image/png":
        original = read_image(PHOTO, "x")
        shown = draw(original, FakeRunner()._rows(original)[:1], CLASSES)
        np.testing.assert_array_equal(read_image(response.content, "x"), shown)
    elif kind == "image/jpeg":
        assert Image.open(io.BytesIO(response.content)).size == (60, 40)


@pytest.mark.parametrize(
    ("content", "path", "headers", "status", "sentence"),
    [
        (b"", "/detect", {}, 400, "the body is empty; send"),
        (b"GIF89a", "/detect", {}, 415, "no image that can be read; send JPEG, PNG, BMP, WEBP, TIFF"),
        (PHOTO[:-40], "/detect", {}, 400, "the image: not a sound image"),
        (PHOTO[:20], "/detect", {}, 4, "image"),
        (plain(0, 251, 200), "/detect", {}, 413, "200 x 251 pixels, more than 0.05 million"),
        (b"x" * 100_001, "/detect", {}, 413, "the body has more than 0.1 MB"),
        (PHOTO, "/detect", {"content_type": "text/plain"}, 415, "send the image file itself"),
        (PHOTO, "/detect", {"content_type": "multipart/form-data; boundary=x"}, 400, "the form is damaged"),
        (PHOTO, "/detect", {"content_type": "multipart/form-data"}, 400, "boundary"),
        (PHOTO, "/detect?threshold=nan", {}, 400, "threshold='nan': expected a number from 0 to 1"),
        (PHOTO, "/detect?threshold=1.5", {}, 400, "expected a number from 0 to 1"),
        (PHOTO, "/detect?format=xml", {}, 400, "format='xml': expected json or picture"),
        (PHOTO, "/detect?treshold=0.1", {}, 400, "unknown parameter 'treshold'; there are threshold and format"),
        (PHOTO, "/upload", {}, 404, "POST /upload: Not Found; there are POST /detect, GET /"),
        (PHOTO, "/health", {}, 405, "POST /health: Method Not Allowed"),
    ],
)
def test_refusals_are_a_sentence(content, path, headers, status, sentence):
    service = fake()
    response = post(service, content, path, **headers)
    assert response.status_code == status or response.status_code // 100 == status
    assert list(response.json()) == ["error"]
    assert sentence in response.json()["error"]
    assert post(service).status_code == 200


def test_a_body_is_read_no_further_than_its_limit():
    sent = []

    async def endless():
        while True:
            sent.append(40_000)
            yield b"x" * 40_000
            await asyncio.sleep(0)

    async def conversation(client):
        begin = time.monotonic()
        response = await client.post("/detect", content=endless())
        return response, time.monotonic() - begin

    response, seconds = talk(fake(), conversation)
    assert response.status_code == 413
    assert seconds < PATIENCE / 2


def test_who_comes_while_too_many_are_in_progress_is_told_to_come_again():
    runner = FakeRunner()
    service = fake(runner, queue=5)

    async def conversation(client):
        runner.gate.clear()
        waiting = [asyncio.create_task(client.post("/detect", content=PHOTO)) for _ in range(5)]
        await until(lambda: service._in_progress == 5)
        refused = [await client.post("/detect", content=PHOTO) for _ in range(3)]
        health = (await client.get("/health")).json()
        runner.gate.set()
        return [await task for task in waiting], refused, health, await client.post("/detect", content=PHOTO)

    answered, refused, health, later = talk(service, conversation)
    assert [response.status_code for response in (*answered, later)] == [200] * 6
    assert all(response.status_code == 503 and response.headers["retry-after"] == "1" for response in refused)
    assert health["in_progress"] == 5
    assert health["status"] == "ready"


def test_what_takes_too_long_ends():
    runner = FakeRunner()

    async def late():
        yield PHOTO[:10]
        await asyncio.sleep(0.3)
        yield PHOTO[10:]

    async def conversation(client):
        runner.gate.clear()
        answers = [await client.post("/detect", content=content) for content in (PHOTO, late())]
        runner.gate.set()
        return [*answers, await client.post("/detect", content=PHOTO)]

    without, slow, later = talk(fake(runner, timeout=0.1), conversation)
    assert (without.status_code, slow.status_code) == (504, 408)
    assert without.json()["error"].startswith("no answer within 0.1 s")
    assert slow.json()["error"].startswith("the body has not arrived within 0.1 s")
    assert later.status_code in (200, 408, 504)  # not 200 on a machine that needs more than 0.1 s


def test_nobody_waits_for_an_image_that_is_refused():
    service = fake(max_wait=PATIENCE)
    decode = service._decoder.decode

    async def decode_damaged_late(content):
        while content != PHOTO and not service._batcher.waiting:
            await asyncio.sleep(0.001)
        return await decode(content)

    service._decoder.decode = decode_damaged_late

    async def conversation(client):
        damaged = asyncio.create_task(client.post("/detect", content=PHOTO[:-40]))
        await until(lambda: service._preparing)
        answer = await asyncio.wait_for(client.post("/detect", content=PHOTO), PATIENCE / 2)
        return [answer.status_code, (await damaged).status_code]

    assert talk(service, conversation) == [200, 400]


def test_clients_that_go_leave_the_others_their_answers():
    """The second of three has gone when its turn comes: it is not run."""
    runner = FakeRunner()
    service = fake(runner)

    async def conversation(client):
        runner.gate.clear()
        first = asyncio.create_task(client.post("/detect", content=PHOTO))
        await until(lambda: runner.calls)
        gone = asyncio.Event()
        leaving = asyncio.create_task(_request(client._transport.app, gone))
        staying = asyncio.create_task(client.post("/detect", content=PHOTO))
        await until(lambda: service._batcher.waiting == 2)
        gone.set()
        await leaving
        runner.gate.set()
        return [await first, await staying, await client.get("/metrics")]

    *answers, metrics = talk(service, conversation)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert runner.calls == [1, 1]
    assert 'detector_requests_total{path="/detect",status="499"} 1.0' in metrics.text


async def _request(app, gone):
    """A request whose client goes when `gone` is set."""
    parts = iter([{"type": "http.request", "body": PHOTO, "more_body": False}])

    async def receive():
        part = next(parts, None)
        if part is None:
            await gone.wait()
        return part or {"type": "http.disconnect"}

    async def send(message):
        pass

    scope = {"type": "http", "method": "POST", "path": "/detect", "query_string": b"", "headers": [], "root_path": ""}
    await app(scope, receive, send)


def test_a_failure_is_the_servers_own_affair_and_that_of_one_image():
    runner = FakeRunner()

    async def conversation(client):
        runner.gate.clear()
        tasks = [asyncio.create_task(client.post("/detect", content=plain(value))) for value in (1, 2, 255, 1)]
        await until(lambda: runner.calls)
        runner.gate.set()
        return [await task for task in tasks]

    answers = talk(fake(runner), conversation)
    assert [answer.status_code for answer in answers] == [200, 200, 500, 200]
    assert answers[2].json() == {"error": "the image could not be processed; the server's log says why"}


def test_the_page_may_run_its_own_script_alone_and_loads_nothing():
    response = talk(fake(), lambda client: client.get("/"))
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert re.search(r"script-src 'sha256-\S{44}';", policy)
    assert "unsafe" not in policy
    assert not re.search(r"https?://|\bsrc=|\bonclick=|\sstyle=", response.text)
    assert response.headers["content-type"] == "text/html; charset=utf-8"


def test_health_names_the_model_without_its_path(real, folder):
    response = talk(real, lambda client: client.get("/health"))
    health = response.json()
    assert response.status_code == 200
    assert (health["status"], health["model"], health["network"]) == ("ready", "model", "mobilenet")
    assert (health["classes"], health["threshold"], health["input"]) == (list(CLASSES), 0.3, [96, 80])
    assert health["limits"]["max_bytes"] == LIMITS.max_bytes
    assert str(folder) not in response.text


def test_metrics_count_what_happened():
    runner = FakeRunner()

    async def conversation(client):
        runner.gate.clear()
        tasks = [asyncio.create_task(client.post("/detect", content=plain(1))) for _ in range(5)]
        await until(lambda: runner.calls)
        runner.gate.set()
        await asyncio.gather(*tasks)
        await client.post("/detect", content=b"no image")
        await client.get("/etc/passwd")
        return await client.get("/metrics")

    service = fake(runner)
    response = talk(service, conversation)
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }
    assert samples["detector_requests_total", "/detect", "200"] == 5
    assert samples["detector_requests_total", "/detect", "415"] == 1
    assert samples["detector_requests_total", "other", "404"] == 1
    assert samples["detector_request_seconds_count", "/detect"] == 6
    assert samples["detector_batch_images_sum",] == 5
    assert samples["detector_batch_images_count",] == len(runner.calls) < 5
    assert samples["detector_detections_total", CLASSES[1]] == 5
    assert samples["detector_stage_seconds_count", "wait"] == 5
    assert samples["detector_images_waiting",] == samples["detector_requests_in_progress",] == 0
    assert samples["detector_step_seconds", "4", "0.99", "network"] == 0.03
    assert ("detector_step_seconds", "4", "0.5", "post-processing") not in samples
    assert samples["process_resident_memory_bytes",] > 1e6
