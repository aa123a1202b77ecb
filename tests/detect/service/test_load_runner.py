"""Which detectors a service opens."""

from types import SimpleNamespace

from detect.service import batching
from detect.service.batching import ServeOptions


def test_batches_run_in_the_engine_that_was_chosen_for_single_images(monkeypatch):
    opened = []

    class Detector:
        manifest = SimpleNamespace(size=(4, 4))

        def __init__(self, path, epoch, *, engine, batch_size, **options):
            opened.append((engine, batch_size))
            self.engine, self.batch_size = "openvino", batch_size

        def stream(self, images, mapped=False):
            return iter([])

        def reset_statistics(self):
            pass

    monkeypatch.setattr(batching, "Detector", Detector)
    batching.load_runner(ServeOptions(engine="auto", batch_size=2))
    assert opened == [("auto", 1), ("openvino", 2)]
