"""Trains with several processes, on this machine or on several: MXNet's parameter server, supervised.

python tools/launch.py -n 2 -s 1 python train.py --kv-store dist_sync --train-path data/train.rec ...
python tools/launch.py -n 4 -s 2 --launcher ssh -H hosts --interface eth1 python train.py --kv-store dist_sync ...

It starts a scheduler here, servers that add up gradients, and workers. All listen on the loopback interface, or on
--interface alone. If one of them dies, is killed or stopped, all end, with a sentence; with --max-restarts the run then
goes on from its newest checkpoint. SIGINT and SIGTERM let the workers save before all end, SIGUSR1 lets them save and
go on. Not by mxnet's own launcher: that runs everything through a shell, and nobody looks whether it lives
(docs/scale.md).
"""

import fcntl
import importlib
import logging
import os
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:
    importlib.import_module("as_module")

from common.errors import OptionError
from config.command_line import parse_options
from config.options import option
from machine.command import log_to_terminal, run_command
from machine.cpu import usable_threads
from machine.jobs import Command, Outcome, run_job
from train.ps_lite import LAUNCHED

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
SHORT = {"-n": "--num-workers", "-s": "--num-servers", "-H": "--hostfile"}
SIOCGIFADDR, ADDRESS_BYTES, IFREQ = 0x8915, slice(20, 24), "256s"  # netdevice(7)
INTERFACE_NAME = 15  # bytes, without the zero at its end
# A restarted run continues; what these ask for would be done again.
ONCE = ("--overwrite", "--finetune")
PASSED_ON = ("OMP_NUM_THREADS", "PYTHONPATH", "LD_LIBRARY_PATH", "PS_HEARTBEAT_INTERVAL")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LaunchOptions:
    """How many processes, and where."""

    num_workers: int = option(1, "workers, which train; -n", "processes", minimum=1)
    num_servers: int | None = option(None, "servers, which add up gradients; none = as many as workers; -s", minimum=1)
    launcher: str = option("local", "how they are started", choices=("local", "ssh", "mpi", "slurm"))
    hostfile: str = option("", "text file with a host in each line, for ssh host or host:port; -H")
    interface: str = option("", "network interface on which all listen, such as eth1; needed beyond this machine")
    max_restarts: int = option(0, "how often a run that was killed goes on from its newest checkpoint", minimum=0)
    grace: float = option(120.0, "seconds that the workers have to save after SIGTERM or Ctrl-C", minimum=0)


def main(argv: list[str]) -> int:
    """Runs the job; its status: of the process that failed, 128 + N where signal N has ended it, 0 = well."""
    words, command = split_command(argv)
    options = parse_options(
        LaunchOptions,
        words,
        "Trains with several processes, and ends all of them where one fails. The command comes last.",
        example="python tools/launch.py -n 2 -s 1 python train.py --kv-store dist_sync --train-path data/train.rec",
    )
    check(options, command)
    log_to_terminal()
    started = shlex.join(["python", "tools/launch.py", *words])
    outcome = Outcome(0)
    for attempt in range(options.max_restarts + 1):
        if attempt:
            logger.warning("restart %d of %d", attempt, options.max_restarts)
            command = resumed(command)
        begun = time.monotonic()
        outcome = run_job(make_commands(options, command, started), options.grace)
        if outcome.sentence:
            text = "%s after %.0f s; all processes of the job have ended"
            logger.error(text, outcome.sentence, time.monotonic() - begun)
        if not outcome.may_go_on:
            break
    return outcome.status


