"""What a run of several workers does beside a run of one: start alike, agree on signals, follow rank 0.

Rank 0 runs what a run alone does and writes its files. The others start from what it tells them, make the same updates
and take the same decisions (train/followers.py).
"""

import signal
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from common.errors import OptionError
from config.options import flag_of, to_mapping
from dataset.batch_spec import BatchSpec
from dataset.iterator import RecordIter
from dataset.sidecar import Sidecar
from machine.command import SignalRequests
from machine.runtime import mx
from train.options import TrainOptions
from train.pauses import Position
from train.ranks import Ranks
from train.saving import record_digests
from train.schedule import Origin
from train.start import Start

# Options that each worker may have for itself: where its files are, and what serves them.
OWN = ("train_path", "val_path", "train_list", "val_list", "prefix", "log", "workers", "pretrained")
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ARRAYS = ("arg_params", "aux_params", "optimizer_state")
_AVERAGES = ("averages/arg", "averages/aux")


class AgreedRequests(SignalRequests):
    """What signals have asked any of the workers for: all of them see it at the same place of the run."""

    def __init__(self, ranks: Ranks) -> None:
        """Nothing has been asked for."""
        super().__init__()
        self._ranks, self._wished = ranks, SignalRequests()

    def arrive(self, number: int, frame: Any) -> None:
        """The handler: what this worker is asked for waits until all have heard of it."""
        self._wished.arrive(number, frame)

    def numbers(self) -> list[float]:
        """What this worker is asked for, as numbers whose sums `hear` takes."""
        return [float(self._wished.end == one) for one in ENDS] + [float(self._wished.save)]

    def hear(self, sums: Sequence[float]) -> None:
        """Takes in the sums over all workers."""
        self.end = next((one for one, count in zip(ENDS, sums, strict=False) if count), self.end)
        if sums[len(ENDS)]:
            self.save, self._wished.save = True, False

    def agree(self) -> None:
        """Tells all workers, where no batch does."""
        self.hear(self._ranks.sum_numbers("requests", self.numbers()).tolist())

    def fulfil(self) -> None:
        """As SignalRequests.fulfil: all workers end here."""
        self._ranks.ends_together = self.end is not None
        super().fulfil()


def make_requests(ranks: Ranks) -> SignalRequests:
    """What signals ask a run for, with several workers all of them."""
    return SignalRequests() if ranks.count == 1 else AgreedRequests(ranks)


def shard_of(ranks: Ranks, spec: BatchSpec) -> BatchSpec:
    """The spec of this worker's part of the record: the parts of a batch together are the batch of one process."""
    return replace(spec, num_parts=ranks.count, part_index=ranks.rank)


def exchange_groups(ranks: Ranks, batches: RecordIter, key: str, requests: SignalRequests | None = None) -> None:
    """Lets the normalisers of an iterator's groups be those of all workers, who hear of signals with them.

    They are summed when a group's first batch is asked for, while the update before is still being computed.
    """
    if ranks.count == 1:
        return

    def over_ranks(total: np.ndarray | None) -> np.ndarray | None:
        own = [] if total is None else total.tolist()
        asked = requests.numbers() if isinstance(requests, AgreedRequests) else []
        sums = ranks.sum_numbers(f"{key}/{len(own)}", [*own, *asked])
        if isinstance(requests, AgreedRequests):
            requests.hear(sums[len(own) :].tolist())
        return None if total is None else sums[: len(own)]

    batches.over_processes = over_ranks


def check_shards(ranks: Ranks, batches: RecordIter) -> None:
    """OptionError where the workers' records have different numbers of batches."""
    found = ranks.all_told(batches.num_batches)
    if len(set(found)) > 1:
        counts = ", ".join(map(str, found))
        raise OptionError(
            f"{batches.spec.path_imgrec}: the workers find {counts} batches in it; give all of them the same record"
        )


