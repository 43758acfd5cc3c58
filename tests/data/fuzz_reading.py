"""Reads hostile and broken files by every door in one process with 1 GB of memory, and prints what became of it.

Run as a program: `python fuzz_reading.py FOLDER FACTOR SEED`, with FOLDER in PYTHONPATH for a decoy. The last line is
JSON: counts of files by kind, of outcomes, of what was executed, ran out of memory, hung or escaped. A process that
dies leaves the name of its last file in FOLDER/now.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile_files
import hostile_pickles
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mmsa_decalign.data.convert import convert
from mmsa_decalign.data.overview import inspect_file
from mmsa_decalign.data.reading import read_features
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.safe_reading import read_checkpoint

SECONDS = 10
EVENTS = ("os.system", "os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.kill", "pty.spawn",
          "subprocess.Popen", "exec", "compile", "socket.connect", "socket.bind", "ctypes.dlopen", "pickle.find_class",
          "webbrowser.open", "shutil.rmtree", "cpython.run_interactivehook", "builtins.breakpoint", "code.interact")


class Hung(BaseException):
    """Raised by the clock."""


class Ground:
    """The folder, the traps and the account."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.trace = folder, folder / "trace"
        self.trace.mkdir()
        leave = "open({!r}, 'w').close()\n".format
        (folder / "decoy.py").write_text(leave(f"{self.trace}/imported") + "def run(*_): " + leave(f"{self.trace}/ran"))
        self.armed = False
        self.seen: list[str] = []
        self.files, self.outcomes = Counter(), Counter()
        self.faults: dict[str, list[str]] = {"executed": [], "memory": [], "hung": [], "escaped": []}
        sys.addaudithook(self._hear)
        signal.signal(signal.SIGALRM, self._ring)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.armed or (event == "exec" and Path(arguments[0].co_filename).parent.name == "encodings"):
            return  # Python brings in its own codecs when it first needs them
        if event in EVENTS or (event == "import" and arguments[0] in ("decoy", "pty", "runpy")):
            self.seen.append(f'{event} {arguments!r}'[:200])

    def _ring(self, *_: Any) -> None:
        raise Hung

    def do(self, what: str, door: str, action: Callable[[], Any]) -> None:
        """Call a door on a file and account for it."""
        self.seen.clear()
        self.armed = True
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            action()
            outcome = "read"
        except InputError as error:
            outcome = "refused"
            if "needs more memory" in str(error):
                self.faults["memory"].append(f"{what}, {door}")
            if len(str(error).splitlines()) > 2:
                self.faults["escaped"].append(f"{what}, {door}: a message of many lines")
        except Hung:
            outcome = "hung"
            self.faults["hung"].append(f"{what}, {door}")
        except BaseException as error:
            outcome = "escaped"
            self.faults["escaped"].append(f"{what}, {door}: {type(error).__name__}: {str(error)[:200]}")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.armed = False
        self.outcomes[f"{door}: {outcome}"] += 1
        if self.seen or os.listdir(self.trace):
            self.faults["executed"].append(f"{what}, {door}: {self.seen} {os.listdir(self.trace)}")
            for left in self.trace.iterdir():
                left.unlink() if left.is_file() else left.rmdir()

    def read(self, kind: str, what: str, path: Path) -> None:
        """One file by all doors."""
        (self.folder / "now").write_text(f"{kind}: {what}")
        self.files[kind] += 1
        self.do(what, "features", lambda: read_features(path))
        self.do(what, "override", lambda: read_features(self.folder / "good.pkl", audio=path))
        probing = kind != "hostile"
        self.do(what, "inspect", lambda: json.dumps(inspect_file(path, probing=probing), allow_nan=False))
        self.do(what, "convert", lambda: convert(path, self.folder / "out.safetensors"))


    def read_checkpoint(self, what: str, content: bytes) -> None:
        (self.folder / "now").write_text(f"checkpoint: {what}")
        self.files["checkpoint"] += 1
        path = self.folder / "bad.pth"
        path.write_bytes(content)
        self.do(what, "checkpoint", lambda: read_checkpoint(path))

    def read_bytes(self, kind: str, what: str, content: bytes) -> None:
        path = self.folder / "bad.pkl"
        path.write_bytes(content)
        self.read(kind, what, path)


