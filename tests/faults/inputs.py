"""Inputs of every parser, made from sound ones by numbers that hypothesis draws: read, or refused by one sentence, and
soon.

What a parser may raise is a UserError. Anything else, more than SLOW seconds of this process, and a
result that is not there are wrong. An input is made anew of its number alone: `--parsers NAME --input NUMBER`.
"""

import json
import random
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from common.errors import UserError
from config.hyp_file import read_hyp
from config.preset import read_preset
from dataset.annotation_list import AnnotationList
from dataset.coco_file import read_annotations
from dataset.csv_boxes import CsvBoxes
from dataset.darknet_data import read_data
from dataset.image_check import check_image, packed_image
from dataset.image_list import read_labels
from dataset.labelme import LabelMe
from dataset.labels import parse_label, validate
from dataset.names_file import names_in_file
from dataset.pascal_voc import PascalVoc
from dataset.recordio import RecordReader
from dataset.sidecar import SIDECAR_FILE
from dataset.transforms import decode
from dataset.yolo import YoloFolder
from evaluate.detection_files import COCOIds, read_detections
from evaluate.detections import ImageResult, Results
from model.checkpoint import META_FILE
from model.manifest import MANIFEST_FILE
from model.params_file import read_arrays
from model.symbol_check import checked_json
from model.weights import caffe, darknet
from model.weights.torch_file import read_state_dict
from symbol.darknet_cfg import format_cfg, load_cfg, parse_cfg
from symbol.darknet_sections import with_width
from symbol.detector.yolo import ROWS as YOLO_NETWORKS
from tests.dataset.coco import annotation, content, image
from tests.dataset.layouts import CATEGORIES, CSV_LINES, YOLO_TEXT
from tests.dataset.voc import CAT, DOG, jpeg, xml
from tests.faults.table import Row
from tests.model.weights.formula import caffemodel
from tests.model.weights.test_caffe import SMALL
from tests.model.weights.test_torch_file import Storage, dumps, legacy, tensor, zipped
from tests.signing import signed
from train.options import TrainOptions, train_options_class
from train.run_files import MetricsFile

SLOW = 5.0  # seconds of the processor for an input of a few kB
TOKENS = [
    *(b"", b"\0", b"\n", b" ", b'"', b"{", b"}", b"[", b"]", b"<", b">", b"&", b"'", b",", b":", b"=", b"-", b".."),
    *(b"-1", b"0", b"1e999", b"NaN", b"Infinity", b"99999999999999999999", b"4294967296", b"0.1", b"null", b"true"),
    *(b"\xff\xfe", b"\xef\xbb\xbf", b"\xc3", b"\xed\xa0\x80", "é".encode(), b"\\ud800", b"!!python/object", b"/"),
    *(b"&a [*a]", b"[" * 2000, b"9" * 5000, b"\xff" * 8, b"\x80" * 12),
]


@dataclass(frozen=True)
class Parser:
    """A parser and sound inputs of it.

    path: the file that an input becomes; read: reads it and all that it leads to; make: an input of the samples and a
    change.
    """

    path: Path
    samples: list[bytes]
    read: Callable[[], Any]
    make: "Callable[[list[bytes], Change], bytes] | None" = None  # apply


VALUES = [
    *(None, True, 0, -1, 1 << 70, 1e308, 0.5, "", "x", "\0", "é" * 300, [], {}, [[]], [0] * 300, {"a": {"b": []}}),
    *("../x", "/etc/passwd", "window:1,2", "4294967296"),
]
Change = tuple[int, list[tuple[int, int, int, bytes]]]
BATCH = 500  # inputs for each number that hypothesis draws: 3 ms each would take ten times as long as most parsers
PLACE_BITS = (8, 12, 16, 30)  # equally often, so that the head of a long file is hit as often as all the rest


def change(number: int) -> Change:
    """(number of a sample, [(place, length, kind, bytes)]) of the input of this number."""
    rng = random.Random(number)
    return rng.randrange(100), [_edit(rng) for _ in range(rng.randint(1, 4))]


def _edit(rng: random.Random) -> tuple[int, int, int, bytes]:
    more = rng.choice(TOKENS) if rng.random() < 0.5 else rng.randbytes(rng.randint(0, 4))
    return rng.getrandbits(rng.choice(PLACE_BITS)), rng.randint(0, 12), rng.randint(0, 4), more


