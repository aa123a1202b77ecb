"""Frames in and videos out: what is read is what was filmed, and a film is whole whatever ended it."""

import numpy as np
import pytest

from common.errors import DataError, OptionError
from detect import video
from detect.outputs import display_problem, folder_name, write_crops
from detect.video import Video, VideoFile, frame_size
from machine.opencv import cv2
from tests.detect.videos import FakeCapture, bgr, write_video
from tests.model.tiny import picture


def test_frames_have_their_pixels_numbers_and_times(tmp_path):
    film = Video(write_video(tmp_path / "a.avi"))
    assert (film.count, film.rate, film.live) == (6, 10.0, False)
    frames = list(film.frames())
    assert [frame.number for frame in frames] == list(range(6))
    np.testing.assert_allclose([frame.seconds for frame in frames], np.arange(6) / 10, atol=1e-3)
    for frame in frames:
        assert np.abs(frame.pixels.astype(int) - picture(frame.number, 48, 64)).mean() < 12  # JPEG; RGB
    assert len(list(Video(tmp_path / "a.avi").frames(2))) == 2


@pytest.mark.parametrize(
    ("text", "expected"), [("32,24", (24, 32)), ("0.5", (24, 32)), ("2", (96, 128)), ("0.001", (1, 1))]
)
def test_frames_are_resized(text, expected, tmp_path):
    assert frame_size(text, (48, 64)) == expected
    assert next(Video(write_video(tmp_path / "a.avi"), text).frames()).pixels.shape == (*expected, 3)


@pytest.mark.parametrize("text", ["x", "0", "-1", "9", "1,2,3", "0,5", "1.5,2", "nan", "inf", "nan,1", "1e9,1"])
def test_other_sizes_are_refused(text):
    with pytest.raises(OptionError, match="--frame-resize"):
        frame_size(text, (48, 64))


@pytest.mark.parametrize("content", [b"", b"no film", "half"])
def test_what_is_no_video_is_named(tmp_path, content):
    whole = write_video(tmp_path / "a.avi").read_bytes()
    (tmp_path / "bad.mp4").write_bytes(whole[:300] if content == "half" else content)
    with pytest.raises(DataError, match=r"bad\.mp4: (not a video|no picture can be read)"):
        list(Video(tmp_path / "bad.mp4").frames())


def test_a_film_without_pictures_and_one_that_ends_early(monkeypatch, caplog, tmp_path):
    capture = FakeCapture([])
    monkeypatch.setattr(video, "open_capture", lambda source: capture)
    with pytest.raises(DataError, match=r"a\.avi: no picture can be read"):
        list(Video(tmp_path / "a.avi").frames())
    capture.pictures = [bgr(0)] * 3
    capture.get = lambda number: 10.0
    assert len(list(Video(tmp_path / "a.avi").frames())) == 3
    assert "ends after 3 of 10 frames" in caplog.text
    assert capture.released


def test_a_name_with_a_pattern_is_a_file(tmp_path):
    path = write_video(tmp_path / "a%02d.avi")
    assert len(list(Video(path).frames())) == 6


def test_cameras_are_read_until_they_end(monkeypatch, caplog):
    capture = FakeCapture([bgr(0), bgr(1)])
    monkeypatch.setattr(video, "open_capture", lambda source: capture)
    camera = Video(3)
    assert (camera.name, camera.live, camera.count, camera.rate) == ("camera 3", True, None, video.USUAL_RATE)
    frames = list(camera.frames())
    np.testing.assert_array_equal(frames[1].pixels, picture(1, 48, 64))
    assert frames[0].seconds <= frames[1].seconds < 10
    assert "camera 3: gives no more pictures" in caplog.text
    monkeypatch.setattr(video, "open_capture", lambda source: FakeCapture([], opened=False))
    with pytest.raises(DataError, match="camera 3: cannot be opened.*/dev/video3"):
        Video(3)


def test_films_are_written_and_get_their_name_at_the_end(tmp_path):
    film = VideoFile(tmp_path / "out.mp4", 10.0)
    for seed in range(5):
        film.write(picture(seed, 48, 64), seed / 10)
    film.write(picture(9, 60, 90), 0.5)
    assert not (tmp_path / "out.mp4").exists()
    film.close()
    film.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mp4"]
    frames = list(Video(tmp_path / "out.mp4").frames())
    assert len(frames) == 6
    assert all(frame.pixels.shape == (48, 64, 3) for frame in frames)
    assert np.abs(frames[0].pixels.astype(int) - picture(0, 48, 64)).mean() < 25  # MPEG-4; RGB


def test_a_film_that_is_not_wanted_leaves_nothing(tmp_path):
    film = VideoFile(tmp_path / "out.mp4", 10.0)
    film.discard()
    film.write(picture(0, 48, 64), 0.0)
    film.discard()
    film.close()
    assert list(tmp_path.iterdir()) == []


def test_without_an_encoder_for_mp4_it_is_an_avi(tmp_path, monkeypatch):
    writer = cv2.VideoWriter

    def only_jpeg(path, code, *others):
        return writer() if code == writer.fourcc(*"mp4v") else writer(path, code, *others)

    only_jpeg.fourcc = writer.fourcc
    monkeypatch.setattr(cv2, "VideoWriter", only_jpeg)
    film = VideoFile(tmp_path / "out.mp4", 10.0)
    film.write(picture(0, 48, 64), 0.0)
    film.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out.mjpg.avi"]
    with pytest.raises(OptionError, match="cannot write a video there"):
        VideoFile(tmp_path / "none/out.mp4", 10.0).write(picture(0, 48, 64), 0.0)


def test_live_films_take_as_long_as_what_they_show(tmp_path):
    film = VideoFile(tmp_path / "out.avi", 10.0, live=True)
    for seconds in (0.0, 0.02, 0.31, 0.32, 1.0):
        film.write(picture(0, 48, 64), seconds)
    film.close()
    assert len(list(Video(film.path).frames())) == 11


def test_detections_are_cut_out(tmp_path):
    pixels = picture(0, 40, 60)
    rows = np.array([[0, 0.9, 10.2, 5.5, 20.1, 15], [1, 0.8, 59.9, 39.9, 60, 40], [0, 0.5, 0, 0, 60, 40]], np.float32)
    assert write_crops(pixels, rows, ["a/b", ".."], tmp_path / "photo") == 3
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert found == ["_/photo-0002.png", "a_b/photo-0001.png", "a_b/photo-0003.png"]
    first = cv2.imread(str(tmp_path / "a_b/photo-0001.png"))[:, :, ::-1]
    np.testing.assert_array_equal(first, pixels[5:15, 10:21])
    assert cv2.imread(str(tmp_path / "_/photo-0002.png")).shape == (1, 1, 3)


@pytest.mark.parametrize("name", ["..", ".", "/etc", "a/../b", "x" * 500, "grün", "a b"])
def test_names_of_classes_are_names_of_folders(name):
    folder = folder_name(name)
    assert folder not in (".", "..", "")
    assert "/" not in folder
    assert len(folder) <= 100


def test_why_there_is_no_window(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert "there is no display" in display_problem()
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           NONE\n")
    assert "opencv-python-headless" in display_problem()
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           QT5\n")
    assert display_problem() is None