def main(folder: Path, factor: float, seed: int) -> None:
    ground, rng, good = Ground(folder), random.Random(seed), hostile_files.good_layout()
    goods = [pickle.dumps(good, protocol) for protocol in range(6)]
    (folder / "good.pkl").write_bytes(goods[4])
    convert(folder / "good.pkl", folder / "good.safetensors")
    mapped = (folder / "good.safetensors").read_bytes()
    payloads = hostile_pickles.payloads(str(ground.trace))

    states = hostile_files.checkpoints()

    ground.do("control", "pickle", lambda: pickle.loads(b"\x80\x02" + payloads["eval"] + b"."))
    assert ground.faults["executed"], "the traps catch nothing"
    ground.faults["executed"].clear()
    for number, content in enumerate([*goods, mapped]):
        ground.read_bytes("good", f"good {number}", content)
    for number, content in enumerate(states):
        ground.read_checkpoint(f"good {number}", content)
    assert all(door.endswith(": read") for door in list(ground.outcomes)[1:]), ground.outcomes
    assert not any(ground.faults.values()), ground.faults
    ground.files.clear()
    ground.outcomes.clear()

    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for what, path in hostile_files.special_files(folder):
        ground.read("special", what, path)
    for what, payload in payloads.items():
        positions = hostile_pickles.POSITIONS if factor >= 1 else rng.sample(hostile_pickles.POSITIONS, 4)
        for position in positions:
            content = hostile_pickles.program(payload, position, good, rng.choice((2, 4)))
            ground.read_bytes("hostile", f"{what} in {position}", content)
    for number in range(int(900 * factor)):
        for those, called in ((goods, "pickle"), ([mapped], "mapped")):
            kind, content = hostile_files.broken(rng, those)
            ground.read_bytes(f"{kind}, {called}", f"{kind} {number}", content)
        if number % 5 == 0:
            ground.read_checkpoint(*hostile_files.broken(rng, states))
    for what, payload in hostile_pickles.running(str(ground.trace)).items():
        ground.read_checkpoint(f"{what} in a checkpoint", hostile_files.with_program(states[0], payload))
        ground.read_checkpoint(f"{what} as a checkpoint", b"\x80\x02" + payload + b".")
    pieces = [payload for payload in payloads.values() if len(payload) < 500]
    for number in range(int(400 * factor)):
        ground.read_bytes("swapped", f"swapped {number}", hostile_files.swapped(rng, good))
        ground.read_bytes("instructions", f"instructions {number}", hostile_files.instructions(rng, pieces))
        ground.read_bytes("header", f"header {number}", hostile_files.headers(rng, mapped))
    for number in range(int(40 * factor)):
        ground.read_bytes("strings", f"strings {number}", hostile_files.lists_of_strings(rng, folder))

    @settings(max_examples=int(200 * factor), database=None, deadline=None, derandomize=True, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(hostile_files.anything(), st.sampled_from("root train text id audio_lengths".split()), st.integers(0, 5))
    def by_hypothesis(thing: Any, place: str, protocol: int) -> None:
        data: Any = {name: dict(split) for name, split in good.items()}
        if place == "root":
            data = thing
        elif place == "train":
            data["train"] = thing
        else:
            data["train"][place] = thing
        ground.read_bytes("any data", f"{thing!r} in {place}"[:300], pickle.dumps(data, protocol))

    by_hypothesis()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"files": ground.files, "total": sum(ground.files.values()), "outcomes": ground.outcomes,
                      "faults": ground.faults, "grown_mib": grown // 1024}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
