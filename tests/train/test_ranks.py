"""What workers tell each other, with three threads in place of processes, and how a lost process is seen."""

import math
import signal
import threading

import numpy as np
import pytest

from common.errors import OptionError
from machine.command import SignalRequests
from machine.runtime import mx
from train import ps_lite
from train.metric import LossMetric
from train.ranks import ALONE, LARGE, Ranks, _check_numbers
from train.several import AgreedRequests, exchange_groups, make_requests, same_start
from train.start import Start

COUNT = 3


class Shared:
    """What the stores of all threads hold."""

    def __init__(self):
        self.sums, self.barrier, self.lock = {}, threading.Barrier(COUNT, timeout=60), threading.Lock()


class ThreadStore:
    """A store of one thread: a pull gives the sum when all have pushed, as a server does."""

    def __init__(self, shared):
        self._shared = shared

    def init(self, keys, values):
        assert len(keys) == len(values)

    def push(self, key, array, priority=0):
        arrays = array if isinstance(array, list) else [array]
        with self._shared.lock:
            own = sum(one.asnumpy() for one in arrays)
            self._shared.sums[key] = self._shared.sums.get(key, 0) + own

    def pull(self, key, out, priority=0):
        self._shared.barrier.wait()
        for one in out if isinstance(out, list) else [out]:
            one[:] = mx.nd.array(self._shared.sums[key])
        self._shared.barrier.wait()
        with self._shared.lock:
            self._shared.sums.pop(key, None)
        self._shared.barrier.wait()


def on_all(work, ranks=range(COUNT)):
    """[what work(ranks) gives on each of the workers]."""
    shared, found, errors = Shared(), [None] * COUNT, []

    def run(k, rank):
        try:
            found[k] = work(Ranks(ThreadStore(shared), rank, COUNT))
        except BaseException as error:
            errors.append(error)
            shared.barrier.abort()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((one for one in errors if not isinstance(one, threading.BrokenBarrierError)), errors[0])
    return found


def test_texts_of_any_length_reach_all_workers():
    texts = [b"", b"odd", bytes(range(256)) * 20]
    assert on_all(lambda ranks: ranks.gather(texts[ranks.rank])) == [texts] * COUNT


def test_all_hear_what_rank_0_tells_digit_for_digit():
    values = {"AP": 1 / 3, "name": "déjà", "none": None, "list": [1, 2.5e-300]}
    assert on_all(lambda ranks: ranks.told(values if ranks.writes else "not heard")) == [values] * COUNT
    assert all(math.isnan(one) for one in on_all(lambda ranks: ranks.told(math.nan)))
    assert on_all(lambda ranks: ranks.all_told(ranks.rank + 0.1)) == [[0.1, 1.1, 2.1]] * COUNT


def test_arrays_of_rank_0_reach_all_in_one_piece():
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3) / 7, "b": np.arange(LARGE + 5, dtype=np.float32)}
    for found in on_all(lambda ranks: ranks.told_arrays(arrays if ranks.writes else {})):
        assert list(found) == ["a", "b"]
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array)
    assert on_all(lambda ranks: ranks.told_arrays({})) == [{}] * COUNT


def test_means_of_equal_numbers_stay_bit_for_bit():
    same = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for found in on_all(lambda ranks: ranks.means(same)):
        np.testing.assert_array_equal(found, same)
    for found in on_all(lambda ranks: ranks.means(np.float32([1, 10]) * (ranks.rank + 1))):
        np.testing.assert_allclose(found, [2, 20], rtol=1e-6)


def test_gradients_of_all_contexts_are_summed_and_frozen_ones_left_out():
    def work(ranks):
        arrays = [[mx.nd.ones((2, 2)) * (ranks.rank + 1), mx.nd.ones((2, 2))], [None, None]]
        ranks.sum_gradients(["w", "frozen"], arrays)
        return [array.asnumpy().tolist() for array in arrays[0]]

    assert on_all(work) == [[[[9, 9], [9, 9]]] * 2] * COUNT


def test_one_is_enough_for_any():
    assert on_all(lambda ranks: ranks.any("k", ranks.rank == 2)) == [True] * COUNT
    assert on_all(lambda ranks: ranks.any("k", False)) == [False] * COUNT


def test_two_workers_of_one_number_are_refused():
    with pytest.raises(OptionError, match="2 of the 3 workers have the number 1|0 of the 3 workers have the number 2"):
        on_all(_check_numbers, ranks=(0, 1, 1))


