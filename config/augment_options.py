"""The options of the training augmentation: field names and defaults of the classic cfg.train.

The classic cfg.valid (nothing random, bilinear resize) is what an iterator does without these options.
"""

from dataclasses import dataclass, fields

from common.errors import OptionError
from config.options import option

FORCE, LETTERBOX = RESIZE_MODES = ("force", "letterbox")
DEFAULT_FILL = 127  # grey, of all that lies beside an image
CENTER, OVERLAP = "center", "overlap"
AUTO_INTERPOLATION, RANDOM_INTERPOLATION = 9, 10
BEST_JPEG = 95  # OpenCV's own quality
_PER_SAMPLER = (
    "min_crop_scales",
    "max_crop_scales",
    "min_crop_aspect_ratios",
    "max_crop_aspect_ratios",
    "min_crop_overlaps",
    "max_crop_overlaps",
    "min_crop_sample_coverages",
    "max_crop_sample_coverages",
    "min_crop_object_coverages",
    "max_crop_object_coverages",
    "max_crop_trials",
)
_GROUP = "augmentation"


def _probability(default: float, what: str) -> float:
    return option(default, f"probability of {what}", _GROUP, minimum=0.0, maximum=1.0)


def _strength(what: str, maximum: float) -> float:
    return option(0.0, what, _GROUP, minimum=0.0, maximum=maximum)


def _ratio(default: float, what: str) -> tuple[float, ...]:
    return option((default,) * 5, f"for each crop sampler: {what}", _GROUP, minimum=0.0, maximum=1.0)


