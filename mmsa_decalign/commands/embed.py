"""``mmsa data embed FILE``: text features of a feature file from a text encoder."""

from __future__ import annotations

import argparse
from typing import Any

from .parsing import add_common, option_names, positive, show_result


def add(tasks: Any) -> None:
    """The parser of the command, one of ``mmsa data``."""
    embedding = tasks.add_parser(
        "embed", help="make the text features of a file anew, by a text encoder",
        description="Write a copy of a feature file whose text is the last hidden states of a frozen text encoder, a "
                    "step for each token and zeros behind the last, as safetensors. The file says which encoder it "
                    "was, and `mmsa data inspect` shows it. To train the encoder with the model, use --pretrained in "
                    "a training instead.")
    embedding.add_argument("file", metavar="FILE")
    embedding.add_argument("--encoder", required=True, metavar="NAME_OR_DIR",
                           help="text encoder with its tokenizer: a folder, or a name on the hub")
    embedding.add_argument("--out", default=None, metavar="OUT",
                           help="file to write (default: beside FILE, FILE-ENCODER.safetensors)")
    embedding.add_argument("--length", type=positive, default=None, metavar="N",
                           help="steps, the special tokens at both ends included (default: those of the file's text, "
                                "else of its token ids, else 50)")
    embedding.add_argument("--from", default=None, choices=("raw_text", "text_bert"), dest="take",
                           help="sentences, tokenised anew, or token ids, which must be the encoder's (default: "
                                "raw_text where the file has it)")
    embedding.add_argument("--pool", default="none", choices=("none", "mean"),
                           help="none: a step for each token; mean: their average, one step (default: none)")
    embedding.add_argument("--allow-empty", action="store_true", help="take samples without text, too")
    embedding.add_argument("--batch-size", type=positive, default=32, metavar="N", help="texts at once (default: 32)")
    embedding.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    add_common(embedding, default=argparse.SUPPRESS)
    embedding.set_defaults(run=run, options=option_names(embedding))


def run(arguments: argparse.Namespace) -> None:
    """Embed, with a bar on a terminal."""
    from rich.console import Console

    from ..data.embed import print_embedded
    from ..data.report import sample_bar
    from ..harness.embedding import embed_file

    with sample_bar(Console(stderr=True), "embedding") as progress:
        result = embed_file(
            arguments.file, arguments.encoder, arguments.out, device=arguments.device,
            batch_size=arguments.batch_size, take=arguments.take, length=arguments.length, pool=arguments.pool,
            allow_empty=arguments.allow_empty, progress=progress)
    show_result(arguments, result, lambda console: print_embedded(result, console))
