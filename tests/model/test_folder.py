"""Model folders: complete, verified, replaced as a whole, and never at the cost of other files."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import CheckpointError, OptionError
from deploy.main import export
from machine.runtime import mx
from model import folder as model_folder
from model.checkpoint import load_checkpoint
from model.folder import inference_model, load_model, model_from_checkpoint, read_model_folder
from model.manifest import MANIFEST, PARAMS, SYMBOL
from tests import signing
from tests.model.tiny import CLASSES, MEAN, OPTIONS, SIZE, save_tiny, tiny_params


@pytest.fixture(scope="module")
def prefix(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("run") / "tiny")


@pytest.fixture
def folder(prefix, tmp_path):
    export(prefix, "auto", tmp_path / "model")
    return tmp_path / "model"


def test_the_folder_says_everything(prefix, folder):
    manifest = read_model_folder(folder).manifest
    assert sorted(os.listdir(folder)) == sorted([MANIFEST, PARAMS, SYMBOL])
    assert manifest.class_names == CLASSES
    assert (manifest.mean, manifest.size) == (MEAN, SIZE)
    assert manifest.source.scores == {"mAP": 0.5, "blue": 0.25}
    assert (manifest.source.prefix, manifest.source.epoch) == (prefix, 3)
    assert (manifest.network, manifest.options["width"]) == ("mobilenet", 0.25)
    assert manifest.versions["mxnet"] == mx.__version__
    assert {name: r.size for name, r in manifest.files.items()} == {
        name: (folder / name).stat().st_size for name in (SYMBOL, PARAMS)
    }


def test_weights_are_the_folded_ones_of_the_checkpoint_and_plain_mxnet_reads_them(prefix, folder):
    symbol, args, aux = mx.model.load_checkpoint(str(folder / "model"), 0)
    made = inference_model(model_from_checkpoint(load_checkpoint(prefix, 3)))
    expected_args, expected_aux = made.arg_params, made.aux_params
    assert not aux
    assert (
        (args["multi_feat_2_conv_1x1_conv_weight"] == tiny_params()[0]["multi_feat_2_conv_1x1_conv_weight"])
        .asnumpy()
        .all()
    )
    assert symbol.list_outputs() == ["detection_output"]
    for found, expected in ((args, expected_args), (aux, expected_aux)):
        assert found.keys() == expected.keys()
        assert all((found[name] == expected[name]).asnumpy().all() for name in found)


def test_detection_settings_come_from_the_checkpoint_unless_given(prefix, tmp_path):
    post = export(prefix, 3, tmp_path / "own").postprocessing
    assert (post.nms, post.nms_topk, post.score_threshold, post.force) == (0.45, 400, 0.05, False)
    changed = export(prefix, 3, tmp_path / "changed", nms=0.3, nms_topk=7, force=True)
    assert (changed.postprocessing.nms, changed.postprocessing.nms_topk, changed.postprocessing.force) == (0.3, 7, True)
    node = json.loads((tmp_path / "changed" / SYMBOL).read_text())["nodes"][-1]
    assert (node["attrs"]["nms_threshold"], node["attrs"]["nms_topk"]) == ("0.3", "7")


def test_another_input_size_keeps_the_weights(prefix, tmp_path):
    assert export(prefix, 3, tmp_path / "model", data_shape=(128,)).size == (128, 128)
    read_model_folder(tmp_path / "model")


def _write(path, change):
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)


@pytest.mark.parametrize("name", [SYMBOL, PARAMS])
@pytest.mark.parametrize("change", ["truncate", "empty", "flip", "append", "missing"])
def test_damaged_files_are_named(folder, name, change):
    path = folder / name
    changes = {
        "truncate": lambda c: c.__delitem__(slice(len(c) // 2, None)),
        "empty": lambda c: c.clear(),
        "flip": lambda c: c.__setitem__(len(c) // 2, c[len(c) // 2] ^ 1),
        "append": lambda c: c.append(0),
    }
    path.unlink() if change == "missing" else _write(path, changes[change])
    with pytest.raises(CheckpointError, match=name):
        read_model_folder(folder)


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v["files"].pop(PARAMS),
        lambda v: v["files"].update({"../../secret": v["files"][PARAMS]}),
        lambda v: v["files"][SYMBOL].update(size=10**12),
        lambda v: v.update(input_shape="96"),
        lambda v: v.clear(),
    ],
)
def test_damaged_manifests_are_named(folder, edit):
    signing.edit(folder / MANIFEST, edit)
    with pytest.raises(CheckpointError, match=MANIFEST):
        read_model_folder(folder)


def test_a_hostile_symbol_with_the_right_checksum_is_refused(folder, monkeypatch):
    graph = json.loads((folder / SYMBOL).read_text())
    graph["nodes"][-1].update(op="_Native", attrs={"info": "0x4141414141"})
    (folder / SYMBOL).write_text(json.dumps(graph))
    record = {"size": (folder / SYMBOL).stat().st_size, "sha256": model_folder.file_sha256(folder / SYMBOL)}
    signing.edit(folder / MANIFEST, lambda v: v["files"].update({SYMBOL: record}))
    monkeypatch.setattr(mx.sym, "load_json", lambda text: pytest.fail("loaded"))
    with pytest.raises(CheckpointError, match="_Native"):
        read_model_folder(folder)


def test_weights_of_another_network_are_refused(tmp_path):
    options = {**OPTIONS, "width": 0.5}
    prefix = save_tiny(tmp_path / "tiny", options=options)
    with pytest.raises(CheckpointError, match=r"tiny, epoch 3: parameter conv_\w+ has the shape"):
        export(prefix, 3, tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"class_names": ("a", "a", "b")},
        {"std": (1.0, 0.0, 1.0)},
        {"fill": 300},
    ],
)
def test_checkpoints_that_describe_no_detector_are_refused(tmp_path, changes):
    checkpoint = load_checkpoint(save_tiny(tmp_path / "tiny", **changes), 3)
    with pytest.raises(CheckpointError, match="tiny, epoch 3"):
        model_from_checkpoint(checkpoint)


def test_an_older_model_is_replaced(prefix, folder, tmp_path):
    export(prefix, 3, folder, nms=0.3)
    assert read_model_folder(folder).manifest.postprocessing.nms == 0.3
    (tmp_path / "empty").mkdir()
    export(prefix, 3, tmp_path / "empty")
    assert sorted(os.listdir(tmp_path)) == ["empty", "model"]


def test_other_data_is_never_replaced(prefix, folder):
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OptionError, match=r"notes\.txt"):
        export(prefix, 3, folder)
    with pytest.raises(OptionError, match="a file of that name"):
        export(prefix, 3, folder / "notes.txt")
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("broken", ["write_params", "read_model_folder", "rename"])
def test_a_failure_leaves_the_older_model_and_no_debris(prefix, folder, tmp_path, monkeypatch, broken):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    if broken == "rename":
        rename = os.rename
        monkeypatch.setattr(os, "rename", lambda a, b: fail() if str(a).endswith(".tmp") else rename(a, b))
    else:
        monkeypatch.setattr(model_folder, broken, fail)
    with pytest.raises(CheckpointError, match="No space left"):
        export(prefix, 3, folder, nms=0.3)
    monkeypatch.undo()
    assert read_model_folder(folder).manifest.postprocessing.nms == 0.45
    assert os.listdir(tmp_path) == ["model"]


def _hidden(folder, suffix):
    """The name under which this process, or one of its number that was killed, has the folder while it writes."""
    return folder.with_name(f".{folder.name}.{os.getpid()}.{suffix}")


def test_what_a_killed_process_of_the_same_number_left_is_removed(prefix, folder, tmp_path, caplog):
    for suffix in ("tmp", "old"):
        shutil.copytree(folder, _hidden(folder, suffix))
    export(prefix, 3, folder, nms=0.3)
    assert read_model_folder(folder).manifest.postprocessing.nms == 0.3
    assert os.listdir(tmp_path) == ["model"]
    assert not caplog.records


# An export that is killed before (0) or after (1) its first rename, or whose new folder was not whole yet (2).
KILLED = """
import os, shutil, signal, sys
folder, moment = sys.argv[1], int(sys.argv[2])
begin = os.path.join(os.path.dirname(folder), f".{os.path.basename(folder)}.{os.getpid()}.")
names = [begin + "tmp", begin + "old"]
shutil.copytree(folder, names[0])
if moment == 2:
    os.remove(names[0] + "/model-0000.params")
