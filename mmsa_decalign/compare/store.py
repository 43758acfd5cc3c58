"""The results store: one SQLite file that any number of processes read and write at once.

A finished run enters with its record and its predictions in one transaction, or not at all. A cell is claimed by a
token (claims.py) and every claim counts as an attempt, so that whoever acts on what it read of a cell can tell whether
something happened since. Files that belong to runs (checkpoints, logs) lie in the folder ``<store>.files``.
"""

from __future__ import annotations

import datetime
import io
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError, RunError
from ..harness.samples import Samples
from . import claims
from .schema import APPLICATION_ID, TABLES, UPGRADES, VERSION

BUSY_SECONDS = 60  # how long to wait for another writer; a transaction of ours takes some milliseconds


@dataclass(frozen=True)
class State:
    """What the store knows of a cell; ``run`` is the id of the finished run, ``claim`` the token at work."""

    key: str
    claim: str | None
    attempts: int
    error: str | None
    run: str | None


class Store:
    """Opens the file, made at the first use; a connection is the process's own and is never shared.

    Raises InputError for a file that is no store, or one that a newer version has written.
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path).expanduser().absolute()
        self.files = self.path.with_name(self.path.name + ".files")
        if not create and not self.path.is_file():
            raise InputError(f"results store {self.path} does not exist; name one with --store FILE")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.database = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            self._prepare()
        except (sqlite3.Error, RunError) as error:
            raise InputError(f"results store {self.path}: {error}; name a store of mmsa or a new file in a folder that "
                             "can be written: --store FILE") from error
        except OSError as error:
            raise InputError(f"results store {self.path}: {error.strerror or error}; choose another with --store FILE"
                             ) from error

    def close(self) -> None:
        """Give the file back."""
        self.database.close()

    def folder(self, key: str) -> Path:
        """Where the files of a cell lie: checkpoint and log."""
        return self.files / "cells" / key

    def _prepare(self) -> None:
        self.database.execute("PRAGMA foreign_keys = ON")
        if self._pragma("application_id") != APPLICATION_ID or self._pragma("user_version") != VERSION:
            with self._writing():
                self._bring_up_to_date()
        self.database.execute("PRAGMA journal_mode = WAL")
        self.database.execute("PRAGMA synchronous = FULL")  # what was reported as finished survives a power cut too

    def _pragma(self, name: str) -> int:
        return self.database.execute(f"PRAGMA {name}").fetchone()[0]

    def _bring_up_to_date(self) -> None:
        version = self._pragma("user_version")
        if self._pragma("application_id") != APPLICATION_ID:
            if version or self.database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                raise InputError(f"{self.path} is a database, but no results store of mmsa; name another with --store")
            statements: Iterable[str] = TABLES
        elif version > VERSION:
            raise InputError(f"results store {self.path} has version {version}, this mmsa knows {VERSION}: "
                             "install a newer mmsa-decalign, or name another store with --store")
        else:
            statements = [one for step in range(version, VERSION) for one in UPGRADES[step]]
        for statement in statements:
            self.database.execute(statement)
        self.database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        self.database.execute(f"PRAGMA user_version = {VERSION}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: all of it or nothing, and no other writer in between."""
        try:
            self.database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.database.execute("COMMIT")
            except BaseException:
                if self.database.in_transaction:
                    self.database.execute("ROLLBACK")
                raise
        except sqlite3.OperationalError as error:
            raise RunError(f"results store {self.path}: {error}; what it holds is whole, and the same call goes on "
                           "from there") from error

    # Cells

    def add(self, cells: Iterable[Mapping[str, Any]]) -> None:
        """Enter cells (key, model, dataset, seed, spec); one that is known keeps its results, and takes the new spec,
        whose feature file may lie elsewhere now."""
        with self._writing():
            self.database.executemany(
                "INSERT INTO cells (key, model, dataset, seed, spec) VALUES (:key, :model, :dataset, :seed, :spec) "
                "ON CONFLICT (key) DO UPDATE SET spec = excluded.spec",
                [{**cell, "spec": json.dumps(cell["spec"])} for cell in cells])

    def states(self, keys: Iterable[str]) -> dict[str, State]:
        """State by key, of the keys that the store has."""
        rows = (self.database.execute(
            "SELECT key, claim, attempts, error, runs.id FROM cells LEFT JOIN runs ON cell = key WHERE key = ?", (key,)
        ).fetchone() for key in keys)
        return {row[0]: State(*row) for row in rows if row is not None}

    def spec(self, key: str) -> dict[str, Any]:
        """What a worker needs to do the run."""
        return json.loads(self.database.execute("SELECT spec FROM cells WHERE key = ?", (key,)).fetchone()[0])

    def alive(self, token: str) -> bool:
        """Whether the process behind a claim still runs."""
        return claims.alive(self.files / "claims", token)

    def claim(self, key: str, token: str, attempts: int) -> bool:
        """Take a cell, if nobody did anything to it since ``attempts`` was read and nobody is at work on it."""
        with self._writing():
            row = self.database.execute("SELECT claim, attempts FROM cells WHERE key = ?", (key,)).fetchone()
            if row is None or row[1] != attempts or (row[0] is not None and self.alive(row[0])):
                return False
            self.database.execute("UPDATE cells SET claim = ?, attempts = attempts + 1, error = NULL, trace = NULL "
                                  "WHERE key = ?", (token, key))
        return True

    def release(self, key: str, token: str) -> None:
        """Give a claim back without a result."""
        with self._writing():
            self.database.execute("UPDATE cells SET claim = NULL WHERE key = ? AND claim = ?", (key, token))

    def fail(self, key: str, token: str, error: str, trace: str = "") -> bool:
        """Record how an attempt failed, unless the cell is somebody else's by now. An earlier result stays."""
        with self._writing():
            done = self.database.execute("UPDATE cells SET claim = NULL, error = ?, trace = ? "
                                         "WHERE key = ? AND claim = ?", (error, trace, key, token))
        return done.rowcount == 1

    def finish(self, key: str, token: str, record: Mapping[str, Any], samples: Mapping[str, Samples],
               seconds: float | None = None) -> bool:
        """Record a finished run, whole, in place of an earlier one. False, and nothing is written, if the claim is
        somebody else's by now. seconds: what it took with everything around it, for estimates."""
        with self._writing():
            done = self.database.execute("UPDATE cells SET claim = NULL, error = NULL, trace = NULL "
                                         "WHERE key = ? AND claim = ?", (key, token))
            if done.rowcount != 1:
                return False
            self.database.execute("DELETE FROM runs WHERE cell = ?", (key,))
            now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
            took = record["wall_seconds"] if seconds is None else seconds
            self.database.execute(
                "INSERT INTO runs (cell, id, finished, seconds, record) VALUES (?, ?, ?, ?, ?)",
                (key, record["id"], now, took, json.dumps(record, allow_nan=False)))
            self.database.executemany(
                "INSERT INTO predictions (cell, split, ids, labels, predictions) VALUES (?, ?, ?, ?, ?)",
                [(key, split, json.dumps(one.ids), _packed(one.labels), _packed(one.predictions))
                 for split, one in samples.items()])
        return True

    # Results

    def record(self, key: str) -> dict[str, Any] | None:
        """The record of a cell's finished run."""
        row = self.database.execute("SELECT record FROM runs WHERE cell = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def find(self, run: str) -> dict[str, Any] | None:
        """The record of the run with this id, or with an id that begins so if there is only one."""
        rows = self.database.execute("SELECT record FROM runs WHERE substr(id, 1, ?) = ? LIMIT 2", (len(run), run)
                                     ).fetchall()
        return json.loads(rows[0][0]) if len(rows) == 1 and run else None

    def samples(self, key: str, split: str = "test") -> Samples | None:
        """What the finished run predicted on a split; None where the trainer did not show it."""
        row = self.database.execute("SELECT ids, labels, predictions FROM predictions WHERE cell = ? AND split = ?",
                                    (key, split)).fetchone()
        return None if row is None else Samples(json.loads(row[0]), _unpacked(row[1]), _unpacked(row[2]))

    def seconds(self, model: str, dataset: str) -> float | None:
        """How long the finished runs of a model on a data set took on average; None if there is none."""
        return self.database.execute("SELECT avg(seconds) FROM runs JOIN cells ON cell = key "
                                     "WHERE model = ? AND dataset = ?", (model, dataset)).fetchone()[0]

    def checkpoint(self, key: str) -> Path | None:
        """The checkpoint of a cell's finished run, wherever the store was moved to; None if it was not kept."""
        record = self.record(key)
        name = Path(record["checkpoint"]).name if record and record.get("checkpoint") else None
        path = self.folder(key) / name if name else None
        return path if path is not None and path.is_file() else None


def _packed(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def _unpacked(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content), allow_pickle=False)
