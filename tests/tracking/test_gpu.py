"""GPU statistics: the mapping from CUDA's numbers and the absences, on a stand-in for a driver that is not here."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from tracking.gpu import GpuMonitor

GIB = 2**30


class Driver:
    """Answers like pynvml on a node with three GPUs; the third is a part of one, which has no utilisation."""

    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        pass

    def __init__(self) -> None:
        self.used = [1 * GIB, 2 * GIB, 3 * GIB]

    def nvmlDeviceGetCount(self) -> int:
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if not 0 <= index < 3:
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        if name != "MIG-2":
            raise self.NVMLError
        return 2

    def nvmlDeviceGetUtilizationRates(self, device: int) -> Any:
        if device == 2:
            raise self.NVMLError
        return SimpleNamespace(gpu=10 * (device + 1))

    def nvmlDeviceGetMemoryInfo(self, device: int) -> Any:
        return SimpleNamespace(used=self.used[device])

    def nvmlDeviceGetTemperature(self, device: int, sensor: int) -> int:
        return 40 + device


@pytest.mark.parametrize(
    ("visible", "devices"),
    [(None, [0, 1, 2]), ("1,0", [1, 0]), ("MIG-2", [2]), ("", []), ("-1", []), ("0,7,1", [0]), ("NoDevFiles", [])],
)
def test_the_devices_are_those_that_cuda_shows(visible: str | None, devices: list[int]) -> None:
    assert GpuMonitor(Driver(), visible).devices == devices


def test_one_device_has_the_plain_names_and_keeps_its_peak() -> None:
    driver = Driver()
    monitor = GpuMonitor(driver, "1")
    assert monitor.read() == {
        "gpu/utilization": 20.0, "gpu/memory_used_gb": 2.0, "gpu/memory_peak_gb": 2.0, "gpu/temperature": 41.0
    }  # fmt: skip
    driver.used[1] = 5 * GIB
    monitor.read()
    driver.used[1] = GIB
    assert monitor.read()["gpu/memory_peak_gb"] == 5.0
    assert monitor.read()["gpu/memory_used_gb"] == 1.0


def test_several_devices_have_one_set_each_without_what_they_do_not_tell() -> None:
    stats = GpuMonitor(Driver(), "0,MIG-2").read()
    assert stats["gpu/0/utilization"] == 10.0
    assert stats["gpu/1/memory_used_gb"] == 3.0
    assert "gpu/1/utilization" not in stats
    assert len(stats) == 7


def test_without_a_visible_gpu_nothing_is_reported() -> None:
    code = "import tracking; print(tracking.get_all_gpu_stats())"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert done.stdout.strip() == "{}"
