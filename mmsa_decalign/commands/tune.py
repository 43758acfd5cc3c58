"""``mmsa tune -m MODEL -d DATASET``: a search for settings on the validation split; ``mmsa -t`` leads here too."""

from __future__ import annotations

import argparse
from typing import Any

from .parsing import add_common, option_names, positive, seeds, show_result

DEFAULT_SEEDS = [1111]
EPILOG = """\
examples:
  mmsa tune -m lmf -d mosi --feature-file fold0.pkl --trials 100 -j 2
  mmsa tune -m decalign -d mosi -s 1111,1112 --rerun-seeds 1,2,3
  mmsa tune -m decalign -d mosi -c my_space.json      a space of your own, as debugParams in MMSA's schema

Calling it again goes on to the number of trials in all. With one process a search is decided by its first seed, also
when it was stopped and called again; with more, what is tried next depends on which trials have ended by then."""


def add(commands: Any) -> None:
    """The parser of the command."""
    tune = commands.add_parser(
        "tune", help="search for settings, scored on the validation split",
        description="Search a model's tuning space with Optuna. Every trial is scored on the validation split; the "
                    "test split is not read. The trials are kept in an SQLite file, and every call goes on from there.",
        epilog=EPILOG)
    # Names of their own where training has the option too: its defaults stand in the same namespace.
    tune.add_argument("-m", "--model", default="decalign", metavar="NAME", dest="tuned",
                      help="model (default: decalign)")
    tune.add_argument("-d", "--dataset", default="synthetic", metavar="NAME", dest="tuned_on",
                      help="data set (default: synthetic)")
    tune.add_argument("-c", "--config", default=None, metavar="FILE", dest="settings_file",
                      help="settings, or a tuning space: a file as for mmsa -c")
    tune.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="fixed",
                      help="one setting, which is then not searched")
    tune.add_argument("-s", "--seeds", action="append", type=seeds, default=[], metavar="SEED", dest="trial_seeds",
                      help="seed of every trial; give it again, or 1111,1112, to score by the mean (default: 1111)")
    tune.add_argument("--trials", type=positive, default=50, metavar="N",
                      help="trials that there are to be in all, those of earlier calls included (default: 50)")
    tune.add_argument("-j", "--jobs", type=positive, default=1, metavar="N",
                      help="processes, which share the CPUs or the GPUs (default: 1)")
    tune.add_argument("--no-pruning", action="store_true",
                      help="train every trial to its end, also where its validation metric is below the median's")
    tune.add_argument("--storage", default=None, metavar="FILE",
                      help="SQLite file with the trials (default: ~/MMSA/results/tune/tune.sqlite); the best settings "
                           "and the table go beside it")
    tune.add_argument("--rerun-seeds", action="append", type=seeds, default=[], metavar="SEED",
                      help="train and test the best settings with these seeds afterwards")
    tune.add_argument("--feature-file", default=None, metavar="FILE", dest="tuned_file",
                      help="feature file, in place of the data set's")
    tune.add_argument("--pretrained", default=None, metavar="NAME_OR_DIR", dest="encoder",
                      help="text encoder (sets use_bert)")
    tune.add_argument("--mended", action="store_true", dest="mend",
                      help="repair the faults inside MMSA's own model")
    tune.add_argument("--device", default="auto", dest="run_device", metavar="DEVICE",
                      help="auto, cpu, cuda or cuda:N (default: auto)")
    tune.add_argument("--data-root", default=argparse.SUPPRESS, metavar="DIR",
                      help="where the data sets' feature files are (default: $MMSA_DATA_ROOT or ~/MMSA/data)")
    tune.add_argument("-v", "--verbose", type=int, default=1, choices=(0, 1, 2), dest="loud",
                      help="log on standard error: 0 errors, 1 epochs and trials, 2 everything (default: 1)")
    for what, default in (("model", "saved_models"), ("res", "results")):
        tune.add_argument(f"--{what}-save-dir", default=argparse.SUPPRESS, metavar="DIR",
                          help=f"{'checkpoints' if what == 'model' else 'results'} (default: ~/MMSA/{default})")
    tune.add_argument("--log-dir", default=argparse.SUPPRESS, metavar="DIR", help="log files (default: ~/MMSA/logs)")
    add_common(tune, default=argparse.SUPPRESS)
    tune.set_defaults(run=run, options=option_names(tune))


def run(arguments: argparse.Namespace) -> None:
    """``mmsa tune``."""
    from ..harness.catalogue import catalogue, find_dataset, find_model
    from ..harness.config import parse_overrides

    known = catalogue()  # names first: the rest takes seconds to import
    find_model(known, arguments.tuned), find_dataset(known, arguments.tuned_on)
    options = {
        "model": arguments.tuned, "dataset": arguments.tuned_on, "config": arguments.settings_file,
        "overrides": parse_overrides(arguments.fixed), "feature_file": arguments.tuned_file,
        "data_root": arguments.data_root, "pretrained": arguments.encoder, "device": arguments.run_device,
        "model_save_dir": arguments.model_save_dir, "res_save_dir": arguments.res_save_dir,
        "log_dir": arguments.log_dir, "verbose": arguments.loud, "command": arguments.command_line,
        "mended": arguments.mend,
        "seeds": [seed for group in arguments.trial_seeds for seed in group] or DEFAULT_SEEDS,
    }
    search(arguments, options, arguments.trials, storage=arguments.storage, prune=not arguments.no_pruning,
           jobs=arguments.jobs, rerun_seeds=[seed for group in arguments.rerun_seeds for seed in group])


def search(arguments: argparse.Namespace, options: dict[str, Any], trials: int, *, storage: str | None = None,
           prune: bool = True, jobs: int = 1, rerun_seeds: list[int] | None = None) -> None:
    """Search, show what was found, and train the best settings with further seeds where they are asked for."""
    from ..harness import report, runner
    from ..tune import result
    from ..tune.search import tune

    found = tune(options, trials, storage=storage, prune=prune, jobs=jobs)
    document, outcome = result.document(found), None
    if rerun_seeds and found.best:
        # What was fixed for the search stands in the file, too.
        again = {**options, "config": found.best, "overrides": {}, "pretrained": None, "seeds": rerun_seeds}
        outcome = runner.run(runner.prepare(**again))
        document["rerun"] = report.run_document(outcome)

    def show(console: Any) -> None:
        result.print_found(found, console)
        if outcome is not None:
            report.print_outcome(outcome, console)

    show_result(arguments, document, show)
