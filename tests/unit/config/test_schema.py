"""The surface of the configuration: whoever renames a key breaks somebody's command, and this test."""

import pytest

from vpexp.config import compose_config, validate
from vpexp.config.explain import list_keys
from vpexp.config.groups import find_conf_folder, list_groups

SURFACE = {
    "stage": ["name", "test", "onnx", "split", "controls", "overlays", "duplicates", "_target_"],
    "model": ["name", "_target_", "image_size", "weights", "freeze", "tune"],
    "data": [
        *(
            "name",
            "_target_",
            "options",
            "format",
            "root",
            "train_split",
            "val_split",
            "test_split",
            "val_fraction",
            "instances",
            "crowd",
            "unannotated",
            "allow_outside",
            "strict",
        ),
        *("batch_size", "num_workers", "limit_images", "tile", "tile_overlap", "augment", "keep", "synthetic"),
    ],
    "prompt": [
        *(
            "type",
            "jitter",
            "test_jitter",
            "max_per_image",
            "clicks",
            "first",
            "box_share",
            "train_rounds",
            "feed_mask",
            "multimask",
        ),
    ],
    "loss": [
        "focal_weight",
        "dice_weight",
        "iou_weight",
        "focal_alpha",
        "focal_gamma",
        "resolution",
        "_target_",
        "options",
    ],
    "optimizer": ["_target_", "lr", "lr_encoder", "layer_decay", "weight_decay", "betas"],
    "scheduler": ["_target_", "warmup_steps"],
    "callbacks": ["early_stopping", "progress"],
    "metrics": [],
    "prompter": [
        *("enabled", "steps", "batch_size", "lr", "evaluate_every", "patience", "width", "depth", "limit"),
        *("classifier_steps", "max_overlap"),
    ],
    "adapter": ["kind", "rank", "alpha", "targets"],
    "trainer": [
        *("max_epochs", "accelerator", "devices", "strategy", "blend", "precision", "compile", "gradient_clip_val"),
        *(
            "gradient_checkpointing",
            "accumulate_grad_batches",
            "log_every_n_steps",
            "deterministic",
            "limit_train_batches",
        ),
        *("limit_val_batches", "threads", "logger", "extra"),
    ],
    "cache": ["enabled", "max_gb", "precision", "compute", "backend"],
    "export": ["format", "precision", "decoder_precision", "target", "return_single_mask"],
    "ptq": [
        "parts",
        "method",
        "preset",
        "model_type",
        "overflow_fix",
        "smooth_quant",
        "bias_correction",
        "activation_range",
        "subset_size",
        "max_drop",
    ],
    "predict": [
        *("points_per_side", "min_score", "grid_min_score", "grid_stability", "grid_box_overlap", "grid_overlap"),
        *("grid_min_area", "auto_score", "keep_annotated"),
    ],
    "output": ["format", "folder", "split", "masks", "images", "overlap", "max_iou"],
    "demo": [
        *("host", "port", "open_browser", "folder", "labels", "embeddings"),
        *("learn", "learn_every", "learn_epochs", "learn_steps", "learn_lr"),
    ],
    "sweep": ["metric", "direction", "resume"],
    "tracking": ["enabled", "uri", "experiment", "run_name", "parent", "tags", "register"],
    "paths": ["output_dir", "cache_dir"],
    "seed": [],
    "checkpoint": [],
    "resume": [],
    "source": [],
    "run": [],
    "prompts": [],
}

OPTIONS = {
    "stage": ["data", "demo", "export", "models", "pipeline", "predict", "ptq", "sync", "test", "train"],
    "model": [
        "openvino_model",
        *("sam2_base_plus", "sam2_debug", "sam2_large", "sam2_small", "sam2_tiny"),
        "sam_debug",
        "sam_micro",
        "sam_tiny_vit",
        "sam_vit_b",
    ],
    "data": [
        *("auto", "coco", "common_semantic_segmentation", "datumaro", "synthetic", "trashcan", "voc", "wgisd"),
    ],
    "prompt": ["auto", "both", "box", "clicks", "loose_box", "point"],
    "prompter": ["default", "none"],
    "adapter": ["lora", "none"],
    "loss": ["default"],
    "optimizer": ["adam", "adamw", "sgd"],
    "scheduler": ["constant", "cosine", "linear", "linear_warmup"],
    "callbacks": ["default", "none"],
    "trainer": ["default", "gpu"],
    "cache": ["default", "none"],
    "export": ["default", "fp16"],
    "ptq": ["default", "fast", "safe"],
    "sweep": ["default", "lr_batch", "optuna"],
    "tracking": ["default", "none"],
    "paths": ["default"],
    "hydra/launcher": ["ray_cluster"],
    "experiment": ["debug", "quickstart"],
    "debug": ["one_batch", "overfit", "profile"],
}


