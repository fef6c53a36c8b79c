"""`hotset pack` and what other commands say of a packed store, as text."""

from __future__ import annotations

import json
from pathlib import Path

from conftest import Hotset
from probed_hosts import write_probe

from hotset.tools.resolve import packaged

NOTE = "note: this FFN's silu is never exactly 0, so leaving neurons out changes the result"


def test_pack(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    done = hotset("pack", store, tmp_path / "packed", "--stride", "4096")
    assert done.code == 0, done.err
    head, neuron, error, dest = done.out.splitlines()
    assert head.startswith("2 layers of 128 neurons, 1.0 MiB, in ")
    assert neuron == "  a neuron   q4_0, 108 bytes and 3988 of padding; order: none"
    assert error.startswith("  error      up ")
    assert dest == str(tmp_path / "packed")
    assert NOTE in done.err
    again = hotset("pack", store, tmp_path / "packed", "--stride", "4096")
    assert (again.code, again.out) == (0, f"{tmp_path / 'packed'} is already this store\n")


def test_pack_as_json(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    done = hotset("pack", store, tmp_path / "packed", "--format", "q8_0", "--json")
    report = json.loads(done.out)
    assert report["fmt"] == "q8_0"
    assert report["bytes"] == 2 * 128 * report["stride"]
    assert report["errors"].keys() == {"gate", "up", "down"}


def test_inspect_tells_what_a_packed_store_holds(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    hotset("pack", store, tmp_path / "packed")
    dense, packed = (json.loads(hotset("inspect", path, "--json").out) for path in (store, tmp_path / "packed"))
    assert packed["parameters"] == dense["parameters"]
    assert set(packed["bytes_by_format"]) >= {"neurons", "i32", "u32"}
    assert hotset("inspect", tmp_path / "packed", "--verify", "--tensors").code == 0


def test_errors_of_pack(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    wrong = hotset("pack", store, tmp_path / "packed", "--format", "f16")
    assert (wrong.code, wrong.out) == (2, "")
    assert wrong.err == "hotset: neurons cannot be stored as 'f16'; there are q4_0, q8_0\n"
    hotset("pack", store, tmp_path / "packed")
    twice = hotset("pack", tmp_path / "packed", tmp_path / "twice")
    assert twice.code == 2
    assert "is packed already; pack the dense store" in twice.err


def test_what_options_cost(hotset: Hotset, tmp_path: Path) -> None:
    env = {"HOTSET_CACHE": str(tmp_path)}
    write_probe(tmp_path, packaged("stories-13m"))
    done = hotset("pack", "stories-13m", "--explain", "--memory", "174MiB", env=env)
    assert done.code == 0, done.err
    head, *rows = done.out.splitlines()
    assert head.split()[:3] == ["order", "stride", "scales"] and "tokens/s" in head
    assert [row.split()[0] for row in rows].count("none") == 1 and len(rows) == 7
    assert sum(row.endswith("default") for row in rows) == 1
    assert "note: order frequency: with half of the neurons in memory" in done.err
    assert "note: scales in the bundle" in done.err
    found = json.loads(hotset("pack", "stories-13m", "--explain", "--json", env=env).out)
    default = next(option for option in found["options"] if option["default"])
    assert (default["order"], default["resident_scales"]) == ("frequency", False)
    assert default["drive_bytes"] == 5 * 1536 * default["stride"]


def test_explain_and_its_flags_are_checked(hotset: Hotset, store: Path) -> None:
    bare = hotset("pack", store, "--explain")
    assert bare.code == 2 and "follows from a profile" in bare.err
    alone = hotset("pack", store, "--memory", "1GiB")
    assert alone.code == 2 and "--explain" in alone.err and not store.with_name("tiny-packed").exists()
    wrong = hotset("pack", "stories-13m", "--explain", "--predict", "perhaps")
    assert wrong.code == 2 and "wanted 'exact' or 'auto'" in wrong.err
