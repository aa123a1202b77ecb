"""Images of 12 bits from folder to boxes: packed, trained on, deployed and found in as those of 8 that they were."""

import asyncio
import io
import logging
import shutil
from dataclasses import replace

import httpx
import numpy as np
import pytest
from PIL import Image

from common.errors import DataError
from config.options import replace_options
from dataset.pascal_voc import PascalVoc
from dataset.sidecar import read_sidecar
from deploy.main import export
from detect import main as demo
from detect.detector import Detector
from detect.service.app import Limits, Service
from detect.service.batching import ServeOptions, describe, load_runner
from engines.preprocess import read_image
from evaluate.evaluate_net import evaluate_net
from evaluate.options import EvaluateOptions
from evaluate.runs import _checkpoint
from evaluate.sets import check_record
from machine.opencv import cv2
from machine.runtime import mx
from model.checkpoint import load_checkpoint, read_meta
from model.manifest import read_manifest
from tests.detect.service.fakes import InThisProcess
from tests.detect.videos import write_video
from tests.engines.tiny_onnx import with_onnx
from tests.examples.test_examples import output
from tests.model.tiny import save_tiny
from tests.train.conftest import tiny_options
from tests.train.tiny import CLASSES, draw, metrics, objects_of
from tools.prepare_dataset import main as prepare
from train.preflight import preflight
from train.training import run_training

RULE = "window:0,4080"


def as_deep(pixels):
    """16 bits of which 12 are used; 8 bits times 16."""
    return pixels.astype(np.uint16) * 16


def yolo_folder(root, spread, count, seed):
    """A set of coloured rectangles, as PNG."""
    rng = np.random.default_rng(seed)
    for part in ("images", "labels"):
        (root / part).mkdir(parents=True)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    for k in range(count):
        objects = objects_of(rng, len(CLASSES))
        pixels = cv2.imdecode(np.frombuffer(draw(objects, rng), np.uint8), cv2.IMREAD_COLOR)
        (root / f"images/{k:02}.png").write_bytes(cv2.imencode(".png", spread(pixels))[1].tobytes())
        lines = (f"{int(i)} {(a + c) / 2} {(b + d) / 2} {c - a} {d - b}" for i, a, b, c, d, _ in objects)
        (root / f"labels/{k:02}.txt").write_text("\n".join(lines))


def trained(folder, spread, *words):
    """(prefix of a run of one epoch, its records) on packed images."""
    records = []
    for name, count, seed in (("train", 16, 1), ("val", 8, 2)):
        yolo_folder(folder / name, spread, count, seed)
        prepare([f"--root={folder / name}", f"--target={folder / name}.lst", "--num-thread=1", *words])
        records.append(str(folder / f"{name}.rec"))
    options = tiny_options(records, folder / "run", end_epoch=1)
    run_training(options)
    return options, records


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{8, 12: (options, records)}: runs on the same pictures."""
    folder = tmp_path_factory.mktemp("depth")
    logging.getLogger().setLevel(logging.WARNING)
    return {
        8: trained(folder / "8", lambda pixels: pixels),
        12: trained(folder / "12", as_deep, f"--bit-depth={RULE}"),
    }


@pytest.fixture(scope="module")
def folders(runs, tmp_path_factory):
    """The model folders of the runs; their model.onnx is made up."""
    found = {}
    for bits, (options, _) in runs.items():
        folder = tmp_path_factory.mktemp("folders")
        export(options.output.prefix, "auto", folder / "plain")
        found[bits] = with_onnx(folder / "plain", folder / "model")
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """(picture of 8 bits, the same one of 12, the same one as TIFF)."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(9)
    pixels = cv2.imdecode(np.frombuffer(draw(objects_of(rng, 3), rng, (70, 110)), np.uint8), cv2.IMREAD_COLOR)
    files = {"8.png": pixels, "12.png": as_deep(pixels), "12.tif": as_deep(pixels)}
    for name, content in files.items():
        assert cv2.imwrite(str(folder / name), content)
    return [folder / name for name in files]


def test_training_is_bit_for_bit_that_of_8_bits(runs):
    (eight, _), (deep, _) = runs[8], runs[12]
    assert metrics(eight.output.prefix) == metrics(deep.output.prefix)
    weights = [load_checkpoint(options.output.prefix).arg_params for options in (eight, deep)]
    assert all((weights[0][name].asnumpy() == weights[1][name].asnumpy()).all() for name in weights[0])
    assert [read_meta(options.output.prefix, 1).bit_depth for options in (eight, deep)] == ["", RULE]


def test_a_rule_that_is_none_is_refused_in_every_file(runs, folders):
    options, records = runs[12]
    for known in (read_sidecar(records[0]), read_meta(options.output.prefix, 1), read_manifest(folders[12])):
        assert known.bit_depth == RULE
        with pytest.raises(ValueError, match="bit depth 'window:9,1': expected window:LOW,HIGH"):
            replace(known, bit_depth="window:9,1")


