"""The site: built strictly, so that no link is dead and no page without a way to it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from lowenergy import params


def built(source: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    return subprocess.run(command, cwd=source, capture_output=True, text=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    done = built(ROOT, out)
    assert done.returncode == 0, done.stderr
    return out


def test_reference_pages_are_made_from_the_code(site: Path) -> None:
    text = (site / "parameters.html").read_text()
    for name, _, _ in params.listing():
        assert f"<code>{name.partition('.')[2] or name}</code>" in text, name
    commands = (site / "commands.html").read_text()
    assert all(f'id="{name}"' in commands for name in ("run", "search", "export", "sample"))


def test_nothing_is_asked_of_the_network(site: Path) -> None:
    for page in site.glob("*.html"):
        assert not re.findall(r'<(?:script|img|link)[^>]+(?:src|href)="https?://(?!lowenergy)[^"]+"', page.read_text())


def test_a_dead_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    text = (ROOT / "mkdocs.yml").read_text().replace("architectures.md", "unheard-of.md")
    (tmp_path / "mkdocs.yml").write_text(text)
    assert built(tmp_path, tmp_path / "out").returncode != 0
