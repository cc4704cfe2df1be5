"""Where the configuration groups lie, and what they offer."""

from collections.abc import Sequence
from pathlib import Path

from vpexp.errors import ConfigError


def find_conf_folder() -> Path:
    """Find the folder of vpexp's own groups: inside the installed package, or beside it in a checkout.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise ConfigError(f"vpexp's configuration folder is missing beside {package}; install vpexp again")


def list_groups(folders: Sequence[Path]) -> dict[str, dict[str, Path]]:
    """List all groups and their options: ``{group: {option: file}}``, where earlier folders win."""
    groups: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for file in sorted([*folder.glob("*/*.yaml"), *folder.glob("*/*/*.yaml")]):
            group = file.parent.relative_to(folder).as_posix()
            groups.setdefault(group, {}).setdefault(file.stem, file)
    return groups


def find_file(config_path: str, folders: Sequence[Path]) -> Path | None:
    """Find the file of an option, as ``data/coco``, or of a primary configuration, as ``config``."""
    candidates = (folder / f"{config_path}.yaml" for folder in folders)
    return next((file for file in candidates if file.is_file()), None)
