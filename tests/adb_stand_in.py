"""A protocol stand-in for an Android device, never a phone: it speaks the device side of adb's wire protocol.

Written from the public protocol text (AOSP adb: protocol.txt, SYNC.TXT and the shell protocol's description). It
serves a folder as `/data/local/tmp` and runs commands with this machine's `sh`, with shims for what Android has and
this machine has not. Its "benchmark_model" is a script that prints made-up figures; nothing it says is a latency.
"""

import asyncio
import os
import re
import shutil
import stat
import struct
import threading
from pathlib import Path

CNXN, AUTH, OPEN, OKAY, WRTE, CLSE = (
    int.from_bytes(n, "little") for n in (b"CNXN", b"AUTH", b"OPEN", b"OKAY", b"WRTE", b"CLSE")
)
TMP = "/data/local/tmp"
LABEL = "protocol stand-in, never a phone"


class Stream:
    """One opened service: writes wait for the client's OKAY, as the protocol asks."""

    def __init__(self, device, local, remote):
        self.device, self.local, self.remote = device, local, remote
        self.incoming, self.ready, self.buffer = asyncio.Queue(), asyncio.Event(), b""
        self.ready.set()

    async def write(self, data):
        for at in range(0, len(data), 16384):
            await self.ready.wait()
            self.ready.clear()
            self.device.send(WRTE, self.local, self.remote, data[at : at + 16384])

    async def read(self, n):
        while len(self.buffer) < n:
            more = await self.incoming.get()
            if more is None:
                raise asyncio.IncompleteReadError(self.buffer, n)
            self.buffer += more
        out, self.buffer = self.buffer[:n], self.buffer[n:]
        return out