def test_alone_nothing_is_sent():
    assert ALONE.told({"a": 1}) == {"a": 1}
    assert ALONE.all_told(5) == [5]
    assert ALONE.any("k", True)
    ALONE.sum_gradients(["w"], [[None]])
    assert type(make_requests(ALONE)) is SignalRequests


def test_losses_are_those_of_all_and_a_bad_one_is_seen_by_all():
    def work(ranks):
        metric = LossMetric(["a"])
        metric.ranks = ranks
        for value in (1.0, 2.0, math.inf if ranks.rank == 1 else 3.0):
            metric.update([mx.nd.array([value])], [mx.nd.array([value, value])])
        metric.flush()
        return metric.first_bad, metric.get_global()[1]

    for bad, values in on_all(work):
        assert bad == 2
        assert values == [math.inf]


def test_a_signal_to_one_worker_is_heard_by_all_at_the_same_batch():
    class Batches:
        over_processes = None

    def work(ranks):
        requests, batches, heard = make_requests(ranks), Batches(), []
        exchange_groups(ranks, batches, "train", requests)
        for batch in range(3):
            if ranks.rank == 2 and batch == 1:
                requests.arrive(signal.SIGUSR1, None)
                requests.arrive(signal.SIGTERM, None)
                assert not requests  # not before all have heard of it
            total = batches.over_processes(np.float32([batch, 1]))
            heard.append((total.tolist(), bool(requests), requests.end, requests.save))
        with pytest.raises(SystemExit) as end:
            requests.fulfil()
        assert ranks.ends_together
        return heard, end.value.code

    wanted = [([0, 3], False, None, False), ([3, 3], True, 15, True), ([6, 3], True, 15, True)]
    assert on_all(work) == [(wanted, 143)] * COUNT


def test_a_request_to_save_is_heard_once():
    def work(ranks):
        requests = AgreedRequests(ranks)
        if ranks.rank == 0:
            requests.arrive(signal.SIGUSR1, None)
        requests.agree()
        assert requests.save
        requests.fulfil()
        requests.agree()
        return bool(requests), ranks.ends_together

    assert on_all(work) == [(False, False)] * COUNT


def test_all_start_as_rank_0_does():
    arrays = {"w": mx.nd.array([1.5, 2.5])}
    start = Start(
        epoch=3,
        arg_params=arrays,
        aux_params={},
        num_update=7,
        learning_rate=0.1,
        optimizer_state={"w:0": np.float32([0.5, 0.25])},
        averages=(arrays, {}),
        plateau={"rate": 1 / 3, "bad": 1},
        precision={"dtype": "float32"},
    )
    own, *others = on_all(lambda ranks: same_start(ranks, start if ranks.writes else None))
    assert own is start
    for other in others:
        for part in (other.arg_params, other.averages[0]):
            np.testing.assert_array_equal(part["w"].asnumpy(), [1.5, 2.5])
        np.testing.assert_array_equal(other.optimizer_state["w:0"], [0.5, 0.25])
        assert (other.aux_params, other.averages[1]) == ({}, {})
        for name in ("epoch", "num_update", "learning_rate", "plateau", "precision", "origin", "position"):
            assert getattr(other, name) == getattr(start, name), name
    for other in on_all(lambda ranks: same_start(ranks, Start() if ranks.writes else None))[1:]:
        assert (other.arg_params, other.optimizer_state, other.averages) == (None, None, None)


@pytest.mark.faults
@pytest.mark.parametrize(("silent", "ends"), [([1, 0, 1, 1, 0], False), ([0, 1, 1, 1, 1], True)])
def test_a_process_counts_as_lost_after_three_looks_in_a_row(monkeypatch, silent, ends):
    """ps-lite takes all for lost for a moment while they come together."""
    looks, over, ended = iter(silent), threading.Event(), []

    def is_lost(self, node):
        try:
            return bool(next(looks))
        except StopIteration:
            over.set()
            return False

    def die(status, sentence):
        ended.append((status, sentence))
        over.set()

    monkeypatch.setattr(ps_lite, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(ps_lite, "die", die)
    monkeypatch.setattr(ps_lite.Watch, "_is_lost", is_lost)
    watch = ps_lite.Watch(None, {1: "the scheduler"})
    assert over.wait(30)
    watch.stop()
    wanted = (75, f"the scheduler has given no sign of life for {ps_lite.SILENT_SECONDS + 3} s; this process ends")
    assert ended == ([wanted] if ends else [])
