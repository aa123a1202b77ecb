"""Words of the command line as images, and the names of their pictures."""

from pathlib import Path

import pytest

from common.errors import DataError, OptionError
from detect.inputs import InputSource, ask_for_images, find_images, plan_outputs, split_words, with_values


@pytest.fixture
def photos(tmp_path):
    for name in ("a.jpg", "b.PNG", "c,d.jpg", "note.txt", "sub/a.jpg", "sub/[x].jpg"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def _names(paths, folder):
    return [str(path.relative_to(folder)) for path in paths]


def test_files_folders_and_globs(photos):
    assert _names(find_images([f"{photos}/b.PNG,{photos}/sub/a.jpg"]), photos) == ["b.PNG", "sub/a.jpg"]
    assert _names(find_images([f"{photos}"]), photos) == ["a.jpg", "b.PNG", "c,d.jpg"]
    assert _names(find_images([f"{photos}/*.jpg"]), photos) == ["a.jpg", "c,d.jpg"]
    assert _names(find_images([f"{photos}/**/a.jpg"]), photos) == ["a.jpg", "sub/a.jpg"]
    assert _names(find_images([f"{photos}/c,d.jpg"]), photos) == ["c,d.jpg"]
    assert _names(find_images([f"{photos}/sub/[x].jpg"]), photos) == ["sub/[x].jpg"]
    assert _names(find_images([f"{photos}/b.PNG", str(photos), ""]), photos) == ["b.PNG", "a.jpg", "c,d.jpg"]


def test_classic_dir_and_ext(photos):
    assert _names(find_images(["a,sub/a"], str(photos), ".jpg"), photos) == ["a.jpg", "sub/a.jpg"]
    assert _names(find_images([], f"{photos}/sub"), photos) == ["sub/[x].jpg", "sub/a.jpg"]


def test_an_answer_is_a_word_and_a_wrong_one_is_asked_again(photos, caplog):
    answers = iter([f"{photos}/none.jpg", f" {photos}/*.jpg "])
    assert _names(ask_for_images(lambda question: next(answers)), photos) == ["a.jpg", "c,d.jpg"]
    assert caplog.messages == [f"{photos}/none.jpg: no such file or folder; correct the path (or --dir and --ext)"]
    assert _names(ask_for_images(lambda question: f"{photos}/a", ".jpg"), photos) == ["a.jpg"]


def test_without_an_answer_there_are_no_images():
    def end(question):
        raise EOFError

    for ask in (end, lambda question: " "):
        with pytest.raises(OptionError, match="no images: give files"):
            ask_for_images(ask)


def test_what_is_not_there_is_named(photos):
    for word, reason in (("none.jpg", "none.jpg: no such"), (f"{photos}/*.gif", "no such"), (",", "no images")):
        with pytest.raises((DataError, OptionError), match=reason):
            find_images([word])
    (photos / "empty").mkdir()
    with pytest.raises(DataError, match="empty: the folder holds no images"):
        find_images([f"{photos}/empty"])


def test_a_folders_files_of_other_formats_are_told(photos, caplog):
    (photos / "notes.txt").write_text("")
    find_images([str(photos)])
    assert not caplog.text
    for name in ("x.jp2", "y.GIF", "z.mp4"):
        (photos / name).write_bytes(b"")
    assert _names(find_images([str(photos)]), photos) == ["a.jpg", "b.PNG", "c,d.jpg"]
    assert f"{photos}: pictures and videos left out: 3, first x.jp2; of a folder only .bmp, .jpeg" in caplog.text


def test_pictures_have_names_of_their_own():
    images = [Path("x/a.jpg"), Path("y/a.jpg"), Path("y/a-2.jpg"), Path("a.png"), Path("x/b"), Path("z/b.gif")]
    names = [path.name for path in plan_outputs(images, "--output", Path("out"))]
    assert names == ["a.jpg", "a-2.jpg", "a-2-2.jpg", "a.png", "b.png", "b.gif.png"]


def test_inputs_are_never_overwritten(photos):
    (photos / "link").symlink_to(photos)
    for folder in (photos, photos / "sub" / "..", photos / "link"):
        with pytest.raises(OptionError, match=r"^--heatmap .*a\.jpg is an image to read"):
            plan_outputs([photos / "a.jpg"], "--heatmap", folder)


def test_words_without_a_flag_are_images():
    images, flags = split_words(["a.jpg", "--thresh", "0.3", "b.jpg", "--model=m", "c.jpg", "-h", "d.jpg"])
    assert images == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    assert flags == ["--thresh", "0.3", "--model=m", "-h"]


def test_flags_that_may_stand_alone_get_their_number():
    defaults = {"--camera": "0", "--benchmark": "100"}
    for line, expected in (
        ("--camera", "--camera 0"),
        ("--camera 3 x.jpg", "--camera 3 x.jpg"),
        ("--benchmark x.jpg --camera", "--benchmark 100 x.jpg --camera 0"),
        ("--camera=1 --benchmark 7", "--camera=1 --benchmark 7"),
        ("", ""),
    ):
        assert with_values(line.split(), defaults) == expected.split()


def test_videos_become_films_with_names_of_their_own():
    sources = [
        InputSource(Path("x/a.avi"), True),
        InputSource(Path("y/a.bin"), True),
        InputSource(2, True),
        InputSource(Path("a.jpg"), False),
    ]
    paths, videos = [source.path for source in sources], {source.path for source in sources if source.video}
    names = [path.name for path in plan_outputs(paths, "--output", Path("out"), videos)]
    assert names == ["a.mp4", "a-2.mp4", "camera-2.mp4", "a.jpg"]
