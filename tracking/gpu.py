"""GPU statistics from NVML, the driver's own library. Without a GPU or a driver they are absent, never zero."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

_GIB = 2**30


def get_all_gpu_stats() -> dict[str, float]:
    """Reads the statistics of the GPUs that this process may use.

    Returns:
        `gpu/utilization` (percent), `gpu/memory_used_gb` and `gpu/memory_peak_gb` (GiB) and `gpu/temperature` (degrees
        Celsius); with several GPUs one set each, as `gpu/0/utilization`. The peak is the highest value that was read
        so far, and for this process's own GPU at least what torch has reserved. What a device does not tell is absent,
        and without a GPU or a driver everything is.
    """
    monitor = _monitor()
    return {} if monitor is None else monitor.read()


class GpuMonitor:
    """The visible GPUs, and the highest memory use seen on each.

    Attributes:
        devices: NVML handles, in the order of CUDA's numbers.
    """

    def __init__(self, nvml: Any, visible: str | None) -> None:
        self._nvml = nvml
        self.devices = _visible_devices(nvml, visible)
        self._peaks = [0] * len(self.devices)

    def read(self) -> dict[str, float]:
        """Reads every device."""
        stats: dict[str, float] = {}
        for number, device in enumerate(self.devices):
            prefix = "gpu" if len(self.devices) == 1 else f"gpu/{number}"
            for name, value in self._read_device(number, device).items():
                stats[f"{prefix}/{name}"] = value
        return stats

    def _read_device(self, number: int, device: Any) -> dict[str, float]:
        nvml, found = self._nvml, {}
        if (rates := self._ask(nvml.nvmlDeviceGetUtilizationRates, device)) is not None:
            found["utilization"] = float(rates.gpu)
        if (memory := self._ask(nvml.nvmlDeviceGetMemoryInfo, device)) is not None:
            self._peaks[number] = max(self._peaks[number], memory.used, _reserved_by_torch(number))
            found["memory_used_gb"] = memory.used / _GIB
            found["memory_peak_gb"] = self._peaks[number] / _GIB
        if (celsius := self._ask(nvml.nvmlDeviceGetTemperature, device, nvml.NVML_TEMPERATURE_GPU)) is not None:
            found["temperature"] = float(celsius)
        return found

    def _ask(self, question: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return question(*arguments)
        except self._nvml.NVMLError:  # a part of a GPU (MIG) does not tell everything
            return None


def _visible_devices(nvml: Any, visible: str | None) -> list[Any]:
    if visible is None:
        return [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    devices = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        try:
            by_number = name.lstrip("-").isdigit()
            handle = nvml.nvmlDeviceGetHandleByIndex(int(name)) if by_number else nvml.nvmlDeviceGetHandleByUUID(name)
        except nvml.NVMLError:
            break  # CUDA, too, sees nothing from the first device on that is not there
        devices.append(handle)
    return devices


def _reserved_by_torch(number: int) -> int:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized() or cuda.current_device() != number:
        return 0
    return int(cuda.max_memory_reserved(number))


@cache
def _monitor() -> GpuMonitor | None:
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        return GpuMonitor(pynvml, os.environ.get("CUDA_VISIBLE_DEVICES"))
    except pynvml.NVMLError:
        return None
