"""The manifest of a model folder and the files that it names, read and checked without mxnet."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import CheckpointError, OptionError
from common.files import file_sha256
from common.signed_json import SignedKind
from common.sizes import input_size
from config.augment_options import DEFAULT_FILL, FORCE, RESIZE_MODES
from config.model_groups import ExpectedModel
from dataset.class_names import read_class_names
from dataset.transforms import parse_bit_depth

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

MAX_SIDE = 8192  # of the network input
MAX_THRESHOLD = 1e30
# Of dtype: how the network computes. The weights in the folder are float32 in each.
FLOAT32, BFLOAT16, INT8 = DTYPES = ("float32", "bfloat16", "int8")
NAIVE, _ = CALIBRATION_MODES = ("naive", "entropy")  # of a calibration
# Of input_format: float32 (B, 3, H, W) RGB less mean, over std; or uint8 (B, H, W, 3) RGB pixels as they are.
FLOAT32_NCHW, UINT8_NHWC = INPUT_FORMATS = ("float32_nchw", "uint8_nhwc")
_CHOICES = {
    "resize_mode": RESIZE_MODES,
    "interpolation": ("bilinear",),
    "dtype": DTYPES,
    "input_format": INPUT_FORMATS,
}
SYMBOL, PARAMS, MANIFEST = "model-symbol.json", "model-0000.params", "manifest.json"
ONNX, ONNX_INT8 = "model.onnx", "model-int8.onnx"
MAX_SYMBOL_BYTES, MAX_ONNX_BYTES = 16 << 20, 2 << 30
_NEEDED, _OPTIONAL = {SYMBOL, PARAMS}, {ONNX, ONNX_INT8}
FILES = _NEEDED | _OPTIONAL | {MANIFEST}
_MEAN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PostProcessing:
    """What turns predictions into detections, and its settings (nms_topk: of a class if per class)."""

    operator: str
    nms: float
    nms_topk: int
    score_threshold: float
    force: bool


@dataclass(frozen=True)
class SourceCheckpoint:
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
        bit_depth: the rule by which pixels of more than 8 bits become 8; "" = images have 8.
        interpolation: of the resize.
        dtype: how the network computes, one of DTYPES.
        input_format: what `data` holds, one of INPUT_FORMATS.
        calibration: of int8.
        accuracy: where it was measured.
        network, options: what the symbol was built from.
        postprocessing: settings of det.
        versions: of the libraries that wrote the folder.
        source: the checkpoint.
        thresholds: the lowest score of a detection by class, for who names none; classes that are not there have
            the default of the program that detects.
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
    source: SourceCheckpoint
    resize_mode: str = FORCE
    fill: int = DEFAULT_FILL
    bit_depth: str = ""
    interpolation: str = "bilinear"
    dtype: str = FLOAT32
    input_format: str = FLOAT32_NCHW
    calibration: Calibration | None = None
    accuracy: Accuracy | None = None
    thresholds: dict[str, float] = field(default_factory=dict)
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
        if self.bit_depth:
            parse_bit_depth(self.bit_depth)
        if not self.class_names or not all(self.class_names) or len(set(self.class_names)) != len(self.class_names):
            raise ValueError("class_names is empty, or a name is empty or appears twice")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise ValueError("mean and std take three numbers each, std positive ones")
        if len(self.input_shape) != 2 or not all(1 <= side <= MAX_SIDE for side in self.input_shape):
            raise ValueError(f"input_shape takes height and width up to {MAX_SIDE}")
        self._check_thresholds()

    def _check_thresholds(self) -> None:
        for name, score in self.thresholds.items():
            if name not in self.class_names or not 0 <= score <= 1:
                raise ValueError(f"thresholds: {name!r:.80} is no class, or {score!r:.50} is not 0 to 1")

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


def is_model_folder(path: str | Path) -> bool:
    """Whether there is a manifest."""
    return Path(path, MANIFEST).is_file()


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a model folder; CheckpointError if it is missing or damaged."""
    path = Path(folder, MANIFEST)
    try:
        manifest = MANIFEST_FILE.read(path)
        check_files(manifest)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); export the model again") from error
    return manifest


