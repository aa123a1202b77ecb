"""--profile: its tables from what MXNet and oneDNN tell, and the command with it."""

import json
import subprocess
import sys

from tests.train.tiny import flags
from train.profiling import Share, kernel_shares, operator_shares, report

LINES = """dnnl_verbose,info,oneDNN v2.4.4
dnnl_verbose,exec,cpu,convolution,jit:avx512_core,forward_training,src_f32,,alg:convolution_direct,mb8_ic16oc16,1.5
dnnl_verbose,exec,cpu,convolution,jit:avx512_core,forward_training,src_f32,,alg:convolution_direct,mb8_ic32oc32,2.5
dnnl_verbose,exec,cpu,reorder,jit:uni,undef,src_f32::blocked:abcd:f0 dst_f32::blocked:aBcd16b:f0,,,8x64x10x10,1
a line of another program, with, commas
dnnl_verbose,exec,cpu,convolution,jit:avx512_core,forward_training,src_f32,,alg:convolution_direct,mb8_ic32oc32,2.
dnnl_verbose,exec,cpu,convolution,jit:avx5"""


def test_kernels_are_added_up_by_primitive_pass_and_implementation():
    assert kernel_shares(LINES.splitlines()) == {
        "convolution forward_training jit:avx512_core": Share(3, 6.0),
        "reorder jit:uni": Share(1, 1.0),
    }


def test_operators_are_those_that_compute():
    counted = {"Count": 4, "Total": 8.0}
    stats = {"Time": {"operator": {"Convolution": counted, "WaitForVar": counted, "DeleteVariable": counted}}}
    assert operator_shares(stats) == {"Convolution": Share(4, 8.0)}
    assert operator_shares({"Time": {}}) == {}


def test_a_table_has_the_largest_first_and_what_a_step_takes():
    text = report(2, 0.02, {"small": Share(2, 1.0), "large": Share(4, 3.0)}, {})
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("2 steps of 10.0 ms")
    assert ["1.50", "75.0%", "2", "large"] in lines
    assert ["2.00", "100.0%", "3", "in", "all"] in lines
    assert lines.index(["1.50", "75.0%", "2", "large"]) < lines.index(["0.50", "25.0%", "1", "small"])
    assert "kernel of oneDNN: none" in text


def test_the_command_measures_steps_and_trains_nothing(options, tmp_path):
    command = [sys.executable, "train.py", *flags(options(profile=2))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)  # noqa: S603
    assert done.returncode == 0, done.stderr
    prefix = options().output.prefix
    table = done.stdout
    assert "_backward_Convolution" in table
    assert "convolution backward_weights" in table
    assert "dnnl_verbose" not in table + done.stderr
    with open(f"{prefix}-profile.txt", encoding="utf-8") as file:
        assert file.read() in table
    with open(f"{prefix}-profile.json", encoding="utf-8") as file:
        assert any(event["name"] == "Convolution" for event in json.load(file)["traceEvents"])
