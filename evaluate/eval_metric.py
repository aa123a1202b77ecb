"""Average precision by the rules of VOC and COCO as mx.metric.EvalMetric, for Module.fit and Module.score.

Where images lie in a network input is a metric's frames (n, 6) (evaluate.detections.frames_of). With frames boxes are
measured in pixels of their images and clipped to these, without as they come.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from dataset.labels import PADDING
from evaluate.coco_metric import COCOResult, coco_eval
from evaluate.detections import COCO, FRAME_COLUMNS, VOC07, coco_rows, to_image_pixels, voc_rule
from evaluate.voc_eval import VOCResult, voc_eval
from machine.runtime import mx


class DetectionMetric(mx.metric.EvalMetric, ABC):
    """A metric of detections that is computed from all of them at once.

    `get` covers what came since the last `reset` or `reset_local`, `get_global` what came since the last `reset`; both
    may be asked at any time and are computed once per state. Without objects to find a value is nan.

    Attributes:
        uses_frames: `update` wants labels [label, frames]: where the images lie in the network input (frames_of).
    """

    uses_frames = True

    def __init__(self, name: str, class_names: Sequence[str] | None, use_difficult: bool, pred_idx: int) -> None:
        """class_names: names by class id; pred_idx: which output of the network holds the detections."""
        self.class_names = None if class_names is None else list(class_names)
        self.use_difficult, self.pred_idx = use_difficult, pred_idx
        super().__init__(name, has_global_stats=True)

    def get_config(self) -> dict[str, Any]:
        """Arguments for mx.metric.create."""
        return {
            "metric": type(self).__name__,
            "use_difficult": self.use_difficult,
            "class_names": self.class_names,
            "pred_idx": self.pred_idx,
        }

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self._detections: list[np.ndarray] = []
        self._truths: list[np.ndarray] = []
        self._local_start = 0  # first batch that get() counts
        self._results: dict[int, Any] = {}

    def reset_local(self) -> None:
        """Starts a new window for `get`; `get_global` still counts all."""
        super().reset_local()
        self._local_start = len(self._detections)

    def update(self, labels: Any, preds: Any, pad: int = 0) -> None:
        """Adds a batch.

        Args:
            labels: array (B, M, W >= 5), or list that starts with it: rows [id, xmin, ymin, xmax, ymax,
                difficult, ...], id < 0 = unused row. Without the sixth column no object is difficult. Samples of
                DetRecordIter that only fill a batch do not count (PADDING in dataset/labels.py): Module.score hands
                them over like all others.
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
        count, frames = len(label) - pad, self._frames(labels)
        count -= int((label[:count, :1, 5] == PADDING).sum())  # such samples are the last of a batch
        self._truths.append(self._located(_valid_rows(label[:count, :, :6], self.global_num_inst), 2, frames))
        self._detections.append(self._located(_valid_rows(pred[:count, :, :6], self.global_num_inst), 3, frames))
        self.num_inst += count
        self.global_num_inst += count
        self._results.clear()

    def result(self) -> Any:
        """Curves and counts of every class since the last reset."""
        return self._evaluate(0)

    def get(self) -> tuple[Any, Any]:
        """Names and values since the last reset or reset_local."""
        return self._named(self._evaluate(self._local_start))

    def get_global(self) -> tuple[Any, Any]:
        """Names and values since the last reset, in the form of `get`."""
        return self._named(self.result())

    @abstractmethod
    def _compute(self, detections: np.ndarray, truths: np.ndarray) -> Any:
        """The result of detections (n, 7) and truths (g, 7), whose first column is the number of the image."""

    @abstractmethod
    def _named(self, result: Any) -> tuple[Any, Any]:
        """What `get` returns of a result."""

    def _frames(self, labels: Any) -> np.ndarray | None:
        """The frames of a batch, where they are given; Module.score hands over an assigner's labels in their place."""
        if not isinstance(labels, list | tuple) or len(labels) < 2:
            return None
        frames = np.asarray(_to_numpy(labels, 1), np.float64)
        return frames if frames.ndim == 2 and frames.shape[1] == FRAME_COLUMNS else None

    def _located(self, rows: np.ndarray, box: int, frames: np.ndarray | None) -> np.ndarray:
        """Rows (n, 7) of one batch as they are kept, in pixels with frames; their corners begin in column `box`."""
        if frames is None:
            return rows
        rows = rows.astype(np.float64)
        number = rows[:, 0].astype(np.int64) - self.global_num_inst
        rows[:, box : box + 4] = to_image_pixels(rows[:, box : box + 4], frames[number])
        return rows

    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Detections and objects since the last reset as evaluate.detections.Results has them, (n, 7) and (g, 7)."""
        empty = [np.empty((0, 7), np.float32)]
        return np.concatenate(empty + self._detections), np.concatenate(empty + self._truths)

    def take_rows(self, detections: np.ndarray, truths: np.ndarray, images: int) -> None:
        """Counts these rows, (n, 7) and (g, 7) as `rows` gives them, of so many images in place of all so far."""
        self.reset()
        self._detections, self._truths = [detections], [truths]
        self.num_inst = self.global_num_inst = images

    def _evaluate(self, start: int) -> Any:
        if start not in self._results:
            empty = [np.empty((0, 7), np.float32)]
            detections = np.concatenate(empty + self._detections[start:])
            truths = np.concatenate(empty + self._truths[start:])
            self._results[start] = self._compute(detections, truths)
        return self._results[start]


class MApMetric(DetectionMetric):
    """VOC mAP; AP is the area under the precision-recall curve. `get` gives the classes and mAP, or just mAP."""

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
        self.rule = voc_rule(VOC07 if self.use_07_metric else "voc", ovp_thresh, use_difficult)
        super().__init__("mAP", class_names, use_difficult, pred_idx)

    def get_config(self) -> dict[str, Any]:
        """Arguments for mx.metric.create."""
        return super().get_config() | {"ovp_thresh": self.rule.iou_threshold}

    def _compute(self, detections: np.ndarray, truths: np.ndarray) -> VOCResult:
        return voc_eval(detections, truths, self.class_names, self.rule)

    def _named(self, result: VOCResult) -> tuple[Any, Any]:
        if self.class_names is None:
            return self.name, result.mean_ap
        return [*self.class_names, self.name], [*(one.ap for one in result.classes), result.mean_ap]


class VOC07MApMetric(MApMetric):
    """VOC mAP with the 11-point AP of VOC2007."""

    use_07_metric = True


class COCOMetric(DetectionMetric):
    """The twelve numbers of COCO (evaluate.coco_metric.STAT_NAMES), areas in pixels of the original images.

    Difficult objects are what crowds are in COCO: any number of detections may lie on one, and neither these nor the
    object count; with use_difficult they are objects like all others. The area of an object is that of its box (COCO's
    own annotations state the smaller one of its mask). Detections are clipped to their image. Images without a frame
    have the size image_size; where that is None, too, the numbers of one range of areas are nan, and the others, as IoU
    does not depend on the scale of the axes, are right.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        use_difficult: bool = False,
        image_size: tuple[int, int] | None = None,
        pred_idx: int = 0,
    ) -> None:
        """class_names: by class id; image_size: (height, width) of images that come without a frame."""
        self.image_size = image_size
        super().__init__("COCO", class_names, use_difficult, pred_idx)

    def get_config(self) -> dict[str, Any]:
        """Arguments for mx.metric.create."""
        return super().get_config() | {"image_size": self.image_size}

    def _located(self, rows: np.ndarray, box: int, frames: np.ndarray | None) -> np.ndarray:
        """Corners in pixels of the image."""
        rows = super()._located(rows, box, frames)
        if frames is None and self.image_size:
            rows[:, box : box + 4] *= np.tile(self.image_size[::-1], 2)
        return rows

    def _frames(self, labels: Any) -> np.ndarray | None:
        frames = super()._frames(labels)
        self._has_areas &= frames is not None or self.image_size is not None
        return frames

    def reset(self) -> None:
        """Forgets everything."""
        super().reset()
        self._has_areas = True

    def _compute(self, detections: np.ndarray, truths: np.ndarray) -> COCOResult:
        assert self.class_names is not None
        rows = coco_rows(detections, truths, self.use_difficult, self._has_areas)
        return coco_eval(*rows, self.class_names)

    def _named(self, result: COCOResult) -> tuple[list[str], list[float]]:
        return list(result.stats), list(result.stats.values())


