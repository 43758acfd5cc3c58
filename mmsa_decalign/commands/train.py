"""``mmsa -m MODEL -d DATASET``: train and test over the seeds, or search with ``-t``; the command without a name."""

from __future__ import annotations

import argparse

from . import tune
from .parsing import add_common, count, positive, seeds, show_result


def add(parser: argparse.ArgumentParser) -> None:
    """The options of the main parser itself."""
    mmsa = parser.add_argument_group("as in MMSA")
    mmsa.add_argument("-m", "--model", default="decalign", metavar="NAME", help="model (default: decalign)")
    mmsa.add_argument("-d", "--dataset", default="synthetic", metavar="NAME", help="data set (default: synthetic)")
    mmsa.add_argument("-c", "--config", default=None, metavar="FILE",
                      help="settings: a file in MMSA's schema, a flat JSON object, or the name of a shipped one")
    mmsa.add_argument("-t", "--tune", action="store_true",
                      help="search the model's tuning space, scored on the validation split (MMSA scores on the test "
                           "split); mmsa tune has more options")
    mmsa.add_argument("-tt", "--tune-times", type=positive, default=50, metavar="N",
                      help="settings to try with -t, in all: a second call goes on from the first (default: 50)")
    mmsa.add_argument("-s", "--seeds", action="append", type=seeds, default=[], metavar="SEED",
                      help="seed; give it again, or 1111,1112, for more (default: 1111 to 1115; with -t 1111)")
    mmsa.add_argument("-n", "--num-workers", type=count, default=0, metavar="N",
                      help="processes that load data (default: 0, since the features are in memory)")
    mmsa.add_argument("-v", "--verbose", type=int, default=1, choices=(0, 1, 2),
                      help="log on standard error: 0 errors, 1 epochs, 2 everything (default: 1)")
    for what, default in (("model", "saved_models"), ("res", "results")):
        mmsa.add_argument(f"--{what}-save-dir", default=None, metavar="DIR",
                          help=f"{'checkpoints' if what == 'model' else 'results'} (default: ~/MMSA/{default})")
    mmsa.add_argument("--log-dir", default=None, metavar="DIR", help="log files (default: ~/MMSA/logs)")
    mmsa.add_argument("-g", "--gpu-ids", action="append", type=count, default=[], metavar="ID",
                      help="GPU to use; without it the one with most free memory, without a GPU the CPU")
    for letter, modality in (("T", "text"), ("A", "audio"), ("V", "video")):
        mmsa.add_argument(f"-F{letter.lower()}", f"--feature-{letter}", default=None, metavar="FILE",
                          help=f"feature file whose {modality} replaces the data set's")
    ours = parser.add_argument_group("beyond MMSA")
    ours.add_argument("--feature-file", default=None, metavar="FILE", help="feature file, in place of the data set's")
    ours.add_argument("--data-root", default=None, metavar="DIR",
                      help="where the data sets' feature files are (default: $MMSA_DATA_ROOT or ~/MMSA/data)")
    ours.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto, see -g)")
    ours.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
                      help="one setting; the value is JSON where it can be: 0.1, true, [1,3,3], text")
    ours.add_argument("--protocol", default=None, metavar="NAME",
                      help="splits of IEMOCAP: session_valid, those of the file (default), or paper_count of "
                           "DecAlign's release, which selects on the test split and is marked so")
    ours.add_argument("--pretrained", default=None, metavar="NAME_OR_DIR",
                      help="text encoder, by name or folder, fed with token ids (sets use_bert)")
    ours.add_argument("--mended", action="store_true",
                      help="repair the faults inside MMSA's own model, which are kept otherwise (mmsa list shows them)")
    ours.add_argument("--missing", default=None, metavar="RATES",
                      help="test with modalities absent, each from a share of the samples: vision=1.0,audio=0.3")
    ours.add_argument("--missing-train", default=None, metavar="RATES",
                      help="the same for what training sees: the training and the validation split")
    ours.add_argument("--resume", action="store_true",
                      help="go on where the same command was ended: finished seeds are not done again, an unfinished "
                           "one goes on after its last epoch, or the batch that a signal found it at")
    ours.add_argument("--tensorboard", default=None, metavar="DIR",
                      help="event files of every training: losses and validation metrics by epoch (extra: tensorboard)")
    add_common(ours, default=False)


def run(arguments: argparse.Namespace) -> None:
    """``mmsa -m MODEL -d DATASET``: train and test, or search with ``-t``."""
    from ..harness.catalogue import catalogue, find_dataset, find_model
    from ..harness.config import parse_overrides

    known = catalogue()  # names first: the rest takes seconds to import
    find_model(known, arguments.model), find_dataset(known, arguments.dataset)
    overrides = parse_overrides(arguments.overrides)
    if arguments.protocol is not None:
        overrides["protocol"] = arguments.protocol

    options = {
        "model": arguments.model, "dataset": arguments.dataset, "config": arguments.config or None,
        "overrides": overrides, "seeds": [seed for group in arguments.seeds for seed in group],
        "feature_file": arguments.feature_file, "data_root": arguments.data_root, "pretrained": arguments.pretrained,
        "device": arguments.device, "gpu_ids": arguments.gpu_ids, "num_workers": arguments.num_workers,
        "files": {"text": arguments.feature_T, "audio": arguments.feature_A, "vision": arguments.feature_V},
        "model_save_dir": arguments.model_save_dir, "res_save_dir": arguments.res_save_dir,
        "log_dir": arguments.log_dir, "verbose": arguments.verbose, "command": arguments.command_line,
        "mended": arguments.mended, "missing": arguments.missing, "missing_train": arguments.missing_train,
        "tensorboard": arguments.tensorboard, "resume": arguments.resume,
    }
    if arguments.tune:
        tune.search(arguments, {**options, "seeds": options["seeds"] or tune.DEFAULT_SEEDS}, arguments.tune_times)
        return
    from ..harness import report, runner

    outcome = runner.run(runner.prepare(**options))
    show_result(arguments, report.run_document(outcome), lambda console: report.print_outcome(outcome, console))
