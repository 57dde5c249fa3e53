"""What an Android device says about itself: identity, wakefulness, heat, battery, storage. Unknown is None."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from edge_seg.benchmarks.adb.client import DeviceError, Phone

_PROPERTY = re.compile(r"^\[([^\]]{1,120})\]: \[(.{0,400})\]$", re.MULTILINE)
_TEMPERATURE = re.compile(
    r"Temperature\{mValue=(-?\d{1,4}(?:\.\d{1,6})?), mType=(-?\d{1,3}), mName=([^,{}]{1,60}), mStatus=(\d)\}"
)
_TYPES = {0: "cpu", 1: "gpu", 2: "battery", 3: "skin"}
_STATUS = ("none", "light", "moderate", "severe", "critical", "emergency", "shutdown")
_AWAKE = "awake"


def properties(phone: Phone) -> dict[str, str]:
    """Returns the system properties (`getprop`)."""
    return dict(_PROPERTY.findall(phone.shell("getprop").text))


def identity(known: Mapping[str, str], serial: str) -> dict[str, Any]:
    """Returns `name soc os cpu abis emulator id` of a device.

    Args:
        known: Its properties.
        serial: Its serial number; only a hash of it goes into a record.
    """
    maker, model = known.get("ro.product.manufacturer"), known.get("ro.product.model")
    release, level = known.get("ro.build.version.release"), known.get("ro.build.version.sdk")
    abis = known.get("ro.product.cpu.abilist") or known.get("ro.product.cpu.abi") or ""
    return {
        "name": " ".join(part for part in (maker, model) if part) or None,
        "soc": known.get("ro.soc.model") or known.get("ro.board.platform") or None,
        "os": f"Android {release} (API {level})" if release else None,
        "build": known.get("ro.build.id") or None,
        "cpu": known.get("ro.product.cpu.abi") or None,
        "abis": [abi for abi in abis.split(",") if abi],
        "emulator": "1" in (known.get("ro.kernel.qemu"), known.get("ro.boot.qemu")),
        "id": hashlib.sha256(serial.encode()).hexdigest()[:8],
    }


def check_awake(phone: Phone) -> None:
    """Raises DeviceError if the device sleeps: a sleeping phone runs at its lowest clocks.

    A device that does not say is taken as awake; `environment` then says that it is unknown.
    """
    found = wakefulness(phone)
    if found not in (None, _AWAKE):
        raise DeviceError(
            f"{phone.serial} is {found}.",
            expected="a phone that is awake",
            got=f"mWakefulness={found}",
            todo=f"adb -s {phone.serial} shell input keyevent KEYCODE_WAKEUP, then shell svc power stayon true",
        )


def wakefulness(phone: Phone) -> str | None:
    """Returns "awake", "asleep", "dozing" or "dreaming", or None if it does not say."""
    told = re.search(r"^\s*mWakefulness=(\w{1,20})", phone.shell("dumpsys power").text, re.MULTILINE)
    return told[1].lower() if told else None


def free_kb(phone: Phone, folder: str) -> int | None:
    """Returns free storage in KiB where a folder lies, or None if `df` does not say."""
    told = phone.shell(f"df -k {folder}")
    lines = [line.split() for line in told.text.splitlines() if line.strip()]
    if told.code != 0 or len(lines) < 2 or "Available" not in lines[0]:
        return None
    column = lines[0].index("Available")
    row = [cell for line in lines[1:] for cell in line]  # a long device name wraps the row
    return _whole(row[column]) if len(row) > column else None


def _whole(text: str) -> int | None:
    """Reads a number that a device printed; what is none, or has too many digits, is None."""
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def thermal(text: str) -> dict[str, Any]:
    """Reads `dumpsys thermalservice`: `thermal_status` and the hottest sensor of each kind, degrees Celsius.

    Sensors that give exactly zero are not connected on some makers' phones and are left out.
    """
    status = re.search(r"^\s*Thermal Status: (\d)", text, re.MULTILINE)
    _, _, current = text.partition("Current temperatures from HAL")
    current = current.partition("Current cooling devices")[0]
    hottest: dict[str, float] = {}
    for value, kind, _name, _status in _TEMPERATURE.findall(current or text):
        name, celsius = _TYPES.get(int(kind)), float(value)
        if name is not None and celsius != 0.0 and -50.0 < celsius < 200.0:
            hottest[name] = max(celsius, hottest.get(name, celsius))
    number = int(status[1]) if status else None
    return {
        "thermal_status": _STATUS[number] if number is not None and number < len(_STATUS) else None,
        "temperature_c": max(hottest.values(), default=None),
        **{f"{name}_c": hottest.get(name) for name in _TYPES.values()},
    }


def battery(text: str) -> dict[str, Any]:
    """Reads `dumpsys battery`: `battery_pct battery_c charging`."""
    told = dict(re.findall(r"^\s*([A-Za-z ]{1,40}): (\S{1,40})\s*$", text, re.MULTILINE))
    tenths, level = told.get("temperature", ""), told.get("level", "")
    powered = [told[key] for key in told if key.endswith("powered")]
    return {
        "battery_pct": int(level) if re.fullmatch(r"\d{1,3}", level) else None,
        "battery_c": int(tenths) / 10 if re.fullmatch(r"-?\d{1,4}", tenths) else None,
        "charging": "true" in powered if powered else None,
    }


def start_temperature_c(phone: Phone) -> float | None:
    """Returns the battery's temperature, which profiles of phones set their start condition on, or None."""
    celsius = battery(phone.shell("dumpsys battery").text)["battery_c"]
    if celsius is None:
        celsius = thermal(phone.shell("dumpsys thermalservice").text)["battery_c"]
    return None if celsius is None else float(celsius)


def snapshot(phone: Phone, cpu: int) -> dict[str, Any]:
    """Returns heat, battery, wakefulness, and governor and clock of one CPU, as they are now."""
    heat, power = thermal(phone.shell("dumpsys thermalservice").text), battery(phone.shell("dumpsys battery").text)
    folder = f"/sys/devices/system/cpu/cpu{cpu}/cpufreq"
    clock = phone.shell(f"cat {folder}/scaling_governor {folder}/scaling_cur_freq")
    lines = clock.text.split() if clock.code == 0 else []
    khz = _whole(lines[1]) if len(lines) == 2 else None
    return {
        "governor": None if khz is None else lines[0][:60],
        "frequency_mhz": None if khz is None else khz / 1e3,
        **heat,
        **{key: value for key, value in power.items() if value is not None or key not in heat},
        "wakefulness": wakefulness(phone),
    }