def test_records_of_two_bit_depths_are_not_trained_on(runs):
    (options, records), (_, deep) = runs[8], runs[12]
    with pytest.raises(
        DataError, match=r"different bit depths \(none, 8 bits; window:0,4080\); pack both with one --bit"
    ):
        run_training(replace_options(options, val_path=deep[1]))
    with pytest.raises(DataError, match=r"different bit depths \(window:0,4080; none, 8 bits\)"):
        run_training(replace_options(options, train_path=deep[0], val_path=records[1]))


def test_another_bit_depth_is_told_when_a_run_goes_on_or_is_evaluated(runs, caplog):
    options, records = runs[12]
    told = f"{runs[8][1][0]}: packed with the bit depth none, 8 bits, the run so far had {RULE}; it goes on with the"
    eight = {"train_path": runs[8][1][0], "val_path": runs[8][1][1]}
    preflight(replace_options(options, resume="1", end_epoch=2))
    assert "bit depth" not in caplog.text
    preflight(replace_options(options, resume="1", end_epoch=2, **eight))
    assert told in caplog.text
    meta = read_meta(options.output.prefix, 1)
    check_record(records[1], meta, "p")
    assert caplog.text.count("bit depth") == 1
    check_record(runs[8][1][1], meta, "p")
    assert (
        f"packed with the bit depth none, 8 bits, p was trained with {RULE}: its pixels mean something" in caplog.text
    )


def test_weights_without_a_json_are_taken_to_be_of_the_record(runs, tmp_path, monkeypatch):
    (eight, _), (_, records) = runs[8], runs[12]
    monkeypatch.setattr("model.weights.plain.load_plain", lambda *args: load_checkpoint(eight.output.prefix))
    (tmp_path / "p-0001.params").touch()
    options = EvaluateOptions(prefix=str(tmp_path / "p"), epoch="1", rec_path=records[1])
    assert _checkpoint(options).meta.bit_depth == RULE


def test_weights_of_another_bit_depth_are_told(runs, tmp_path, caplog):
    (eight, _), (deep, _) = runs[8], runs[12]
    start = {"prefix": str(tmp_path / "new/t"), "epoch": 1}
    preflight(replace_options(deep, pretrained=eight.output.prefix, **start))  # as from any classifier of 8 bits
    preflight(replace_options(deep, pretrained=deep.output.prefix, **start))
    assert "bit depth" not in caplog.text
    preflight(replace_options(eight, pretrained=deep.output.prefix, **start))
    assert f"was trained with the bit depth {RULE}, {eight.data.train_path} was packed with none, 8 bits" in caplog.text


def test_detections_are_those_of_8_bits(folders, pictures):
    detectors = {bits: Detector(folder, threshold=0.0, engine="mxnet") for bits, folder in folders.items()}
    assert {bits: read_manifest(folder).bit_depth for bits, folder in folders.items()} == {8: "", 12: RULE}
    expected = detectors[8].detect(pictures[0])
    assert len(expected) > 3
    deep = cv2.imread(str(pictures[1]), cv2.IMREAD_UNCHANGED)[..., ::-1]
    for image in (*pictures[1:], pictures[1].read_bytes(), deep, deep.astype(np.float32), deep.astype(np.int64)):
        np.testing.assert_array_equal(detectors[12].detect(image), expected)
    np.testing.assert_array_equal(detectors[12].detect(np.stack([deep, deep])), [expected] * 2)
    mapped = read_image(pictures[1], "x", RULE)
    np.testing.assert_array_equal(detectors[12].detect(mapped, mapped=True), expected)
    grey = detectors[12].detect(deep[..., 0])
    np.testing.assert_array_equal(grey, detectors[8].detect(np.dstack([mapped[..., 0]] * 3)))


def test_what_a_detector_cannot_map_is_refused_by_name(folders, pictures):
    eight, deep = (Detector(folders[bits], engine="mxnet") for bits in (8, 12))
    with pytest.raises(DataError, match=r"12\.png: has values of uint16 from .*--bit-depth"):
        eight.detect(pictures[1])
    with pytest.raises(DataError, match=r"image 0: has values of uint16"):
        eight.detect(np.full((9, 9, 3), 4000, np.uint16))
    with pytest.raises(DataError, match=r"8\.png: has 8 bits, and the bit depth window:0,4080 is of images with more"):
        deep.detect(pictures[0])
    with pytest.raises(DataError, match=r"image 1: has 8 bits"):
        deep.detect([pictures[1], np.zeros((9, 9, 3), np.uint8)])
    for wrong in (np.zeros((9, 9, 2), np.uint16), np.zeros((9, 9, 3), bool), np.zeros((9, 9, 3), complex)):
        with pytest.raises(DataError, match="image 0: expected pixels"):
            deep.detect(wrong)