def check_files(manifest: Manifest) -> None:
    """ValueError unless the manifest has the files of a model folder, none of them too large."""
    if not _NEEDED <= manifest.files.keys() <= _NEEDED | _OPTIONAL:
        raise ValueError(f"files are not {SYMBOL} and {PARAMS}, with or without {ONNX} and {ONNX_INT8}")
    for name, limit in ((SYMBOL, MAX_SYMBOL_BYTES), (ONNX, MAX_ONNX_BYTES), (ONNX_INT8, MAX_ONNX_BYTES)):
        if name in manifest.files and manifest.files[name].size > limit:
            raise ValueError(f"{name} is larger than {limit} bytes")


def verify_file(path: Path, record: FileRecord) -> None:
    """CheckpointError unless the file has the size and sha256 of its record."""
    check_size(path, record)
    if file_sha256(path) != record.sha256:
        raise damaged(path)


def check_size(path: Path, record: FileRecord) -> None:
    """CheckpointError unless the file is there and has the size of its record."""
    if not path.is_file():
        raise CheckpointError(f"{path}: missing, the model folder is incomplete; export the model again")
    if path.stat().st_size != record.size:
        raise damaged(path)


def damaged(path: Path) -> CheckpointError:
    """The error of a file that is not the one of the manifest."""
    return CheckpointError(
        f"{path}: damaged (its size or sha256 is not that of {MANIFEST}); copy or export the model again"
    )


def check_options(manifest: Manifest, path: str | Path, epoch: int | str, detection_options: dict[str, Any]) -> None:
    """OptionError where a model folder is asked for another epoch or other detections: both are part of its symbol.

    Names that are no setting of detections are refused, too.
    """
    if epoch != "auto":
        raise OptionError(f"--epoch {epoch}: {path} is a model folder, which holds one epoch; leave --epoch out")
    known = [field.name for field in dataclasses.fields(manifest.postprocessing)]
    for name, value in detection_options.items():
        if name not in known:
            raise OptionError(f"unknown option {name!r}: {path} is a model folder, which has {', '.join(known)}")
        exported = getattr(manifest.postprocessing, name)
        if value != exported:
            flag = f"--{name.replace('_', '-')}"
            raise OptionError(
                f"{flag} {value}: {path} was exported with {exported}; export it again with {flag} {value}"
            )


def check_model(
    expected: ExpectedModel,
    origin: str,
    *,
    network: str,
    class_names: Sequence[str],
    data_shape: Sequence[int],
    mean_pixels: Sequence[float],
) -> None:
    """Compares what was given of a model, whose name is origin, with the model; OptionError where they differ.

    data_shape is the model's (height, width), mean_pixels its mean of red, green and blue.
    """
    side = expected.data_shape
    names = read_class_names(expected.class_names) if expected.class_names else None
    given: dict[str, tuple[Any, Any]] = {
        "network": (expected.network or None, network),
        "num-class": (expected.num_class, len(class_names)),
        "class-names": (names, tuple(class_names)),
        "data-shape": (side and input_size(side, smallest=1), tuple(data_shape)),
    }
    for flag, (wanted, found) in given.items():
        if wanted is not None and wanted != found:
            raise _differs(flag, wanted, origin, found)
    for flag, found in zip(("mean-r", "mean-g", "mean-b"), mean_pixels, strict=True):
        mean = getattr(expected, flag.replace("-", "_"))
        if mean is not None and abs(mean - found) > _MEAN_TOLERANCE:
            raise _differs(flag, mean, origin, found)


def check_checkpoint(expected: ExpectedModel, checkpoint: "Checkpoint") -> None:
    """check_model of a checkpoint."""
    meta = checkpoint.meta
    check_model(
        expected,
        f"{checkpoint.prefix}, epoch {checkpoint.epoch},",
        network=meta.network,
        class_names=meta.class_names,
        data_shape=meta.data_shape,
        mean_pixels=meta.mean_pixels,
    )


def _differs(flag: str, wanted: Any, origin: str, found: Any) -> OptionError:
    wanted, found = (", ".join(map(str, x)) if isinstance(x, tuple) else x for x in (wanted, found))
    return OptionError(f"--{flag} {wanted}: {origin} has {found}; leave the option out, the model knows")