def tell_plan(ranks: Ranks, given: TrainOptions, settled: TrainOptions, plan: dict[str, Any]) -> None:
    """Rank 0 tells the options of its command and as they were settled, and more, as JSON has it; see `hear_plan`."""
    if ranks.count > 1:
        ranks.told({"given": to_mapping(given), "options": to_mapping(settled)} | plan)


def hear_plan(ranks: Ranks, options: TrainOptions) -> dict[str, Any]:
    """What rank 0 has told; `options`: those that are no defaults, with this worker's own.

    OptionError where the command of this worker is another one.
    """
    told, own = ranks.told(None), to_mapping(options)
    for name, value in told["given"].items():
        if name not in OWN and own.get(name) != value:
            raise OptionError(
                f"{flag_of(name)} is {own.get(name)} for worker {ranks.rank}, but {value} for worker 0; give all "
                "workers the same options"
            )
    defaults = to_mapping(type(options)())
    settled = told["options"] | {name: own[name] for name in OWN}
    return told | {"options": {name: value for name, value in settled.items() if value != defaults[name]}}


def check_alike(ranks: Ranks, told: dict[str, Any], sidecars: Sequence[Sidecar | None], devices: int) -> None:
    """OptionError where this worker has other records or another number of devices than rank 0 has told."""
    for name, digest in record_digests(sidecars).items():
        if told["records"].get(name, digest) != digest:
            raise OptionError(
                f"the {name} record of worker {ranks.rank} is not that of worker 0 (sha256); give all workers the same"
            )
    if told["devices"] != devices:
        raise OptionError(
            f"worker {ranks.rank} has {devices} devices, worker 0 {told['devices']}; give all as many (--gpus, --cpus)"
        )


def same_start(ranks: Ranks, start: Start | None) -> Start:
    """The start of rank 0 for all workers; start: of rank 0, what the others give does not matter."""
    if ranks.count == 1 or (start is None and ranks.writes):
        assert start is not None
        return start
    told = ranks.told(_numbers_of(start) if start and ranks.writes else None)
    arrays = ranks.told_arrays(_arrays_of(start) if start and ranks.writes else {})
    if start and ranks.writes:
        return start
    parts: dict[str, dict[str, np.ndarray] | None] = {
        part: {name.removeprefix(f"{part}:"): array for name, array in arrays.items() if name.startswith(f"{part}:")}
        if there
        else None
        for part, there in told.pop("parts").items()
    }
    loaded = {part: _loaded(parts[part]) for part in (*_ARRAYS[:2], *_AVERAGES)}
    means = loaded["averages/arg"], loaded["averages/aux"]
    return Start(
        **told
        | {"origin": Origin(*told["origin"]), "position": Position(**told["position"])}
        | {"arg_params": loaded["arg_params"], "aux_params": loaded["aux_params"]}
        | {"optimizer_state": parts["optimizer_state"], "averages": means if means[0] is not None else None}
    )


def _numbers_of(start: Start) -> dict[str, Any]:
    """A start without its arrays, as JSON has it; parts: of which arrays there are some."""
    names = [name for name in Start.__dataclass_fields__ if name not in (*_ARRAYS, "averages", "origin", "position")]
    parts = {part: arrays is not None for part, arrays in _parts_of(start).items()}
    others = {"origin": start.origin.numbers(), "position": vars(start.position), "parts": parts}
    return {name: getattr(start, name) for name in names} | others


def _parts_of(start: Start) -> dict[str, Any]:
    arg, aux = start.averages or (None, None)
    return {name: getattr(start, name) for name in _ARRAYS} | dict(zip(_AVERAGES, (arg, aux), strict=True))


def _arrays_of(start: Start) -> dict[str, np.ndarray]:
    """{part:name -> array} of a start."""
    return {
        f"{part}:{name}": array.asnumpy() if isinstance(array, mx.nd.NDArray) else array
        for part, arrays in _parts_of(start).items()
        for name, array in (arrays or {}).items()
    }


def _loaded(arrays: dict[str, np.ndarray] | None) -> dict[str, Any] | None:
    return None if arrays is None else {name: mx.nd.array(array) for name, array in arrays.items()}
