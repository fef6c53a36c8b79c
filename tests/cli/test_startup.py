"""What `hotset run` must not wait for: imports of things it does not use."""

from __future__ import annotations

import subprocess
import sys

import pytest

SLOW = {"rich", "gguf", "huggingface_hub", "transformers", "torch", "scipy", "asyncio", "unittest", "requests"}


def imported_by(code: str, environment: dict[str, str]) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


@pytest.mark.parametrize("args", [["--version"], ["--help"], ["run", "--help"], ["no-such-command"]])
def test_the_command_line_itself_needs_no_numpy(args, environment):
    modules = imported_by(f"from hotset.cli.main import main\nmain({args})", environment)
    assert not modules & (SLOW | {"numpy", "tokenizers", "jinja2"})


def test_running_a_model_loads_nothing_slow(store, environment):
    args = ["run", str(store), "the sun", "--max-tokens", "2", "--quiet"]
    modules = imported_by(f"from hotset.cli.main import main\nassert main({args}) == 0", environment)
    assert "numpy" in modules
    assert not modules & (SLOW - {"asyncio"})


def test_the_package_itself_is_light(environment):
    assert not imported_by("import hotset", environment) & (SLOW | {"numpy", "typer"})
