"""README.md and docs/reference/results.md quote the newest committed results, and nothing else."""

from __future__ import annotations

from bench.common import ROOT
from bench.headline import headline
from bench.report import END, PAGE, START, as_page, newest, report


def test_the_page_of_results_is_what_the_results_say() -> None:
    assert PAGE.read_text() == as_page("\n\n".join(report())), "run `make report`"


def test_the_readme_has_the_headline_of_the_results() -> None:
    found = newest()
    written = (ROOT / "README.md").read_text().partition(START)[2].partition(END)[0]
    assert written.strip() == headline(found), "run `make report`"
    ratios = {f"{row['ratio']:.2f}" for row in found["dense"]["ratios"]}
    assert ratios & set(written.replace("|", " ").split())


def test_links_of_the_page_lead_to_files() -> None:
    links = [part.partition(")")[0] for part in PAGE.read_text().split("](")[1:]]
    assert links
    assert not [link for link in links if not (PAGE.parent / link).exists()]
