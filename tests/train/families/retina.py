"""A family of the tests: RetinaNet-like, one level, a head, losses and an assigner of its own, an option of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import OptionError
from common.sizes import Size
from config.options import option
from machine.runtime import mx
from symbol.family import Family, FeatureMap
from symbol.layers import Layers, Symbol
from symbol.network_options import CommonOptions
from tests.train.families.retina_assigner import STRIDE, RetinaAssigner

LABELS = ("retina_cls", "retina_box", "normaliser")
MULTIPLE = 32  # of sides


@dataclass(frozen=True)
class RetinaOptions(CommonOptions):
    """Its own option beside those of all families."""

    retina_side: float = option(24.0, "side of the anchors in pixels", "retina network", minimum=1.0)


class Retina(Family):
    """Rows are the channels of the four layers of the body."""

    name = "Retina"
    options = RetinaOptions
    freeze = {"body": "body_", "all-but-heads": "(?!head_)"}  # noqa: RUF012

    def training(self, network: str, row: Any, size: Size, num_classes: int, options: RetinaOptions) -> Symbol:
        cls, box = self._heads(network, row, size, num_classes, options)
        target, offsets, normaliser = (mx.sym.var(name) for name in LABELS)
        count = mx.sym.reshape(mx.sym.maximum(normaliser, 1.0), shape=(-1,))  # (B,)
        ids = mx.sym.expand_dims(target, axis=2)  # (B, A, 1)
        hot = mx.sym.concat(*(ids == k + 1 for k in range(num_classes)), dim=2)  # (B, A, C)
        entropy = mx.sym.relu(cls) - cls * hot + mx.sym.log(1 + mx.sym.exp(-mx.sym.abs(cls)))
        cls_loss = mx.sym.sum(mx.sym.broadcast_mul(entropy, ids >= 0), axis=(1, 2)) / count
        error = mx.sym.broadcast_mul(mx.sym.smooth_l1(box - offsets, scalar=1.0), ids > 0)
        losses = {"retina_cls_loss": cls_loss, "retina_box_loss": mx.sym.sum(error, axis=(1, 2)) / count}
        det = mx.sym.BlockGrad(self._det(cls, box, size, options), name="det_out")
        return mx.sym.Group([*(mx.sym.make_loss(loss, name=name) for name, loss in losses.items()), det])

    def detection(self, network: str, row: Any, size: Size, num_classes: int, options: RetinaOptions) -> Symbol:
        return self._det(*self._heads(network, row, size, num_classes, options), size, options)

    def assigner(
        self,
        network: str,
        row: Any,
        size: Size,
        num_classes: int,
        options: RetinaOptions,
        sizes: Sequence[Size] = (),
    ) -> RetinaAssigner:
        for one in (size, *sizes):
            self._check(network, one)
        return RetinaAssigner(options.retina_side)

    def label_names(self, options: RetinaOptions) -> tuple[str, ...]:
        return LABELS

    def feature_maps(self, network: str, row: Any, size: Size, options: RetinaOptions) -> list[FeatureMap]:
        self._check(network, size)
        return [FeatureMap("only", size[0] // STRIDE, size[1] // STRIDE, 1)]

    def usual_sizes(self, network: str) -> tuple[int, ...]:
        return (64,)

    def size_multiple(self, network: str) -> int:
        return MULTIPLE

    def only_size(self, network: str, data_shape: Any) -> str:
        return f"the anchors of {network} are for one size"

    def post_processing(self, options: RetinaOptions) -> str:
        return "box_nms of retina"

    def _check(self, network: str, size: Size) -> None:
        if any(side % MULTIPLE for side in size):
            raise OptionError(f"data shape {size[0]},{size[1]}: {network} needs sides that are multiples of {MULTIPLE}")

    def _heads(
        self, network: str, row: Sequence[int], size: Size, num_classes: int, options: RetinaOptions
    ) -> tuple[Symbol, Symbol]:
        """Logits (B, A, C) and offsets (B, A, 4)."""
        self._check(network, size)
        layers = Layers(options.freeze)
        net = mx.sym.var("data")
        for k, channels in enumerate(row):
            net = layers.conv_relu(net, f"body_{k}", channels, 3, stride=2, pad=1)
        net = layers.conv_relu(net, "head_shared", row[-1], 3, pad=1)
        return tuple(
            mx.sym.reshape(
                mx.sym.transpose(layers.conv(net, f"head_{name}", values, 3), axes=(0, 2, 3, 1)), shape=(0, -1, values)
            )
            for name, values in (("cls", num_classes), ("box", 4))
        )

    def _det(self, cls: Symbol, box: Symbol, size: Size, options: RetinaOptions) -> Symbol:
        rows, columns = size[0] // STRIDE, size[1] // STRIDE
        height, width = options.retina_side / size[0], options.retina_side / size[1]
        number = mx.sym.contrib.arange_like(mx.sym.BlockGrad(cls), axis=1)  # (A,)
        y = mx.sym.floor(number / columns)
        x = number - y * columns
        cx, cy, w, h = (
            mx.sym.reshape(mx.sym.slice_axis(box, axis=2, begin=k, end=k + 1), shape=(0, -1)) for k in range(4)
        )
        cx = mx.sym.broadcast_add(cx * width, mx.sym.reshape((x + 0.5) / columns, shape=(1, -1)))
        cy = mx.sym.broadcast_add(cy * height, mx.sym.reshape((y + 0.5) / rows, shape=(1, -1)))
        w, h = mx.sym.exp(w) * (width / 2), mx.sym.exp(h) * (height / 2)
        ids, scores = mx.sym.argmax(cls, axis=2), mx.sym.sigmoid(mx.sym.max(cls, axis=2))
        found = mx.sym.contrib.box_nms(
            mx.sym.stack(ids, scores, cx - w, cy - h, cx + w, cy + h, axis=2),
            overlap_thresh=options.nms,
            valid_thresh=options.score_threshold,
            id_index=0,
            score_index=1,
            coord_start=2,
            force_suppress=options.force,
        )
        return mx.sym.slice_axis(found, axis=1, begin=0, end=min(options.keep_topk, rows * columns), name="detection")
