"""Device profiles: one TOML file says on what and how a file is measured."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from edge_seg.config import from_mapping, load_toml
from edge_seg.errors import ConfigError, nearest

Confidence = Literal["vendor", "measured", "derived", "estimate"]


@dataclass(frozen=True)
class HardwareFact:
    """One fact about the hardware, never without where it comes from.

    Attributes:
        name: What it is; its last word is the unit ("memory_gb_per_s").
        value: Number or text.
        source: Document, page or measurement.
        confidence: How it is known.
    """

    name: str
    value: Any
    source: str
    confidence: Confidence


@dataclass(frozen=True)
class Profile:
    """How one device is measured.

    Attributes:
        name: Name of the profile, equal to its file's name.
        title: One line for people.
        soc: Chip, or "host" where it is read at run time.
        runner: Registered runner that reaches the device.
        delegates: Each is measured, in this order; never a fallback from one to the next.
        threads: CPU threads.
        cpu_mask: Hexadecimal mask of the CPUs to run on ("0x3"), or "" for no pinning.
        precision: "file" (as stored in the file), "fp32" or "fp16".
        sessions: How often everything is opened and measured anew.
        min_runs: Least number of counted runs of a file.
        min_time_s: Least measured time of a file in seconds.
        max_time_s: Measured time after which a file stops, target or not.
        target_ci_pct: Full width of the 95 % interval of the median to reach, in percent of the median.
        cool_down_s: Pause between sessions in seconds.
        hardware: Facts with source and confidence.
    """

    name: str
    title: str
    soc: str
    runner: str
    delegates: tuple[str, ...]
    threads: int
    cpu_mask: str
    precision: Literal["file", "fp32", "fp16"]
    sessions: int
    min_runs: int
    min_time_s: float
    max_time_s: float
    target_ci_pct: float
    cool_down_s: float
    hardware: tuple[HardwareFact, ...] = ()

    @property
    def cpus(self) -> tuple[int, ...]:
        """Indices of the CPUs of `cpu_mask`, empty for no pinning."""
        mask = int(self.cpu_mask, 16) if self.cpu_mask else 0
        return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)


def profile_names() -> list[str]:
    """Returns the names of the profiles that come with the package, sorted."""
    folder = resources.files("edge_seg.benchmarks.profiles")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_profile(name: str | Path) -> Profile:
    """Loads a profile by name, or from a path that ends in ".toml".

    Raises:
        ConfigError: No such profile, an unknown or missing key, or a value out of range.
    """
    if str(name).endswith(".toml"):
        return _load(Path(name))
    if str(name) not in profile_names():
        raise ConfigError(
            f"There is no profile called {str(name)!r}.",
            got=str(name),
            todo=nearest(str(name), profile_names()) + "; or give the path of a .toml file",
        )
    with resources.as_file(resources.files("edge_seg.benchmarks.profiles") / f"{name}.toml") as path:
        return _load(path)


def _load(path: Path) -> Profile:
    profile = from_mapping(Profile, load_toml(path))
    _require(profile.name == path.stem, "name", f"{path.stem!r}, the file's name", profile.name)
    _require(len(profile.delegates) > 0, "delegates", "at least one delegate", "none")
    _require(
        profile.cpu_mask == "" or re.fullmatch(r"0x[0-9a-f]{1,32}", profile.cpu_mask) is not None,
        "cpu_mask",
        'a mask such as "0x3", or ""',
        profile.cpu_mask,
    )
    for key, least in (("threads", 1), ("sessions", 1), ("min_runs", 2)):
        _require(getattr(profile, key) >= least, key, f"at least {least}", getattr(profile, key))
    _require(profile.min_time_s >= 0, "min_time_s", "zero or more seconds", profile.min_time_s)
    _require(profile.max_time_s >= profile.min_time_s, "max_time_s", ">= min_time_s", profile.max_time_s)
    _require(profile.target_ci_pct > 0, "target_ci_pct", "a positive percentage", profile.target_ci_pct)
    _require(profile.cool_down_s >= 0, "cool_down_s", "zero or more seconds", profile.cool_down_s)
    for fact in profile.hardware:
        _require(isinstance(fact.value, int | float | str), f"hardware {fact.name}", "a number or text", fact.value)
        _require(bool(fact.source.strip()), f"hardware {fact.name}", "a source", "nothing")
    return profile


def _require(holds: bool, key: str, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(f"The profile key {key!r} has a wrong value.", expected=expected, got=str(got))
