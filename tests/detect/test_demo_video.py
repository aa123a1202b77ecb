"""demo.py with videos, cameras, cut-outs, JSON lines, a window, and its benchmark."""

import json
import logging

import numpy as np
import pytest

from common.errors import DataError
from deploy.main import export
from detect import outputs, video
from detect.detector import Detector
from detect.main import main
from detect.video import Video
from engines.preprocess import encode_image
from machine.opencv import cv2
from tests.detect.videos import FakeCapture, bgr, write_video
from tests.model.tiny import picture, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "model"
    export(save_tiny(folder.parent / "tiny"), 3, folder)
    return folder


@pytest.fixture(autouse=True)
def _log_as_before():
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def run(folder, tmp_path):
    """Runs demo.py: run(words...) -> (status, records)."""

    def run(*words, json_name="found.jsonl"):
        line = ["--model", str(folder), "--thresh", "0.3", "--output", str(tmp_path / "out")]
        status = main([*map(str, words), *line, "--json", str(tmp_path / json_name)])
        text = (tmp_path / json_name).read_text("utf-8") if (tmp_path / json_name).exists() else ""
        return status, [json.loads(line) for line in text.splitlines()] if json_name.endswith("l") else json.loads(text)

    return run


def test_videos_and_images_together(run, folder, tmp_path):
    write_video(tmp_path / "film.avi")
    (tmp_path / "photo.png").write_bytes(encode_image(picture(1, 50, 60), ".png"))
    status, records = run(tmp_path / "film.avi", tmp_path / "photo.png", "--batch-size", "4")
    assert status == 0
    assert [record.get("frame") for record in records] == [None, 0, 1, 2, 3, 4, 5]
    np.testing.assert_allclose([record["time"] for record in records[1:]], np.arange(6) / 10, atol=2e-3)
    expected = Detector(folder, threshold=0.3).detect([f.pixels for f in Video(tmp_path / "film.avi").frames()])
    for record, rows in zip(records[1:], expected, strict=True):
        assert (record["width"], record["height"]) == (64, 48)
        np.testing.assert_allclose([d["score"] for d in record["detections"]], rows[:, 1], atol=1e-4)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["film.mp4", "photo.png"]
    assert len(list(Video(tmp_path / "out/film.mp4").frames())) == 6


def test_a_video_by_its_flag_with_a_heat_map_and_a_limit(run, tmp_path):
    write_video(tmp_path / "film.avi").rename(tmp_path / "film.bin")
    words = ["--video", tmp_path / "film.bin", "--heatmap", tmp_path / "heat", "--max-frames", "3"]
    status, records = run(*words, "--frame-resize", "32,24", json_name="found.json")
    assert status == 0
    assert [record["frame"] for record in records] == [0, 1, 2]
    for place in ("out", "heat"):
        frames = list(Video(tmp_path / place / "film.mp4").frames())
        assert [frame.pixels.shape for frame in frames] == [(24, 32, 3)] * 3


def test_a_film_that_cannot_be_completed_leaves_the_other_one_whole(run, tmp_path, monkeypatch, caplog):
    closed = []

    class Full:
        def __init__(self, path, *options):
            self.path = path

        def write(self, pixels, seconds):
            pass

        def close(self):
            closed.append(self.path.parent.name)
            raise DataError("the disk is full")

    monkeypatch.setattr("detect.main.VideoFile", Full)
    assert run(write_video(tmp_path / "film.avi", frames=1), "--heatmap", tmp_path / "heat")[0] == 2
    assert sorted(closed) == ["heat", "out"]
    assert "error: the disk is full" in caplog.text


def test_damaged_videos_are_named_and_the_others_done(run, tmp_path, caplog):
    write_video(tmp_path / "b.avi", frames=2)
    (tmp_path / "a.mp4").write_bytes(b"no film")
    status, records = run(tmp_path / "a.mp4", tmp_path / "b.avi")
    assert status == 2
    assert len(records) == 2
    assert "a.mp4: not a video that OpenCV can read" in caplog.text


