"""A program that the tests of several processes start: `two_processes.py SCENARIO FOLDER`, as torchrun would.

Every process leaves `FOLDER/NAME_RANK.pt` or what the scenario writes; alone it is the reference of the pair.
"""

import dataclasses
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

from edge_seg.training.distributed import World, started
from edge_seg.training.settings import DataSettings, ModelSettings, OptimSettings, RunSettings, TrainSettings

STEPS = 3
START = "start.safetensors"


def settings(run=None, **changes) -> TrainSettings:
    run = {"log_every": 1, "save_every": 2, "eval_limit": 3, "threads": 1, "loader_workers": 1, **(run or {})}
    plain = TrainSettings(
        DataSettings("synthetic:easy", cache_mb=4),
        ModelSettings("maskconver_mnv2_256", 64, options={"width": 16, "head_kernel": 3}),
        OptimSettings(steps=STEPS, batch_size=4, warmup_steps=2, lr=1e-3, batchnorm_images=4),
        RunSettings(device="cpu", peer_timeout_s=30, **run),
        seed=7,
    )
    return dataclasses.replace(plain, **changes)


def start(scenario, folder, *, size=2, environment=None):
    """Starts the processes of a scenario; the caller waits for them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(size):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, **(environment or {})}
        command = [sys.executable, "-W", "ignore", __file__, scenario, str(folder)]
        with (folder / f"out_{rank}.txt").open("w") as out, (folder / f"err_{rank}.txt").open("w") as err:
            env = {**shared, **{k: str(v) for k, v in own.items()}}
            processes.append(subprocess.Popen(command, stdout=out, stderr=err, env=env))
    return processes


def finish(processes, timeout_s=120):
    """Waits for all; kills what is left; returns the exit codes."""
    end = time.monotonic() + timeout_s
    try:
        return [p.wait(max(0.1, end - time.monotonic())) for p in processes]
    finally:
        for process in processes:
            process.kill()


def steps(world: World, folder: Path, *, scored=False, **changes):
    """Trains three steps; returns losses and all weights and statistics, and the score of seven pictures if asked."""
    from edge_seg.training.loop import Trainer, _BuildBatchItem

    trainer = Trainer(settings(**changes), folder, world=world)
    with trainer._loader(_BuildBatchItem(trainer.criterion, trainer.crops)) as loader:
        losses = [trainer._step(next(loader)) for _ in range(STEPS)]
    network = trainer._evaluated_network()
    trainer.log.close()
    return {
        "losses": torch.tensor([list(row.values()) for row in losses], dtype=torch.float64),
        "network": dict(trainer.network.state_dict()),
        "average": dict(trainer.average.state_dict()),
        "evaluated": dict(network.state_dict()),
        "kinds": sorted({type(m).__name__ for m in trainer.network.modules() if "Norm" in type(m).__name__}),
        "score": score(trainer, network) if scored else {},
    }


def score(trainer, network):
    """The score of seven pictures; a picture is run in float32."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        scored = trainer._scored(network.float(), 7)
        found = sum(len(matches.score) for picture in scored.quality._pictures for matches in picture)
        return {**scored.to_json(), "found": found}
    finally:
        torch.set_default_dtype(before)


VARIANTS = {
    "live": {},
    "adaptive": {"criterion": {"dice": "adaptive"}},
    "frozen": {"optim": {"freeze_batchnorm": "backbone", "freeze_stages": 2, "ema_decay": 0.0, "optimizer": "sgd"}},
}


def write_start(path):
    """Writes the float checkpoint that a retraining starts from."""
    from edge_seg.data.source import open_dataset
    from edge_seg.training.checkpoint import build_network, save_checkpoint

    classes = open_dataset("synthetic:easy", split="train").classes
    torch.manual_seed(1)
    network = build_network(settings(), classes)
    save_checkpoint(path, network.state_dict(), settings=settings(), classes=classes, step=0)


def changes_of(variant):
    changes = dict(VARIANTS[variant])
    return {**changes, "optim": dataclasses.replace(settings().optim, **changes.get("optim", {}))}


def equal(world, folder):
    """Three steps of every variant in float64, and of two in float32."""
    done = {}
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        for variant in VARIANTS:
            if variant != "adaptive" or dtype == torch.float64:
                name = f"{variant} {str(dtype).partition('.')[2]}"
                done[name] = steps(world, folder / name, **changes_of(variant))
    return done


