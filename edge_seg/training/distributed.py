"""Several processes that train as one: start-up under torchrun, sums over processes, one common end.

The losses of the processes add up to the loss of one process (`edge_seg.models.reduce`), so gradients are added, not
averaged, in one flat vector after the backward pass. DistributedDataParallel averages, adds in the order in which
buckets get ready, and broadcasts BatchNorm statistics of one process; what it gains, overlap with the backward pass,
is little for networks of a few megabytes.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from edge_seg.errors import EdgeSegError, InputError, MissingHere

T = TypeVar("T")
Activity = Literal["losses", "gradients", "batchnorm", "agreement"]
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_GO_ON, _INTERRUPTED, _FAILED = range(3)


class PeerStopped(EdgeSegError):
    """Another process of this training ended with an error, died, or does not answer."""

    exit_code = 1


class World:
    """The processes of one training, as one of them sees them; by default it is alone.

    Every process must call the same methods in the same order.

    Args:
        device: Device of this process.
        rank: Number of this process, 0..size-1.
        size: Number of processes.
        local_size: Number of processes on this machine.

    Attributes:
        spent_s: Seconds spent in communication since the start, waiting for slower processes included; on CUDA
            it runs beside the computation, and the figures say nothing.
    """

    def __init__(self, device: torch.device, *, rank: int = 0, size: int = 1, local_size: int = 1) -> None:
        self.device, self.rank, self.size, self.local_size = device, rank, size, local_size
        self.spent_s: dict[Activity, float] = {"losses": 0.0, "gradients": 0.0, "batchnorm": 0.0, "agreement": 0.0}

    def __deepcopy__(self, _memo: object) -> World:
        """Copies of a network share their world."""
        return self

    @property
    def first(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Returns the sum of `value` over all processes; gradients flow through it to every process."""
        if self.size == 1:
            return value
        total: Tensor = _Total.apply(value, self)  # type: ignore[no-untyped-call]
        return total

    def add(self, value: Tensor, activity: Activity) -> Tensor:
        """Replaces `value` (contiguous, without gradient) by its sum over all processes and returns it."""
        if self.size > 1:
            self._communicate(activity, dist.all_reduce, value)
        return value

    def stack(self, value: Tensor, activity: Activity) -> Tensor:
        """Returns the values of all processes, [size, ...], in order of rank; without gradient."""
        value = value.contiguous()
        if self.size == 1:
            return value[None]
        parts = [torch.empty_like(value) for _ in range(self.size)]
        self._communicate(activity, dist.all_gather, parts, value)
        return torch.stack(parts)

    @torch.no_grad()
    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces gradients by their sums over all processes, with one exchange.

        A gradient that no process has stays None; one that only others have is created.
        """
        if self.size == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in trained]
        present = parts[0].new_tensor([float(p.grad is not None) for p in trained])
        flat = self.add(torch.cat([*parts, present]), "gradients")
        *sums, present = torch.split(flat, [*(p.numel() for p in trained), len(trained)])
        for parameter, total, holders in zip(trained, sums, present.tolist(), strict=True):
            if not holders:
                continue
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            parameter.grad.copy_(total.view(parameter.shape))

    def figures(self, values: Mapping[str, Tensor]) -> dict[str, float]:
        """Returns losses, summed over all processes, as numbers."""
        if self.size == 1:
            return {k: float(v.detach()) for k, v in values.items()}
        sums = self.add(torch.stack([v.detach() for v in values.values()]), "losses")
        return dict(zip(values, sums.tolist(), strict=True))

    def gather(self, value: Any) -> list[Any]:
        """Returns the values (any Python objects) of all processes, in order of rank, in every process."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._communicate("agreement", dist.all_gather_object, values, value)
        return values

    def from_first(self, value: T) -> T:
        """Returns the value of the first process in every process."""
        if self.size == 1:
            return value
        values = [value]
        self._communicate("agreement", dist.broadcast_object_list, values, 0)
        return values[0]

    def require_same(self, what: str, value: str) -> None:
        """Raises InputError in every process unless `value` is the same everywhere."""
        values = self.gather(value)
        if len(set(values)) > 1:
            other = next(r for r, v in enumerate(values) if v != values[0])
            raise InputError(
                f"The processes of this training do not have the same {what}.",
                expected=f"{values[0][:80]} as in process 0",
                got=f"{values[other][:80]} in process {other}",
                todo="start every process with the same command, data and versions",
            )

    @contextlib.contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """Every process leaves the block the same way: all go on, all are interrupted, or all end with an error.

        The block itself must not communicate: a process that left it early would answer the wrong question.

        Args:
            doing: What the block does, for the message.

        Raises:
            PeerStopped: The block failed in another process.
            KeyboardInterrupt: It was interrupted in any process.
        """
        if self.size == 1:
            yield
            return
        try:
            yield
        except BaseException as error:
            self._agree(doing, error)
            raise
        self._agree(doing, None)

    def _agree(self, doing: str, error: BaseException | None) -> None:
        own = _GO_ON if error is None else _INTERRUPTED if isinstance(error, KeyboardInterrupt) else _FAILED
        verdict = torch.tensor(own, device=self.device)
        self._communicate("agreement", dist.all_reduce, verdict, dist.ReduceOp.MAX)
        if verdict == _INTERRUPTED and error is None:
            raise KeyboardInterrupt
        if verdict != _FAILED:
            return
        texts = self.gather(f"{type(error).__name__}: {error}" if own == _FAILED else None)
        if own != _FAILED:
            rank = next(r for r, text in enumerate(texts) if text)
            raise PeerStopped(
                f"Process {rank} of {self.size} has stopped while {doing}.", got=texts[rank].partition("\n")[0]
            )

    def _communicate(self, activity: Activity, function: Callable[..., Any], *args: Any) -> None:
        began_s = time.perf_counter()
        try:
            function(*args)
        except (RuntimeError, OSError) as error:  # what gloo and NCCL raise when a connection breaks or times out
            raise PeerStopped(
                f"Process {self.rank} of {self.size} has lost the others.",
                got=str(error).partition("\n")[0],
                todo="look for the first error of another process; then go on with --resume",
            ) from error
        self.spent_s[activity] += time.perf_counter() - began_s


