"""Weights of the YOLOv3-SPP trainer through Darknet's .cfg and .weights, and from its state_dict: the same outputs."""

import numpy as np
import pytest

from model.weights import darknet, pytorch
from symbol.darknet_cfg import format_cfg
from symbol.darknet_sections import with_anchors, with_classes
from symbol.detector.yolo import find_row as find_yolo_row
from symbol.detector.yolo import levels
from symbol.network_options import YOLOOptions
from symbol.yolo_losses import by_anchor
from tests.golden import yolo
from tests.golden.loader import IS_OWN, assert_close, case_of, cases, formula_parameters, largest_difference
from tests.golden.test_yolo_network import run
from tests.model.weights.agreement import record


@pytest.mark.parametrize("case", cases("yolov3spp_forward"), ids=str)
def test_cfg_and_weights_give_the_outputs_of_the_original(case, tmp_path):
    args = case.args
    row = find_yolo_row(args["network"]).sections
    sections = with_classes(with_anchors(row, [tuple(pair) for pair in args["anchors_px"]]), args["num_classes"])
    cfg, weights = tmp_path / "net.cfg", tmp_path / "net.weights"
    darknet.write(weights, sections, yolo.parameters(args["network"], args["gain"]), seen=0)
    cfg.write_text(format_cfg(sections, tuple(args["input_hw"])))
    network = f"darknet:{cfg}"
    arg, aux = darknet.rename(darknet.read(weights), network, {})
    maps = levels(network, find_yolo_row(network), tuple(args["input_hw"]), args["num_classes"], YOLOOptions())
    found = {}
    for k, level in enumerate(maps):
        arrays = {**arg, **aux, "data": case.formula_input("input")}
        found[f"p{k}"] = run(by_anchor(level.symbol, anchors=len(level.anchors)), arrays)[0]
        assert_close(case, f"p{k}", found[f"p{k}"])
    if IS_OWN:
        relative = largest_difference(case, found)
        record("yolov3-spp.pytorch", args["network"], "PyTorch (tests/golden)", relative=relative)


@pytest.mark.parametrize("case", cases("yolov3spp_forward"), ids=str)
def test_state_dict_of_the_trainer(case, tmp_path):
    torch = pytest.importorskip("torch")
    args, path = case.args, tmp_path / "best.pt"
    stored = formula_parameters(case_of("formula_params", network=args["network"], gain=args["gain"]))
    state = {name: torch.from_numpy(array) for name, array in stored}
    counters = {
        name.replace("running_var", "num_batches_tracked"): torch.tensor(7) for name in state if "running_var" in name
    }
    torch.save({"epoch": 3, "model": state | counters, "best_map": 0.5}, path)
    arg, aux = pytorch.rename_yolo(pytorch.read(path), args["network"], {})
    wanted = yolo.parameters(args["network"], args["gain"])
    assert set(wanted) == {*arg, *aux}
    assert all(np.array_equal({**arg, **aux}[name], array) for name, array in wanted.items())
