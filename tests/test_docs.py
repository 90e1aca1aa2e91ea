from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from PIL import Image

import mtlsi

ROOT = Path(__file__).resolve().parents[1]


def test_every_public_name_is_in_the_api_page():
    documented = re.findall(r"^::: mtlsi\.(\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert set(mtlsi.__all__) <= set(documented)


def test_every_page_of_the_docs_is_in_the_navigation():
    navigation = re.findall(r": (\w+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert {path.name for path in (ROOT / "docs").glob("*.md")} == set(navigation)


def _anchors(page):
    """What a link may name in a page: its headings as GitHub and MkDocs both spell them."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]), ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    # MkDocs says so of its own pages at the very end of the CI, and never reads the README.
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", page.read_text()):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or linked.suffix != ".md" or anchor in _anchors(linked), target


def test_own_data_names_every_setting_that_resume_may_change():
    from mtlsi.training.same_settings import FREE, SPREAD

    page = (ROOT / "docs" / "own_data.md").read_text()
    told = page.split("`--resume` may change")[1].split("`config.yaml` is updated")[0]
    assert set(re.findall(r"`((?:train|data)\.\w+|plugins)`", told)) == {*FREE, *SPREAD}


def test_python_examples_turn_photos_upright():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for line in re.findall(r".*Image\.open\(.*", page.read_text()):
            assert "exif_transpose" in line, f"{page.name}: {line}"


def test_citation_names_the_version_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == mtlsi.__version__ == version("mtlsi")
    assert citation["preferred-citation"]["identifiers"][0]["value"] == "arXiv:2604.01995"


@pytest.mark.parametrize(
    ("script", "options", "width_over_height"),
    [("draw_network", [], 13 / 3.3), pytest.param("draw_teaser", ["--scenes", "3"], 4.9, marks=pytest.mark.slow)],
)
def test_figures_can_be_drawn_again(script, options, width_over_height, tmp_path):
    command = [sys.executable, str(ROOT / "docs" / f"{script}.py"), "--out", str(tmp_path / "figure.png"), *options]
    subprocess.run(command, check=True, capture_output=True)
    with Image.open(tmp_path / "figure.png") as figure:
        assert figure.width / figure.height == pytest.approx(width_over_height, rel=0.02)