class _Total(torch.autograd.Function):
    """Sum over processes. The loss is a sum over processes too, so the gradient of a part is the sum of gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.add(value.detach().clone(memory_format=torch.contiguous_format), "losses")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.world.add(gradients[0].clone(memory_format=torch.contiguous_format), "losses"), None


@contextlib.contextmanager
def started(device: str, *, timeout_s: float) -> Iterator[World]:
    """Joins the processes that torchrun started, and leaves them at the end; without torchrun a process is alone.

    Leaving closes the connections: processes that wait for one that failed get an error at once.

    Args:
        device: "cpu" (gloo), "cuda" (NCCL, one device for each process) or "auto".
        timeout_s: Longest wait for another process.

    Raises:
        InputError: torchrun's environment is incomplete.
        MissingHere: The others cannot be reached, or there are fewer devices than processes.
    """
    size = _from_environment("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        yield World(chosen_device(device))
        return
    rank, local_rank = _from_environment("RANK"), _from_environment("LOCAL_RANK")
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    chosen = chosen_device(device, local_rank)
    try:
        timeout = datetime.timedelta(seconds=timeout_s)
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise MissingHere(
            f"Process {rank} of {size} cannot reach the others.",
            got=str(error).partition("\n")[0],
            todo="check MASTER_ADDR and MASTER_PORT; on a machine with several networks set GLOO_SOCKET_IFNAME",
        ) from error
    try:
        yield World(chosen, rank=rank, size=size, local_size=local_size)
    finally:
        dist.destroy_process_group()


def chosen_device(name: str, local_rank: int = 0) -> torch.device:
    """Returns the device of a process; raises MissingHere when there is none for it.

    Args:
        name: "cpu", "cuda" or "auto".
        local_rank: Number of the process on its machine.
    """
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cuda" and local_rank >= count:
        raise MissingHere(
            f"There is no CUDA device for process {local_rank} of this machine.",
            got=f"{count} devices",
            todo="use run.device=cpu, or as many processes as devices",
        )
    if name == "cuda":
        torch.cuda.set_device(local_rank)
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def _from_environment(name: str) -> int:
    missing = [n for n in _ENVIRONMENT if n not in os.environ]
    text = os.environ.get(name, "")
    if missing or not text.isdecimal():
        raise InputError(
            "The environment of a training with several processes is incomplete.",
            expected=", ".join(_ENVIRONMENT),
            got=f"no {', '.join(missing)}" if missing else f"{name} = {text!r}",
            todo="start with torchrun --nproc-per-node N -m edge_seg.cli train CONFIG --out DIR",
        )
    return int(text)
