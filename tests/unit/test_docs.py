"""README and docs: short, with links that lead somewhere and commands that compose."""

import re
import shlex
from pathlib import Path

import pytest

from vpexp.config import compose_config

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
ELSEWHERE = ("hydra.", "hydra/", "sweep=optuna")  # plugins that may not be installed
COMMANDS = sorted(
    {
        command
        for page in PAGES
        for command in re.findall(r"^python -m vpexp (.*?)(?:\s+#.*|\s*\\)?$", page.read_text(), re.MULTILINE)
        if not command.startswith(("-cp", "--"))
    }
)


def find_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


def test_readme__is_short() -> None:
    assert len(PAGES[0].read_text().splitlines()) < 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links__lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        assert not anchor or anchor in find_anchors(target), link


def test_docs__are_all_in_their_index() -> None:
    linked = set(re.findall(r"\]\(([\w.]+)\)", (ROOT / "docs/README.md").read_text()))
    notebooks = {path.name for path in (ROOT / "docs").glob("*.ipynb")}
    assert linked == ({page.name for page in PAGES[1:]} | notebooks) - {"README.md"}


@pytest.mark.parametrize("command", COMMANDS)
def test_commands__compose(command: str) -> None:
    words = [word for word in shlex.split(command) if word != "-m" and not word.startswith(ELSEWHERE)]
    if "-m" in command.split():
        words = [word if "[" in word else word.partition(",")[0] for word in words]
    compose_config(words)
