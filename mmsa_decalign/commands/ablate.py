"""``mmsa ablate -d X``: DecAlign with each of its terms switched off, into one table."""

from __future__ import annotations

import argparse
from typing import Any

from .compare import add_grid_options, carry_out
from .parsing import option_names, seeds

EPILOG = """\
examples:
  mmsa ablate -d mosi -s 1,2,3 -j 2
  mmsa ablate -d mosi -c utterance --feature-file fold0.pkl --feature-file fold1.pkl
  mmsa ablate -d synthetic --dry-run

The runs are those of mmsa compare, in the same store: finished ones are never done twice."""


def add(commands: Any) -> None:
    """The parser of the command."""
    ablate = commands.add_parser(
        "ablate", help="DecAlign with each of its terms switched off",
        description="Train DecAlign whole and with each of its parts switched off, and say which differences are more "
                    "than chance. A part that the settings do not use is named and left out.",
        epilog=EPILOG)
    ablate.add_argument("-d", "--dataset", default="synthetic", metavar="NAME", dest="ablated_on",
                        help="data set (default: synthetic)")
    ablate.add_argument("--feature-file", action="append", default=[], metavar="FILE", dest="feature_files",
                        help="feature file, in place of the data set's; give it again for folds")
    ablate.add_argument("-s", "--seeds", action="append", type=seeds, default=[], metavar="SEED", dest="all_seeds",
                        help="seed; give it again, or 1111,1112, for more (default: 1111 to 1115)")
    ablate.add_argument("-c", "--config", default=None, metavar="FILE", dest="settings_file",
                        help="settings: a file as for mmsa -c, or the name of a shipped one")
    ablate.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="all_overrides",
                        help="one setting, of all rows")
    ablate.add_argument("--pretrained", default=None, metavar="NAME_OR_DIR", dest="encoder",
                        help="text encoder (sets use_bert)")
    add_grid_options(ablate)
    ablate.set_defaults(run=run, options=option_names(ablate))


def run(arguments: argparse.Namespace) -> None:
    """``mmsa ablate``: a comparison whose rows are DecAlign without this and without that."""
    from ..harness.catalogue import catalogue, find_dataset
    from ..harness.config import parse_overrides

    dataset = find_dataset(catalogue(), arguments.ablated_on)  # names first: the rest takes seconds to import
    overrides = parse_overrides(arguments.all_overrides)

    from ..compare import ablate

    plan = ablate.make_plan(
        dataset, feature_files=arguments.feature_files, config=arguments.settings_file, overrides=overrides,
        seeds=[seed for group in arguments.all_seeds for seed in group], pretrained=arguments.encoder,
        data_root=arguments.data_root, device=arguments.run_device)
    carry_out(arguments, plan, "-ablate")
