"""Device profiles: one TOML file says on what and how a file is measured.

A fact without a source is refused. `confidence` says how it is known: "vendor" is the maker's own document or code,
"measured" was read on such a device, "derived" follows from other facts, "estimate" is what the press reports.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from edge_seg.config import from_mapping, load_toml
from edge_seg.errors import ConfigError, nearest

Confidence = Literal["vendor", "measured", "derived", "estimate"]
Precision = Literal["file", "fp32", "fp16"]
_TODO = "edge-seg profiles pixel_6 prints a whole one; benchmarks/profiles holds them all"
_MASK = re.compile(r"0x[0-9a-f]{1,32}")
# a destination that starts with "-" would be read as an option by the programs it is given to
_ADDRESS = re.compile(r"[^\s\x00-\x1f-][^\x00-\x1f]*")


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
class CpuCluster:
    """CPU cores of one kind and clock.

    Attributes:
        core: Design ("Cortex-X1").
        count: How many.
        clock_mhz: Highest clock.
        source: Where these three come from.
        confidence: How they are known.
        cpus: Numbers the system gives them, empty where unknown.
        cpus_source: Where the numbers come from.
        cpus_confidence: How they are known.
    """

    core: str
    count: int
    clock_mhz: float
    source: str
    confidence: Confidence
    cpus: tuple[int, ...] = ()
    cpus_source: str = ""
    cpus_confidence: Confidence = "derived"


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
        start_below_c: A session starts only below this temperature in degrees Celsius; None for no condition.
        gpu_precision: Arithmetic asked of a GPU where `precision` is "file", since a GPU computes in its own.
        address: Which one: the ssh destination "user@host:port", the serial number of a phone, a recording's path;
            "" where the runner needs none. `NAME@ADDRESS` on the command line sets it.
        python: Command that starts Python on a device reached by ssh.
        ratio_ci_pct: Full width of the 95 % interval to reach of each file's ratio to the first one, in percent: then
            files that take turns stop together. None for what `target_ci_pct` asks of each.
        clusters: CPU cores.
        hardware: Other facts with source and confidence.
    """

    name: str
    title: str
    soc: str
    runner: str
    delegates: tuple[str, ...]
    threads: int
    cpu_mask: str
    precision: Precision
    sessions: int
    min_runs: int
    min_time_s: float
    max_time_s: float
    target_ci_pct: float
    cool_down_s: float
    start_below_c: float | None = None
    gpu_precision: Literal["fp32", "fp16"] = "fp16"
    address: str = ""
    python: str = "python3"
    ratio_ci_pct: float | None = None
    clusters: tuple[CpuCluster, ...] = ()
    hardware: tuple[HardwareFact, ...] = ()

    @property
    def cpus(self) -> tuple[int, ...]:
        """Indices of the CPUs of `cpu_mask`, empty for no pinning."""
        mask = int(self.cpu_mask, 16) if self.cpu_mask else 0
        return tuple(i for i in range(mask.bit_length()) if mask >> i & 1)

    def precision_for(self, delegate: str) -> Precision:
        """Returns the arithmetic to ask of a delegate."""
        return self.gpu_precision if delegate == "gpu" and self.precision == "file" else self.precision


def profile_names() -> list[str]:
    """Returns the names of the profiles that come with the package, sorted."""
    folder = resources.files("edge_seg.benchmarks.profiles")
    return sorted(item.name.removesuffix(".toml") for item in folder.iterdir() if item.name.endswith(".toml"))


def load_profile(name: str | Path) -> Profile:
    """Loads a profile by name, or from a path that ends in ".toml"; `NAME@ADDRESS` says which device.

    Raises:
        ConfigError: No such profile, an unknown or missing key, or a value out of range.
    """
    text, path = str(name), Path(name)
    if not (text in profile_names() or path.is_file()) and "@" in text:
        known, _, address = text.partition("@")
        return with_address(load_profile(known), address)
    if path.suffix == ".toml":
        return _load(path)
    if text not in profile_names():
        raise ConfigError(
            f"There is no profile called {text!r}.",
            expected="a name that `edge-seg profiles` lists, or the path of a .toml file",
            got=text,
            todo=nearest(text, profile_names()) + "; or give the path of a .toml file",
        )
    with resources.as_file(resources.files("edge_seg.benchmarks.profiles") / f"{text}.toml") as found:
        return _load(found)