def split_command(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(the words of the launcher, with long names of options, the command)."""
    words: list[str] = []
    rest = list(argv)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        words.append(SHORT.get(word, word))
        if "=" not in word and word not in ("-h", "--help", "--help-all") and rest:
            words.append(rest.pop(0))
    return words, rest


def check(options: LaunchOptions, command: Sequence[str]) -> None:
    """OptionError for what cannot be launched."""
    if not command:
        raise OptionError("there is no command to launch; give it last: python train.py --kv-store dist_sync ...")
    if options.launcher == "ssh" and not options.hostfile:
        raise OptionError("--launcher ssh needs --hostfile, a text file with a host in each line")
    if options.launcher != "local" and not options.interface:
        raise OptionError(
            f"--launcher {options.launcher} needs --interface, the network interface on which all processes listen: "
            "choose one of a network that you trust, as ps-lite has neither passwords nor encryption"
        )
    once = [word for word in command if word.partition("=")[0] in ONCE]
    if options.max_restarts and once:
        raise OptionError(
            f"--max-restarts and {once[0]} exclude each other: a restart would do it again; leave one out"
        )
    program = {"local": "", "ssh": "ssh", "mpi": "mpirun", "slurm": "srun"}[options.launcher]
    if program and not shutil.which(program):
        raise OptionError(f"--launcher {options.launcher}: there is no {program} on this machine; install it")


def resumed(command: Sequence[str]) -> list[str]:
    """The command with `--resume auto`."""
    kept: list[str] = []
    words = list(command)
    while words:
        word = words.pop(0)
        if word == "--resume":
            words[:1] = []
        elif not word.startswith("--resume="):
            kept.append(word)
    return [*kept, "--resume", "auto"]


def make_commands(options: LaunchOptions, command: Sequence[str], started: str = "") -> list[Command]:
    """The processes of a job, the scheduler first."""
    address = address_of(options.interface) if options.interface else LOOPBACK
    servers = options.num_servers or options.num_workers
    variables = {
        "DMLC_PS_ROOT_URI": address,
        "DMLC_PS_ROOT_PORT": str(free_port(address)),
        "DMLC_NUM_WORKER": str(options.num_workers),
        "DMLC_NUM_SERVER": str(servers),
        LAUNCHED: started,
    }
    variables |= {"DMLC_INTERFACE": options.interface} if options.interface else {"DMLC_NODE_HOST": LOOPBACK}
    words = [sys.executable if command[0] in ("python", "python3") else command[0], *command[1:]]
    serve = [sys.executable, str(ROOT / "train.py")]
    alone = {"OMP_NUM_THREADS": "1"}
    scheduler = Command("the scheduler", serve, variables | {"DMLC_ROLE": "scheduler"} | alone)
    of_servers, of_workers = variables | {"DMLC_ROLE": "server"} | alone, variables | {"DMLC_ROLE": "worker"}
    if options.launcher in ("mpi", "slurm"):
        make = _mpi if options.launcher == "mpi" else _slurm
        return [
            scheduler,
            Command("the servers", make(options, servers, serve, of_servers), of_servers),
            Command("the workers", make(options, options.num_workers, words, of_workers), of_workers, matters=True),
        ]
    if options.launcher == "local" and "OMP_NUM_THREADS" not in os.environ:
        of_workers["OMP_NUM_THREADS"] = str(max(1, usable_threads() // options.num_workers))
    made = [Command(f"server {k}", serve, of_servers) for k in range(servers)]
    made += [
        Command(f"worker {k}", words, of_workers | {"DMLC_TASK_ID": str(k)}, matters=True)
        for k in range(options.num_workers)
    ]
    if options.launcher == "local":
        return [scheduler, *made]
    hosts = read_hosts(options.hostfile)
    placed = zip(made, [*range(servers), *range(options.num_workers)], strict=True)
    return [scheduler, *(_over_ssh(one, *hosts[k % len(hosts)]) for one, k in placed)]


def _over_ssh(command: Command, host: str, port: str) -> Command:
    """The command on another machine, in the folder of the same name; the shell there gets quoted words."""
    passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    assigned = [f"{name}={value}" for name, value in {**passed, "PYTHONPATH": str(ROOT), **command.variables}.items()]
    agent = ["env", *assigned, sys.executable, "-m", "machine.jobs", *command.words]
    remote = f"cd {shlex.quote(os.getcwd())} && exec {shlex.join(agent)}"
    words = ["ssh", "-o", "BatchMode=yes", "-p", port, host, remote]
    return Command(f"{command.name} on {host}", words, {}, command.matters, is_remote=True)


def _mpi(options: LaunchOptions, count: int, words: Sequence[str], variables: dict[str, str]) -> list[str]:
    """mpirun of Open MPI or MPICH, which tells each process its rank."""
    told = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S607
    names = [*variables, *(name for name in PASSED_ON if name in os.environ and name not in variables)]
    if "Open MPI" in told or "OpenRTE" in told:
        passed = [part for name in names for part in ("-x", name)]
    else:
        passed = ["-envlist", ",".join(names)]
    hosts = ["--hostfile" if "Open MPI" in told else "-f", options.hostfile] if options.hostfile else []
    return ["mpirun", "-n", str(count), *hosts, *passed, *words]


def _slurm(options: LaunchOptions, count: int, words: Sequence[str], variables: dict[str, str]) -> list[str]:
    """A step of the allocation in which the launcher runs; its environment is handed on."""
    return ["srun", f"--ntasks={count}", "--overlap", "--kill-on-bad-exit=1", "--export=ALL", *words]


def read_hosts(path: str) -> list[tuple[str, str]]:
    """(host, port of ssh) of each line; OptionError where there are none."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--hostfile {path}: cannot be read ({error})") from error
    names = [line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not names:
        raise OptionError(f"--hostfile {path}: names no host; write one in each line")
    wrong = [name for name in names if name.startswith("-") or not (name.partition(":")[2] or "22").isdecimal()]
    if wrong:
        raise OptionError(f"--hostfile {path}: {wrong[0]} is no host or host:port")
    return [(host, port or "22") for host, _, port in (name.partition(":") for name in names)]


def address_of(interface: str) -> str:
    """The IPv4 address of a network interface; OptionError where it has none."""
    name = interface.encode()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            found = fcntl.ioctl(asked.fileno(), SIOCGIFADDR, struct.pack(IFREQ, name[:INTERFACE_NAME]))
        except OSError as error:
            there = ", ".join(name for _, name in socket.if_nameindex())
            raise OptionError(f"--interface {interface}: no interface with an address; there are {there}") from error
    return socket.inet_ntoa(found[ADDRESS_BYTES])


def free_port(address: str) -> int:
    """A port of the address that nobody listens on."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.bind((address, 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    run_command(main)
