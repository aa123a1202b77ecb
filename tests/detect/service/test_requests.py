"""Forms, keys, and bodies that come slowly."""

import asyncio
import os
from pathlib import Path

import pytest

from common.errors import OptionError
from detect.service import requests
from detect.service.decoding import RefusedError
from detect.service.requests import files_of, read_keys
from tests.detect.service.fakes import PATIENCE, PHOTO, FakeRunner, fake, plain, talk, until

KEY = "k-0123456789-abcdef"


def send_files(service, *contents, path="/detect", **options):
    """The response to a form with these files."""
    files = [("image", (f"{k}.png", content)) for k, content in enumerate(contents)]
    return talk(service, lambda client: client.post(path, files=files, **options))


def test_a_form_is_answered_by_a_list_in_which_an_image_fails_alone():
    response = send_files(fake(), plain(1), b"GIF89a", plain(255), PHOTO[:-40], plain(2))
    assert response.status_code == 200
    answers = response.json()
    assert [answer["name"] for answer in answers] == [f"{k}.png" for k in range(5)]
    assert [answer.get("status", 200) for answer in answers] == [200, 415, 500, 400, 200]
    assert [answers[k]["detections"][0]["id"] for k in (0, 4)] == [1, 2]
    assert "secret" not in response.text
    assert send_files(fake(), plain(1)).json()[0]["name"] == "0.png"


def test_a_picture_is_the_answer_to_one_image_of_a_form():
    assert send_files(fake(), PHOTO, path="/detect?format=picture").headers["content-type"] == "image/jpeg"
    response = send_files(fake(), PHOTO, PHOTO, path="/detect?format=picture")
    assert (response.status_code, response.json()["error"][:36]) == (400, "a picture is answered for one image;")


def test_a_form_takes_as_many_places_as_it_has_images():
    runner = FakeRunner()
    service = fake(runner, queue=3, max_images=3)

    async def conversation(client):
        def post(count):
            return client.post("/detect", files=[("image", ("x", PHOTO))] * count)

        runner.gate.clear()
        first = asyncio.create_task(post(2))
        await until(lambda: service._in_progress == 2)
        refused = await post(2)
        runner.gate.set()
        return [
            (await first).status_code,
            refused.status_code,
            (await post(4)).status_code,
            (await post(3)).status_code,
        ]

    assert talk(service, conversation) == [200, 503, 413, 200]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nxyz', "cut off"),
        (b'--b\r\nContent-Disposition: form-data; name="threshold"\r\n\r\n0.3\r\n--b--\r\n', "'threshold' is no file"),
        (b"--b\r\nContent-Disposition: " + b"x" * 10_000 + b"\r\n\r\n\r\n--b--\r\n", "the form is damaged"),
        (b"--b--\r\n", "no file|damaged|cut off"),
        (b"\0" * 1000, "the form is damaged"),
    ],
)
def test_what_is_no_form_of_files_is_refused_by_a_sentence(content, sentence):
    with pytest.raises(RefusedError, match=sentence) as refused:
        files_of(content, "multipart/form-data; boundary=b", 4)
    assert refused.value.status == 400


def test_names_and_bytes_of_files_are_kept():
    content = (
        b'--b\r\ncontent-disposition: form-data; name="i"; filename="\xc3\xa4 \\"1\\".jpg"\r\n\r\n\r\n--c\r\n--b--\r\n'
    )
    (file,) = files_of(content, 'multipart/form-data; boundary="b"', 1)
    assert (file.name, bytes(file.content)) == ('ä "1".jpg', b"\r\n--c")


def test_only_who_has_a_key_is_served():
    service = fake(keys=[KEY, "another-key-of-the-file"])

    async def conversation(client):
        async def status(path, **headers):
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            if path == "/detect":
                return (await client.post(path, content=PHOTO, headers=named)).status_code
            return (await client.get(path, headers=named)).status_code

        detect = [
            await status("/detect", **headers)
            for headers in (
                {},
                {"authorization": f"Bearer {KEY}"},
                {"x_api_key": "another-key-of-the-file"},
                {"x_api_key": KEY[:-1]},
                {"authorization": f"Basic {KEY}"},
                {"authorization": "Bearer", "x_api_key": ""},
            )
        ]
        pages = [await status(path) for path in ("/", "/health", "/openapi.json", "/metrics")]
        return detect, pages, await status("/metrics", x_api_key=KEY)

    detect, pages, metrics = talk(service, conversation)
    assert detect == [401, 200, 200, 401, 401, 401]
    assert pages == [200, 200, 200, 401]
    assert metrics == 200
    public = fake(keys=[KEY], public_metrics=True)
    assert talk(public, lambda client: client.get("/metrics")).status_code == 200
    refused = talk(fake(keys=[KEY]), lambda client: client.post("/detect", content=PHOTO))
    assert refused.headers["www-authenticate"] == "Bearer"


def test_a_file_of_keys_is_checked_and_told_when_everybody_can_read_it(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(f"\n{KEY}\n", "ascii")
    os.chmod(file, 0o600)
    read_keys(file)
    assert not caplog.text
    os.chmod(file, 0o644)
    read_keys(file)
    assert f"chmod 600 {file}" in caplog.text
    for text in ("", "short", "a key of several words", "ä" * 20):
        file.write_text(text, "utf-8")
        with pytest.raises(OptionError, match="each line is a key of at least 16 letters"):
            read_keys(file)
    with pytest.raises(FileNotFoundError):
        read_keys(Path(tmp_path / "none"))


async def trickle(rest):
    """A body whose end waits."""
    yield PHOTO[:10]
    await rest.wait()
    yield PHOTO[10:]


def test_a_body_that_comes_too_slowly_is_given_up_and_takes_no_place_in_progress():
    service = fake(queue=1, slow_start=0.3, min_rate=1e4)

    async def conversation(client):
        rest = asyncio.Event()
        slow = [asyncio.create_task(client.post("/detect", content=trickle(rest))) for _ in range(3)]
        await until(lambda: len(service._uploads) == 3)
        quick = await client.post("/detect", content=PHOTO)
        answers = [quick, *[await one for one in slow]]
        rest.set()
        return answers

    quick, *slow = talk(service, conversation)
    assert quick.status_code == 200
    assert {one.status_code for one in slow} == {408}
    assert "too slowly: 10 bytes in 0.3 s" in slow[0].json()["error"]


def test_the_slowest_body_makes_room_unless_all_have_just_begun(monkeypatch):
    service = fake(max_uploads=2, slow_start=PATIENCE)

    async def conversation(client):
        rest = asyncio.Event()
        slow = [asyncio.create_task(client.post("/detect", content=trickle(rest))) for _ in range(2)]
        await until(lambda: len(service._uploads) == 2)
        refused = await client.post("/detect", content=PHOTO)
        monkeypatch.setattr(requests, "SPARED_SECONDS", 0.0)
        served = await client.post("/detect", content=PHOTO)
        rest.set()
        return refused, served, [(await one).status_code for one in slow]

    refused, served, slow = talk(service, conversation)
    assert (refused.status_code, served.status_code) == (503, 200)
    assert refused.headers["retry-after"] == "1"
    assert sorted(slow) == [200, 408]
