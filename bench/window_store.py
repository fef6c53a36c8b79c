"""A packed store again, with predictors as LLM in a Flash has them: what bench.sparse takes as --window-store.

    python -m bench.window_store STORE DEST --text FILE [--rank 512] [--loss 1%]

The same files, linked, beside low-rank maps of each layer's own input and one threshold for all neurons, in memory or
not, calibrated for the same loss as those of STORE. Source: arXiv:2312.11514, section 3.1.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from hotset.cli.options import parse_share
from hotset.errors import HotsetError, UsageError
from hotset.formats.predictors import PREDICTORS_FILE
from hotset.formats.sketch import SKETCH_FILE
from hotset.formats.store import is_store
from hotset.tools.train_predictor import TrainOptions, train_predictor
from hotset.tools.train_predictor_report import TrainReport, lines

_OTHER_PREDICTORS = (PREDICTORS_FILE, SKETCH_FILE)


def window_store(store: Path, dest: Path, text: Path, options: TrainOptions) -> TrainReport:
    """Raises: UsageError (no store, other drive than the store's), and what training raises."""
    if not is_store(store):
        raise UsageError(f"{store} is no store; give what `hotset pack` made")
    dest.mkdir(parents=True, exist_ok=True)
    for file in store.iterdir():
        if file.is_file() and file.name not in _OTHER_PREDICTORS and not (dest / file.name).exists():
            try:
                os.link(file, dest / file.name)
            except OSError as error:
                raise UsageError(f"{dest} cannot share {file} ({error.strerror}); choose a folder beside it") from None
    return train_predictor(dest, [text], options)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=512)
    parser.add_argument("--loss", default="1%", help="of perplexity")
    parser.add_argument("--tokens", type=int, default=8192, help="to train on")
    args = parser.parse_args()
    try:
        options = TrainOptions(
            tokens=args.tokens, rank=args.rank, loss=parse_share(args.loss, "--loss"), ahead=False, fetch=1.0
        )
        print("\n".join(lines(window_store(args.store, args.dest, args.text, options))))
    except HotsetError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
