"""Image lists: what is read, which line is at fault, and that no path leaves its root."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from dataset.image_list import ImageRoot, format_list, read_labels, read_list

BOX = "1\t0.1\t0.2\t0.5\t0.6\t0"


@pytest.fixture
def write(tmp_path):
    def write(text, name="a.lst"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_detection_and_classification_lines(write):
    text = f"7\t2\t6\t{BOX}\tdir/a b.jpg\r\n\n3\t4.000000\t\u2028ü.jpg\n"
    first, second = read_list(write(text.encode("utf-8-sig")))
    assert (first.index, first.path, first.line) == (7, "dir/a b.jpg", 1)
    assert first.label == (2, 6, 1, 0.1, 0.2, 0.5, 0.6, 0)
    assert (second.index, second.label, second.path, second.line) == (3, (4.0,), "\u2028ü.jpg".strip(), 3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0 a.jpg", "line 2: its fields are separated by spaces"),
        ("1\ta.jpg", "line 2: it has fewer than three fields"),
        ("a.jpg", "line 2: it has fewer than three fields"),
        ("1.0\t0\ta.jpg", "line 2: the index '1.0' is not a whole number"),
        ("-1\t0\ta.jpg", "line 2: the index '-1'"),
        ("9" * 5000 + "\t0\ta.jpg", "line 2: the index '99999"),
        ("9223372036854775808\t0\ta.jpg", "line 2: the index"),
        ("1\tcat\ta.jpg", "line 2: the label 'cat' is not a finite number"),
        ("1\tnan\ta.jpg", "line 2: the label 'nan'"),
        ("1\t1e39\ta.jpg", "line 2: the label '1e39'"),
        ("1\t\ta.jpg", "line 2: the label ''"),
        ("1\t0\t", "line 2: the path '' is not a file name"),
        ("1\t0\ta\0.jpg", "line 2: the path"),
        ("0\t0\ta.jpg", "line 2: index 0 is already in line 1"),
    ],
)
def test_a_wrong_line_is_named(write, line, message):
    with pytest.raises(DataError, match=f"a.lst, {message}"):
        read_list(write(f"0\t0\ta.jpg\n{line}\n"))


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "lists no images"), (b"0\t0\t\xff.jpg\n", "UTF-8")])
def test_a_list_without_images_or_text_is_refused(write, content, message):
    with pytest.raises(DataError, match=message):
        read_list(write(content))


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(DataError, match="b.lst: no such list"):
        read_list(tmp_path / "b.lst")


names = st.text(st.characters(exclude_characters="\t\r\n\0", exclude_categories=["Cs"]), min_size=1).filter(
    lambda name: name == name.strip()
)
values = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(st.tuples(st.lists(values, min_size=1, max_size=4), names), min_size=1, max_size=5))
def test_what_is_written_is_read(tmp_path_factory, lines):
    path = tmp_path_factory.mktemp("list") / "a.lst"
    path.write_bytes(format_list((k, [repr(v) for v in label], name) for k, (label, name) in enumerate(lines)))
    assert [(list(entry.label), entry.path) for entry in read_list(path)] == lines


@pytest.mark.parametrize("name", ["a\tb.jpg", "a\nb.jpg", " a.jpg", "\udcff.jpg"])
def test_names_that_no_list_can_hold_are_refused(name):
    with pytest.raises(DataError, match="cannot hold a file name"):
        format_list([(0, ["0"], name)])


@pytest.fixture
def folders(tmp_path):
    root = tmp_path / "root"
    (root / "in").mkdir(parents=True)
    (tmp_path / "root2").mkdir()
    for path in (root / "a.jpg", root / "in/b.jpg", tmp_path / "secret.jpg", tmp_path / "root2/c.jpg"):
        path.write_bytes(b"x")
    (root / "link.jpg").symlink_to(root / "in/b.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "outside").symlink_to(tmp_path / "root2")
    return root


@pytest.mark.parametrize("path", ["a.jpg", "in/b.jpg", "./a.jpg", "link.jpg", "missing.jpg"])
def test_paths_inside_the_root_are_found(folders, path):
    assert ImageRoot(folders).find(path) == str(folders / path)


@pytest.mark.parametrize(
    "path", ["../secret.jpg", "in/../a.jpg", "../root2/c.jpg", "out.jpg", "outside/c.jpg", "/etc/x"]
)
def test_paths_out_of_the_root_are_refused(folders, path):
    with pytest.raises(DataError, match="outside"):
        ImageRoot(folders).find(path)


@pytest.mark.parametrize(("path", "found"), [("out.jpg", True), ("outside/c.jpg", True), ("../secret.jpg", False)])
def test_links_out_of_the_root_are_followed_if_they_may(folders, path, found):
    root = ImageRoot(folders, follow_links=True)
    if found:
        assert root.find(path) == str(folders / path)
    else:
        with pytest.raises(DataError, match="outside"):
            root.find(path)
    with pytest.raises(DataError, match="link; --follow-links takes it" if found else "must stay inside"):
        ImageRoot(folders).find(path)


def test_a_link_as_the_root_itself_is_fine(folders, tmp_path):
    (tmp_path / "alias").symlink_to(folders)
    assert ImageRoot(tmp_path / "alias").find("a.jpg") == str(tmp_path / "alias/a.jpg")


def test_labels_come_in_the_order_of_the_records(write):
    path = write(f"5\t2\t6\ta.jpg\n9\t2\t6\t{BOX}\t{BOX}\tb.jpg\n1\t2\t5\t0\t0\t0\t1\t1\tc.jpg\n")
    labels = read_labels(path, np.array([9, 5]), None)
    assert [labels.of(0).size, labels.of(1).tolist(), labels.max_objects] == [14, [2, 6], 2]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("3", "line 1: the label has 1 values"),
        ("2\t6\t1\t0.1", "line 1: 2 label values are not a multiple"),
        ("2\t6\t1\t10\t20\t50\t60\t0", "line 1, object 0 .*pixel coordinates"),
        ("2\t6\t2\t0.1\t0.2\t0.5\t0.6\t0", "line 1, object 0 .*class ids"),
    ],
)
def test_a_label_that_cannot_be_trained_on_names_its_line(write, label, message):
    with pytest.raises(DataError, match=message):
        read_labels(write(f"0\t{label}\ta.jpg\n"), np.array([0]), 2)


def test_a_record_without_a_line_is_named(write):
    with pytest.raises(DataError, match=r"no line for record 4 \(2 of 3 records miss one\)"):
        read_labels(write("3\t2\t6\ta.jpg\n"), np.array([3, 4, 5]), None)


def test_a_file_that_is_too_large_for_a_list(write, monkeypatch):
    monkeypatch.setattr("dataset.image_list.MAX_BYTES", 9)
    with pytest.raises(DataError, match=r"a\.lst: larger than 0 MiB, this is not a list"):
        read_list(write("1\t0\ta.jpg\n"))