def retrained(world, folder):
    """Three steps on integer grids, in float64: ranges of the first two, distillation."""
    from edge_seg.training.settings import QatSettings, checked

    torch.set_default_dtype(torch.float64)
    try:
        qat = QatSettings(str(folder.parent / START), observe_steps=2, distill=0.1)
        return steps(world, folder / "retrained", qat=qat, optim=checked(settings(qat=qat)).optim)
    finally:
        torch.set_default_dtype(torch.float32)


INSTANCE_MODELS = {
    "blendmask_mobile_256": ({"width": 16, "basis_width": 16}, {"score_threshold": 0.002}),
    "solov2_mobile_256": ({"width": 16, "kernel_channels": 8, "mask_width": 16}, {"score_threshold": 0.002}),
}


def instances(world, folder):
    """Three steps of both instance families in float64, then a score of seven pictures shared out."""
    done = {}
    torch.set_default_dtype(torch.float64)
    try:
        for name, (options, decoder) in INSTANCE_MODELS.items():
            model = ModelSettings(name, 64, options=options)
            done[name] = steps(world, folder / name, scored=True, model=model, decoder=decoder)
    finally:
        torch.set_default_dtype(torch.float32)
    return done


def layers(world, folder):
    """BatchNorm in float32 and float64 on parts of one batch, with large means; gradients with `total`."""
    from edge_seg.training.sync_batchnorm import separate, synchronise

    done = {}
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.BatchNorm2d(5), torch.nn.BatchNorm2d(5)).to(dtype)
        net[1].momentum, net[2].momentum = 0.1, None
        net[1].weight.data.uniform_(0.5, 2)
        x = torch.randn(6, 3, 7, 7, dtype=dtype) * 0.1 + 100
        r = torch.randn(6, 5, 5, 5, dtype=dtype)
        # uneven parts: the second process has two pictures of six
        own = slice(0, 6) if world.size == 1 else (slice(0, 4), slice(4, 6))[world.rank]
        x, r = x[own].clone().requires_grad_(), r[own]
        synchronise(net, world)
        y = [net(x) for _ in range(2)][-1]
        (y.sin() * r).sum().backward()
        world.add_gradients(net.parameters())
        gradients = {k: p.grad for k, p in net.named_parameters()}
        state, kinds = dict(net.state_dict()), [type(m).__name__ for m in net]
        separate(net)
        done[str(dtype)] = {
            "y": y.detach(),
            "x": x.grad,
            "gradients": gradients,
            "state": state,
            "again": dict(net.state_dict()),
            "kinds": kinds,
            "evaluated": net.eval()(x).detach(),
        }
    return done


def holes(world, folder):
    """Gradients that only one process has, or none; sums with a gradient; `from_first`, `gather`."""
    a, b, c = (torch.nn.Parameter(torch.zeros(2, 3)) for _ in range(3))
    if world.rank == 0:
        a.grad = torch.full((2, 3), 5.0)
    b.grad = torch.full((2, 3), 1.0 + world.rank)
    world.add_gradients([a, b, c])
    part = torch.tensor([2.0 + world.rank], requires_grad=True)
    # every process computes f(total) / size: together f(total), whose gradient is 2 * total
    (world.total(part) ** 2 / world.size).backward()
    return {
        "a": a.grad,
        "b": b.grad,
        "c": c.grad is None,
        "part": part.grad,
        "first": world.from_first(f"of {world.rank}"),
        "all": world.gather(world.rank),
        "spent": all(world.spent_s[k] > 0 for k in ("losses", "gradients", "agreement")),
    }


def few_scored(spec, *, split):
    """Seven scenes to score instead of two hundred."""
    from edge_seg.data.source import open_dataset
    from edge_seg.data.synthetic import SyntheticScenes

    return open_dataset(spec, split=split) if split == "train" else SyntheticScenes("easy", split="val", length=7)


def whole_run(world, folder):
    """A whole run with evaluation on the way."""
    from edge_seg.training import loop

    original, loop.open_dataset = loop.open_dataset, few_scored
    try:
        done = loop.Trainer(settings(run={"eval_every": 2}), folder / "run", world=world).run()
    finally:
        loop.open_dataset = original
    return {"metrics": done.metrics, "rank": done.rank}


def uneven(world, folder):
    """Three pictures for two processes."""
    from edge_seg.training.loop import Trainer

    Trainer(settings(optim=dataclasses.replace(settings().optim, batch_size=3)), folder, world=world)


def poisoned(world, folder):
    """The last process' batch gives a loss that is not a number at step 1."""
    from edge_seg.training.loop import Trainer

    trainer = Trainer(settings(), folder / "run", world=world)
    original = trainer.criterion.losses

    def losses(*args, **options):
        found = original(*args, **options)
        if trainer.step == 1 and world.rank == world.size - 1:
            found["loss"] = found["loss"] * float("nan")
        return found

    trainer.criterion.losses = losses
    trainer.run()


