"""Time and memory of reading annotations, from a thousand images up to COCO's size.

    python scripts/benchmarks/data.py [--sizes 1000,10000,100000] [--json FILE]

The annotation files are generated: polygons as long as COCO's, 8.6 objects an image. The image files are links to a few
small pictures of the declared size, so that headers are read. Each reading runs in a process of its own: the first one
reads the data set's files, the second one what vpexp kept of them, and each of them tells its own peak of memory.
"""

import argparse
import io
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

WIDTH, HEIGHT = 640, 480
OBJECTS_AN_IMAGE = 8.6
POINTS_A_POLYGON = (12, 40)
DRAWN_POLYGONS = 997  # a prime, so that images differ
PICTURES = 16  # file systems limit the links to one file
SIZES = (1_000, 10_000, 100_000)

READ = """
import json, re, resource, sys, time
root, cache_dir = sys.argv[1:3]
from vpexp.config.schema import DataConfig
from vpexp.data.dataset import load_dataset
started = time.perf_counter()
split = load_dataset(DataConfig(format="coco", root=str(root)), splits=("train",), cache_dir=cache_dir).splits["train"]
seconds = time.perf_counter() - started
pixels = sum(int(image.boxes_N4.sum()) for image in split.images)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
if sys.platform == "linux":  # where that includes what the process was before it became this program
    peak = int(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1]) / 1024
print(json.dumps({"seconds": seconds, "peak_mb": peak, "images": len(split.images), "objects": split.object_count,
                  "check": pixels}))
"""


def measure_data(sizes: Sequence[int] = SIZES) -> list[dict[str, Any]]:
    """Measure the first reading and the reading of what was kept.

    Args:
        sizes: numbers of images.

    Returns:
        One row a size: ``images objects json_mb kept_mb first_s first_peak_mb kept_s kept_read_peak_mb``; MiB and seconds.
    """
    return [_measure(size) for size in sizes]


def _measure(size: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="vpexp_data_") as folder:
        root, cache_dir = Path(folder, "data"), Path(folder, "cache")
        file = write_coco(root, size)
        first, kept = _read(root, cache_dir), _read(root, cache_dir)
        if any(first[key] != kept[key] for key in ("images", "objects", "check")):
            raise RuntimeError(f"what was kept differs from what was read: {kept} and {first}")
        return {
            "images": first["images"],
            "objects": first["objects"],
            "json_mb": round(file.stat().st_size / 2**20, 1),
            "kept_mb": round(sum(f.stat().st_size for f in cache_dir.rglob("*") if f.is_file()) / 2**20, 1),
            "first_s": round(first["seconds"], 2),
            "first_peak_mb": round(first["peak_mb"]),
            "kept_s": round(kept["seconds"], 2),
            "kept_read_peak_mb": round(kept["peak_mb"]),
        }


def _read(root: Path, cache_dir: Path) -> dict[str, Any]:
    command = [sys.executable, "-c", READ, str(root), str(cache_dir)]
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=repository, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def write_coco(root: Path, images: int) -> Path:
    """Write a COCO data set of one subset: the annotation file, and links as image files.

    Returns:
        The annotation file.
    """
    rng = random.Random(0)  # noqa: S311 (a benchmark's data)
    names = [f"{number:012}.jpg" for number in range(images)]
    _link_pictures(root / "images", names)
    polygons = [json.dumps(_draw_polygon(rng)) for _ in range(DRAWN_POLYGONS)]
    file = root / "annotations/instances_train.json"
    file.parent.mkdir(parents=True)
    with file.open("w", encoding="ascii") as out:
        out.write('{"images": [')
        entries = (
            f'{{"id": {number + 1}, "file_name": "{name}", "width": {WIDTH}, "height": {HEIGHT}}}'
            for number, name in enumerate(names)
        )
        _write_joined(out, entries)
        out.write('], "annotations": [')
        _write_joined(out, _describe_objects(images, polygons, rng))
        categories = [{"id": number + 1, "name": f"class {number}"} for number in range(80)]
        out.write(f'], "categories": {json.dumps(categories)}}}')
    return file


def _describe_objects(images: int, polygons: Sequence[str], rng: random.Random) -> Iterator[str]:
    for number in range(round(images * OBJECTS_AN_IMAGE)):
        yield (
            f'{{"id": {number + 1}, "image_id": {number % images + 1}, "category_id": {rng.randrange(80) + 1}, '
            f'"segmentation": [{polygons[number % len(polygons)]}], "area": 1234.5678, '
            f'"bbox": [{rng.randrange(WIDTH)}.25, {rng.randrange(HEIGHT)}.75, 101.5, 87.25], "iscrowd": 0}}'
        )


def _write_joined(out: io.TextIOBase, entries: Iterator[str]) -> None:
    out.writelines(f",\n{entry}" if number else entry for number, entry in enumerate(entries))


def _draw_polygon(rng: random.Random) -> list[float]:
    """Draw a star-shaped outline inside the image."""
    radius = 10 * 12 ** rng.random()
    x, y = rng.uniform(radius, WIDTH - radius), rng.uniform(radius, HEIGHT - radius)
    count = rng.randint(*POINTS_A_POLYGON)
    points = ((2 * math.pi * step / count, radius * rng.uniform(0.6, 1)) for step in range(count))
    return [
        round(value, 2)
        for angle, length in points
        for value in (x + length * math.cos(angle), y + length * math.sin(angle))
    ]


def _link_pictures(folder: Path, names: Sequence[str]) -> None:
    """Make image files that take no space: links to a few pictures."""
    folder.mkdir(parents=True)
    sources = names[:PICTURES]
    for number, name in enumerate(sources):
        Image.new("RGB", (WIDTH, HEIGHT), (number * 15, 100, 50)).save(folder / name)
    for number, name in enumerate(names[PICTURES:]):
        os.link(folder / sources[number % len(sources)], folder / name)


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of images")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    options = parser.parse_args()
    rows = measure_data([int(size) for size in options.sizes.split(",")])
    print("  ".join(rows[0]))
    for row in rows:
        print("  ".join(str(value).rjust(len(key)) for key, value in row.items()))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
