"""What can be read about the machine this runs on. What cannot be read is None; nothing is guessed."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_CPU0 = Path("/sys/devices/system/cpu/cpu0/cpufreq")
_INT8_FEATURES = ("avx2", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm", "sve", "sve2")


def host_device() -> dict[str, Any]:
    """Returns `name soc os cpu cpu_id int8_features machine cores virtual` of this machine.

    Virtual machines of one `cpu` name can differ fourfold in int8: `cpu_id` (family, model, stepping) and the
    instructions that int8 kernels choose by tell them apart.
    """
    return {
        "name": "host",
        "soc": None,
        "os": f"{platform.system()} {platform.release()}",
        "cpu": cpu_model(),
        **processor(_cpuinfo()),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "virtual": _is_virtual(),
    }


def processor(cpuinfo: str) -> dict[str, Any]:
    """Returns `cpu_id int8_features` of the first core that a Linux /proc/cpuinfo tells of; unknown is None."""
    return {"cpu_id": _cpu_id(cpuinfo), "int8_features": _int8_features(cpuinfo)}


def cpu_model() -> str | None:
    """Returns the CPU's name as the system gives it."""
    for line in _cpuinfo().splitlines():
        key, _, value = line.partition(":")
        if key.strip().lower() in ("model name", "hardware") and value.strip():
            return value.strip()
    return platform.processor() or None


def chip_name(device: Mapping[str, Any]) -> str | None:
    """Names the processor of a record's device, with its int8 instructions where they were noted; None if unknown."""
    name, features = device.get("cpu") or device.get("soc"), device.get("int8_features")
    if name and isinstance(features, list) and features:
        return f"{name} ({', '.join(map(str, features))})"
    return str(name) if name else None


def _cpu_id(cpuinfo: str) -> str | None:
    """Returns family, model and stepping (x86), or implementer, part and revision (Arm), of the first core."""
    lines = [line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line]
    told = {key.strip(): value.strip() for key, value in reversed(lines)}
    for keys in (("cpu family", "model", "stepping"), ("CPU implementer", "CPU part", "CPU revision")):
        if all(told.get(key) for key in keys):
            return " ".join(told[key] for key in keys)
    return None


def _int8_features(cpuinfo: str) -> list[str] | None:
    flags = _flags(cpuinfo, "flags", "Features")
    return None if flags is None else [name for name in _INT8_FEATURES if name in flags]


def _is_virtual() -> bool | None:
    """Whether the CPU reports a hypervisor (x86 only; None elsewhere)."""
    flags = _flags(_cpuinfo(), "flags")
    return None if flags is None else "hypervisor" in flags


def _flags(cpuinfo: str, *keys: str) -> list[str] | None:
    """Returns what the first core lists under one of some keys; None where the system has none of them."""
    lines = [line for line in cpuinfo.splitlines() if line.partition(":")[0].strip() in keys]
    return lines[0].partition(":")[2].split() if lines else None


def _cpuinfo() -> str:
    return _read(Path("/proc/cpuinfo")) or ""


def watch() -> Callable[[], dict[str, Any]]:
    """Starts to watch the machine.

    Returns:
        A function that gives the environment since then: `governor frequency_mhz temperature_c
        temperature_after_c`, `load load_after` (runnable tasks, 1-minute mean), `foreign_cpu_pct` (of all
        cores, by other processes), `steal_pct` (of all cores, taken by the hypervisor) and `python`.
    """
    before, started = _counters(), _state()

    def finish() -> dict[str, Any]:
        after, ended = _counters(), _state()
        return {
            "governor": started["governor"],
            "frequency_mhz": started["frequency_mhz"],
            "temperature_c": started["temperature_c"],
            "temperature_after_c": ended["temperature_c"],
            "load": started["load"],
            "load_after": ended["load"],
            **_shares(before, after),
            "python": platform.python_version(),
        }

    return finish


def _state() -> dict[str, Any]:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    khz = _read(_CPU0 / "scaling_cur_freq")
    return {
        "governor": _read(_CPU0 / "scaling_governor"),
        "frequency_mhz": int(khz) / 1e3 if khz and khz.isdigit() else None,
        "temperature_c": _temperature_c(),
        "load": None if load is None else round(load, 2),
    }


def _temperature_c() -> float | None:
    """Returns the hottest sensor, or None where there is none to read."""
    import psutil

    sensors: dict[str, Any] = getattr(psutil, "sensors_temperatures", dict)()
    readings = [entry.current for entries in sensors.values() for entry in entries if entry.current is not None]
    return max(readings) if readings else None


def _counters() -> dict[str, float]:
    """Returns seconds since some origin: all cores busy, stolen, this process, and wall time by all cores."""
    import psutil

    cpu = psutil.cpu_times()
    own = os.times()
    idle = cpu.idle + getattr(cpu, "iowait", 0.0)
    steal = getattr(cpu, "steal", 0.0)
    # guest time is part of user time on Linux
    everything = sum(cpu) - getattr(cpu, "guest", 0.0) - getattr(cpu, "guest_nice", 0.0)
    return {
        "busy": everything - idle - steal,
        "steal": steal,
        "own": own.user + own.system + own.children_user + own.children_system,
        "wall": time.monotonic() * (os.cpu_count() or 1),
    }


def _shares(before: dict[str, float], after: dict[str, float]) -> dict[str, float | None]:
    spent = {key: after[key] - before[key] for key in before}
    if spent["wall"] <= 0:
        return {"foreign_cpu_pct": None, "steal_pct": None}
    foreign = max(0.0, spent["busy"] - spent["own"])
    return {
        "foreign_cpu_pct": round(100.0 * foreign / spent["wall"], 1),
        "steal_pct": round(100.0 * spent["steal"] / spent["wall"], 1),
    }


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or None
    except OSError:
        return None
