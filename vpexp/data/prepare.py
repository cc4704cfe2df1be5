"""Laying out downloaded data sets as vpexp reads them: images/ and annotations/instances_<split>.json.

``scripts/prepare_wgisd`` and ``scripts/prepare_trashcan`` are the commands.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vpexp.console import log_line, show_progress
from vpexp.data.readers.json_files import load_json
from vpexp.errors import DataError, VpexpError
from vpexp.files import is_below, write_text

Coco = dict[str, Any]


def prepare_wgisd(clone: Path, out: Path, *, annotations: str = "polygons") -> dict[str, int]:
    """Lay out a clone of https://github.com/thsant/wgisd: train from its train file, val and test from its test file.

    Args:
        clone: The clone, with data/*.jpg and coco_annotations/*.json.
        out: The folder to fill; what is there already is kept where it is right.
        annotations: ``polygons`` (only the images with masks) or ``bbox`` (all images; those without masks are skipped
            when they are read).

    Returns:
        Split -> number of its images.

    Raises:
        DataError: The folder is no such clone, or images are missing.
    """
    _require_folder(clone / "data", "a clone of WGISD has its images there")
    sources = {}
    for split, part in (("train", "train"), ("val", "test"), ("test", "test")):
        path = clone / "coco_annotations" / f"{part}_{annotations}_instances.json"
        sources[split] = _load_coco(path, "give the folder of a clone of WGISD")
    names = {image["file_name"] for coco in sources.values() for image in coco["images"]}
    _place_images({clone / "data" / name: out / "images" / name for name in sorted(names)}, clone)
    return _write_annotations(sources, out)


def prepare_trashcan(
    folder: Path, out: Path, *, version: str = "instance", limit: int = 500, seed: int = 0
) -> dict[str, int]:
    """Lay out TrashCan 1.0: train from a sample of its training images, val and test from its validation images.

    Args:
        folder: The unpacked data set, which holds instance_version/ and material_version/, or one of these two.
        out: The folder to fill; what is there already is kept where it is right.
        version: ``instance`` or ``material``: the two ways in which its objects are named.
        limit: Training images to sample, 0 for all.
        seed: The same seed samples the same images.

    Returns:
        Split -> number of its images.

    Raises:
        DataError: The folder is no TrashCan data set, or images are missing.
    """
    home = _find_version(folder, f"{version}_version")
    sources: dict[str, Coco] = {}
    images: dict[Path, Path] = {}
    for split, part in (("train", "train"), ("val", "val"), ("test", "val")):
        coco = _load_coco(home / f"instances_{part}_trashcan.json", "give the folder of the unpacked TrashCan data set")
        if split == "train" and limit:
            coco = _sample_images(coco, limit, seed)
        for image in coco["images"]:
            name = image["file_name"]
            images[home / part / name] = out / "images" / part / name
            image["file_name"] = f"{part}/{name}"
        sources[split] = coco
    _place_images(images, folder)
    return _write_annotations(sources, out)


def _find_version(folder: Path, version: str) -> Path:
    """Find the folder of one version, in the data set's root, in its ``dataset`` folder, or as the given folder."""
    is_other_version = folder.name.endswith("_version") and folder.name != version
    homes = [folder / version, folder / "dataset" / version] + ([] if is_other_version else [folder])
    for home in homes:
        if (home / "instances_train_trashcan.json").is_file():
            return home
    raise DataError(
        f"{folder}: no {version}/instances_train_trashcan.json; give the folder of the unpacked TrashCan data set"
    )


def _load_coco(path: Path, advice: str) -> Coco:
    """Load a COCO file and check what is needed of it: images with plain file names, and annotations."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; {advice}")
    coco = load_json(path)
    if not isinstance(coco.get("images"), list) or not isinstance(coco.get("annotations"), list):
        raise DataError(f"{path}: expected the lists 'images' and 'annotations'")
    for image in coco["images"]:
        name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
            raise DataError(f"{path}: an image without a usable file_name: {image!r}")
    return coco


def _require_folder(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; {what}")


def _sample_images(coco: Coco, limit: int, seed: int) -> Coco:
    """Keep a sample of a data set's images, in their order, and their annotations."""
    images = sorted(coco["images"], key=lambda image: str(image["file_name"]))
    chosen = np.random.default_rng(seed).permutation(len(images))[:limit]
    kept = [images[place] for place in sorted(chosen)]
    ids = {image["id"] for image in kept}
    return {**coco, "images": kept, "annotations": [a for a in coco["annotations"] if a["image_id"] in ids]}


def _place_images(files: Mapping[Path, Path], home: Path) -> None:
    """Link image files into place, or copy them where links are not possible; files that are there are kept."""
    missing = [source for source in files if not source.is_file()]
    if missing:
        raise DataError(f"{missing[0]}: image file is missing ({len(missing)} of {len(files)} are); download it again")
    outside = next((source for source in files if not is_below(source, home)), None)
    if outside:
        raise DataError(f"{outside}: a link that leads out of {home}; put the file itself there")
    for source, target in show_progress(list(files.items()), "Placing images"):
        if target.is_file() and target.stat().st_size == source.stat().st_size:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        try:
            os.link(source.resolve(), target)
        except OSError:
            shutil.copy2(source, target)


def _write_annotations(sources: Mapping[str, Coco], out: Path) -> dict[str, int]:
    """Write one annotation file a split, each at once or not at all."""
    folder = out / "annotations"
    folder.mkdir(parents=True, exist_ok=True)
    for split, coco in sources.items():
        write_text(folder / f"instances_{split}.json", json.dumps(coco))
    return {split: len(coco["images"]) for split, coco in sources.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; a user's error is one line and exit code 2."""
    options = _parse(arguments)
    try:
        if options.dataset == "wgisd":
            counts = prepare_wgisd(options.folder, options.out, annotations=options.annotations)
        else:
            counts = prepare_trashcan(
                options.folder, options.out, version=options.version, limit=options.limit, seed=options.seed
            )
    except VpexpError as error:
        log_line(f"error: {error}", style="red")
        return error.exit_code
    images = ", ".join(f"{split} {count}" for split, count in counts.items())
    log_line(f"{options.out}: images of {images}")
    log_line(f"now: python -m vpexp data={options.dataset} data.root={options.out} stage=train")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare", description="Lay out a downloaded data set as vpexp reads it.")
    datasets = parser.add_subparsers(dest="dataset", required=True)
    wgisd = datasets.add_parser("wgisd", prog="prepare_wgisd", description="Lay out a clone of WGISD.")
    wgisd.add_argument("folder", type=Path, help="clone of https://github.com/thsant/wgisd")
    wgisd.add_argument("--annotations", choices=("polygons", "bbox"), default="polygons", help="default: polygons")
    trashcan = datasets.add_parser("trashcan", prog="prepare_trashcan", description="Lay out TrashCan 1.0.")
    trashcan.add_argument("folder", type=Path, help="unpacked TrashCan 1.0")
    trashcan.add_argument("--version", choices=("instance", "material"), default="instance", help="default: instance")
    trashcan.add_argument("--limit", type=int, default=500, help="training images to sample, 0 for all; default: 500")
    trashcan.add_argument("--seed", type=int, default=0, help="seed of the sample; default: 0")
    for name, dataset in (("wgisd", wgisd), ("trashcan", trashcan)):
        dataset.add_argument("out", type=Path, nargs="?", default=Path("data", name), help=f"default: data/{name}")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
