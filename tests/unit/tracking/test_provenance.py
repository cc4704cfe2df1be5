import subprocess

import torch

from vpexp.tracking import description
from vpexp.tracking.description import get_git_commit, get_versions


def git(folder, *arguments):
    settings = ["-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_get_git_commit__with_a_plus_for_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("a")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-qm", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")

    assert get_git_commit() == commit
    (tmp_path / "untracked").write_text("b")
    assert get_git_commit() == commit
    (tmp_path / "a").write_text("b")
    assert get_git_commit() == f"{commit}+"


def test_get_git_commit__outside_of_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert get_git_commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert get_git_commit() is None, "git is not installed"


def test_get_versions__package_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(description, "RECORDED_PACKAGES", ("torch", "not-installed-anywhere"))

    assert get_versions() == {"torch": torch.__version__, "not-installed-anywhere": None}
