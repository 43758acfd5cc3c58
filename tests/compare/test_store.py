"""The store: whole or not at all, one claim at a time, and nothing that is no store is touched."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from compare_stub import cell, record_of

from mmsa_decalign.compare import claims
from mmsa_decalign.compare.schema import VERSION
from mmsa_decalign.compare.store import Store
from mmsa_decalign.errors import InputError
from mmsa_decalign.harness.samples import Samples

ONE = cell("one")
SAMPLES = Samples(["a", "b"], np.array([1.5, -2.0], dtype=np.float32), np.array([[0.1], [0.2]], dtype=np.float32))


def test_a_finished_run_comes_back_whole(store: Store) -> None:
    record = record_of(ONE.spec, {"MAE": 0.5, "Corr": None}, id="run1")
    store.add([ONE.entry()])
    lock = claims.hold(store.files / "claims", "token")
    assert store.claim(ONE.key, "token", 0)
    assert store.record(ONE.key) is None
    assert store.finish(ONE.key, "token", record, {"test": SAMPLES})
    claims.drop(lock)
    other = Store(store.path)
    assert other.record(ONE.key) == other.find("run") == record
    assert other.states([ONE.key])[ONE.key].run == "run1"
    found = other.samples(ONE.key, "test")
    assert found is not None
    assert found.ids == SAMPLES.ids
    for own, expected in ((found.labels, SAMPLES.labels), (found.predictions, SAMPLES.predictions)):
        assert own.dtype == expected.dtype
        np.testing.assert_array_equal(own, expected)
    assert other.samples(ONE.key, "valid") is None
    assert other.seconds("one", "mosi") == 0.5
    assert other.seconds("two", "mosi") is None
    other.close()


def test_a_claim_holds_as_long_as_its_process(store: Store) -> None:
    store.add([ONE.entry()])
    lock = claims.hold(store.files / "claims", "first")
    assert store.claim(ONE.key, "first", 0)
    other = Store(store.path)
    assert not other.claim(ONE.key, "second", 1), "the first one is alive"
    lock.release()  # what the system does when a process ends, however it ends
    assert not other.claim(ONE.key, "second", 0), "something happened since attempts was read"
    assert other.claim(ONE.key, "second", 1)
    assert list((store.files / "claims").iterdir()) == [], "what a dead process left is removed"
    assert not store.finish(ONE.key, "first", record_of(ONE.spec, {}), {}), "the claim was taken over"
    assert not store.fail(ONE.key, "first", "too late")
    assert store.record(ONE.key) is None
    assert store.states([ONE.key])[ONE.key].claim == "second"
    other.close()


def test_only_one_of_many_gets_a_cell(store: Store) -> None:
    store.add([ONE.entry()])
    got: list[bool] = []

    def take(number: int) -> None:
        own = Store(store.path)
        lock = claims.hold(own.files / "claims", f"t{number}")
        got.append(own.claim(ONE.key, f"t{number}", 0))
        kept.append(lock)
        own.close()

    kept: list[object] = []
    threads = [threading.Thread(target=take, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]
    for lock in kept:
        claims.drop(lock)  # type: ignore[arg-type]


def test_a_run_done_again_replaces_the_earlier_one_and_a_failure_does_not(store: Store) -> None:
    store.add([ONE.entry()])
    for attempt, name in enumerate(("first", "second")):
        assert store.claim(ONE.key, name, attempt)
        assert store.finish(ONE.key, name, record_of(ONE.spec, {"MAE": attempt}, id=name), {"test": SAMPLES})
    assert store.claim(ONE.key, "third", 2)
    assert store.fail(ONE.key, "third", "no luck", "trace")
    state = store.states([ONE.key])[ONE.key]
    assert (state.run, state.error, state.claim, state.attempts) == ("second", "no luck", None, 3)
    assert store.database.execute("SELECT count(*) FROM runs").fetchone() == (1,)
    assert store.database.execute("SELECT count(*) FROM predictions").fetchone() == (1,)
    assert store.find("first") is None


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from compare_stub import cell, record_of
from mmsa_decalign.compare.store import Store
import mmsa_decalign.compare.store as module
store, one = Store(sys.argv[1]), cell("one")
store.add([one.entry()])
assert store.claim(one.key, "token", 0)
module._packed = lambda array: os.kill(os.getpid(), signal.SIGKILL)  # after the run, before its predictions
from test_store import SAMPLES
store.finish(one.key, "token", record_of(one.spec, {}), {"test": SAMPLES})
"""


def test_a_process_killed_inside_a_transaction_leaves_nothing_of_it(store: Store) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.path), str(Path(__file__).parent)], check=False,
                          capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    state = store.states([ONE.key])[ONE.key]
    assert (state.claim, state.run, state.attempts) == ("token", None, 1)
    assert store.database.execute("SELECT (SELECT count(*) FROM runs) + (SELECT count(*) FROM predictions)"
                                  ).fetchone() == (0,)
    assert store.claim(ONE.key, "next", 1), "its claim died with it"


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    text, foreign, newer = (tmp_path / name for name in ("text", "foreign", "newer"))
    text.write_text("not a database, but long enough to be looked at" * 50)
    with sqlite3.connect(foreign) as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    Store(newer).close()
    with sqlite3.connect(newer) as database:
        database.execute(f"PRAGMA user_version = {VERSION + 1}")
    database.close()
    for path, words in ((text, "not a database"), (foreign, "no results store"), (newer, "newer mmsa-decalign"),
                        (tmp_path, "unable to open")):
        before = path.read_bytes() if path.is_file() else b""
        with pytest.raises(InputError, match=words):
            Store(path)
        assert (path.read_bytes() if path.is_file() else b"") == before
    with pytest.raises(InputError, match="does not exist"):
        Store(tmp_path / "none", create=False)