@pytest.mark.parametrize("words", [["--camera"], ["--camera", "0"], ["--camera=0"]])
def test_cameras_without_a_number_are_the_first(run, tmp_path, monkeypatch, words):
    opened = []

    def open_capture(source):
        opened.append(source)
        return FakeCapture([bgr(0), bgr(1), bgr(2)])

    monkeypatch.setattr(video, "open_capture", open_capture)
    status, records = run(*words, "--max-frames", "2")
    assert (status, opened) == (0, [0])
    assert [record["image"] for record in records] == ["camera 0"] * 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["camera-0.mp4"]


@pytest.mark.parametrize("error", [MemoryError(), SystemExit(143)])
def test_a_film_that_an_error_ends_replaces_no_older_one(run, tmp_path, monkeypatch, error):
    (tmp_path / "out").mkdir()
    older = write_video(tmp_path / "older.avi").rename(tmp_path / "out" / "camera-1.mp4")
    before = older.read_bytes()
    (tmp_path / "found.json").write_text("older")
    capture = FakeCapture([bgr(0), bgr(1), error])
    monkeypatch.setattr(video, "open_capture", lambda source: capture)
    with pytest.raises(type(error)):
        run("--camera", "1", json_name="found.json")
    assert (tmp_path / "found.json").read_text() == "older"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["camera-1.mp4"]
    assert older.read_bytes() == before


@pytest.mark.parametrize("json_name", ["found.json", "found.jsonl"])
def test_ctrl_c_leaves_whole_files(run, tmp_path, monkeypatch, json_name, caplog):
    capture = FakeCapture([bgr(0), bgr(1), KeyboardInterrupt()])
    monkeypatch.setattr(video, "open_capture", lambda source: capture)
    status, records = run("--camera", "1", json_name=json_name)
    assert status == 130
    assert len(records) == 2
    assert "interrupted" in caplog.text
    assert capture.released
    monkeypatch.undo()
    assert len(list(Video(tmp_path / "out/camera-1.mp4").frames())) >= 1
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_detections_are_cut_out_of_images_and_frames(run, tmp_path):
    for name in ("a/x.png", "b/x.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(encode_image(picture(1, 50, 60), tmp_path.joinpath(name).suffix))
    write_video(tmp_path / "film.avi", frames=2)
    words = [tmp_path / "a", tmp_path / "b", tmp_path / "film.avi", "--crop", tmp_path / "crops"]
    _, records = run(*words)
    crops = list((tmp_path / "crops").rglob("*.png"))
    assert len(crops) == sum(len(record["detections"]) for record in records) > 4
    assert {path.name.rpartition("-")[0] for path in crops} == {"x", "x-2", "film-000000", "film-000001"}


def test_a_window_shows_pictures_and_ends_the_run(run, tmp_path, monkeypatch):
    shown, keys = [], iter([-1, ord("q")])
    monkeypatch.setattr(outputs, "display_problem", lambda: None)
    monkeypatch.setattr(cv2, "imshow", lambda title, pixels: shown.append(pixels))
    monkeypatch.setattr(cv2, "waitKey", lambda delay: next(keys))
    monkeypatch.setattr(cv2, "destroyAllWindows", lambda: None)
    status, records = run(write_video(tmp_path / "film.avi"), "--show")
    assert status == 0
    assert len(shown) == len(records) == 2


def test_the_benchmark_shows_each_step_and_writes_nothing(run, tmp_path, capsys):
    (tmp_path / "photo.png").write_bytes(encode_image(picture(1, 50, 60), ".png"))
    write_video(tmp_path / "film.avi", frames=3)
    assert run(tmp_path / "photo.png", tmp_path / "film.avi", "--benchmark", "7", "--batch-size", "2")[0] == 0
    printed = capsys.readouterr().out
    assert "engine mxnet, 7 images in batches of 2" in printed
    for step in ("decoding", "pre-processing", "network (2)", "post-processing"):
        assert step in printed
    assert "images/s" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["film.avi", "photo.png"]