if moment:
    os.rename(folder, names[1])
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.faults
@pytest.mark.parametrize(("moment", "restored"), [(0, ""), (1, "tmp"), (2, "old")])
def test_what_another_process_left_is_found_and_cleared(prefix, folder, tmp_path, caplog, moment, restored):
    killed = subprocess.Popen([sys.executable, "-c", KILLED, folder, str(moment)])
    assert killed.wait() == -9
    running = tmp_path / f".model.{os.getppid()}.tmp"
    running.mkdir()
    if moment:
        with pytest.raises(CheckpointError, match=rf"killed left it as .*/\.model\.{killed.pid}\.{restored}: rename"):
            load_model(folder)
    export(prefix, 3, folder, nms=0.3)
    assert read_model_folder(folder).manifest.postprocessing.nms == 0.3
    assert sorted(os.listdir(tmp_path)) == [running.name, "model"]
    told = [f"model: was left as .model.{killed.pid}.{restored} by an export" for _ in range(bool(moment))]
    assert all(text in one.getMessage() for text, one in zip(told, caplog.records, strict=True))


@pytest.mark.faults
@pytest.mark.parametrize("fails", [False, True])
def test_a_model_whose_process_was_killed_between_the_renames_is_back(
    prefix, folder, tmp_path, caplog, monkeypatch, fails
):
    def fail(*arguments):
        raise OSError(28, "No space left on device")

    os.rename(folder, _hidden(folder, "old"))
    if fails:
        monkeypatch.setattr(model_folder, "write_params", fail)
        with pytest.raises(CheckpointError, match="No space left"):
            export(prefix, 3, folder, nms=0.3)
    else:
        export(prefix, 3, folder, nms=0.3)
    assert read_model_folder(folder).manifest.postprocessing.nms == (0.45 if fails else 0.3)
    assert os.listdir(tmp_path) == ["model"]
    (record,) = caplog.records
    assert f"model: was left as {_hidden(folder, 'old').name} by an export that was killed" in record.getMessage()


@pytest.mark.faults
def test_a_signal_between_the_renames_waits_for_both(tmp_path):
    """In a process of its own, which the signal may end."""
    for name in ("model", "other", "new", "newer"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    code = """
import os, signal
from pathlib import Path
from model.folder import _replace
rename, calls = os.rename, []
def interrupted(a, b):
    rename(a, b)
    calls.append(b)
    if len(calls) in (1, 4):
        os.kill(os.getpid(), signal.SIGINT)
os.rename = interrupted
for name, new in (("model", "new"), ("other", "newer")):
    try:
        _replace(Path(name), Path(new))
    except KeyboardInterrupt:
        print("interrupted after", len(calls), Path(name, "file").read_text())
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "interrupted after 2 new\ninterrupted after 4 newer\n"


def test_what_was_looked_for_is_said(prefix, folder, tmp_path):
    with pytest.raises(CheckpointError, match=r"none/manifest\.json and .*none-NNNN\.json"):
        load_model(tmp_path / "none")
    with pytest.raises(OptionError, match="model folder"):
        load_model(folder, 3)
    with pytest.raises(CheckpointError, match="no checkpoint of epoch 9"):
        load_model(prefix, 9)
