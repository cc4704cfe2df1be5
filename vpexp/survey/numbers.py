"""All numbers of a survey by name: for ``data.json``, and those that are logged as metrics."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vpexp.survey.counts import count_images_by_class, count_images_without_objects, count_objects_by_class
from vpexp.survey.measure import SplitMeasures
from vpexp.survey.sizes import summarize_images
from vpexp.survey.types import Finding, Survey


def list_metrics(survey: Survey) -> dict[str, float]:
    """List the numbers that are logged: of the whole data set as ``data/...``, of each split under its name."""
    metrics = {
        "data/images": float(survey.image_count),
        "data/objects": float(survey.object_count),
        "data/classes": float(len(survey.categories)),
        "data/left_out": float(survey.count_skipped()),
    }
    if survey.duplicates is not None:
        metrics["data/leaks"] = float(survey.duplicates.leak_count)
        metrics["data/repeated"] = float(survey.duplicates.repeated_count)
        metrics["data/damaged"] = float(len(survey.damaged))
    for split in survey.splits:
        metrics[f"{split.name}/images"] = float(split.image_count)
        metrics[f"{split.name}/objects"] = float(split.object_count)
        metrics[f"{split.name}/left_out"] = float(sum(split.skipped.values()))
        sizes = survey.object_sizes.get(split.name)
        if sizes is not None:
            metrics[f"{split.name}/objects_an_image"] = float(np.median(split.object_counts_I))
            metrics[f"{split.name}/median_area"] = sizes.median_area
            metrics[f"{split.name}/median_side"] = sizes.median_side
            metrics[f"{split.name}/hardly_seen"] = sizes.hardly_seen
    return metrics


def describe_survey(survey: Survey, findings: Sequence[Finding]) -> dict[str, Any]:
    """Describe a survey with all its numbers, as plain containers."""
    duplicates = survey.duplicates
    return {
        "name": survey.name,
        "root": str(survey.root),
        "format": survey.format,
        "model": survey.model,
        "image_size": survey.image_size,
        "categories": list(survey.categories),
        "splits": {split.name: _describe_split(split, survey) for split in survey.splits},
        "duplicates": None
        if duplicates is None
        else {
            "leaks": {f"{earlier} and {later}": count for (earlier, later), count in duplicates.leaks.items()},
            "repeated": duplicates.repeated,
        },
        "damaged": {str(one.path): one.reason for one in survey.damaged},
        "findings": [asdict(finding) for finding in findings],
        "notes": list(survey.notes),
    }


def _describe_split(split: SplitMeasures, survey: Survey) -> dict[str, Any]:
    classes = len(survey.categories)
    objects_K, images_K = count_objects_by_class(split, classes), count_images_by_class(split, classes)
    images, objects = summarize_images(split), survey.object_sizes.get(split.name)
    counts = split.object_counts_I
    return {
        "source": split.source,
        "images": split.image_count,
        "objects": split.object_count,
        "images_without_objects": count_images_without_objects(split),
        "objects_an_image": {"median": float(np.median(counts)), "most": int(counts.max())} if len(counts) else None,
        "classes": {
            name: {"objects": int(objects_K[label]), "images": int(images_K[label])}
            for label, name in enumerate(survey.categories)
        },
        "image_sizes": images and asdict(images),
        "object_sizes": objects and asdict(objects),
        "skipped": {
            reason: {"count": count, "first": split.examples[reason]} for reason, count in split.skipped.items()
        },
    }
