"""The manifest of a model folder: all that is needed to run the model, and what its files must look like."""

from dataclasses import dataclass, field
from typing import Any

from common.signed_json import SignedKind
from config.augment_options import DEFAULT_FILL, FORCE, RESIZE_MODES

MAX_SIDE = 8192  # of the network input
MAX_THRESHOLD = 1e30
# Of dtype: how the network computes. The weights in the folder are float32 in each.
FLOAT32, BFLOAT16, INT8 = DTYPES = ("float32", "bfloat16", "int8")
# Of input_format: float32 (B, 3, H, W) RGB less mean, over std; or uint8 (B, H, W, 3) RGB pixels as they are.
FLOAT32_NCHW, UINT8_NHWC = INPUT_FORMATS = ("float32_nchw", "uint8_nhwc")
_CHOICES = {
    "resize_mode": RESIZE_MODES,
    "interpolation": ("bilinear",),
    "dtype": DTYPES,
    "input_format": INPUT_FORMATS,
}


@dataclass(frozen=True)
class PostProcessing:
    """What turns predictions into detections, and its settings (nms_topk: of a class if per class)."""

    operator: str
    nms: float
    nms_topk: int
    score_threshold: float
    force: bool


@dataclass(frozen=True)
class Source:
    """The checkpoint that the model comes from; scores are those of its validation."""

    prefix: str
    epoch: int
    scores: dict[str, float]


@dataclass(frozen=True)
class Calibration:
    """What int8 needs to know beside the weights.

    Attributes:
        record, mode, images: the images' record, how thresholds were found, and in how many images.
        thresholds: lowest and highest value of each array that is quantised, by the name of its layer or operator
            (Fused.arrays in graph/number_formats.py).
        excluded: the convolutions that stay float32.
    """

    record: str
    mode: str
    images: int
    thresholds: dict[str, tuple[float, ...]]
    excluded: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """ValueError for thresholds that are no intervals."""
        for name, values in self.thresholds.items():
            if len(values) != 2 or not -MAX_THRESHOLD <= values[0] <= values[1] <= MAX_THRESHOLD:
                raise ValueError(
                    f"calibration: the threshold of {name:.80} is {list(values[:3])}, not two numbers in their order"
                )


@dataclass(frozen=True)
class Accuracy:
    """A metric of this model on a labelled record, what the same weights have in float32, and what model-int8.onnx."""

    record: str
    metric: str
    float32: float
    this: float
    onnx_int8: float | None = None


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and sha256 (hexadecimal) of a file."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What is known of a model.

    Attributes:
        class_names: names in the order of the ids.
        mean, std: RGB, of pixels 0..255; the network reads (pixel - mean) / std.
        input_shape: (height, width).
        resize_mode: `force` = height and width are scaled each for itself; `letterbox` = by one factor, with borders.
        fill: colour of the borders; `force` has none.
        interpolation: of the resize.
        dtype: how the network computes, one of DTYPES.
        input_format: what `data` holds, one of INPUT_FORMATS.
        calibration: of int8.
        accuracy: where it was measured.
        network, options: what the symbol was built from.
        postprocessing: settings of det.
        versions: of the libraries that wrote the folder.
        source: the checkpoint.
        files: the folder's other files by name; empty before they are written.
    """

    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_shape: tuple[int, ...]
    network: str
    options: dict[str, Any]
    postprocessing: PostProcessing
    versions: dict[str, str]
    source: Source
    resize_mode: str = FORCE
    fill: int = DEFAULT_FILL
    interpolation: str = "bilinear"
    dtype: str = FLOAT32
    input_format: str = FLOAT32_NCHW
    calibration: Calibration | None = None
    accuracy: Accuracy | None = None
    files: dict[str, FileRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """ValueError says which field has a value that no model can have, or one that this version cannot run."""
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r:.50}, this version runs {' and '.join(known)} only")
        if (self.dtype == INT8) != (self.calibration is not None):
            raise ValueError("calibration belongs to the dtype int8, which needs it")
        if not 0 <= self.fill <= 255:
            raise ValueError(f"fill is {self.fill!r:.50}, not 0 to 255")
        if not self.class_names or not all(self.class_names) or len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names is empty, or a name is empty or stands there twice")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std take three numbers each, std positive ones")
        if len(self.input_shape) != 2 or not all(1 <= side <= MAX_SIDE for side in self.input_shape):
            raise ValueError(f"input_shape takes height and width up to {MAX_SIDE}")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the network input."""
        return self.input_shape[0], self.input_shape[1]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one image in `data`."""
        height, width = self.size
        return (height, width, 3) if self.input_format == UINT8_NHWC else (3, height, width)


MANIFEST_FILE = SignedKind(
    Manifest,
    "manifest",
    format=2,
    always=frozenset({"format", "resize_mode", "fill", "interpolation", "dtype", "files", "excluded"}),
)
