"""A list replaces the labels of a record: the right one for each record, checked before the first batch."""

import numpy as np
import pytest

from common.errors import DataError, OptionError
from dataset.iterator import DetRecordIter
from dataset.labels import pack_label
from dataset.recordio import RecordWriter, pack
from dataset.sidecar import Sidecar, write_sidecar
from tests.dataset.voc import jpeg

IDS = (30, 10, 20)
IN_RECORD = np.float32([[0, 0, 0, 1, 1, 0]])


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "a.rec"
    with RecordWriter(path) as writer:
        for index in IDS:
            writer.write(index, pack(pack_label(IN_RECORD), jpeg(), index))
    write_sidecar(path, Sidecar(("x", "y"), 3, 3, 1, (3, 0), 8, "", "", path.stat().st_size, "0"))
    return path


@pytest.fixture
def image_list(tmp_path):
    """Record i has i / 10 - 1 objects: 0, 1, 2; 99 is not in the record."""
    path = tmp_path / "new.lst"
    box = [f"1\t0.1\t0.2\t0.5\t0.{k}\t0" for k in (7, 8)]
    path.write_text(
        f"10\t2\t6\ta.jpg\n20\t2\t6\t{box[0]}\tb.jpg\n30\t2\t6\t{box[0]}\t{box[1]}\tc.jpg\n99\t2\t6\td.jpg\n"
    )
    return path


def labels(path, **options):
    iterator = DetRecordIter(path, 3, 32, augment=None, **{"workers": 0} | options)
    try:
        batch = iterator.next()
        return dict(zip(batch.index.tolist(), batch.label[0].asnumpy(), strict=True))
    finally:
        iterator.close()


@pytest.mark.parametrize("workers", [0, 1])
def test_labels_of_the_list_replace_those_of_the_record(record, image_list, workers):
    found = labels(record, path_imglist=image_list, workers=workers)
    assert all(rows.shape == (2, 6) for rows in found.values())  # as many rows as the list needs, not the sidecar
    assert [int((found[index][:, 0] >= 0).sum()) for index in (10, 20, 30)] == [0, 1, 2]
    np.testing.assert_allclose(found[30], [[1, 0.1, 0.2, 0.5, 0.7, 0], [1, 0.1, 0.2, 0.5, 0.8, 0]], rtol=1e-6)


def test_records_are_known_by_their_own_ids_without_an_index(record, image_list):
    record.with_suffix(".idx").unlink()
    found = labels(record, path_imglist=str(image_list))
    assert [int((found[k][:, 0] >= 0).sum()) for k in range(3)] == [2, 0, 1]  # ids 30, 10, 20


def test_without_a_list_the_record_counts(record):
    np.testing.assert_array_equal(labels(record, path_imglist="")[20], IN_RECORD)


def test_faults_are_found_before_the_first_batch(record, image_list):
    with pytest.raises(OptionError, match="new.lst: an image has 2 objects, labels have 1 rows"):
        labels(record, path_imglist=image_list, max_objects=1)
    image_list.write_text(image_list.read_text().replace("20\t2", "21\t2"))
    with pytest.raises(DataError, match="no line for record 20"):
        labels(record, path_imglist=image_list)
    image_list.write_text(image_list.read_text().replace("21\t2", "20\t2").replace("\t1\t0.1", "\t2\t0.1"))
    with pytest.raises(DataError, match="new.lst, line 3, object 0 .*class ids"):
        labels(record, path_imglist=image_list)


def test_a_record_that_is_none_is_named(tmp_path, image_list):
    path = tmp_path / "b.rec"
    with RecordWriter(path) as writer:
        writer.write(0, b"short")
    with pytest.raises(DataError, match="b.rec, record 0: it is no image record"):
        labels(path, path_imglist=image_list, num_classes=2)
