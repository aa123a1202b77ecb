"""deploy.py --onnx: the file in the folder, what it says, what it refuses; real images."""

import builtins
import json
import sys

import numpy as np
import pytest

from common.errors import CheckpointError, InstallError, OptionError
from deploy.main import main
from deploy.onnx_files import check_runtime, compare, mxnet_det, onnx_files, total, trial_data
from engines.onnx_engines import MESSAGES, check_self_contained, read_onnx
from engines.preprocess import InputWriter, read_image
from model.checkpoint import load_checkpoint
from model.folder import inference_model, model_from_checkpoint, read_model_folder, write_model_folder
from model.manifest import ONNX, read_manifest
from tests.deploy.onnx_runtimes import RUNTIMES, run
from tests.model.tiny import save_tiny

onnx = pytest.importorskip("onnx")
REAL_IMAGES = 50


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture(scope="module")
def model(prefix):
    return inference_model(model_from_checkpoint(load_checkpoint(prefix, "auto")))


@pytest.fixture(scope="module")
def content(model):
    return onnx_files(model)[ONNX]


def same(model, content, data, runtime="onnxruntime"):
    """The comparison of both, all the same."""
    result = compare(mxnet_det(model, data), run(runtime, onnx.load_from_string(content), data))
    assert result.unmatched == 0
    return result


def test_the_command_writes_it_and_names_it(prefix, tmp_path, capsys):
    folder = tmp_path / "model"
    main(["--prefix", prefix, "--onnx", "--output", str(folder)])
    assert ONNX in capsys.readouterr().out
    manifest = read_manifest(folder)
    assert manifest.files[ONNX].size == (folder / ONNX).stat().st_size
    model = read_model_folder(folder)
    result = same(model, read_onnx(folder, ONNX, manifest), trial_data(manifest, 3))
    assert result.detections == result.in_place > 30
    main(["--prefix", prefix, "--output", str(folder)])  # replaces it by a folder without
    assert not (folder / ONNX).exists()


def test_bytes_as_input_and_a_fixed_batch(prefix, tmp_path):
    folder = tmp_path / "model"
    main(["--prefix", prefix, "--onnx", "--onnx-batch", "2", "--uint8-input", "--output", str(folder)])
    content = (folder / ONNX).read_bytes()
    data = onnx.load_from_string(content).graph.input[0].type.tensor_type
    assert data.elem_type == onnx.TensorProto.UINT8
    assert [side.dim_value for side in data.shape.dim] == [2, 96, 80, 3]
    model = read_model_folder(folder)
    assert same(model, content, trial_data(model.manifest, 2)).detections > 20


def test_batch_without_onnx_is_refused(prefix):
    with pytest.raises(OptionError, match="--onnx-batch 2: is for --onnx"):
        main(["--prefix", prefix, "--onnx-batch", "2"])