class Broken:
    """A data set that cannot read its pictures any more in process 1."""

    def __init__(self, dataset, rank):
        self.dataset, self.rank, self.left = dataset, rank, 3
        self.name, self.classes = dataset.name, dataset.classes

    def __len__(self):
        return len(self.dataset)

    def fingerprint(self):
        return self.dataset.fingerprint()

    def __getitem__(self, index):
        from edge_seg.errors import DataError

        self.left -= 1
        if self.rank == 1 and self.left < 0:
            raise DataError("The picture is broken.")
        return self.dataset[index]


def broken_data(world, folder):
    """Process 1 cannot read a picture at its second step."""
    from edge_seg.training import loop

    original = loop.open_dataset
    loop.open_dataset = lambda *args, **options: Broken(original(*args, **options), world.rank)
    try:
        loop.Trainer(settings(), folder / "run", world=world).run()
    finally:
        loop.open_dataset = original


def other_settings(world, folder):
    """The processes were started with different settings."""
    from edge_seg.training.loop import Trainer

    Trainer(settings(seed=world.rank), folder / "run", world=world)


def raises_in_the_step(world, folder):
    """Process 1 fails between two exchanges of a step, as when its memory is full."""
    from edge_seg.training.loop import Trainer

    trainer = Trainer(settings(), folder / "run", world=world)
    if world.rank == 1:
        trainer.criterion.losses = lambda *_args, **_options: (_ for _ in ()).throw(MemoryError("full"))
    trainer.run()


def silent(world, folder):
    """Process 1 does not answer."""
    if world.rank == 1:
        time.sleep(8)
        return
    world.gather(0)


def interrupted(world, folder):
    """Ctrl-C reaches process 1 alone, in the middle of its second step."""
    import signal

    from edge_seg.training.loop import Trainer

    trainer = Trainer(settings(run={"save_every": 0}), folder / "cut", world=world)
    original = trainer.criterion.losses

    def losses(*args, **options):
        if trainer.step == 1 and world.rank == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **options)

    trainer.criterion.losses = losses
    trainer.run()


def resumed(world, folder):
    """Goes on; only the first process has the folder."""
    from edge_seg.training.loop import Trainer

    out = folder / "cut" if world.first else folder / "elsewhere"
    done = Trainer(settings(run={"save_every": 0}), out, resume=True, world=world).run()
    return {"metrics": done.metrics, "elsewhere": (folder / "elsewhere").exists()}


def interrupted_evaluation(world, folder):
    """Ctrl-C reaches process 0 while it evaluates."""
    import signal

    from edge_seg.training import loop

    original = loop.evaluate

    def evaluate(*args, **options):
        if world.rank == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **options)

    loop.evaluate = evaluate
    try:
        loop.Trainer(settings(run={"eval_every": 2, "save_every": 0}), folder / "run", world=world).run()
    finally:
        loop.evaluate = original


# After each of these the processes are still in step, errors included: they left it together.
TOGETHER = (
    equal,
    retrained,
    instances,
    layers,
    holes,
    whole_run,
    uneven,
    poisoned,
    broken_data,
    other_settings,
    interrupted,
    resumed,
)
TOGETHER += (interrupted_evaluation,)


def together(world, folder):
    """Runs all scenarios that processes leave together; an error is a result."""
    from edge_seg.errors import EdgeSegError

    done = {}
    for scenario in TOGETHER:
        own = folder / f"{scenario.__name__}_{world.size}"
        if world.size == 1 and scenario not in (equal, retrained, instances, layers, whole_run):
            continue
        try:
            done[scenario.__name__] = scenario(world, folder if scenario in (interrupted, resumed) else own)
        except (EdgeSegError, KeyboardInterrupt) as error:
            done[scenario.__name__] = {"error": type(error).__name__, "text": str(error)}
        world.require_same("scenario", scenario.__name__)
    return done


def main():
    from edge_seg.errors import EdgeSegError

    scenario, folder = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    try:
        with started("cpu", timeout_s=3.0 if scenario == "silent" else 60.0) as world:
            done = globals()[scenario](world, folder)
            torch.save(done, folder / f"{scenario}_{world.size}_{world.rank}.pt")
    except EdgeSegError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    left = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
    if left:
        sys.exit(f"threads are left: {left}")


if __name__ == "__main__":
    main()
