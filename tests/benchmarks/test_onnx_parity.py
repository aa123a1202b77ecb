"""benchmarks.onnx_parity: which images are compared."""

import numpy as np
import pytest

from benchmarks.onnx_parity import ParityOptions, inputs
from common.errors import OptionError
from model.checkpoint import load_checkpoint
from model.folder import model_from_checkpoint
from tests.model.tiny import save_tiny
from tests.train.tiny import write_record

IMAGES = 7


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    return model_from_checkpoint(load_checkpoint(save_tiny(tmp_path_factory.mktemp("run") / "tiny"), 3)).manifest


@pytest.fixture(scope="module")
def rec(tmp_path_factory):
    return write_record(tmp_path_factory.mktemp("data") / "images.rec", IMAGES)


@pytest.mark.parametrize(("images", "batch", "batches"), [(50, 1, 7), (50, 2, 3), (50, 7, 1), (5, 2, 2), (3, 3, 1)])
def test_what_there_is_is_taken_in_whole_batches(manifest, rec, images, batch, batches):
    found = inputs(manifest, ParityOptions(rec=rec, images=images, batch=batch))
    assert [len(data) for data in found] == [batch] * batches
    each = np.concatenate(inputs(manifest, ParityOptions(rec=rec, images=batches * batch)))
    np.testing.assert_array_equal(np.concatenate(found), each)


@pytest.mark.parametrize(("images", "batch"), [(50, 8), (2, 3)])
def test_a_batch_that_is_never_full_is_refused(manifest, rec, images, batch):
    with pytest.raises(
        OptionError, match=f"--batch {batch}: no batch is full with --images {images} of the 7 in .*rec"
    ):
        inputs(manifest, ParityOptions(rec=rec, images=images, batch=batch))
