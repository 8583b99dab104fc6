"""The documentation's links and its account of the command line."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from edgeglm.cli.doctor import Report
from edgeglm.cli.main import COMMANDS
from edgeglm.machine import Machine

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target, heading in LINK.findall(page.read_text(encoding="utf-8")):
        path = (page.parent / target) if target else page
        assert path.exists(), target
        assert not heading or heading in headings(path), f"{target}#{heading}"


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as Markdown renderers derive them."""
    lines = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", line.lower()).replace(" ", "-") for line in lines}


def test_the_command_line_page_has_every_command_and_every_key_of_doctor() -> None:
    text = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert all(f"## edgeglm {name}\n" in text for name in COMMANDS)
    keys = {field.name for field in fields(Report)} | {f"machine.{field.name}" for field in fields(Machine)}
    keys -= {"machine"}
    assert [key for key in sorted(keys) if f"`{key}`" not in text and f"`{key}[]`" not in text] == []


def test_the_changelog_has_the_version_and_what_is_not_released() -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version
    headings = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] == "[Unreleased]"
    assert re.fullmatch(re.escape(f"[{version[1]}]") + r" - \d{4}-\d\d-\d\d", headings[1])


def test_the_architecture_page_names_the_files_that_exist_and_no_others() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    sections = re.findall(r"^### In `([\w/]+)/`\n(.*?)(?=^#)", text, re.MULTILINE | re.DOTALL)
    assert [folder for folder, _ in sections] == [
        "edgeglm", "runtimes", "runtimes/core", "runtimes/text", "export", "export/pipeline", "export/foreign",
    ]  # fmt: skip
    for folder, table in sections:
        names = [name for row in re.findall(r"^\|(.+?)\|", table, re.MULTILINE) for name in re.findall(r"`(.+?)`", row)]
        named = {name.rstrip("/") for name in names}
        paths = [path for path in (ROOT / folder).iterdir() if not path.is_symlink() and path.name[0] not in "_."]
        assert named == {path.stem for path in paths if path.suffix == ".py" or path.is_dir()}


def test_the_architecture_pages_walks_name_files_that_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    walks = re.findall(r"^## The walk of one (?:weight|screenshot)\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert len(walks) == 2
    for walk, folder in zip(walks, ("export", "runtimes"), strict=True):
        names = re.findall(r"`([\w/]+\.py)`", walk)
        assert names
        assert [name for name in names if not (ROOT / folder / name).is_file() and not (ROOT / name).is_file()] == []


def test_the_readmes_figure_is_that_of_the_benchmarks() -> None:
    row = re.compile(r"^autoglm-phone-9b .*$", re.MULTILINE)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert row.findall(readme) == row.findall((ROOT / "docs/benchmarks.md").read_text(encoding="utf-8"))
    peak = re.search(r"^autoglm-phone-9b .*?([\d.]+)MiB", readme, re.MULTILINE)
    assert peak
    assert f"in {float(peak[1]) / 1024:.2f} GiB of memory" in readme


def test_the_readmes_picture_is_small() -> None:
    assert (ROOT / "docs/taps.webp").stat().st_size < 100_000


# Words that made readers stumble; CONTRIBUTING.md has the terms to write instead.
STUMBLES = re.compile(
    r"\b(surely|milder|offen[cs]es?|at hand|has not the|gone on with|thrown away|nobody|as they come)\b"
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_use_the_terms_of_the_field(page: Path) -> None:
    if page.name != "CHANGELOG.md":
        assert STUMBLES.findall(page.read_text(encoding="utf-8")) == []
