"""A process of a job as ps-lite, MXNet's parameter server, has it: its variables, a store, signs of life, servers.

The variables are those of dmlc's tracker: DMLC_ROLE (scheduler, server or worker), DMLC_PS_ROOT_URI and
DMLC_PS_ROOT_PORT of the scheduler, DMLC_NUM_WORKER and DMLC_NUM_SERVER, DMLC_NODE_HOST or DMLC_INTERFACE, on which the
process listens, and DMLC_TASK_ID, the rank of a worker. tools/launch.py sets them (docs/scale.md).
"""

import ctypes
import logging
import os
import signal
import threading
from collections.abc import Mapping
from typing import Any

from common.errors import OptionError
from machine.command import die
from machine.runtime import load_mxnet, mx

ROLE, SCHEDULER, SERVER, WORKER = "DMLC_ROLE", "scheduler", "server", "worker"
ROOT, PORT, WORKERS, SERVERS = "DMLC_PS_ROOT_URI", "DMLC_PS_ROOT_PORT", "DMLC_NUM_WORKER", "DMLC_NUM_SERVER"
HOST, INTERFACE, HEARTBEAT = "DMLC_NODE_HOST", "DMLC_INTERFACE", "PS_HEARTBEAT_INTERVAL"
# Where a worker finds its rank: tools/launch.py and dmlc's tracker, Open MPI, MPICH, SLURM.
RANKS = ("DMLC_TASK_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
LOOPBACK = "127."
BEAT_SECONDS = "2"
SILENT_SECONDS = 8  # without a sign of life, until a process is taken for lost
LOOK_SECONDS, LOOKS = 1.0, 3  # in a row: while all come together ps-lite takes them for lost for some 0.1 s
LOST = 75  # status of a process that has lost another one: EX_TEMPFAIL of sysexits.h
# Numbers of the processes. Source: ps-lite, include/ps/internal/postoffice.h (ServerRankToID, WorkerRankToID).
SCHEDULER_NODE, FIRST_SERVER, FIRST_WORKER, NODE_STEP = 1, 8, 9, 2
LAUNCHED = "DETECTOR_LAUNCH"  # the words of tools/launch.py
STARTED_BY = "start it by `python tools/launch.py -n 2 -s 1 python train.py ... --kv-store dist_sync`"
logger = logging.getLogger(__name__)


def serves() -> bool:
    """Whether this process is to be a server or the scheduler of a job."""
    return os.environ.get(ROLE) in (SCHEDULER, SERVER)


def check_job(kv_store: str, environment: Mapping[str, str] = os.environ) -> None:
    """OptionError where --kv-store and the variables of a job do not fit together."""
    is_worker = environment.get(ROLE) == WORKER
    if not kv_store.startswith("dist"):
        if is_worker:
            raise OptionError(
                f"{ROLE} is {WORKER}, so that this is one of several processes, but --kv-store is {kv_store}: each "
                "would train alone; give --kv-store dist_sync"
            )
        return
    missing = [name for name in (ROLE, ROOT, PORT, WORKERS, SERVERS) if not environment.get(name)]
    if missing:
        raise OptionError(f"--kv-store {kv_store}: {', '.join(missing)} is not set; {STARTED_BY} (docs/scale.md)")
    if not (environment.get(HOST) or environment.get(INTERFACE) or environment[ROOT].startswith(LOOPBACK)):
        raise OptionError(
            f"--kv-store {kv_store}: neither {HOST} nor {INTERFACE} says where this process is to listen, and ps-lite "
            "has no passwords; set one of them to an address or an interface of a network that you trust"
        )
    for name in (WORKERS, SERVERS):
        if not environment[name].isdecimal() or int(environment[name]) < 1:
            raise OptionError(f"{name} is {environment[name]}: expected a number from 1 on")
    rank = own_rank(environment) if is_worker else None
    if rank is not None and rank >= int(environment[WORKERS]):
        raise OptionError(f"this worker has the number {rank}, but {WORKERS} is {environment[WORKERS]}; number from 0")


def own_rank(environment: Mapping[str, str] = os.environ) -> int | None:
    """The number of this worker by the variables of whoever started it; None where they do not tell."""
    found = next((environment[name] for name in RANKS if environment.get(name, "").isdecimal()), None)
    return None if found is None else int(found)


def open_store(kind: str) -> tuple[Any, "Watch"]:
    """A store of the kind, dist_sync or dist_device_sync, of this worker, and what ends the process where the scheduler
    is lost; waits for all processes of the job."""
    _listen()
    logger.info("waiting for the other processes of the job at %s:%s", os.environ[ROOT], os.environ[PORT])
    store = mx.kv.create(kind)
    return store, Watch(store, {SCHEDULER_NODE: "the scheduler"})


def close_store(store: Any, watch: "Watch") -> None:
    """Ends ps-lite in this worker; waits for the other workers, which must do so, too."""
    store._barrier()  # while the other processes are still watched: the watch must end before the store
    watch.stop()
    _free(store)


def _free(store: Any) -> None:
    """Ends ps-lite in this process, whoever still holds the store."""
    mx.base.check_call(mx.base._LIB.MXKVStoreFree(store.handle))
    store.handle = mx.base.KVStoreHandle()  # null: nothing is freed when the object goes


def serve() -> None:
    """Runs this process as the server or scheduler that its variables say, to the end of the job.

    Unlike mxnet's own servers it takes no optimizer: unpickling one would run what any process that reaches its port
    sends. With a worker or server lost the scheduler, and without the scheduler a server, ends with the status LOST.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # Python's handlers would wait for the end of the job
    role = os.environ.pop(ROLE)  # else `import mxnet` would serve, and know no end of the others
    check_job_of_server(role)
    load_mxnet()
    os.environ[ROLE] = role
    _listen()
    store = mx.kv.create("dist_sync")
    watch = Watch(store, _others() if role == SCHEDULER else {SCHEDULER_NODE: "the scheduler"})
    controller = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_refuse_command)
    mx.base.check_call(mx.base._LIB.MXKVStoreRunServer(store.handle, controller, None))
    watch.stop()
    _free(store)


def check_job_of_server(role: str) -> None:
    """OptionError where a variable of the job is missing."""
    check_job("dist_sync", os.environ | {ROLE: role})


def _refuse_command(number: int, body: bytes, _: Any) -> None:
    """What a worker sends beside gradients: with us nothing."""
    logger.warning(
        "a command of %d bytes (number %d) is not obeyed: this server takes gradients alone", len(body), number
    )


def _listen() -> None:
    """Sets what ps-lite reads: on loopback alone where the scheduler is there; signs of life."""
    if os.environ[ROOT].startswith(LOOPBACK) and not os.environ.get(INTERFACE):
        os.environ.setdefault(HOST, os.environ[ROOT])
    os.environ.setdefault(HEARTBEAT, BEAT_SECONDS)


def _others() -> dict[int, str]:
    """{number: name} of all workers and servers."""
    counts = {FIRST_SERVER: int(os.environ[SERVERS]), FIRST_WORKER: int(os.environ[WORKERS])}
    names = {FIRST_SERVER: "a server", FIRST_WORKER: "a worker"}
    return {first + NODE_STEP * k: names[first] for first, count in counts.items() for k in range(count)}


class Watch:
    """A thread that ends the process where another one has given no sign of life for SILENT_SECONDS.

    ps-lite itself waits for ever. A process that is stopped or cut off gives none, either.
    """

    def __init__(self, store: Any, nodes: Mapping[int, str]) -> None:
        """nodes: {ps-lite's number: name} of those to watch."""
        self._store, self._nodes = store, nodes
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        looks = 0
        while not self._end.wait(LOOK_SECONDS):
            lost = [name for node, name in self._nodes.items() if self._is_lost(node)]
            looks = looks + 1 if lost else 0
            if looks == LOOKS:
                names = " and ".join(dict.fromkeys(lost))
                die(LOST, f"{names} has given no sign of life for {SILENT_SECONDS + LOOKS} s; this process ends")

    def _is_lost(self, node: int) -> bool:
        count = ctypes.c_int()
        status = mx.base._LIB.MXKVStoreGetNumDeadNode(self._store.handle, node, ctypes.byref(count), SILENT_SECONDS)
        return status == 0 and count.value > 0  # it is no 0 before all have come together
