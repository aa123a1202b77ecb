"""Workers, servers and the scheduler without a launcher, as on several machines: who loses another one ends, with a
sentence; in network namespaces, too, where the link of a worker is slow, loses packets or is cut."""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from model.checkpoint import list_epochs
from tests.train.tiny import NETWORK, flags, metrics, write_record
from tools.launch import free_port
from train.options import train_options
from train.ps_lite import LOST

pytestmark = [pytest.mark.slow, pytest.mark.faults]

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 240.0  # a loaded machine must not fail a test
END_SECONDS = 30.0
ROLES = ("scheduler", "server", "0", "1")
HERE, THERE, NAMESPACE = "10.231.7.1", "10.231.7.2", "detector-test"


@pytest.fixture
def options(tmp_path):
    train, val = write_record(tmp_path / "train.rec", 40, 1), write_record(tmp_path / "val.rec", 3, 2)
    return train_options(
        **NETWORK,
        train_path=train,
        val_path=val,
        batch_size=2,
        workers=0,
        augment="none",
        prefix=str(tmp_path / "run" / "t"),
        end_epoch=1000,
        kv_store="dist_sync",
    )


@contextmanager
def by_hand(options, words=(), address="127.0.0.1", far=()):
    """{role or worker's number: process}, with its output in PREFIX's folder; worker 1 by the words `far`, if any."""
    folder = Path(options.output.prefix).parent
    folder.mkdir(exist_ok=True)
    variables = {
        "OMP_NUM_THREADS": "1",
        "DMLC_PS_ROOT_URI": address,
        "DMLC_PS_ROOT_PORT": str(free_port(address)),
        "DMLC_NUM_WORKER": "2",
        "DMLC_NUM_SERVER": "1",
    }
    found = {}
    with ExitStack() as stack:
        for role in ROLES:
            own = {"DMLC_ROLE": "worker", "DMLC_TASK_ID": role} if role.isdigit() else {"DMLC_ROLE": role}
            own["DMLC_NODE_HOST"] = THERE if far and role == "1" else address
            log = stack.enter_context(open(folder / f"{role}.log", "w", encoding="utf-8"))
            command = [*(far if role == "1" else ()), sys.executable, "train.py", *flags(options), *words]
            found[role] = stack.enter_context(
                subprocess.Popen(command, cwd=ROOT, env=os.environ | variables | own, stdout=log, stderr=log)
            )
            stack.callback(found[role].kill)
        yield found


def told(options, role):
    return (Path(options.output.prefix).parent / f"{role}.log").read_text()


def wait_until(condition, found):
    end = time.monotonic() + SECONDS
    while not condition():
        assert all(process.poll() is None for process in found.values()), "one has ended"
        assert time.monotonic() < end, "it has not come"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("lost", ROLES)
def test_the_others_end_in_30_s_with_a_sentence(options, lost, number):
    with by_hand(options) as found:
        wait_until(lambda: list_epochs(options.output.prefix), found)
        begun = time.monotonic()
        found[lost].send_signal(number)
        others = [role for role in ROLES if role != lost]
        for role in others:
            assert found[role].wait(SECONDS) == LOST, told(options, role)
        assert time.monotonic() - begun < END_SECONDS
    name = {"0": "a worker", "1": "a worker"}.get(lost, f"a {lost}".replace("a scheduler", "the scheduler"))
    first = "server" if lost == "scheduler" else "scheduler"
    assert f"{name} has given no sign of life for" in told(options, first)
    assert "the scheduler has given no sign of life for" in told(options, "1" if lost == "0" else "0")
    assert list_epochs(options.output.prefix)


def run(*words):
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def far():
    """The words that run a command in a network namespace of its own, which reaches this one by a link `far0`."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and ip of iproute2, for a network namespace")
    try:
        run("ip", "netns", "add", NAMESPACE)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespace here: {error.stderr.decode().strip()}")
    try:
        run("ip", "link", "add", "far0", "type", "veth", "peer", "name", "far1", "netns", NAMESPACE)
        run("ip", "addr", "add", f"{HERE}/24", "dev", "far0")
        run("ip", "link", "set", "far0", "up")
        for words in (("addr", "add", f"{THERE}/24", "dev", "far1"), ("link", "set", "far1", "up")):
            run("ip", "-n", NAMESPACE, *words)
        yield ("ip", "netns", "exec", NAMESPACE)
    finally:
        with suppress(subprocess.CalledProcessError):
            run("ip", "link", "del", "far0")  # a namespace goes later than the command that deletes it
        run("ip", "netns", "del", NAMESPACE)


def test_nothing_listens_beside_the_address_that_is_given(options, far):
    with by_hand(options, address=HERE, far=far) as found:
        wait_until(lambda: list_epochs(options.output.prefix), found)
        for role, place in [*((role, ()) for role in ROLES[:3]), ("1", far)]:
            lines = subprocess.run(["ss", "-ltnp"], capture_output=True, text=True, check=True).stdout
            if place:
                lines = subprocess.run([*place, "ss", "-ltnp"], capture_output=True, text=True, check=True).stdout
            own = [line.split()[3] for line in lines.splitlines() if f"pid={found[role].pid}," in line]
            address = THERE if place else HERE
            assert own
            assert all(one.startswith(f"{address}:") for one in own), own


def test_a_cut_off_worker_ends_the_job(options, far):
    with by_hand(options, address=HERE, far=far) as found:
        wait_until(lambda: list_epochs(options.output.prefix), found)
        begun = time.monotonic()
        run("ip", "link", "set", "far0", "down")
        assert [found[role].wait(SECONDS) for role in ROLES] == [LOST] * len(ROLES)
        assert time.monotonic() - begun < END_SECONDS
    assert "a worker has given no sign of life for" in told(options, "scheduler")
    assert "the scheduler has given no sign of life for" in told(options, "1")


def test_a_link_that_is_cut_for_some_seconds_is_waited_for(options, far):
    with by_hand(options, words=["--end-epoch", "3"], address=HERE, far=far) as found:
        wait_until(lambda: list_epochs(options.output.prefix), found)
        run("ip", "link", "set", "far0", "down")
        time.sleep(4)
        run("ip", "link", "set", "far0", "up")
        assert [found[role].wait(SECONDS) for role in ROLES] == [0] * len(ROLES)
    assert len(metrics(options.output.prefix)) == 3


@pytest.mark.parametrize("trouble", [("delay", "50ms", "20ms"), ("loss", "2%")])
def test_a_slow_or_bad_link_changes_no_parameter(options, far, trouble):
    try:
        run("tc", "qdisc", "add", "dev", "far0", "root", "netem", *trouble)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no netem here: {getattr(error, 'stderr', error)!r}")
    with by_hand(options, words=["--end-epoch", "1"], address=HERE, far=far) as found:
        assert [found[role].wait(SECONDS) for role in ROLES] == [0] * len(ROLES)
    bad = metrics(options.output.prefix)
    with by_hand(options, words=["--end-epoch", "1", "--overwrite"]) as found:
        assert [found[role].wait(SECONDS) for role in ROLES] == [0] * len(ROLES)
    assert bad == metrics(options.output.prefix)
