"""Two workers on loopback train as one process with their whole batch does, and validate as it does."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from common.errors import OptionError
from config.options import to_mapping
from machine.runtime import mx
from tests.train.tiny import NETWORK, flags, metrics, write_record
from train.building import store_of_devices
from train.main import main
from train.options import train_options
from train.ps_lite import check_job
from train.ranks import Ranks
from train.training import run_training

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240  # a loaded machine must not fail a test
BATCH_NORM = r".*_(gamma|beta)"
SMALL = {"batch_size": 2, "end_epoch": 1, "workers": 0, "augment": "none", "score_threshold": 0.001}
FAMILIES = {
    "ssd": NETWORK,
    "yolo": {"network": "yolov3_tiny", "width": 0.125, "data_shape": (64,)},
    "cpus": NETWORK,
    "effdet": {"network": "efficientdet_mini", "data_shape": (128,)},
}
# What is trained over weights of a run of one update, whose batch norms stay as they are.
RUNS = {
    "ssd": {
        "augment": "ssd",
        "accumulate": 2,
        "clip_gradient_norm": 1.0,
        "ema": 0.9,
        "lr_schedule": "cosine",
        "warmup_updates": 2,
        "end_epoch": 2,
        "val_loss": True,
    },
    "yolo": {"multi_scale": (1.0, 1.5), "max_iter": 4, "val_path": ""},
    # Two devices: more losses are on their way at once than there are batches.
    "cpus": {"cpus": 2, "accumulate": 3, "end_epoch": 2, "val_path": ""},
    "effdet": {"drop_connect": 0.0, "max_iter": 3, "val_path": ""},
}
DEFAULT, SLOW = ("ssd", "cpus"), ("yolo", "effdet")  # a job of workers each, with its servers
every_family = pytest.mark.parametrize(
    "family", [*DEFAULT, *(pytest.param(family, marks=pytest.mark.slow) for family in SLOW)]
)
STILL = {"lr": 0.0, "freeze": BATCH_NORM, "metrics": ("voc07", "coco"), "report": True}  # the weights stay as they are


JOB = {
    "DMLC_ROLE": "worker",
    "DMLC_PS_ROOT_URI": "127.0.0.1",
    "DMLC_PS_ROOT_PORT": "9091",
    "DMLC_NUM_WORKER": "2",
    "DMLC_NUM_SERVER": "1",
}


def launch(words, *more, check=True):
    """The command under tools/launch.py with two workers and a server."""
    command = [sys.executable, "tools/launch.py", "-n", "2", "-s", "1", *more, sys.executable, *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """(folder, what builds the options of a run of a family): 21 images to train on, 5 to validate on."""
    folder = tmp_path_factory.mktemp("several")
    train, val = write_record(folder / "train.rec", 21, 1), write_record(folder / "val.rec", 5, 2)

    def options(family, prefix, **changes):
        common = {"train_path": train, "val_path": val, "prefix": str(folder / prefix), "lr": 0.002}
        return train_options(**(SMALL | FAMILIES[family] | common | changes))

    return folder, options


@pytest.fixture(scope="module")
def trained(build):
    """{family: (options of one process, options of the workers)} of runs that are done, and those of "still"."""
    return train_pairs(build, DEFAULT, still=True)


@pytest.fixture(scope="module")
def trained_slowly(build):
    """As `trained`, of the other families."""
    return train_pairs(build, SLOW)


@pytest.fixture
def pair(family, request):
    """(options of one process, options of the workers) of a family's runs."""
    return request.getfixturevalue("trained" if family in DEFAULT else "trained_slowly")[family]


def train_pairs(build, families, still=False):
    folder, options = build
    pairs = {}
    for family in families:
        changes = RUNS[family]
        run_training(options(family, f"{family}-start", batch_size=4, max_iter=1, val_path=""))
        make = partial(options, family, pretrained=str(folder / f"{family}-start"), epoch="1", freeze=BATCH_NORM)
        one = make(f"{family}-one", **({"batch_size": 4} | changes))
        pairs[family] = one, make(f"{family}-two", kv_store="dist_sync", **changes)
    if still:
        make = partial(options, "ssd", pretrained=str(folder / "ssd-one"), epoch="2", **STILL)
        pairs["still"] = make("still-one"), make("still-two", kv_store="dist_sync")
    for one, _ in pairs.values():
        run_training(one)
    cases = folder / f"{families[0]}-cases.json"
    cases.write_text(json.dumps([to_mapping(two) | {"num_example": None} for _, two in pairs.values()]))
    (folder / f"{families[0]}-said").write_text(launch(["-m", "tests.train.ranks_runner", str(cases)]).stderr)
    return pairs


def arrays(options, kind):
    newest = sorted(Path(options.output.prefix).parent.glob(f"{Path(options.output.prefix).name}-0*.{kind}"))[-1]
    return {name: array.asnumpy() for name, array in mx.nd.load(str(newest)).items()}