def test_demo_detects_in_12_bits_and_names_what_has_8(folders, pictures, tmp_path, caplog):
    write_video(tmp_path / "film.avi", 2)
    words = [f"--model={folders[12]}", "--engine=mxnet", "--cpu", "--thresh=0", f"--output={tmp_path / 'out'}"]
    status = demo.main([*map(str, pictures), str(tmp_path / "film.avi"), *words])
    assert status == 2
    assert "8.png: has 8 bits" in caplog.text
    assert "film.avi, frame 0: has 8 bits" in caplog.text
    assert "12.png" in caplog.text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["12.png", "12.tif"]


def test_the_service_detects_in_12_bits(folders, pictures):
    options = ServeOptions(model=str(folders[12]), engine="mxnet", cpu=True, batch_size=2)
    runner, detector = load_runner(options)
    about = describe(options, detector, runner)
    assert about["bit_depth"] == RULE
    limits = Limits(10**6, 50_000, 8, 20.0, 1, 0.0)
    decoder = InThisProcess(limits, detector.manifest.bit_depth)
    service = Service(runner, detector.class_names, limits, 0.0, about, decoder)
    grey = io.BytesIO()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(grey, "PNG")

    async def talk():
        app = service.app()
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as one:
            contents = [*(path.read_bytes() for path in pictures[1:]), grey.getvalue()]
            return [await one.post("/detect", content=content) for content in contents]

    *answers, refused = asyncio.run(talk())
    expected = Detector(folders[8], threshold=0.0, engine="mxnet").detect(pictures[0])
    for answer in answers:
        found = [[one["id"], one["score"], *one["box"]] for one in answer.json()["detections"]]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)
    assert refused.status_code == 400
    assert "the image: has 8 bits, and the bit depth window:0,4080" in refused.json()["error"]


@pytest.mark.parametrize("script", [pytest.param("detect_mxnet.py", marks=pytest.mark.slow), "detect_onnxruntime.py"])
def test_the_examples_detect_in_12_bits(folders, pictures, script, tmp_path):
    expected = output(script, folders[8], pictures[0], tmp_path, "0")
    assert len(expected.splitlines()) > 1
    for path in pictures[1:]:
        assert output(script, folders[12], path, tmp_path, "0") == expected
    for folder, path, says in (
        (folders[8], pictures[1], "has more than 8 bits, and the model was trained on 8"),
        (folders[8], pictures[2], "TIFF may have more than 8 bits"),
        (folders[12], pictures[0], "the image has 8 bits, and window:0,4080 is of images with more"),
    ):
        with pytest.raises(AssertionError, match=says):
            output(script, folder, path, tmp_path, "0")


def test_the_example_of_mxnet_detects_in_12_bits(folders, pictures, tmp_path):
    """Of the above, what needs one process alone."""
    found = output("detect_mxnet.py", folders[12], pictures[1], tmp_path, "0").splitlines()
    rows = [[CLASSES.index(name), *map(float, numbers)] for name, *numbers in map(str.split, found)]
    expected = Detector(folders[8], threshold=0.0, engine="mxnet").detect(pictures[0])
    assert len(expected) > 3
    np.testing.assert_allclose(rows, expected, atol=0.06)


def test_real_images_of_12_bits_have_the_mean_average_precision_of_those_of_8(bccd_dir, tmp_path):
    """BCCD's test images as PNG of 8 bits, and of 12 in 16: bit by bit the same record, and so the same detections."""
    names = ("Platelets", "RBC", "WBC")
    images = PascalVoc(bccd_dir, image_sets=["test"], class_names=names).images
    prefix, found = save_tiny(tmp_path / "t", class_names=names, bit_depth=RULE), []
    for depth, spread, words in (("8", lambda pixels: pixels, []), ("12", as_deep, [f"--bit-depth={RULE}"])):
        folder = tmp_path / depth
        for part in ("images", "annotations"):
            (folder / part).mkdir(parents=True)
        for image in images:
            assert cv2.imwrite(str(folder / f"images/{image.path.stem}.png"), spread(cv2.imread(str(image.path))))
            shutil.copy(bccd_dir / f"Annotations/{image.path.stem}.xml", folder / "annotations")
        prepare([f"--root={folder}", f"--target={folder}.lst", "--class-names=Platelets,RBC,WBC", *words])
        found.append(evaluate_net(load_checkpoint(prefix), f"{folder}.rec", [mx.cpu()], workers=0, keep_rows=True))
    assert read_sidecar(tmp_path / "12.rec").image_digests == read_sidecar(tmp_path / "8.rec").image_digests
    one, other = found
    assert one.images == len(images) > 50
    assert one.result.mean_ap == other.result.mean_ap > 0
    assert len(one.found.detections) > 1000
    np.testing.assert_array_equal(one.found.detections, other.found.detections)