class Device:
    """One connection of an adb server; `trouble` is what goes wrong on purpose.

    "unauthorized", "cut" (the link ends in the middle of a run), "asleep", "full" (`df` says so), "full_at_push"
    (`df` does not), "x86_64" (another processor).
    """

    def __init__(self, root, trouble, reader, writer):
        self.root, self.trouble, self.reader, self.writer = root, trouble, reader, writer
        self.streams, self.tasks, self.next = {}, set(), 1

    def send(self, command, a, b, data=b""):
        check = sum(data) & 0xFFFFFFFF
        self.writer.write(struct.pack("<6I", command, a, b, len(data), check, command ^ 0xFFFFFFFF) + data)

    async def serve(self):
        while True:
            command, a, b, size, _check, _magic = struct.unpack("<6I", await self.reader.readexactly(24))
            data = await self.reader.readexactly(size)
            if command == CNXN and "unauthorized" not in self.trouble:
                facts = "ro.product.name=standin;ro.product.model=Protocol_StandIn;ro.product.device=standin"
                self.send(CNXN, 0x01000000, 1 << 18, f"device::{facts};features=shell_v2,cmd".encode())
            elif command in (CNXN, AUTH):
                self.send(AUTH, 1, 0, os.urandom(20))
            elif command == OPEN:
                stream = Stream(self, self.next, a)
                self.streams[self.next], self.next = stream, self.next + 1
                self.send(OKAY, stream.local, a)
                task = asyncio.ensure_future(self.service(stream, data.rstrip(b"\0").decode()))
                self.tasks.add(task)
            elif command == WRTE and b in self.streams:
                self.send(OKAY, b, a)
                self.streams[b].incoming.put_nowait(data)
            elif command == OKAY and b in self.streams:
                self.streams[b].ready.set()
            elif command == CLSE and b in self.streams:
                self.streams.pop(b).incoming.put_nowait(None)

    async def service(self, stream, name):
        try:
            if name == "sync:":
                await self.sync(stream)
            elif name.startswith("shell"):
                await self.shell(stream, name.partition(":")[2], packets=name.startswith("shell,v2"))
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        self.send(CLSE, stream.local, stream.remote)

    def local(self, text):
        return text.replace(TMP, str(self.root / "tmp"))

    async def shell(self, stream, command, *, packets):
        # the pushed file is no program of this machine: the script stands in for it
        runs = re.search(r"\S+/benchmark_model --graph", command)
        command = re.sub(r"\S+/benchmark_model(?= --graph)", str(self.root / "bin" / "benchmark_model"), command)
        path = f"{self.root / 'bin'}:{os.environ['PATH']}"
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", self.local(command), stdout=pipe, stderr=pipe, env={**os.environ, "PATH": path}
        )

        async def forward(source, kind):
            while data := await source.read(4096):
                await stream.write(bytes([kind]) + struct.pack("<I", len(data)) + data if packets else data)
                if runs and "cut" in self.trouble:
                    self.writer.transport.abort()

        await asyncio.gather(forward(process.stdout, 1), forward(process.stderr, 2))
        code = await process.wait()
        if packets:
            await stream.write(b"\x03" + struct.pack("<I", 1) + bytes([code & 0xFF]))

    async def sync(self, stream):
        while True:
            request, size = struct.unpack("<4sI", await stream.read(8))
            if request == b"QUIT":
                return
            name = self.local((await stream.read(size)).decode())
            if request == b"STAT":
                await stream.write(b"STAT" + self.status(Path(name)))
            elif request == b"LIST":
                for item in sorted(Path(name).iterdir()) if Path(name).is_dir() else []:
                    encoded = item.name.encode()
                    await stream.write(b"DENT" + self.status(item) + struct.pack("<I", len(encoded)) + encoded)
                await stream.write(b"DONE" + bytes(16))
            elif request == b"SEND":
                await self.receive(stream, Path(name.rpartition(",")[0]), int(name.rpartition(",")[2]))
            elif request == b"RECV":
                await self.give(stream, Path(name))

    @staticmethod
    def status(path):
        found = path.stat() if path.exists() else None
        mode = found.st_mode if found else 0
        return struct.pack("<3I", mode, found.st_size if found else 0, int(found.st_mtime) if found else 0)

    async def receive(self, stream, path, mode):
        data = b""
        while True:
            kind, size = struct.unpack("<4sI", await stream.read(8))
            if kind == b"DONE":
                break
            data += await stream.read(size)
        full = "full_at_push" in self.trouble and path.suffix == ".tflite"
        if full or not path.parent.is_dir():
            said = b"No space left on device" if full else b"No such file or directory"
            await stream.write(b"FAIL" + struct.pack("<I", len(said)) + said)
            return
        path.write_bytes(data)
        path.chmod(stat.S_IMODE(mode))
        await stream.write(b"OKAY" + bytes(4))

    async def give(self, stream, path):
        if not path.is_file():
            said = b"No such file or directory"
            await stream.write(b"FAIL" + struct.pack("<I", len(said)) + said)
            return
        data = path.read_bytes()
        for at in range(0, len(data), 65536):
            chunk = data[at : at + 65536]
            await stream.write(b"DATA" + struct.pack("<I", len(chunk)) + chunk)
        await stream.write(b"DONE" + bytes(4))


class StandIn:
    """A stand-in that listens on a port of this machine until it is closed; `serial` is how adb names it."""

    def __init__(self, root, shims, trouble=()):
        self.root, self.trouble, self.writers = Path(root), set(trouble), []
        (self.root / "tmp").mkdir(parents=True)
        shutil.copytree(shims, self.root / "bin")
        (self.root / "state").mkdir()
        for name in self.trouble:  # the shims look there: "asleep", "full", "x86_64"
            (self.root / "state" / name).touch()
        self.loop, started = asyncio.new_event_loop(), threading.Event()

        async def connected(reader, writer):
            device = Device(self.root, self.trouble, reader, writer)
            self.writers.append(writer)
            try:
                await device.serve()
            except (asyncio.IncompleteReadError, ConnectionError):
                for stream in device.streams.values():
                    stream.incoming.put_nowait(None)
                    stream.ready.set()
            writer.close()

        def run():
            asyncio.set_event_loop(self.loop)
            self.server = self.loop.run_until_complete(asyncio.start_server(connected, "127.0.0.1", 0))
            self.serial = f"127.0.0.1:{self.server.sockets[0].getsockname()[1]}"
            started.set()
            self.loop.run_forever()
            self.server.close()
            for writer in self.writers:
                writer.close()
            for task in (tasks := asyncio.all_tasks(self.loop)):
                task.cancel()
            self.loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self.loop.run_until_complete(asyncio.sleep(0.05))
            self.loop.close()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        started.wait(10)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
