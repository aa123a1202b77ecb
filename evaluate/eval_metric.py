"""Mean average precision as mx.metric.EvalMetric, for Module.fit and Module.score."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from config.runtime import mx
from evaluate.voc_eval import VOCResult, VOCRule, voc_eval


class MApMetric(mx.metric.EvalMetric):
    """VOC mAP; AP is the area under the precision-recall curve.

    `get` covers what came since the last `reset` or `reset_local`, `get_global` what came since the last `reset`; both
    may be asked at any time and are computed once per state. Without objects to find the value is nan.
    """

    use_07_metric = False

    def __init__(
        self,
        ovp_thresh: float = 0.5,
        use_difficult: bool = False,
        class_names: Sequence[str] | None = None,
        pred_idx: int = 0,
    ) -> None:
        """Sets up the metric.

        Args:
            ovp_thresh: IoU above which a detection finds an object.
            use_difficult: count difficult objects like all others.
            class_names: names by class id; rows of other ids are left out. None = no values per class.
            pred_idx: which output of the network holds the detections.
        """
        self.rule = VOCRule(iou_threshold=ovp_thresh, use_07_metric=self.use_07_metric, use_difficult=use_difficult)
        self.class_names = None if class_names is None else list(class_names)
        self.pred_idx = pred_idx
        super().__init__("mAP", has_global_stats=True)

    def get_config(self) -> dict[str, Any]:
        """Arguments for mx.metric.create."""
        return {
            "metric": type(self).__name__,
            "ovp_thresh": self.rule.iou_threshold,
            "use_difficult": self.rule.use_difficult,
            "class_names": self.class_names,
            "pred_idx": self.pred_idx,
        }

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self._detections: list[np.ndarray] = []
        self._truths: list[np.ndarray] = []
        self._local_start = 0  # first batch that get() counts
        self._results: dict[int, VOCResult] = {}

    def reset_local(self) -> None:
        """Starts a new window for `get`; `get_global` still counts all."""
        super().reset_local()
        self._local_start = len(self._detections)

    def update(self, labels: Any, preds: Any, pad: int = 0) -> None:
        """Adds a batch.

        Args:
            labels: array (B, M, W >= 5), or list that starts with it: rows [id, xmin, ymin, xmax, ymax,
                difficult, ...], id < 0 = unused row. Without the sixth column no object is difficult.
            preds: array (B, N, 6), or list with it at pred_idx: rows [id, score, xmin, ymin, xmax, ymax] in any order,
                id < 0 = no detection.
            pad: number of images at the end of the batch that do not count.

        Raises:
            ValueError: another shape, or different numbers of images.
        """
        label, pred = _to_numpy(labels, 0), _to_numpy(preds, self.pred_idx)
        if label.ndim != 3 or label.shape[2] < 5 or pred.ndim != 3 or pred.shape[2] < 6 or len(label) != len(pred):
            raise ValueError(
                f"labels (B, M, >=5) and detections (B, N, 6) are needed, not {label.shape} and {pred.shape}"
            )
        if label.shape[2] == 5:
            label = np.pad(label, ((0, 0), (0, 0), (0, 1)))
        count = len(label) - pad
        self._truths.append(_valid_rows(label[:count, :, :6], self.global_num_inst))
        self._detections.append(_valid_rows(pred[:count, :, :6], self.global_num_inst))
        self.num_inst += count
        self.global_num_inst += count
        self._results.clear()

    def result(self) -> VOCResult:
        """Curves and counts of every class since the last reset."""
        return self._evaluate(0)

    def get(self) -> tuple[Any, Any]:
        """Names and values since the last reset or reset_local: the classes and mAP, or just ("mAP", value)."""
        return self._named(self._evaluate(self._local_start))

    def get_global(self) -> tuple[Any, Any]:
        """Names and values since the last reset, in the form of `get`."""
        return self._named(self.result())

    def _evaluate(self, start: int) -> VOCResult:
        if start not in self._results:
            empty = [np.empty((0, 7), np.float32)]
            detections = np.concatenate(empty + self._detections[start:])
            truths = np.concatenate(empty + self._truths[start:])
            self._results[start] = voc_eval(detections, truths, self.class_names, self.rule)
        return self._results[start]

    def _named(self, result: VOCResult) -> tuple[Any, Any]:
        if self.class_names is None:
            return self.name, result.mean_ap
        return [*self.class_names, self.name], [*(one.ap for one in result.classes), result.mean_ap]


class VOC07MApMetric(MApMetric):
    """VOC mAP with the 11-point AP of VOC2007."""

    use_07_metric = True


mx.metric.register(MApMetric)
mx.metric.register(VOC07MApMetric)


def _to_numpy(arrays: Any, index: int) -> np.ndarray:
    """Array number `index` of a list, or the array that was given alone."""
    array = arrays[index] if isinstance(arrays, list | tuple) else arrays
    return array.asnumpy() if isinstance(array, mx.nd.NDArray) else np.asarray(array)


def _valid_rows(batch: np.ndarray, first_image: int) -> np.ndarray:
    """Rows of (B, N, 6) with id >= 0 as (n, 7), the image number, counted from first_image, in front."""
    image, row = np.nonzero(batch[:, :, 0] >= 0)
    return np.column_stack([image + float(first_image), batch[image, row]])
