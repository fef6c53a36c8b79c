"""`hotset threshold` as text."""

from __future__ import annotations

import json
import re
from pathlib import Path

from conftest import Hotset

TEXT = "the sun shines on the sea, and the sea is green. " * 120


def test_threshold(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    arguments = ("threshold", store, tmp_path / "sparse", "--text", tmp_path / "text", "--measure", "50")
    done = hotset(*arguments, "--zeros", "30%")
    assert done.code == 0, done.err
    zeros, perplexity, divergence, dest = done.out.splitlines()
    assert re.fullmatch(r"zeros       (29|30)\.\d% of the neurons of a token, by layer \d+% to \d+%", zeros)
    assert re.fullmatch(r"perplexity  [\d.]+ -> [\d.]+, [+-][\d.]+% ± [\d.]+% on \d+ held-out tokens", perplexity)
    assert divergence.endswith("nats from the distribution of the next token")
    assert dest == str(tmp_path / "sparse")
    assert hotset("run", tmp_path / "sparse", "the sun", "-n", "4").code == 0
    assert hotset("inspect", tmp_path / "sparse", "--verify").code == 0
    again = hotset(*arguments, "--loss", "1%", "--force", "--json")
    report = json.loads(again.out)
    assert report["sparsity"]["method"] == "contribution"
    assert report["perplexity_change"] == report["cost"]["perplexity"] / report["cost"]["exact_perplexity"] - 1


def test_threshold_refuses(hotset: Hotset, store: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT)
    text = ("--text", tmp_path / "text")
    for arguments, message in (
        (("--zeros", "40%"), "give some with --text FILE"),
        (text, "such as --zeros 40% or --loss 2%"),
        ((*text, "--zeros", "much"), "--zeros 'much': want a share"),
        ((*text, "--zeros", "120%"), "zeros is 1.2; wanted more than 0"),
        ((*text, "--zeros", "40%", "--method", "wanda"), "choose one of contribution, cats, teal"),
    ):
        done = hotset("threshold", store, tmp_path / "sparse", *arguments)
        assert (done.code, message in done.err) == (2, True), done.err
