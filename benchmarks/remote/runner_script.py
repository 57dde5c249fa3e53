"""Runs .tflite files on the device it is copied to: NumPy, a TFLite runtime and Python 3.8 or newer is all it needs.

Speaks JSON lines: a request on stdin, `{"id": 1, "do": "block", ...}`, an answer on stdout after the word "EDGE_SEG".
Whatever else the device prints is not an answer. It ends, and removes its own folder where it was told to, when stdin
ends: a cut link leaves nothing behind. Nothing newer than Python 3.8 runs here; annotations are only text.
"""

from __future__ import annotations

import gc
import glob
import hashlib
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

PREFIX = "EDGE_SEG "
FOLDER_PREFIX = "edge_seg."
RUNTIMES = (
    ("ai_edge_litert.interpreter", "ai_edge_litert", "ai-edge-litert"),
    ("tflite_runtime.interpreter", "tflite_runtime", "tflite-runtime"),
    ("tensorflow.lite.python.interpreter", "tensorflow", "tensorflow"),
)
CPU = "/sys/devices/system/cpu"
LONGEST_CPUINFO = 8192


class Refusal(Exception):
    """Something that the other side must explain to its user; `kind` is a word it knows."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class OpenFile:
    """One file, ready to run on the pictures that were sent for it."""

    def __init__(self, runtime: Any, job: dict[str, Any]) -> None:
        start_s = time.perf_counter()
        resolver = getattr(runtime.OpResolverType, job["resolver"])
        try:
            self.interpreter = runtime.Interpreter(
                model_path=job["file"], num_threads=job["threads"], experimental_op_resolver_type=resolver
            )
            self.interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise Refusal("cannot_run", str(error).strip()[:300]) from error
        self.init_ms = (time.perf_counter() - start_s) * 1e3
        self.input, self.dtype, self.outputs = job["input"], job["dtype"], job["outputs"]
        self.pictures: Any = None

    def load(self, path: str) -> int:
        """Takes further pictures, uint8 [N, H, W, 3], from an .npz; returns how many there are now."""
        import numpy as np

        with np.load(path, allow_pickle=False) as archive:
            more = archive["pictures"]
        self.pictures = more if self.pictures is None else np.concatenate([self.pictures, more])
        return len(self.pictures)

    def run(self, index: int) -> list[Any]:
        """Writes a picture, runs the graph, reads every output and returns its real values."""
        import numpy as np

        picture = self.pictures[index : index + 1]
        # int8 networks of this project take byte - 128
        encoded = (picture ^ np.uint8(128)).view(np.int8) if self.dtype == "int8" else picture.astype(self.dtype)
        self.interpreter.set_tensor(self.input, encoded)
        self.interpreter.invoke()
        real = []
        for index_of, scale, zero_point in self.outputs:
            raw = self.interpreter.get_tensor(index_of)
            if scale is not None:
                raw = np.float32(scale) * (raw.astype(np.float32) - np.float32(zero_point))
            real.append(raw)
        return real

    def block(self, indices: list[int]) -> dict[str, Any]:
        """Runs pictures back to back; returns `start_s`, on this machine's clock, and `run_ms` of each."""
        starts_s, run_ms = [], []
        gc.collect()
        gc.disable()  # a collection inside a run would be counted as the network's
        try:
            for index in indices:
                start_s = time.perf_counter()
                self.run(index)
                run_ms.append((time.perf_counter() - start_s) * 1e3)
                starts_s.append(start_s)
        finally:
            gc.enable()
        return {"start_s": starts_s, "run_ms": run_ms}

    def digest(self, index: int) -> str:
        """Returns the SHA-256 of a picture's outputs, raw and in order."""
        self.run(index)
        found = hashlib.sha256()
        for index_of, _, _ in self.outputs:
            found.update(self.interpreter.get_tensor(index_of).tobytes())
        return found.hexdigest()

    def delegation(self) -> dict[str, Any]:
        """Returns `partitions nodes_delegated nodes_total`, or None each with the reason.

        After preparation the runtime lists the original nodes and one "DELEGATE" node per kernel, with the tensors
        that enter and leave it; the nodes between those are the kernel's.
        """
        if not hasattr(self.interpreter, "_get_ops_details"):
            return {"partitions": None, "nodes_delegated": None, "nodes_total": None, "reason": "nodes not listed"}
        nodes = self.interpreter._get_ops_details()
        kernels = [node for node in nodes if node["op_name"] == "DELEGATE"]
        plain = [node for node in nodes if node["op_name"] != "DELEGATE"]
        maker = {int(out): i for i, node in enumerate(plain) for out in node["outputs"]}
        inside = set()
        for kernel in kernels:
            stop = {int(t) for t in kernel["inputs"]}
            waiting = [int(t) for t in kernel["outputs"]]
            while waiting:
                i = maker.get(waiting.pop())
                if i is not None and i not in inside:
                    inside.add(i)
                    waiting += [int(t) for t in plain[i]["inputs"] if int(t) >= 0 and int(t) not in stop]
        return {
            "partitions": len(kernels),
            "nodes_delegated": len(inside),
            "nodes_total": len(plain),
            "reason": "",
        }