def apply(samples: list[bytes], change: Change) -> bytes:
    """A sample with changes: bytes replaced, put in, taken out, doubled, or all that follows cut off."""
    number, edits = change
    found = bytearray(samples[number % len(samples)])
    for place, length, kind, more in edits:
        at = place % (len(found) + 1)
        if kind == 0:
            found[at : at + max(1, length)] = more
        elif kind == 1:
            found[at:at] = more
        elif kind == 2:
            del found[at : at + 1 + length * 7]
        elif kind == 3:
            found[at:at] = found[at : at + 1 + length * 7]
        elif len(edits) == 1:
            del found[at:]
        elif at < len(found):
            found[at] ^= 1 << length % 8
    return bytes(found)


def resigned(samples: list[bytes], change: Change) -> bytes:
    """Metadata with values replaced, taken out, renamed or put elsewhere, and the digest that belongs to them, as who
    edits a file on purpose would have it."""
    values = json.loads(samples[0])
    for place, length, kind, more in change[1]:
        places = list(_places(values))
        owner, key = places[place % len(places)]
        word = more.decode("latin-1")
        if kind == 0:
            owner[key] = deepcopy(VALUES[(length + place) % len(VALUES)])
        elif kind == 1 and isinstance(owner, dict):
            owner[word] = owner.pop(key)
        elif kind == 2:
            del owner[key]
        elif kind == 3:
            owner[key] = [owner[key], word]
        else:
            owner[key] = {word: owner[key]}
    return signed(values).encode()


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(owner, key or number) of each value within a value; its first object has at least one."""
    if isinstance(value, dict) and not value:
        value["k"] = 0
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in list(keys):
        yield value, key
        yield from _places_in(value[key])


def _places_in(value: Any) -> Iterator[tuple[Any, Any]]:
    return _places(value) if value and isinstance(value, dict | list) else iter(())


def parsers(folder: Path, options: TrainOptions, model: Path) -> dict[str, Parser]:
    """All parsers by name, with files in the folder."""
    return {**_data_sets(folder), **_records(folder, options), **_runs(folder, options, model), **_weights(folder)}


def _own(folder: Path, name: str, **files: bytes) -> Path:
    path = folder / name
    path.mkdir(parents=True)
    for file, value in files.items():
        (path / file.replace("_", ".")).write_bytes(value)
    return path


def _data_sets(folder: Path) -> dict[str, Parser]:
    picture, names, found = jpeg(), ("cat", "dog"), {}

    def add(what: str, name: str, samples: list[bytes], read: Callable[[Path], Any], **more: bytes) -> None:
        root = _own(folder, what.replace(" ", "-").replace(".", ""), a_jpg=picture, **more)
        found[what] = Parser(root / name, samples, lambda: read(root / name))

    boxes = [annotation(1, 3, [0, 0, 20, 15]), annotation(1, 7, [20, 15, 20, 15])]
    coco = json.dumps(content([image(1, "a.jpg")], boxes, CATEGORIES)).encode()
    shapes = [{"label": "cat", "points": [[0, 0], [20, 15]], "shape_type": "rectangle"}]
    labelme = {"version": "5", "shapes": shapes, "imagePath": "a.jpg", "imageHeight": 30, "imageWidth": 40}
    add("VOC .xml", "a.xml", [xml(CAT, DOG).encode()], lambda path: PascalVoc(path.parent))
    add("YOLO .txt", "a.txt", [YOLO_TEXT.encode()], lambda path: YoloFolder(path.parent, class_names=names))
    yaml = [b"train: .\nnc: 2\nnames: [cat, dog]\n", b"path: .\ntrain: ../YOLO-datayaml\nnames:\n  0: cat\n"]
    add("YOLO data.yaml", "data.yaml", yaml, YoloFolder, a_txt=YOLO_TEXT.encode())
    add("COCO .json", "c.json", [coco], read_annotations)
    csv = [CSV_LINES.encode(), b"filename,xmin,ymin,xmax,ymax,class\n" + CSV_LINES.encode()]
    add("boxes .csv", "c.csv", csv, CsvBoxes)
    add("LabelMe .json", "a.json", [json.dumps(labelme).encode()], lambda path: LabelMe(path.parent))
    line = b"a.jpg 1,1,20,15,0 21,16,40,30,1\n"
    add("annotation list", "l.txt", [line], lambda path: AnnotationList(path, names))
    add("class names", "n.names", [b"cat\ndog\n"], names_in_file)
    add("Darknet .data", "d.data", [b"classes = 2\ntrain = t.txt\nnames = n.names\n"], read_data)
    return found


def _records(folder: Path, options: TrainOptions) -> dict[str, Parser]:
    record = Path(options.data.train_path)
    reader = RecordReader(record)
    own = _own(folder, "record", r_rec=record.read_bytes(), r_idx=record.with_suffix(".idx").read_bytes())
    other = _own(folder, "index", r_rec=record.read_bytes())
    lists = _own(folder, "list")
    label = " ".join(f"{value:g}" for value in reader.record(0).label)
    line = f"0\t{label.replace(' ', chr(9))}\ta.jpg\n".encode()
    pictures = _own(folder, "picture")

    def records() -> None:
        found = RecordReader(own / "r.rec")
        for k in range(len(found)):
            part = found.record(k)
            validate(parse_label(part.label, ""), 3, "")

    def picture() -> None:
        text = (pictures / "p").read_bytes()
        for work in (lambda: decode(text, "p"), lambda: check_image(text)):
            with suppress(UserError):
                work()
        packed_image(text)

    def index() -> Any:
        return RecordReader(other / "r.rec").keys

    samples = [record.read_bytes()[:20000]]
    return {
        "record .rec": Parser(own / "r.rec", [record.read_bytes(), *samples], records),
        "record .idx": Parser(other / "r.idx", [record.with_suffix(".idx").read_bytes()], index),
        "list .lst": Parser(lists / "l.lst", [line], lambda: read_labels(lists / "l.lst", np.array([0]), 3)),
        "JPEG and PNG": Parser(pictures / "p", [jpeg(), reader.record(0).image], picture),
    }


def _runs(folder: Path, options: TrainOptions, model: Path) -> dict[str, Parser]:
    prefix = options.output.prefix
    own, size = _own(folder, "files"), (30, 40)
    meta, note = Path(f"{prefix}-0003.json").read_bytes(), Path(f"{prefix}-metrics.jsonl").read_bytes()
    results = Results(("cat", "dog"), (ImageResult("a.jpg", size, np.zeros((0, 6)), np.zeros((0, 6)), 0),))
    ids = COCOIds(range(1), range(1, 3), ["a.jpg"])
    found = [{"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4.5], "score": 0.5}]
    demo = [{"image": "a.jpg", "width": 40, "height": 30}]
    demo[0]["detections"] = [{"class": "cat", "id": 0, "score": 0.5, "box": [1, 2, 3, 4]}]  # type: ignore[assignment]
    preset = Path("config/presets/bccd.yaml").read_bytes()

    def add(name: str, sample: list[bytes], read: Callable[[Path], Any], **more: Any) -> Parser:
        path = own / name
        return Parser(path, sample, lambda: read(path), **more)

    def metadata(kind: Any, sample: bytes) -> Parser:
        def read(path: Path) -> Any:
            try:
                return kind.read(path)
            except ValueError as error:  # its callers name the file
                raise UserError(str(error)) from error

        return add(f"{kind.name}.json".replace(" ", "-"), [sample], read, make=resigned)

    def metrics(path: Path) -> None:
        file = MetricsFile(str(path).removesuffix("-metrics.jsonl"), 3)
        if file.damage:
            raise UserError(file.damage)

    def cfg(path: Path) -> Any:
        return parse_cfg(load_cfg(path), str(path))

    def symbol(path: Path) -> Any:
        try:
            return checked_json(path.read_bytes())
        except (ValueError, RecursionError) as error:  # as load_symbol does
            raise UserError(str(error)) from error

    yolo = format_cfg(with_width(YOLO_NETWORKS["yolov3_tiny"].sections, 0.25), (64, 96)).encode()
    hyp = b"lr0: 0.01\nlrf: 0.1  # share\nmomentum: 0.937\nweight_decay: 0.0005\ngiou: 3.54\ncls: 37.4\n"
    return {
        "checkpoint .json": metadata(META_FILE, meta),
        "manifest.json": metadata(MANIFEST_FILE, (model / "manifest.json").read_bytes()),
        "sidecar .json": metadata(SIDECAR_FILE, Path(options.data.train_path).with_suffix(".json").read_bytes()),
        "-metrics.jsonl": add("t-metrics.jsonl", [note], metrics),
        "detections .json": add(
            "d.json",
            [json.dumps(found).encode(), json.dumps(demo).encode()],
            lambda path: read_detections(path, results, ids),
        ),
        "preset .yaml": add("p.yaml", [preset], lambda path: read_preset(train_options_class(), str(path))),
        "hyp .yaml": add("h.yaml", [hyp], read_hyp),
        "Darknet .cfg": add("n.cfg", [yolo, yolo[:700]], cfg),
        "symbol .json": add("y.json", [(model / "model-symbol.json").read_bytes()], symbol),
    }


def _weights(folder: Path) -> dict[str, Parser]:
    own = _own(folder, "weights")
    torch = {"a": tensor(Storage("Float", "0", 4), (2, 2), (2, 1))}
    values = np.arange(4, dtype="<f4").tobytes()
    pickles = [zipped(dumps(torch), k0=values), legacy(dumps(torch), ["0"], b"\4\0\0\0\0\0\0\0" + values)]
    head = np.array([0, 2, 0], "<i4").tobytes() + np.zeros(1, "<i8").tobytes()
    params = next(Path(folder).parent.glob("run/*-0003.params")).read_bytes()

    def add(name: str, samples: list[bytes], read: Callable[[Path], Any]) -> Parser:
        return Parser(own / name, samples, lambda: read(own / name))

    return {
        "torch .pth": add("w.pth", pickles, read_state_dict),
        "protobuf (Caffe)": add("w.caffemodel", [caffemodel(SMALL)], caffe.read),
        "Darknet .weights": add("w.weights", [head + values], darknet.read),
        ".params": add("w.params", [params, params[:3000]], read_arrays),
    }


def try_inputs(
    folder: Path,
    options: TrainOptions,
    model: Path,
    count: int,
    number: int,
    tell: Callable[[str], None],
    names: Sequence[str] = ("",),
    only: int | None = None,
) -> list[Row]:
    """Gives each parser, or those with these names, `count` inputs, or the `only` one of this number."""
    rows = []
    for name, parser in parsers(folder, options, model).items():
        if name not in names and any(names):
            continue
        rows.append(_try(name, parser, count, number) if only is None else _try_one(name, parser, only))
        tell(f"inputs: {name} {rows[-1].done}, wrong {len(rows[-1].wrong)}")
    return rows


def _try(name: str, parser: Parser, count: int, number: int) -> Row:
    row = Row("input", name)
    for sample in parser.samples[:1]:
        parser.path.write_bytes(sample)
        parser.read()  # a sound one is read

    @seed(number)
    @settings(
        max_examples=-(-count // BATCH),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, (1 << 64) - 1))
    def batch(drawn: int) -> None:
        for k in range(min(BATCH, count - row.done)):
            _give(row, parser, drawn * BATCH + k)

    batch()
    return row


def _try_one(name: str, parser: Parser, number: int) -> Row:
    row = Row("input", name)
    _give(row, parser, number)
    return row


def _give(row: Row, parser: Parser, number: int) -> None:
    """Lets a parser read the input of a number; what is wrong is told with it."""
    text = (parser.make or apply)(parser.samples, change(number))
    parser.path.write_bytes(text)
    row.done += 1
    begin = time.process_time()
    try:
        parser.read()
        row.without_effect += 1
    except UserError:
        row.told += 1
    except Exception:
        row.wrong.append(f"--parsers {row.name!r} --input {number}: {text[:400]!r}\n{traceback.format_exc(limit=-6)}")
    if time.process_time() - begin > SLOW:
        took = f"{time.process_time() - begin:.1f} s"
        row.wrong.append(f"--parsers {row.name!r} --input {number}: {took} for {text[:400]!r}")
