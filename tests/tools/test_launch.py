"""The words of tools/launch.py and the commands that it makes of them, for each way to start; nothing is trained."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import OptionError
from machine.jobs import run_job
from tools.launch import (
    LaunchOptions,
    address_of,
    check,
    free_port,
    main,
    make_commands,
    read_hosts,
    resumed,
    split_command,
)

COMMAND = ["python", "train.py", "--prefix", "a b'c", "--kv-store", "dist_sync"]
ECHO = "import os, sys; print(*sys.argv[1:], os.environ['DMLC_ROLE'], sep='|', file=open(sys.argv[1], 'a'))"


@pytest.mark.parametrize(
    ("words", "own"),
    [
        ("-n 2 -s 1", "--num-workers 2 --num-servers 1"),
        ("--num-workers=2 -H hosts --launcher ssh", "--num-workers=2 --hostfile hosts --launcher ssh"),
        ("-n 2 --", "--num-workers 2"),
        ("", ""),
    ],
)
def test_the_command_begins_with_the_first_word_that_is_no_option(words, own):
    assert split_command([*words.split(), *COMMAND]) == (own.split(), COMMAND)


def test_all_processes_of_a_job_on_this_machine_listen_on_loopback(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    scheduler, server, *workers = commands = make_commands(LaunchOptions(num_workers=3, num_servers=1), COMMAND)
    assert [command.variables["DMLC_ROLE"] for command in commands] == ["scheduler", "server", *["worker"] * 3]
    assert [command.variables.get("DMLC_TASK_ID") for command in workers] == ["0", "1", "2"]
    assert {command.variables["DMLC_NODE_HOST"] for command in commands} == {"127.0.0.1"}
    assert len({command.variables["DMLC_PS_ROOT_PORT"] for command in commands}) == 1
    assert [command.matters for command in commands] == [False, False, True, True, True]
    assert all(command.words == [sys.executable, *COMMAND[1:]] for command in workers)
    assert Path(server.words[1]).is_file()
    assert scheduler.words == server.words
    assert all(int(command.variables["OMP_NUM_THREADS"]) >= 1 for command in commands)


def test_an_interface_is_given_on(monkeypatch):
    commands = make_commands(LaunchOptions(num_workers=1, interface="lo"), COMMAND)
    assert all(command.variables["DMLC_INTERFACE"] == "lo" for command in commands)
    assert not any("DMLC_NODE_HOST" in command.variables for command in commands)
    assert commands[0].variables["DMLC_PS_ROOT_URI"] == address_of("lo") == "127.0.0.1"


def test_an_interface_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(OptionError, match=r"--interface nowhere0: no interface with an address; there are .*lo"):
        address_of("nowhere0")


def test_a_free_port_can_be_listened_on():
    with socket.create_server(("127.0.0.1", free_port("127.0.0.1"))):
        pass


@pytest.mark.parametrize(
    ("words", "more", "sentence"),
    [
        ({}, None, "no command to launch"),
        ({"launcher": "ssh", "interface": "lo"}, [], "--launcher ssh needs --hostfile"),
        ({"launcher": "mpi"}, [], "--launcher mpi needs --interface"),
        ({"launcher": "slurm", "interface": "lo"}, [], "there is no srun on this machine"),
        ({"max_restarts": 1}, ["--overwrite"], "--max-restarts and --overwrite exclude each other"),
        ({"max_restarts": 1}, ["--finetune=3"], "--max-restarts and --finetune=3 exclude each other"),
    ],
)
def test_what_cannot_be_launched_is_refused(words, more, sentence, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OptionError, match=sentence):
        check(LaunchOptions(**words), [] if more is None else [*COMMAND, *more])


@pytest.mark.faults
@pytest.mark.parametrize("more", [[], ["--resume", "3"], ["--resume=auto"]])
def test_a_restarted_command_goes_on_from_the_newest_checkpoint(more):
    assert resumed([*COMMAND[:2], *more, *COMMAND[2:]]) == [*COMMAND, "--resume", "auto"]


def test_hosts_are_read_and_checked(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# ours\none\ntwo:2222 slots=4\n\n")
    assert read_hosts(str(file)) == [("one", "22"), ("two", "2222")]
    for text, sentence in {"": "names no host", "-oProxyCommand=x": "is no host", "one:x": "one:x is no host"}.items():
        file.write_text(text)
        with pytest.raises(OptionError, match=sentence):
            read_hosts(str(file))
    with pytest.raises(OptionError, match="cannot be read"):
        read_hosts(str(tmp_path / "none"))


def program(folder, name, code):
    """A program of this name in the folder, first in PATH."""
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{code}")
    file.chmod(0o755)


def test_ssh_starts_each_process_on_its_host_with_its_words_and_variables(tmp_path, monkeypatch):
    """A stand-in of ssh gives the last word to a shell, as sshd does."""
    program(
        tmp_path,
        "ssh",
        "import os, sys\nos.environ.pop('DMLC_ROLE', 0)\nos.execv('/bin/sh', ['sh', '-c', sys.argv[-1]])",
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    hosts, said = tmp_path / "hosts", tmp_path / "it's said"
    hosts.write_text("one\ntwo:2222\n")
    options = LaunchOptions(num_workers=2, num_servers=1, launcher="ssh", hostfile=str(hosts), interface="lo")
    words = [sys.executable, "-c", ECHO, str(said), "two words", "$HOME"]
    commands = make_commands(options, words)
    assert [command.name for command in commands[1:]] == ["server 0 on one", "worker 0 on one", "worker 1 on two"]
    assert commands[3].words[:6] == ["ssh", "-o", "BatchMode=yes", "-p", "2222", "two"]
    assert run_job(commands[2:], grace=5).status == 0
    assert said.read_text().splitlines() == [f"{said}|two words|$HOME|worker"] * 2


@pytest.mark.parametrize(
    ("version", "wanted"),
    [
        ("mpirun (Open MPI) 4.1.4", ["-n", "2", "--hostfile", "h", "-x", "DMLC_PS_ROOT_URI"]),
        ("HYDRA build details: mpich", ["-n", "2", "-f", "h", "-envlist"]),
    ],
)
def test_mpi_starts_all_workers_by_one_command(tmp_path, monkeypatch, version, wanted):
    program(tmp_path, "mpirun", f"print({version!r})")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    options = LaunchOptions(num_workers=2, num_servers=1, launcher="mpi", hostfile="h", interface="lo")
    check(options, COMMAND)
    _, servers, workers = make_commands(options, COMMAND)
    assert workers.words[1 : 1 + len(wanted)] == wanted
    assert workers.words[-len(COMMAND) + 1 :] == COMMAND[1:]
    assert "DMLC_TASK_ID" not in workers.variables  # mpirun tells each its rank
    assert servers.variables["DMLC_ROLE"] == "server"
    assert "DMLC_ROLE" in " ".join(workers.words)


def test_slurm_starts_all_workers_by_one_step(tmp_path, monkeypatch):
    program(tmp_path, "srun", "")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    options = LaunchOptions(num_workers=4, num_servers=2, launcher="slurm", interface="lo")
    check(options, COMMAND)
    _, servers, workers = make_commands(options, COMMAND)
    assert workers.words[:2] == ["srun", "--ntasks=4"]
    assert servers.words[:2] == ["srun", "--ntasks=2"]
    assert workers.variables["DMLC_NUM_SERVER"] == "2"


def test_a_mistake_ends_the_job_with_its_status_and_no_restart(tmp_path, monkeypatch, caplog):
    count = tmp_path / "count"
    code = "import sys; open(sys.argv[1], 'a').write('x'); sys.exit(2)"
    monkeypatch.setattr("tools.launch.ROOT", tmp_path)
    (tmp_path / "train.py").write_text("import time; time.sleep(60)")
    assert main(["-n", "1", "--max-restarts", "3", sys.executable, "-c", code, str(count)]) == 2
    assert count.read_text() == "x"
    assert "worker 0 (process" in caplog.text
    assert "ended with status 2 after" in caplog.text


@pytest.mark.faults
def test_a_crash_is_tried_again_as_often_as_asked_for(tmp_path, monkeypatch, caplog):
    said = tmp_path / "said"
    code = "import os, sys; open(sys.argv[1], 'a').write(' '.join(sys.argv[2:]) + ';'); os.kill(os.getpid(), 9)"
    monkeypatch.setattr("tools.launch.ROOT", tmp_path)
    (tmp_path / "train.py").write_text("import time; time.sleep(60)")
    assert main(["-n", "1", "--max-restarts", "2", sys.executable, "-c", code, str(said)]) == 128 + signal.SIGKILL
    assert said.read_text() == ";--resume auto;--resume auto;"
    assert "restart 2 of 2" in caplog.text


def test_the_command_tells_how_to_use_it():
    done = subprocess.run(
        [sys.executable, "tools/launch.py", "--help"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--num-workers" in done.stdout
    assert "--max-restarts" in done.stdout