class Device:
    """This machine and the files that are open on it."""

    def __init__(self) -> None:
        self.files: dict[str, OpenFile] = {}
        self.runtime: Any = None

    def hello(self, request: dict[str, Any]) -> dict[str, Any]:
        """Pins to the CPUs asked for, loads the runtime, and returns what this machine is."""
        pin(request["cpus"])
        self.runtime, name, version = load_runtime()
        return {"runtime": {"name": name, "version": version}, **machine_facts()}

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        """Opens a file and returns `init_ms` and what the delegate took."""
        opened = OpenFile(self.runtime, request)
        self.files[request["name"]] = opened
        return {"init_ms": opened.init_ms, **opened.delegation()}

    def pictures(self, request: dict[str, Any]) -> dict[str, Any]:
        """Loads pictures for an open file."""
        return {"n": self.files[request["name"]].load(request["file"])}

    def block(self, request: dict[str, Any]) -> dict[str, Any]:
        """Runs a block of pictures."""
        return self.files[request["name"]].block(request["pictures"])

    def digest(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns the hash of a picture's outputs."""
        return {"sha256": self.files[request["name"]].digest(request["picture"])}

    def close(self, request: dict[str, Any]) -> dict[str, Any]:
        """Lets a file go."""
        self.files.pop(request["name"], None)
        return {}

    def state(self, request: dict[str, Any]) -> dict[str, Any]:
        """Returns what changes: clock, governor, temperature, throttling, load, CPU time."""
        return machine_state()


def pin(cpus: list[int]) -> None:
    """Runs this process on these CPUs only; an empty list changes nothing."""
    if not cpus:
        return
    if not hasattr(os, "sched_setaffinity"):
        raise Refusal("no_cpus", "this system cannot pin a process")
    here = os.sched_getaffinity(0)
    if not set(cpus) <= here:
        raise Refusal("no_cpus", "CPUs here: " + ", ".join(map(str, sorted(here))))
    os.sched_setaffinity(0, cpus)


def load_runtime() -> tuple[Any, str, str]:
    """Returns the first TFLite runtime that imports, its name and version."""
    try:
        import numpy  # noqa: F401  (a runtime without NumPy fails with less clear words)
    except ImportError as error:
        raise Refusal("no_numpy", str(error)) from error
    failures = []
    for module, package, name in RUNTIMES:
        try:
            found = importlib.import_module(module)
            if not hasattr(found, "OpResolverType"):
                raise ImportError("no OpResolverType: too old")
        except ImportError as error:
            failures.append(name + ": " + str(error))
            continue
        version = getattr(importlib.import_module(package), "__version__", None) or installed_version(name)
        return found, name, str(version)
    raise Refusal("no_runtime", "; ".join(failures)[:300])


def installed_version(name: str) -> str:
    """Returns the version of an installed package, or "unknown"."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"


def machine_facts() -> dict[str, Any]:
    """Returns what this machine is; what cannot be read is None."""
    kernel = read("/proc/sys/kernel/arch")
    machine = platform.machine()
    return {
        "model": read("/proc/device-tree/model"),
        "soc": (read("/proc/device-tree/compatible") or "").split(",")[-1] or None,
        "os": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(),
        "cpuinfo": (read("/proc/cpuinfo") or "")[:LONGEST_CPUINFO],
        "machine": machine,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        # a user-mode emulator shows its own processor, but the kernel below still tells its architecture
        "emulated": None if kernel is None else kernel != machine,
    }


def cpu_name() -> str | None:
    """Returns the processor's name, or on Arm its part numbers, as the system gives them."""
    told: dict[str, list[str]] = {}
    for line in (read("/proc/cpuinfo") or "").splitlines():
        key, _, value = line.partition(":")
        if value.strip() and value.strip() not in told.setdefault(key.strip(), []):
            told[key.strip()].append(value.strip())
    for key in ("model name", "Hardware", "CPU part"):
        if told.get(key):
            return ", ".join(told[key])
    return None


def machine_state() -> dict[str, Any]:
    """Returns clock, governor, temperature, throttling flags, load and CPU times; what cannot be read is None."""
    clocks_khz = [read(path) for path in sorted(glob.glob(CPU + "/cpu[0-9]*/cpufreq/scaling_cur_freq"))]
    heat = [read(path) for path in glob.glob("/sys/class/thermal/thermal_zone*/temp")]
    degrees = [int(t) / 1e3 for t in heat if t is not None and t.lstrip("-").isdigit()]
    return {
        "governor": read(CPU + "/cpu0/cpufreq/scaling_governor"),
        "frequency_mhz": max([int(c) / 1e3 for c in clocks_khz if c and c.isdigit()], default=None),
        "temperature_c": max(degrees, default=None),
        "throttled": throttled(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "cpu_s": cpu_seconds(),
    }


def throttled() -> int | None:
    """Returns the flags of a Raspberry Pi's `vcgencmd get_throttled`, or None on other machines."""
    if shutil.which("vcgencmd") is None:
        return None
    try:
        told = subprocess.run(["vcgencmd", "get_throttled"], stdout=subprocess.PIPE, check=True, timeout=5).stdout
        return int(told.decode("ascii", "replace").strip().partition("=")[2], 16)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def cpu_seconds() -> dict[str, float] | None:
    """Returns seconds since some origin: `busy` and `steal` of all CPUs, `own` of this process, `wall` of all CPUs."""
    line = (read("/proc/stat") or "").splitlines()[:1]
    fields = line[0].split()[1:] if line and line[0].startswith("cpu ") else []
    if len(fields) < 8:
        return None
    user, nice, system, idle, iowait, irq, softirq, steal = (int(f) / os.sysconf("SC_CLK_TCK") for f in fields[:8])
    own = os.times()
    return {
        "busy": user + nice + system + irq + softirq,
        "steal": steal,
        "own": own.user + own.system,
        "wall": user + nice + system + irq + softirq + steal + idle + iowait,
    }


def read(path: str) -> str | None:
    """Returns a file's text without the zeros that end device-tree strings, or None."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().replace("\0", ",").strip(", \n") or None
    except OSError:
        return None


def answer(device: Device, line: str) -> dict[str, Any]:
    """Does what one request asks; what goes wrong becomes the answer."""
    request: dict[str, Any] = {}
    try:
        request = json.loads(line)
        verbs: dict[str, Callable[..., Any]] = {
            name: getattr(device, name) for name in ("hello", "open", "pictures", "block", "digest", "close", "state")
        }
        return {"id": request["id"], "done": verbs[request["do"]](request)}
    except Refusal as error:
        return {"id": request.get("id"), "error": error.kind, "message": str(error)}
    except OSError as error:
        return {"id": request.get("id"), "error": "no_file", "message": str(error)[:300]}
    except Exception as error:  # noqa: BLE001  (the other side shows it; this one has no screen)
        return {"id": request.get("id"), "error": "broken", "message": f"{type(error).__name__}: {error}"}


def main(arguments: list[str]) -> None:
    """Answers requests until stdin ends; with "--own-folder" then removes the folder this file lies in."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the runtime prints must not stand between the answers
    device = Device()
    try:
        for line in sys.stdin:
            answers.write(PREFIX + json.dumps(answer(device, line)) + "\n")
            answers.flush()
    except BrokenPipeError:
        pass
    finally:
        folder = os.path.dirname(os.path.abspath(__file__))
        if "--own-folder" in arguments and os.path.basename(folder).startswith(FOLDER_PREFIX):
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1:])