NEEDED = {
    ("data", ""): ["data.root=somewhere"],
    ("stage", "predict"): ["source=photos", "prompts=grid"],
    ("stage", "demo"): ["source=photos"],
    ("stage", "sync"): ["run=outputs"],
    ("prompt", "auto"): ["stage=test"],
}
"""What an option does not go without."""


def test_surface__keys_are_frozen():
    cfg = compose_config()

    assert {str(key): list(cfg[key]) if hasattr(cfg[key], "keys") else [] for key in cfg} == SURFACE


def test_surface__options_are_frozen():
    groups = list_groups([find_conf_folder()])

    assert {group: sorted(options) for group, options in groups.items()} == OPTIONS


@pytest.mark.parametrize(
    ("group", "option"),
    [(group, option) for group, options in list_groups([find_conf_folder()]).items() for option in options],
)
def test_group__every_option_composes_and_is_valid(group, option):
    asked = [f"{group}={option}", *NEEDED.get((group, option), NEEDED.get((group, ""), []))]

    cfg = compose_config(asked)

    validate(cfg)
    assert list(cfg) == list(SURFACE)
    if group in {"model", "stage", "data"}:
        assert cfg[group].name == option


def test_files__open_with_what_they_are_and_a_command():
    for options in list_groups([find_conf_folder()]).values():
        for file in options.values():
            lines = [line for line in file.read_text().splitlines() if not line.startswith("# @package")]
            assert lines[0].startswith("# "), file
            assert ": python -m vpexp " in lines[0], file


@pytest.mark.slow
def test_files__commands_in_them_compose():
    for options in list_groups([find_conf_folder()]).values():
        for file in options.values():
            line = next(line for line in file.read_text().splitlines() if ": python -m vpexp" in line)
            for words in (line.partition("python -m vpexp")[2].partition("(")[0].split(),):
                assert compose_line(words) is not None, file


def compose_line(words):
    if words[0] != "-m":
        return compose_config(words)
    from vpexp.command_line import read_command_line
    from vpexp.sweeps.plan import plan_sweep

    return plan_sweep(read_command_line(words)).cfg


def test_files__restated_defaults_equal_the_schema():
    from omegaconf import OmegaConf

    from vpexp.config.schema import Config

    schema, cfg = OmegaConf.structured(Config), compose_config()
    for section in ("prompt", "loss", "trainer", "cache", "sweep", "tracking", "paths"):
        assert OmegaConf.to_container(cfg[section]) == OmegaConf.to_container(schema[section]), section


def test_stage__test_starts_from_what_was_trained_last():
    assert compose_config(["stage=test"]).checkpoint == "latest"
    assert compose_config(["stage=test", "checkpoint=null", "model=sam_vit_b"]).checkpoint is None
    assert compose_config(["stage=train"]).checkpoint is None


def test_prompts__are_a_grid_unless_they_are_given():
    assert compose_config(["stage=predict", "source=photos"]).prompts is None  # what the model can


def test_experiment__command_line_wins():
    cfg = compose_config(["experiment=quickstart", "trainer.max_epochs=2", "model=sam_debug"])

    assert (cfg.trainer.max_epochs, cfg.model.name, cfg.stage.name) == (2, "sam_debug", "pipeline")


def test_paths__cache_dir_follows_the_environment(monkeypatch):
    monkeypatch.setenv("VPEXP_CACHE_DIR", "/scratch/cache")
    assert compose_config().paths.cache_dir == "/scratch/cache"

    monkeypatch.delenv("VPEXP_CACHE_DIR")
    assert compose_config().paths.cache_dir == "~/.cache/vpexp"


def test_tracking__database_lies_in_the_output_folder():
    assert compose_config(["paths.output_dir=/x"]).tracking.uri == "sqlite:////x/mlflow.db"


def test_list_keys__sections_and_leaves_in_order():
    keys = list(list_keys(compose_config(["data=coco"])))

    assert keys[:3] == ["stage", "stage.name", "stage.test"]
    assert "callbacks.early_stopping.patience" in keys
    assert "data.synthetic" in keys
    assert "data.synthetic.scene" not in keys
