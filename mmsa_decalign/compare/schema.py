"""The tables of the results store, and their version.

A change of a table raises VERSION and adds to UPGRADES the statements that bring a store of the version before to it.
"""

from __future__ import annotations

APPLICATION_ID = 0x6D6D7361  # "mmsa": a file with another number is not a store of ours
VERSION = 1

TABLES = (
    # One row a run that some comparison asked for. `key` is the hash of everything that the result depends on, `spec`
    # (JSON) all that is needed to do it. `claim` is the token of the process at work on it, `attempts` counts claims,
    # `error` and `trace` say how the last attempt ended if it failed.
    """CREATE TABLE cells (
        key TEXT PRIMARY KEY,
        model TEXT NOT NULL,
        dataset TEXT NOT NULL,
        seed INTEGER NOT NULL,
        spec TEXT NOT NULL,
        claim TEXT,
        attempts INTEGER NOT NULL DEFAULT 0,
        error TEXT,
        trace TEXT
    )""",
    # The finished run of a cell: its record (JSON, as `mmsa` stores it), with the losses of every epoch.
    """CREATE TABLE runs (
        cell TEXT PRIMARY KEY REFERENCES cells (key),
        id TEXT NOT NULL UNIQUE,
        finished TEXT NOT NULL,
        seconds REAL NOT NULL,
        record TEXT NOT NULL
    )""",
    # What the run predicted for every sample of a split: ids as a JSON list, labels (N,) and predictions (N, outputs)
    # in NumPy's .npy format, all in the order of the feature file.
    """CREATE TABLE predictions (
        cell TEXT NOT NULL REFERENCES runs (cell) ON DELETE CASCADE,
        split TEXT NOT NULL CHECK (split IN ('valid', 'test')),
        ids TEXT NOT NULL,
        labels BLOB NOT NULL,
        predictions BLOB NOT NULL,
        PRIMARY KEY (cell, split)
    )""",
)
UPGRADES: dict[int, tuple[str, ...]] = {}  # version -> statements that lead to the next one