def with_address(profile: Profile, address: str) -> Profile:
    """Returns the profile for one device; raises ConfigError where an address cannot be one."""
    _require(_ADDRESS.fullmatch(address) is not None, "address", "a destination that starts with no dash", address)
    return replace(profile, address=address)


def _load(path: Path) -> Profile:
    document = load_toml(path, "profile", _TODO)
    try:
        profile = from_mapping(Profile, document)
        _check(profile, path.stem)
    except ConfigError as error:
        raise ConfigError(
            f"{path.name}: {error.what}",
            expected=error.expected or "the keys of a profile, each with a value of its type",
            got=error.got or "nothing",
            todo=error.todo or _TODO,
        ) from error
    return profile


def _check(profile: Profile, stem: str) -> None:
    _require(profile.name == stem, "name", f"{stem!r}, the file's name", profile.name)
    _require(len(profile.delegates) > 0, "delegates", "at least one delegate", "none")
    for key, least in (("threads", 1), ("sessions", 1), ("min_runs", 2)):
        _require(getattr(profile, key) >= least, key, f"at least {least}", getattr(profile, key))
    _require(profile.min_time_s >= 0, "min_time_s", "zero or more seconds", profile.min_time_s)
    _require(profile.max_time_s >= profile.min_time_s, "max_time_s", ">= min_time_s", profile.max_time_s)
    _require(profile.target_ci_pct > 0, "target_ci_pct", "a positive percentage", profile.target_ci_pct)
    _require(profile.ratio_ci_pct is None or profile.ratio_ci_pct > 0, "ratio_ci_pct", "above 0", profile.ratio_ci_pct)
    _require(profile.cool_down_s >= 0, "cool_down_s", "zero or more seconds", profile.cool_down_s)
    _require(bool(profile.python.strip()), "python", "a command", profile.python)
    for fact in profile.hardware:
        _require(isinstance(fact.value, int | float | str), f"hardware {fact.name}", "a number or text", fact.value)
        _require(bool(fact.source.strip()), f"hardware {fact.name}", "a source", "nothing")
    _check_clusters(profile.clusters)
    _check_mask(profile)
    if profile.address:
        with_address(profile, profile.address)


def _check_clusters(clusters: tuple[CpuCluster, ...]) -> None:
    for cluster in clusters:
        key = f"clusters {cluster.core}"
        _require(bool(cluster.source.strip()), key, "a source", "nothing")
        _require(cluster.count >= 1, key, "count >= 1", cluster.count)
        _require(cluster.clock_mhz > 0, key, "clock_mhz > 0", cluster.clock_mhz)
        _require(len(cluster.cpus) in (0, cluster.count), key, f"{cluster.count} cpus, or none", cluster.cpus)
        _require(bool(cluster.cpus_source.strip()) or not cluster.cpus, key, "a cpus_source", "nothing")
    numbers = [cpu for cluster in clusters for cpu in cluster.cpus]
    _require(len(set(numbers)) == len(numbers), "clusters", "each CPU in one cluster", sorted(numbers))


def _check_mask(profile: Profile) -> None:
    """Refuses a mask that is none, that names no core, or cores the device has not."""
    if not profile.cpu_mask:
        return
    _require(_MASK.fullmatch(profile.cpu_mask) is not None, "cpu_mask", 'a mask such as "0x3", or ""', profile.cpu_mask)
    _require(bool(profile.cpus), "cpu_mask", "a mask that names a core", profile.cpu_mask)
    here = range(sum(cluster.count for cluster in profile.clusters))
    if here:
        wrong = [cpu for cpu in profile.cpus if cpu not in here]
        _require(not wrong, "cpu_mask", f"CPUs {here[0]} to {here[-1]}", f"{profile.cpu_mask}, which names {wrong}")


def _require(holds: bool, key: str, expected: str, got: object) -> None:
    if not holds:
        raise ConfigError(f"The profile key {key!r} has a wrong value.", expected=expected, got=str(got), todo=_TODO)
