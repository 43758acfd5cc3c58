"""One of several processes of a search: ``python -m mmsa_decalign.tune.worker JSON``, started by search.py.

It does trials until there are enough. When its standard input ends the one who started it is gone, and so is it; its
trial is found by the next one who looks, and tried again.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from ..compare.worker import end_with_parent


def main(argv: list[str]) -> int:
    """Do what the module says, and return the exit code."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    given = json.loads(argv[0])

    from ..errors import InputError
    from ..harness.datasets import load_features
    from ..harness.job import prepare
    from ..harness.runner import session
    from .study import Search, name_of, open_study
    from .trial import work

    job = prepare(**given["options"])
    features = load_features(job.feature_file, job.files)
    search = Search(job, given["name"], Path(given["storage"]), given["trials"], given["prune"])
    if name_of(job, features) != search.name:
        raise InputError(f"{job.feature_file} or the settings are not those that the search began with")
    with session(job) as bars:
        work(search, open_study(search), features, bars)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
