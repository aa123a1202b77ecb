"""Engines: the same detections whichever runs the network, the fastest by default, mxnet only where it is needed."""

import dataclasses
import json
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from common.errors import CheckpointError, InstallError, OptionError
from config.groups import DeviceOptions
from deploy.export import export
from detect.detector import Detector
from engines import choice
from engines import open as opening
from machine.runtime import mx
from model.folder_files import ONNX, read_manifest
from model.manifest import Calibration
from tests.engines.tiny_onnx import expected_rows, tiny_onnx, with_onnx
from tests.model.tiny import picture, save_tiny

ROOT = Path(__file__).parents[2]
OTHERS = ("onnxruntime", "openvino")
IMAGES = [picture(seed, 60 + 30 * seed, 150 - 20 * seed) for seed in range(3)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model folder without model.onnx, beside the checkpoint that it comes from."""
    root = tmp_path_factory.mktemp("run")
    export(save_tiny(root / "tiny"), 3, root / "plain")
    return root / "plain"


@pytest.fixture(scope="module")
def folder(plain):
    return with_onnx(plain, plain.parent / "folder")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/mxnet-detector-trainer/engines.json"


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("batch_in_file", [1, 2, "batch"])
def test_model_onnx_is_run_in_any_batch_size(plain, tmp_path, engine, batch_in_file):
    folder = with_onnx(plain, tmp_path / "model", batch=batch_in_file)
    for batch_size in (1, 3):
        detector = Detector(folder, engine=engine, threshold=0.0, batch_size=batch_size)
        assert detector.engine == engine
        for image, rows in zip(IMAGES, detector.detect(IMAGES), strict=True):
            np.testing.assert_allclose(rows, expected_rows(detector.manifest, image), rtol=1e-5)


@pytest.mark.parametrize("engine", ["mxnet", *OTHERS])
def test_threads_share_an_engine(folder, engine):
    detector = Detector(folder, engine=engine, threshold=0.0)
    alone = [detector.detect(image) for image in IMAGES]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, IMAGES * 8))
    for k, rows in enumerate(together):
        np.testing.assert_array_equal(rows, alone[k % len(IMAGES)])


def test_checkpoints_and_folders_without_onnx_are_run_by_mxnet(plain, cache):
    for path in (plain, plain.parent / "tiny"):
        assert Detector(path).engine == "mxnet"
        for engine in OTHERS:
            with pytest.raises(OptionError, match="export"):
                Detector(path, engine=engine)
    assert not cache.exists()


def test_auto_measures_once_for_each_model_and_batch(folder, cache, caplog):
    caplog.set_level(logging.INFO)
    first = Detector(folder)
    assert sum("the fastest here" in line for line in caplog.messages) == 1
    assert Detector(folder).engine == first.engine
    assert sum("the fastest here" in line for line in caplog.messages) == 1
    Detector(folder, batch_size=2)
    assert sum("the fastest here" in line for line in caplog.messages) == 2
    entries = json.loads(cache.read_text())
    assert len(entries) == 2
    assert all(entry["seconds"].keys() == {"mxnet", *OTHERS} for entry in entries.values())


class _Fake:
    def __init__(self, name, seconds):
        self.name, self.seconds, self.manifest = name, seconds, None

    def run(self, data):
        time.sleep(self.seconds)
        return data


def _fakes(**seconds):
    opened = []

    def opener(name, value):
        def open_engine():
            opened.append(name)
            if value is None:
                raise InstallError(f"{name} is broken")
            return _Fake(name, value)

        return open_engine

    return {name: opener(name, value) for name, value in seconds.items()}, opened


def test_the_fastest_is_chosen_and_alone_opened_later(cache):
    openers, opened = _fakes(slow=0.02, fast=0.001)
    assert choice.fastest(openers, "key", np.zeros(1)).name == "fast"
    assert opened == ["slow", "fast"]
    assert choice.fastest(openers, "key", np.zeros(1)).name == "fast"
    assert opened == ["slow", "fast", "fast"]
    choice.fastest(openers, "other key", np.zeros(1))
    assert len(opened) == 5


def test_slow_networks_are_measured_with_few_runs(monkeypatch):
    monkeypatch.setattr(choice, "TURN_SECONDS", 0.02)
    monkeypatch.setattr(choice, "MAX_SECONDS", 0.05)
    runs = []

    class Slow(_Fake):
        def run(self, data):
            runs.append(super().run(data))

    assert 0.03 <= choice.measure([Slow("slow", 0.03)], np.zeros(1))["slow"] < 1
    assert len(runs) == 1 + 2


def test_engines_that_do_not_start_are_left_out_with_a_warning(caplog, cache):
    openers, _ = _fakes(broken=None, sound=0.0)
    assert choice.fastest(openers, "key", np.zeros(1)).name == "sound"
    assert "broken is broken" in caplog.text
    choice.remember("key", "broken", {})
    assert choice.fastest(openers, "key", np.zeros(1)).name == "sound"
    with pytest.raises(InstallError, match="broken is broken"):
        choice.fastest(_fakes(broken=None)[0], "key", np.zeros(1))


@pytest.mark.parametrize("content", ["", "[]", "{", '{"key": 3}', '{"key": {"engine": 1}}', '{"key": {"engine": "x"}}'])
def test_a_damaged_cache_is_measured_and_written_anew(cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    openers, _ = _fakes(slow=0.01, fast=0.0)
    assert choice.fastest(openers, "key", np.zeros(1)).name == "fast"
    assert choice.recall("key") == "fast"


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    openers, opened = _fakes(slow=0.01, fast=0.0)
    for _ in range(2):
        assert choice.fastest(openers, "key", np.zeros(1)).name == "fast"
    assert len(opened) == 4
    assert sum("cannot be remembered" in line for line in caplog.messages) == 2


def test_the_cache_keeps_the_newest_entries(monkeypatch):
    monkeypatch.setattr(choice, "MAX_ENTRIES", 3)
    for k in range(5):
        choice.remember(f"key {k}", "mxnet", {"mxnet": 0.1})
    assert [choice.recall(f"key {k}") for k in range(5)] == [None, None, "mxnet", "mxnet", "mxnet"]


def test_the_choice_depends_on_what_changes_the_speed(folder, plain, monkeypatch):
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    manifest = read_manifest(folder)
    keys = [
        choice.choice_key(manifest, 1, 2, ["mxnet"]),
        choice.choice_key(manifest, 2, 2, ["mxnet"]),
        choice.choice_key(manifest, 1, 1, ["mxnet"]),
        choice.choice_key(manifest, 1, 2, ["mxnet", "openvino"]),
        choice.choice_key(read_manifest(plain), 1, 2, ["mxnet"]),
    ]
    assert len(set(keys)) == len(keys)
    assert keys[0] == choice.choice_key(manifest, 1, 2, ["mxnet"])
    for excluded in ((), ("conv1",)):
        calibration = Calibration("", "naive", 1, {}, excluded)
        int8 = dataclasses.replace(manifest, dtype="int8", calibration=calibration)
        keys.append(choice.choice_key(int8, 1, 2, ["mxnet"]))
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "AVX2")
    keys.append(choice.choice_key(manifest, 1, 2, ["mxnet"]))
    monkeypatch.setattr(choice, "installed_version", {"mxnet-cu112": "1.9.1"}.get)
    keys.append(choice.choice_key(manifest, 1, 2, ["mxnet"]))
    monkeypatch.setattr(choice, "installed_version", {"mxnet-cu112": "1.9.2"}.get)
    keys.append(choice.choice_key(manifest, 1, 2, ["mxnet"]))
    assert len(set(keys)) == len(keys)


def test_what_is_not_installed_is_one_sentence_with_the_remedy(folder, plain, monkeypatch):
    installed = {"onnxruntime"}
    monkeypatch.setattr(opening, "_is_installed", lambda name: name in installed)
    assert Detector(folder).engine == "onnxruntime"
    with pytest.raises(InstallError, match=r"openvino, which is not installed \(pip install -e '\.\[openvino\]'\)"):
        Detector(folder, engine="openvino")
    for path in (plain, plain.parent / "tiny"):
        with pytest.raises(InstallError, match=r"mxnet, which is not installed \(pip install -e '\.\[cpu\]'\)"):
            Detector(path)
    installed.clear()
    with pytest.raises(InstallError, match="needs mxnet, .* or onnxruntime, .* or openvino, "):
        Detector(folder)


def test_a_gpu_means_mxnet(folder, monkeypatch):
    monkeypatch.setattr(opening, "usable_gpus", lambda: ([0], None))
    opened = []
    monkeypatch.setattr(opening, "_open", lambda name, *others: opened.append(name))
    for device in (None, DeviceOptions(), DeviceOptions(gpus="0")):
        opening.open_engine("auto", opening.Task(folder, device=device))
    assert opened == ["mxnet"] * 3
    monkeypatch.setattr(opening, "_open_auto", lambda names, *others: opened.append(names))
    opening.open_engine("auto", opening.Task(folder, device=DeviceOptions(cpu=True)))
    assert opened[-1] == ["mxnet", *OTHERS]
    with pytest.raises(OptionError, match="--gpus 0: openvino runs on the CPU"):
        opening.open_engine("openvino", opening.Task(folder, device=DeviceOptions(gpus="0")))
    with pytest.raises(OptionError, match=r"ctx gpu\(0\): onnxruntime runs on the CPU"):
        Detector(folder, engine="onnxruntime", ctx=mx.gpu(0))


@pytest.mark.parametrize("engine", OTHERS)
def test_damaged_and_foreign_files_are_named(plain, tmp_path, engine):
    with_onnx(plain, tmp_path / "foreign", b"\x08\x08")  # an ONNX file without a graph
    with pytest.raises(InstallError, match=f"model.onnx: {engine} cannot run it"):
        Detector(tmp_path / "foreign", engine=engine)
    damaged = with_onnx(plain, tmp_path / "damaged") / ONNX
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="model.onnx: damaged"):
        Detector(tmp_path / "damaged", engine=engine)
    damaged.unlink()
    with pytest.raises(CheckpointError, match="model.onnx: missing"):
        Detector(tmp_path / "damaged", engine=engine)


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.parametrize("change", [{"size": (96, 96)}, {"data": "image"}, {"det": "found"}])
def test_files_that_are_no_detector_of_this_manifest_are_refused(plain, tmp_path, engine, change):
    folder = with_onnx(plain, tmp_path / "model", tiny_onnx(**{"size": read_manifest(plain).size, **change}))
    with pytest.raises(CheckpointError, match=r"model.onnx: reads .* and gives .*, not data \(B, 3, 96, 80\) and det"):
        Detector(folder, engine=engine)


def test_unknown_engines_and_settings_of_a_folder(folder):
    with pytest.raises(OptionError, match="engine 'tensorrt': expected auto, mxnet, onnxruntime, openvino"):
        Detector(folder, engine="tensorrt")
    for engine in OTHERS:
        with pytest.raises(OptionError, match="--nms 0.1: .* was exported with 0.45"):
            Detector(folder, engine=engine, nms=0.1)
        with pytest.raises(OptionError, match="--epoch 3: .* is a model folder"):
            Detector(folder, 3, engine=engine)
        with pytest.raises(OptionError, match="unknown option 'nms_thresh': .* has operator, nms,"):
            Detector(folder, engine=engine, nms_thresh=0.4)


@pytest.mark.parametrize("engine", ["auto", "onnxruntime", "openvino"])
def test_a_folder_is_usable_without_mxnet(folder, tmp_path, engine):
    code = f"""
import importlib.abc, importlib.util, sys
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "mxnet" else find_spec(name, *rest)
sys.modules["mxnet"] = None
from detect.main import main
sys.exit(main([{str(tmp_path / "a.png")!r}, "--model", {str(folder)!r}, "--engine", {engine!r}, "--thresh", "0.01",
               "--output", "", "--json", {str(tmp_path / "found.json")!r}]))
"""
    from engines.preprocess import encode_image

    (tmp_path / "a.png").write_bytes(encode_image(IMAGES[0], ".png"))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "found.json").read_text())[0]["detections"]) == 2