def test_it_holds_no_batch_norm_and_no_anchors_to_compute(content):
    operators = {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert "BatchNormalization" not in operators
    assert operators & {"Loop", "Scan", "If", "Range"} == set()


def test_the_file_alone_says_what_it_finds(model, content):
    known = {entry.key: json.loads(entry.value) for entry in onnx.load_from_string(content).metadata_props}
    assert tuple(known["class_names"]) == model.manifest.class_names
    assert (tuple(known["mean"]), known["input_format"]) == (model.manifest.mean, "float32_nchw")


def test_what_another_runtime_finds_is_looked_at_before_the_folder_is_written(prefix, tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.onnx_files.mxnet_det", lambda model, data: np.random.default_rng(0).random((2, 9, 6)))
    monkeypatch.setattr("deploy.onnx_files.compare", lambda expected, found: compare(expected, expected + 1))
    with pytest.raises(OptionError, match=r"ONNX Runtime .* does not find what MXNet finds \(of 18 detections 0"):
        main(["--prefix", prefix, "--onnx", "--output", str(tmp_path / "model")])
    assert not (tmp_path / "model").exists()


def test_a_comparison_of_nothing_is_told(prefix, tmp_path, caplog):
    main(["--prefix", prefix, "--onnx", "--score-threshold", "1", "--output", str(tmp_path / "model")])
    assert "nothing could be compared: no score reaches the threshold 1" in caplog.text


def test_what_onnx_runtime_cannot_open_is_refused(model):
    pytest.importorskip("onnxruntime")
    with pytest.raises(OptionError, match=r"--onnx: ONNX Runtime .* cannot run model.onnx \(.+\); leave --onnx out"):
        check_runtime(b"junk", model, 1)


def test_without_the_package_it_is_named(model, monkeypatch):
    monkeypatch.delitem(sys.modules, "deploy.onnx_export.export", raising=False)
    real = builtins.__import__

    def without_onnx(name, *args, **kwargs):
        if name.partition(".")[0] == "onnx":
            raise ModuleNotFoundError("No module named 'onnx'", name="onnx")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_onnx)
    with pytest.raises(InstallError, match=r"package onnx is not installed; pip install .*\[onnx\]"):
        onnx_files(model)


def external(content):
    """The same file, the numbers of one tensor in another one."""
    proto = onnx.load_from_string(content)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/hostname"
    return proto.SerializeToString()


def test_a_file_that_reads_other_files_is_refused(model, content, tmp_path):
    check_self_contained(content)
    write_model_folder(tmp_path / "model", model, {ONNX: external(content)})
    with pytest.raises(CheckpointError, match=r"model.onnx: .*takes numbers from other files"):
        read_onnx(tmp_path / "model", ONNX, read_manifest(tmp_path / "model"))


def test_constants_of_nodes_and_subgraphs_are_looked_at(content):
    tensor = onnx.load_from_string(external(content)).graph.initializer[0]
    constant = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    inner = onnx.helper.make_graph([constant], "inner", [], [])
    branch = onnx.helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner)
    model = onnx.helper.make_model(onnx.helper.make_graph([branch], "outer", [], []))
    with pytest.raises(ValueError, match="other files"):
        check_self_contained(model.SerializeToString())


def test_every_way_to_a_tensor_is_known():
    kinds = {"ModelProto": "model", "TrainingInfoProto": "training", "FunctionProto": "function", "GraphProto": "graph",
             "NodeProto": "node", "AttributeProto": "attribute", "SparseTensorProto": "sparse",
             "TensorProto": "tensor"}  # fmt: skip
    for name, message in kinds.items():
        fields = getattr(onnx, name).DESCRIPTOR.fields
        inner = {
            f.number: kinds[f.message_type.name] for f in fields if f.message_type and f.message_type.name in kinds
        }
        assert MESSAGES[message] == inner


@pytest.mark.parametrize(
    ("key", "message"),
    [(b"\x2a", "other files"), (b"\xaa\x00", "other files"), (b"\xaa\x80\x80\x80\x10", "field number 536870917")],
)
def test_a_tensor_under_a_key_of_more_than_32_bits_is_refused(key, message):
    """OpenVINO drops the upper bits: what looks like field 2 ** 29 + 5 of the graph is a tensor for it."""
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/hostname"
    content = tensor.SerializeToString()
    graph = key + bytes([len(content)]) + content
    with pytest.raises(ValueError, match=message):
        check_self_contained(b"\x3a" + bytes([len(graph)]) + graph)


@pytest.mark.parametrize(
    "damage", [b"\xff" * 20, b"\x3a\x7f\x00", b"\x0b", b"\x00\x01", b"\xaa\x80\x80\x80\x80\x01\x00"]
)
def test_what_is_no_protobuf_is_refused(damage):
    with pytest.raises(ValueError, match="cut off|no protobuf"):
        check_self_contained(damage)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_real_images(runtime, model, content, bccd_dir):
    pictures = sorted(bccd_dir.rglob("*.jpg"))[:REAL_IMAGES]
    writer = InputWriter(model.manifest)
    data = writer.batch(len(pictures), len(pictures))
    for picture, row in zip(pictures, data, strict=True):
        writer.write(read_image(picture, picture.name), row)
    result = total(same(model, content, part, runtime) for part in np.array_split(data, 10))
    assert result.detections > 10 * len(pictures)
    assert result.in_place > 0.99 * result.detections
