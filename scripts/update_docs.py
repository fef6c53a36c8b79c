"""Writes each command's --help into its page under docs/reference/commands.

--check writes nothing and exits 1 if a page lists other flags than the command has. (Words alone may differ: the layout
of the text is typer's, and changes with its version.)
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGES = Path(__file__).parent.parent / "docs/reference/commands"
START, END = "<!-- help: written by scripts/update_docs.py -->", "<!-- end of help -->"


def with_help(page: Path) -> str:
    """The page with the present help text between its markers."""
    command = page.stem.replace("eval-", "eval ").split()
    env = os.environ | {"COLUMNS": "110", "TERM": "dumb", "NO_COLOR": "1"}
    called = [sys.executable, "-m", "hotset.cli.main", *command, "--help"]
    shown = subprocess.run(called, capture_output=True, text=True, check=True, env=env).stdout.strip()
    before, _, rest = page.read_text().partition(START)
    return f"{before}{START}\n```text\n{shown}\n```\n{END}{rest.partition(END)[2]}"


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text.partition(START)[2]))


def main() -> int:
    stale = []
    for page in sorted(PAGES.glob("[a-z]*.md")):
        text = with_help(page)
        if "--check" not in sys.argv:
            page.write_text(text)
        elif flags(text) != flags(page.read_text()):
            stale.append(f"{page.name}: {' '.join(sorted(flags(text) ^ flags(page.read_text())))}")
    print("\n".join(stale), end="\n" if stale else "")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
