"""Writes each command's --help into its page under docs/reference/commands. --check only says what is out of date."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

PAGES = Path(__file__).parent.parent / "docs/reference/commands"
START, END = "<!-- help: written by scripts/update_docs.py -->", "<!-- end of help -->"


def with_help(page: Path) -> str:
    """The page with the present help text between its markers."""
    command = page.stem.split("-")
    env = os.environ | {"COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1"}
    called = [sys.executable, "-m", "hotset.cli.main", *command, "--help"]
    shown = subprocess.run(called, capture_output=True, text=True, check=True, env=env).stdout.strip()
    before, _, rest = page.read_text().partition(START)
    return f"{before}{START}\n```text\n{shown}\n```\n{END}{rest.partition(END)[2]}"


def main() -> int:
    stale = []
    for page in sorted(PAGES.glob("[a-z]*.md")):
        if (text := with_help(page)) != page.read_text():
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(text)
    print(f"{'out of date' if '--check' in sys.argv else 'written'}: {', '.join(stale) or 'none'}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
