"""Makes a store of a synthetic dReLU model whose activations have published statistics, and prints what it reached.

Usage: make_sparse_model.py DEST [--hard] [--small] [--quant Q] [--seed N] [--tokens N]
The shape is Mistral 7B's, or with --small one for tests. docs/explanation/synthetic-workload.md says what it is for.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hotset.errors import HotsetError
from hotset.tools.random_model import ModelShape
from hotset.tools.sparse_model import sparse_model

SMALL = ModelShape(hidden=512, ffn=1792, layers=6, heads=8, kv_heads=2, vocab=4096, context=4096)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--hard", action="store_true", help="less concentrated, less reuse")
    parser.add_argument("--small", action="store_true", help=f"{SMALL}")
    parser.add_argument("--quant", default="q4_0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=1024, help="to calibrate and measure on")
    args = parser.parse_args()
    try:
        report = sparse_model(
            args.dest,
            SMALL if args.small else None,
            hard=args.hard,
            quant=args.quant,
            seed=args.seed,
            tokens=args.tokens,
            progress=_show,
        )
    except HotsetError as error:
        print(f"\n{error}", file=sys.stderr)
        return error.exit_code
    print("\n" + "\n".join(report.lines()))
    return 0


def _show(done: int, total: int, what: str) -> None:
    print(f"\r{done / max(total, 1):5.1%}  {what:<60}", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