@every_family
@pytest.mark.parametrize("kind", ["params", "optim.params"])
def test_parameters_and_optimizer_are_those_of_one_process_with_the_whole_batch(pair, kind):
    one, two = (arrays(options, kind) for options in pair)
    assert list(one) == list(two)
    for name, array in one.items():
        scale = np.abs(array).max() + 1e-8
        np.testing.assert_allclose(two[name] / scale, array / scale, atol=2e-5, err_msg=name)


@every_family
def test_the_runs_have_trained(pair):
    one = pair[0]
    start = mx.nd.load(f"{one.start.pretrained}-0001.params")
    moved = [name for name, array in arrays(one, "params").items() if (array != start[name].asnumpy()).any()]
    assert any(name.endswith("_weight") for name in moved)
    assert not any(name.endswith(("_gamma", "_beta")) for name in moved)


@every_family
def test_losses_and_rates_are_those_of_one_process(pair):
    lines = [metrics(options.output.prefix) for options in pair]
    for one, two in zip(*lines, strict=True):
        assert two["num_update"] == one["num_update"]
        assert two["learning_rate"] == one["learning_rate"]
        for part in ("train", "validation_loss"):
            assert two.get(part, {}) == pytest.approx(one.get(part, {}), rel=1e-4)


def test_a_merged_validation_is_that_of_one_process_to_the_last_digit(trained):
    """Of five images the one worker has three in two batches, the other two in one: its second one is empty."""
    one, two = (metrics(options.output.prefix)[-1] for options in trained["still"])
    assert two["validation"] == one["validation"]
    assert two.get("best_f1") == one.get("best_f1")
    assert {"mAP", "AP", "AP50"} <= set(one["validation"])
    assert one["validation"]["mAP"] > 0


def test_rank_0_alone_writes_and_nothing_less_than_one_process(trained, build):
    folder, _ = build
    names = [{path.name.replace(which, "") for path in folder.glob(f"still-{which}*")} for which in ("one", "two")]
    assert names[0] == names[1]
    assert len(names[0]) > 5


def test_a_server_unpickles_nothing(trained, build):
    folder, _ = build
    assert "is not obeyed: this server takes gradients alone" in (folder / "ssd-said").read_text()
    assert not (folder / "ssd-cases.json.unpickled").exists()


@pytest.mark.parametrize(
    ("kv_store", "count", "store"),
    [
        ("local", 1, "local"),
        ("device", 1, "device"),
        ("dist_sync", 1, "local"),
        ("dist_device_sync", 1, "device"),
        ("dist_sync", 2, None),
    ],
)
def test_mxnet_itself_never_adds_up_over_processes(build, kv_store, count, store):
    """A second store of several processes in one process would wait for ever."""
    assert store_of_devices(build[1]("ssd", "store", kv_store=kv_store), Ranks(None, 0, count)) == store


REFUSED = {
    "dist_async": (["--kv-store", "dist_async"], "dist_async updates in an order that no checkpoint keeps"),
    "2bit": (["--gradient-compression", "2bit"], "2bit keeps what it has not sent"),
    "native": (["--kv-store", "dist_sync", "--data-engine", "native"], "--data-engine native and --kv-store dist_sync"),
    "rect-val": (["--kv-store", "dist_sync", "--rect-val"], "--rect-val and --kv-store dist_sync exclude"),
    "nominal": (["--kv-store", "dist_sync", "--nominal-batch", "64"], "--nominal-batch and --kv-store dist_sync"),
    "alone": (["--kv-store", "dist_sync"], "DMLC_ROLE, DMLC_PS_ROOT_URI"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_several_processes_cannot_do_is_refused_by_name(case, build, monkeypatch):
    words, sentence = REFUSED[case]
    _, options = build
    if case != "alone":
        for name, value in JOB.items():
            monkeypatch.setenv(name, value)
    with pytest.raises(OptionError, match=sentence):
        main([*flags(options("ssd", "refused")), *words])


def test_a_worker_that_would_train_alone_is_refused(build, monkeypatch):
    monkeypatch.setenv("DMLC_ROLE", "worker")
    with pytest.raises(OptionError, match="each would train alone; give --kv-store dist_sync"):
        main(flags(build[1]("ssd", "refused")))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"DMLC_PS_ROOT_URI": "10.0.0.1"}, "neither DMLC_NODE_HOST nor DMLC_INTERFACE"),
        ({"DMLC_NUM_SERVER": "0"}, "DMLC_NUM_SERVER is 0"),
        ({"DMLC_TASK_ID": "2"}, "the number 2, but DMLC_NUM_WORKER is 2"),
        ({"DMLC_NUM_WORKER": ""}, "DMLC_NUM_WORKER is not set"),
    ],
)
def test_variables_of_a_job_that_cannot_be_are_refused(change, sentence):
    check_job("dist_sync", JOB)
    with pytest.raises(OptionError, match=sentence):
        check_job("dist_sync", JOB | change)