class ValidationMetric(mx.metric.EvalMetric):
    """Several metrics of one pass.

    The names that `get` gives: of the first VOC metric the classes and mAP, of a second one mAP_KIND alone, of COCO its
    twelve numbers.

    Attributes:
        parts: the metrics by kind (METRICS).
    """

    uses_frames = True

    def __init__(
        self, kinds: Sequence[str], class_names: Sequence[str], overlap: float = 0.5, use_difficult: bool = False
    ) -> None:
        """kinds: of METRICS, each once; overlap: IoU above which VOC takes a detection for right."""
        self.parts: dict[str, DetectionMetric] = {}
        for kind in kinds:
            if kind == COCO:
                self.parts[kind] = COCOMetric(class_names, use_difficult)
            else:
                voc = VOC07MApMetric if kind == VOC07 else MApMetric
                self.parts[kind] = voc(overlap, use_difficult, class_names)
        self._first = next((kind for kind in kinds if kind != COCO), "")
        self._beside: tuple[ValidationMetric, np.ndarray] | None = None
        self._kinds, self._rest = kinds, (class_names, overlap, use_difficult)
        super().__init__("validation", has_global_stats=True)

    @property
    def together(self) -> "list[ValidationMetric]":
        """This one, and that of the detections beside it, if there are any (compare_with)."""
        return [self, *([self._beside[0]] if self._beside else [])]

    def compare_with(self, constant: np.ndarray) -> None:
        """Measures detections (K, 6), the same for every image, beside those that are given from now on."""
        self._beside = ValidationMetric(self._kinds, *self._rest), constant

    def take_compared(self) -> dict[str, float]:
        """The values of those detections, which are measured no more; {} without any."""
        beside, self._beside = self._beside, None
        return dict(zip(*beside[0].get_global(), strict=True)) if beside else {}

    def reset(self) -> None:
        """Forgets everything."""
        for part in self.parts.values():
            part.reset()
        if self._beside:
            self._beside[0].reset()

    def reset_local(self) -> None:
        """Starts a new window for `get`."""
        for part in self.parts.values():
            part.reset_local()

    def update(self, labels: Any, preds: Any) -> None:
        """Adds a batch, as DetectionMetric.update does."""
        for part in self.parts.values():
            part.update(labels, preds)
        if self._beside:
            metric, constant = self._beside
            metric.update(labels, [np.broadcast_to(constant, (len(array), *constant.shape)) for array in preds])

    def get(self) -> tuple[list[str], list[float]]:
        """Names and values since the last reset or reset_local."""
        return self._joined({kind: part.get() for kind, part in self.parts.items()})

    def get_global(self) -> tuple[list[str], list[float]]:
        """Names and values since the last reset."""
        return self._joined({kind: part.get_global() for kind, part in self.parts.items()})

    def results(self) -> dict[str, VOCResult | COCOResult]:
        """Everything that is known, by kind."""
        return {kind: part.result() for kind, part in self.parts.items()}

    def _joined(self, found: dict[str, tuple[list[str], list[float]]]) -> tuple[list[str], list[float]]:
        names: list[str] = []
        values: list[float] = []
        for kind, (part_names, part_values) in found.items():
            second = kind not in (self._first, COCO)
            names += [f"mAP_{kind}"] if second else part_names
            values += part_values[-1:] if second else part_values
        return names, values


mx.metric.register(MApMetric)
mx.metric.register(VOC07MApMetric)
mx.metric.register(COCOMetric)


def _to_numpy(arrays: Any, index: int) -> np.ndarray:
    """Array number `index` of a list, or the array that was given alone."""
    array = arrays[index] if isinstance(arrays, list | tuple) else arrays
    return array.asnumpy() if isinstance(array, mx.nd.NDArray) else np.asarray(array)


def _valid_rows(batch: np.ndarray, first_image: int) -> np.ndarray:
    """Rows of (B, N, 6) with id >= 0 as (n, 7), the image number, counted from first_image, in front."""
    image, row = np.nonzero(batch[:, :, 0] >= 0)
    return np.column_stack([image + float(first_image), batch[image, row]])
