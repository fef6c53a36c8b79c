"""llama.cpp for comparison: built for this host from the source distribution of a PyPI package, and run.

HOTSET_LLAMA names the folder of an existing build's programs (with llama-bench in it) to use instead.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "build/peer"
PACKAGE, VERSION = "llama-cpp-python", "0.3.36"  # vendors ggml-org/llama.cpp@0c1e57098
PROGRAMS = ("llama-bench", "llama-perplexity", "llama-quantize")
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DGGML_NATIVE=ON",
    *("-DBUILD_SHARED_LIBS=OFF", "-DLLAMA_CURL=OFF", "-DLLAMA_OPENSSL=OFF"),
    *(f"-DLLAMA_BUILD_{part}=OFF" for part in ("TESTS", "EXAMPLES", "SERVER", "APP")),
)


@dataclass(frozen=True, slots=True)
class Rate:
    """One test of llama-bench: tokens/s of every repetition."""

    prompt: int
    generated: int
    samples: list[float]


def programs() -> Path:
    """The folder with llama.cpp's programs; builds them at the first call (about ten minutes on two cores)."""
    if given := os.environ.get("HOTSET_LLAMA"):
        return Path(given)
    folder = CACHE / "build/bin"
    if not all((folder / name).exists() for name in PROGRAMS):
        _build(_source(), CACHE / "build")
    return folder


def _source() -> Path:
    source = CACHE / f"llama_cpp_python-{VERSION}"
    if not source.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        _run([*pip, "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}", "-d", str(CACHE)])
        with tarfile.open(CACHE / f"{source.name}.tar.gz") as archive:
            archive.extractall(CACHE, filter="data")
    return source / "vendor/llama.cpp"


def _build(source: Path, build: Path) -> None:
    _run(["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", *CMAKE_FLAGS])
    _run(["cmake", "--build", str(build), "--target", *PROGRAMS])


def version() -> str:
    """Commit that the programs were built from."""
    text = _output([str(programs() / "llama-bench"), "--version"])
    match = re.search(r"version:?\s*(.+)", text)
    return f"{PACKAGE} {VERSION}: {match[1].strip() if match else text.strip()}"


def quantize(source: Path, kind: str, folder: Path) -> Path:
    """`source` with its matrices in another GGUF type; made once. Output: folder/NAME.KIND.gguf."""
    target = folder / f"{source.name.partition('.')[0]}.{kind}.gguf"
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = target.with_suffix(".part")
        _output([str(programs() / "llama-quantize"), "--allow-requantize", str(source), str(partial), kind])
        partial.rename(target)
    return target


def bench(model: Path, *, threads: int, prompt: int, generate: int, repeats: int = 1) -> list[Rate]:
    """llama-bench with its defaults: one warm-up, then `repeats` of each test."""
    return rates(_output(bench_command(model, threads=threads, prompt=prompt, generate=generate, repeats=repeats)))


def bench_command(model: Path, *, threads: int, prompt: int, generate: int, repeats: int = 1) -> list[str]:
    """For whoever runs llama-bench in a place of its own; `rates` reads what it prints."""
    sizes = ["-p", str(prompt), "-n", str(generate), "-t", str(threads), "-r", str(repeats)]
    return [str(programs() / "llama-bench"), "-m", str(model), *sizes, "-o", "json"]


def rates(output: str) -> list[Rate]:
    return [Rate(row["n_prompt"], row["n_gen"], row["samples_ts"]) for row in json.loads(output)]


def perplexity(model: Path, text: Path, *, chunks: int, context: int = 512, threads: int = 2) -> tuple[float, float]:
    """Final perplexity and its standard error, as llama-perplexity prints them."""
    flags = ["-c", str(context), "--chunks", str(chunks), "-t", str(threads)]
    output = _output([str(programs() / "llama-perplexity"), "-m", str(model), "-f", str(text), *flags])
    match = re.search(r"Final estimate: PPL = ([\d.]+) \+/- ([\d.]+)", output)
    if not match:
        raise RuntimeError(f"llama-perplexity printed no estimate: {output[-500:]}")
    return float(match[1]), float(match[2])


def _run(command: Sequence[str]) -> None:
    print("$", " ".join(command), flush=True)
    subprocess.run(command, check=True)


def _output(command: Sequence[str]) -> str:
    """Standard output, or both streams where the program prints its result on the other."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} exited with {done.returncode}: {done.stderr[-800:]}")
    return done.stdout if done.stdout.lstrip().startswith("[") else done.stdout + done.stderr
