"""Which GPUs are found through the driver, and the sentence on why none can be used."""

import pytest

from machine.gpus import Driver, Gpu, gpu_problem, is_supported, query_driver

A100 = Gpu("A100", (8, 0), 40 << 30)
H100 = Gpu("H100", (9, 0), 80 << 30)


@pytest.mark.parametrize(
    ("driver", "cuda_wheel", "words"),
    [
        (None, True, "no NVIDIA driver is installed"),
        (Driver((12, 4), (), error=803), True, "does not start (cuInit gives error 803)"),
        (Driver((12, 4), ()), True, "finds no GPU"),
        (Driver((12, 4), (H100,)), True, "compute capability 5.0 to 8.9 only (it holds no PTX), but H100 has 9.0"),
        (Driver((12, 4), (H100,)), False, "H100 has 9.0"),  # another wheel would not help
        (Driver((10, 2), (A100,)), True, "serves CUDA 10.2, but 11.0 or newer is needed"),
        (Driver((12, 4), (A100,)), False, "the CPU wheel of mxnet is installed"),
    ],
)
def test_why_no_gpu_can_be_used(driver, cuda_wheel, words):
    assert words in gpu_problem(driver, cuda_wheel)


def test_one_usable_gpu_is_enough():
    assert gpu_problem(Driver((11, 0), (H100, A100)), cuda_wheel=True) is None


@pytest.mark.parametrize(
    ("capability", "supported"),
    [
        ((3, 7), False),
        ((5, 0), True),
        ((6, 1), True),
        ((7, 5), True),
        ((8, 9), True),
        ((9, 0), False),
        ((12, 0), False),
    ],
)
def test_supported_capabilities(capability, supported):
    assert is_supported(Gpu("x", capability, 0)) == supported


class FakeCuda:
    """A libcuda with a T4 and an H100, whose functions fill what byref() points to."""

    def __init__(self, error=0):
        self.error = error
        self.capabilities = [(7, 5), (9, 0)]

    def cuInit(self, flags):  # noqa: N802
        return self.error

    def cuDriverGetVersion(self, version):  # noqa: N802
        version._obj.value = 12040

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = len(self.capabilities)

    def cuDeviceGet(self, device, ordinal):  # noqa: N802
        device._obj.value = ordinal + 10

    def cuDeviceGetName(self, name, length, device):  # noqa: N802
        name.value = [b"T4", b"H100"][device.value - 10]

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = self.capabilities[device.value - 10][attribute - 75]

    def cuDeviceTotalMem_v2(self, memory, device):  # noqa: N802
        memory._obj.value = 16 << 30


def test_the_driver_is_asked_for_each_device():
    driver = query_driver(FakeCuda())
    assert driver == Driver((12, 4), (Gpu("T4", (7, 5), 16 << 30), Gpu("H100", (9, 0), 16 << 30)))


def test_a_driver_without_devices_is_told_from_one_that_fails():
    assert query_driver(FakeCuda(error=100)) == Driver((12, 4), ())
    assert query_driver(FakeCuda(error=803)) == Driver((12, 4), (), 803)