@dataclass(frozen=True)
class TrainAugment:
    """SSD augmentation (Liu et al. 2016, sections 2.2 and 3.6) with the values of the classic cfg.train.

    A crop sampler proposes rectangles of a random scale (side relative to the image) and aspect ratio (width / height
    in pixels) until one fits an object within its limits. The fields named ..._crop_... in the plural have one entry
    for each sampler: their length is the classic num_crop_sampler, () everywhere = no sampler. OptionError if lengths
    differ or a range is empty.

    The fields from mosaic_prob on are later than that, and all off: mosaic, an affine map of what the classic part or
    the mosaic shows, and gains in HSV, as the YOLOv3-SPP recipe has them (ultralytics/yolov3); quarter turns and flips
    of images before anything else; mixtures of two views; colours, sharpness, noise and JPEG of the result.
    """

    rand_crop_prob: float = _probability(5 / 6, "cropping")
    min_crop_scales: tuple[float, ...] = _ratio(0.3, "smallest side")
    max_crop_scales: tuple[float, ...] = _ratio(1.0, "largest side")
    min_crop_aspect_ratios: tuple[float, ...] = option(
        (0.5,) * 5, "for each crop sampler: smallest width / height", _GROUP, minimum=0.01, maximum=100.0
    )
    max_crop_aspect_ratios: tuple[float, ...] = option(
        (2.0,) * 5, "for each crop sampler: largest width / height", _GROUP, minimum=0.01, maximum=100.0
    )
    min_crop_overlaps: tuple[float, ...] = option(
        (0.1, 0.3, 0.5, 0.7, 0.9),
        "for each crop sampler: smallest IoU with some object",
        _GROUP,
        minimum=0.0,
        maximum=1.0,
    )
    max_crop_overlaps: tuple[float, ...] = _ratio(1.0, "largest IoU with this object")
    min_crop_sample_coverages: tuple[float, ...] = _ratio(0.0, "smallest part of the crop that the object covers")
    max_crop_sample_coverages: tuple[float, ...] = _ratio(1.0, "largest part of the crop that the object covers")
    min_crop_object_coverages: tuple[float, ...] = _ratio(0.0, "smallest part of the object inside the crop")
    max_crop_object_coverages: tuple[float, ...] = _ratio(1.0, "largest part of the object inside the crop")
    max_crop_trials: tuple[int, ...] = option(
        (25,) * 5, "for each crop sampler: proposals before the next one has its turn", _GROUP, minimum=0, maximum=1000
    )
    crop_emit_mode: str = option(
        CENTER, "objects a crop keeps: by their centre, or by the part inside it", _GROUP, choices=(CENTER, OVERLAP)
    )
    emit_overlap_thresh: float = option(
        0.3, "part of an object inside the crop above which `overlap` keeps it", _GROUP, minimum=0.0, maximum=1.0
    )
    rand_pad_prob: float = _probability(0.5, "placing the image on a larger canvas")
    max_pad_scale: float = option(
        4.0, "largest side of the canvas relative to the image", _GROUP, minimum=1.0, maximum=20.0
    )
    fill_value: int = option(
        DEFAULT_FILL,
        "colour of the canvas, and of what mosaic and affine maps leave empty",
        _GROUP,
        minimum=0,
        maximum=255,
    )
    random_hue_prob: float = _probability(0.5, "changing the hue")
    max_random_hue: int = option(18, "largest change of hue, of 180", _GROUP, minimum=0, maximum=90)
    random_saturation_prob: float = _probability(0.5, "changing the saturation")
    max_random_saturation: int = option(32, "largest change of saturation, of 255", _GROUP, minimum=0, maximum=255)
    random_illumination_prob: float = _probability(0.5, "changing the lightness")
    max_random_illumination: int = option(32, "largest change of lightness, of 255", _GROUP, minimum=0, maximum=255)
    random_contrast_prob: float = _probability(0.5, "changing the contrast")
    max_random_contrast: float = option(0.5, "largest change of contrast", _GROUP, minimum=0.0, maximum=1.0)
    rand_mirror_prob: float = _probability(0.5, "mirroring left and right")
    inter_method: int = option(
        RANDOM_INTERPOLATION,
        "interpolation: 0 nearest, 1 linear, 2 cubic, 3 area, 4 Lanczos, 9 area or cubic by size, 10 random",
        _GROUP,
        choices=(0, 1, 2, 3, 4, AUTO_INTERPOLATION, RANDOM_INTERPOLATION),
    )
    mosaic_prob: float = _probability(0.0, "showing four images side by side, in place of canvas and crop")
    degrees: float = _strength("largest rotation, degrees", 180.0)
    translate: float = _strength("largest shift, as a part of the input's sides", 1.0)
    scale: float = _strength("largest change of the scale, which becomes 1 - it to 1 + it", 0.95)
    shear: float = _strength("largest angle of shear along each axis, degrees", 60.0)
    hsv_h: float = _strength("largest change of hue, relative to its value (HSV)", 1.0)
    hsv_s: float = _strength("largest change of saturation, relative to its value", 1.0)
    hsv_v: float = _strength("largest change of brightness, relative to its value", 1.0)
    flip_ud_prob: float = _probability(0.0, "exchanging top and bottom")
    quarter_turn_prob: float = _probability(0.0, "turning by one, two or three quarters of a circle")
    mixup_prob: float = _probability(0.0, "mixing with another image; the boxes of both stay")
    grey_prob: float = _probability(0.0, "taking the colours away")
    blur_prob: float = _probability(0.0, "blurring the input")
    max_blur: float = option(
        2.0, "largest sigma of the blur, in pixels of the input", _GROUP, minimum=0.1, maximum=50.0
    )
    noise_prob: float = _probability(0.0, "adding noise")
    max_noise: float = option(16.0, "largest deviation of the noise, of 255", _GROUP, minimum=0.1, maximum=255.0)
    jpeg_prob: float = _probability(0.0, "compressing the input as a JPEG")
    min_jpeg_quality: int = option(
        30, f"lowest quality of this JPEG; the highest is {BEST_JPEG}", _GROUP, minimum=1, maximum=BEST_JPEG
    )

    def __post_init__(self) -> None:
        """Checks that there is one entry per sampler and no empty range."""
        for name in _PER_SAMPLER:
            if len(getattr(self, name)) != self.num_crop_sampler:
                raise OptionError(
                    f"{name} has {len(getattr(self, name))} entries for {self.num_crop_sampler} crop samplers "
                    "(as many as min_crop_overlaps has); give one entry for each"
                )
        for name in (field.name for field in fields(self) if field.name.startswith("min_crop")):
            low, high = getattr(self, name), getattr(self, name.replace("min", "max", 1))
            if any(a > b for a, b in zip(low, high, strict=True)):
                raise OptionError(f"{name} exceeds {name.replace('min', 'max', 1)}: {low} and {high}")

    @property
    def affine(self) -> bool:
        """Is there a random affine map?"""
        return any((self.degrees, self.translate, self.scale, self.shear))

    @property
    def hsv(self) -> bool:
        """Are hue, saturation and brightness changed in HSV?"""
        return any((self.hsv_h, self.hsv_s, self.hsv_v))

    @property
    def num_crop_sampler(self) -> int:
        """The number of crop samplers."""
        return len(self.min_crop_overlaps)


@dataclass(frozen=True)
class RunAugment(TrainAugment):
    """The augmentation of a run, whose end is known."""

    close_mosaic: int = option(0, "epochs at the end without mosaics and mixtures", _GROUP, minimum=0)
