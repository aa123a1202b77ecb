"""Hyper-parameter files of the YOLOv3-SPP trainer."""

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from common.errors import OptionError
from config.command_line import parse_options
from config.hyp_file import OPTIONS, format_hyp, read_hyp
from config.options import to_mapping
from train.options import train_options, train_options_class

TEXT = "giou: 3.54\nlr0: 1e-3  # first\nlrf: 0.01\nmomentum: 0.937\nweight_decay: 0.000484\nhsv_h: 0.0138\nshear: 0\n"


@pytest.fixture
def hyp(tmp_path):
    path = tmp_path / "hyp.yaml"
    path.write_text(TEXT)
    return path


def test_keys_become_options(hyp):
    found = read_hyp(hyp)
    assert found["lr_final"] == pytest.approx(1e-5)
    assert found | {"lr_final": 0} == {
        "giou_gain": 3.54, "lr": 1e-3, "lr_final": 0, "momentum": 0.937, "wd": 0.000484, "hsv_h": 0.0138, "shear": 0,
    }  # fmt: skip


def test_the_file_wins_over_the_preset_and_flags_win_over_it(hyp):
    words = ["--config", "yolov3_spp_voc", "--hyp", str(hyp), "--momentum", "0.5"]
    options = parse_options(train_options_class(), words, "", presets=True, files={"hyp": read_hyp})
    assert (options.schedule.wd, options.schedule.momentum, options.augmentation.hsv_s) == (0.000484, 0.5, 0.678)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("giuo: 3\n", r"unknown key 'giuo' \(did you mean giou\?\); known: giou"),
        ("anchors: 3\n", r"unknown key 'anchors'; known: giou, cls"),
        ("giou: big\n", "giou is 'big', not a number"),
        ("giou: true\n", "giou is 'true', not a number"),
        ("giou:\n", "giou is '', not a number"),
        ("giou: [1]\n", r"giou is \['1'\], not a number"),
        (f"giou: 1{'0' * 400}\n", "giou is '1000.*, not a number"),
        ("lrf: 0.1\n", "lrf is a part of lr0, which is missing"),
        ("- giou\n", "a list of `key: number` lines"),
        ("giou: !!python/object/apply:os.system [ls]\n", "not readable as YAML"),
    ],
)
def test_mistakes_name_the_file(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match=message) as error:
        read_hyp(path)
    assert "bad.yaml" in str(error.value)


@pytest.mark.parametrize(
    "text", ["lr0: 0\nlrf: inf\n", "lr0: 1\nlrf: nan\n", "lr0: 1e300\nlrf: 1e300\n", "lr0: big\nlrf: 1\n"]
)
def test_rates_that_are_not_finite_are_refused(tmp_path, text):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(OptionError, match=r"bad\.yaml: lr[0f] is '.*', not a number"):
        parse_options(train_options_class(), ["--hyp", str(path)], "", files={"hyp": read_hyp})


def test_a_value_out_of_bounds_names_option_and_file(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("momentum: 3\n")
    with pytest.raises(OptionError, match=r"--momentum in .*bad\.yaml is at most 1"):
        parse_options(train_options_class(), ["--hyp", str(path)], "", files={"hyp": read_hyp})


@given(st.dictionaries(st.sampled_from(sorted(OPTIONS.values())), st.floats(0, 1e300)), st.floats(5e-324, 100))
@example({"lr_final": 0.0009642}, 0.0611)
@example({"lr_final": 1e300}, 5e-324)
@example({"lr_final": 5e-324}, 100)
def test_what_is_written_is_read_back(tmp_path_factory, values, lr):
    options = to_mapping(train_options()) | values | {"lr": lr}
    path = tmp_path_factory.mktemp("hyp") / "hyp.yaml"
    path.write_text(format_hyp(options))
    assert read_hyp(path) == {name: float(options[name]) for name in OPTIONS.values()}
    assert all(isinstance(value, float) for value in yaml.safe_load(path.read_text()).values())  # for other trainers


def test_a_file_that_is_missing_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"--hyp .*none\.yaml: cannot be read \(No such file or directory\); check"):
        read_hyp(tmp_path / "none.yaml")
