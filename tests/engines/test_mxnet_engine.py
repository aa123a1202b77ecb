"""Models that cannot run are refused when they are bound."""

import dataclasses

import pytest

from common.errors import CheckpointError, OutOfMemoryError
from deploy.precision import calibrate
from engines import mxnet_engine
from engines.mxnet_engine import bind
from graph.number_formats import fuse
from machine.runtime import mx
from model.folder import inference_model
from model.manifest import Calibration
from tests.model.made_up import images, made_up

MODEL = inference_model(made_up("mobilenet"))


@pytest.mark.parametrize("values", [(-1e30, 1e30), (-6.0, -5.0)], ids=str)
def test_thresholds_with_which_no_image_can_be_run_are_refused(values):
    known = calibrate(fuse(MODEL.symbol, MODEL.arg_params, MODEL.aux_params), [images(MODEL)], "naive")
    calibration = Calibration("", "naive", 1, dict.fromkeys(known, values))
    manifest = dataclasses.replace(MODEL.manifest, dtype="int8", calibration=calibration)
    with pytest.raises(CheckpointError, match="cannot run this model as int8"):
        bind(dataclasses.replace(MODEL, manifest=manifest), mx.cpu(), 1)


@pytest.mark.parametrize("error", [KeyError, ValueError, IndexError])
def test_what_the_conversion_does_not_expect_is_a_damaged_model(error, monkeypatch):
    def fail(*arguments):
        raise error("node")

    monkeypatch.setattr(mxnet_engine, "converted", fail)
    with pytest.raises(CheckpointError, match="cannot run this model as float32"):
        bind(MODEL, mx.cpu(), 1)


def test_exhausted_memory_is_told_with_its_remedy(monkeypatch):
    def exhausted(*_, **__):
        raise mx.base.MXNetError("std::bad_alloc")

    monkeypatch.setattr(mx.sym.Symbol, "simple_bind", exhausted)
    with pytest.raises(OutOfMemoryError, match="lower --batch-size, or export the model with a smaller --data-shape"):
        bind(MODEL, mx.cpu(), 1)
