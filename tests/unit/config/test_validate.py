from functools import lru_cache

import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser

from vpexp.config import compose_config, validate
from vpexp.config.groups import find_conf_folder, list_groups
from vpexp.errors import ConfigError

GROUPS = list_groups([find_conf_folder()])
compose = lru_cache(compose_config)


def build_config(overrides):
    """Compose the groups, once for each choice of them, and set the other keys as Hydra does."""
    groups = tuple(word for word in overrides if word.partition("=")[0] in GROUPS)
    cfg = compose(groups).copy()
    others = [word for word in overrides if word not in groups]
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(others), cfg)
    return cfg


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.batch_size=0"], "data.batch_size=0: must be at least 1"),
        (["trainer.max_epochs=-1"], "trainer.max_epochs=-1: must be at least 1"),
        (["prompt.jitter=-0.1"], "prompt.jitter=-0.1: must be at least 0"),
        (["data.limit_images=0"], "data.limit_images=0: must be at least 1"),
        (["seed=-1"], "seed=-1: must be at least 0"),
        (["prompt.jitter=nan"], "prompt.jitter=nan: must be at least 0"),
        (["data.val_fraction=1"], "data.val_fraction=1.0: must lie between 0 and 1"),
        (["data.val_fraction=nan"], "data.val_fraction=nan: must lie between 0 and 1"),
        (["loss.focal_alpha=2"], "loss.focal_alpha=2.0: must lie between 0 and 1"),
        (["loss.focal_weight=0", "loss.dice_weight=0"], "no mask is learnt"),
        (
            ["prompt.type=boxes"],
            "prompt.type=boxes: must be one of box, point, both, clicks, auto; did you mean 'box'?",
        ),
        (["prompt=clicks", "prompt.first=boxes"], "prompt.first=boxes: must be one of point, box; did you mean 'box'?"),
        (["prompt=clicks", "prompt.clicks=0"], "prompt.clicks=0: must be at least 1"),
        (["prompt=clicks", "prompt.box_share=1.5"], "prompt.box_share=1.5: must be at most 1"),
        (["stage.split=valid"], "stage.split=valid: must be one of train, val, test; did you mean 'val'?"),
        (["data.format=yolo", "data.root=x"], "data.format=yolo: must be one of coco, voc"),
        (["data.instances=component"], "did you mean 'components'?"),
        (["data.synthetic.scene=forest"], "must be one of cells, vineyard, shapes"),
        (["data.synthetic.image_size=16"], "data.synthetic.image_size=16: must be at least 32"),
        (["data.synthetic.seed=-1"], "data.synthetic.seed=-1: must be at least 0"),
        (["loss.resolution=high"], "must be one of low, input, original"),
        (["trainer.precision=8"], "trainer.precision=8: must be one of auto, 32, 32-true"),
        (["trainer.accelerator=abacus"], "trainer.accelerator=abacus: must be one of auto, cpu, gpu"),
        (["trainer.deterministic=maybe"], "must be true, false or warn"),
        (["trainer.limit_train_batches=0"], "must be a number of batches from 1, or a share up to 1.0"),
        (["trainer.limit_val_batches=1.5"], "must be a number of batches from 1, or a share up to 1.0"),
        (["model.freeze=[image_encoder,decoder]"], "there is no part 'decoder'"),
        (["model.freeze=[image_encoder,prompt_encoder,mask_decoder]"], "nothing to learn"),
        (["optimizer.lr=abc"], "optimizer.lr=abc: must be a number above 0"),
        (["optimizer.lr=0"], "optimizer.lr=0: must be a number above 0"),
        (["~optimizer.lr"], "optimizer.lr=None: must be a number above 0"),
        (["optimizer.weight_decay=abc"], "optimizer.weight_decay=abc: must be a number"),
        (["~optimizer._target_"], "optimizer._target_ is not given"),
        (["+callbacks.mine=3"], "callbacks.mine: needs a _target_"),
        (["data=coco"], "data.root is not given: write data.root="),
        (["data=coco", "data.root="], "data.root is not given: write data.root="),
        (["data=coco", "data.root=x", "data.format=synthetic"], "choose data=synthetic"),
        (["checkpoint=a", "resume=b"], "keep one"),
        (["stage=models", "resume=b"], "resume continues a training or a pipeline, and stage is models"),
        (["stage=pipeline", "export.format=onnx"], "stage.onnx=true adds ONNX"),
        (["stage=pipeline", "model.freeze=[image_encoder,prompt_encoder,mask_decoder]"], "nothing to learn"),
        (["stage=predict"], "source is not given: write source=... (an image, a folder, or a pattern)"),
        (["stage=predict", "source="], "source is not given"),
        (
            ["stage=predict", "source=a", "prompts=''"],
            "prompts is empty: write prompts=... (auto, grid, dataset, or a JSON file of boxes and points), or leave it out",
        ),
        (
            ["stage=predict", "prompts=dataset", "source=a"],
            "source=a: prompts=dataset takes the images of the data set",
        ),
        (
            ["stage=predict", "prompts=dataset", "output.folder=a"],
            "output.folder=a: say in which format: output.format=coco|voc|datumaro|common_semantic_segmentation",
        ),
        (
            ["output.format=yolo"],
            "output.format=yolo: must be one of coco, voc, datumaro, common_semantic_segmentation",
        ),
        (["output.max_iou=1.5"], "output.max_iou=1.5: must be at most 1"),
        (["stage=demo"], "source is not given: write source=... (an image, a folder, or a pattern)"),
        (["stage=demo", "source=a", "demo.labels=[]"], "demo.labels=[]: give one name at least, each once"),
        (["demo.labels=[a,b,a]"], "give one name at least, each once"),
        (["demo.port=0"], "demo.port=0: must be at least 1"),
        (["demo.port=70000"], "demo.port=70000: must be at most 65535"),
        (["prompt.multimask=alway"], "must be one of auto, always, never; did you mean 'always'?"),
        (["predict.grid_overlap=1.5"], "predict.grid_overlap=1.5: must be at most 1"),
        (["predict.min_score=-0.1"], "predict.min_score=-0.1: must be at least 0"),
        (["predict.points_per_side=1000"], "predict.points_per_side=1000: must be at most 256"),
        (["+data.bacth_size=1"], "unknown key 'data.bacth_size'; did you mean 'data.batch_size'?"),
        (["+data.synthetic.scen=shapes"], "unknown key 'data.synthetic.scen'; did you mean 'data.synthetic.scene'?"),
        (["+mine=1"], "unknown key 'mine'"),
        (
            ["trainer.blend=0"],
            "trainer.blend=0: must be auto, null, or the share of what is learnt, above 0 and up to 1",
        ),
        (["trainer.blend=half"], "trainer.blend=half: must be auto, null, or the share"),
        (
            ["cache.precision=int8", "model.tune=last:1"],
            "cache.precision=int8 is for whole embeddings, and with model.tune=last:1 what comes before",
        ),
        (["data.augment=[flop]"], "data.augment: there is no part 'flop' (there are: flip, turn, photo)"),
        (
            ["data.augment=[photo]"],
            "data.augment: photo changes each image in each epoch, and the cache encodes it once",
        ),
        (["stage=export", "tracking.register=my/model"], "tracking.register=my/model: a name is made of letters"),
        (["stage=export", "tracking.register="], "tracking.register=: a name is made of letters"),
        (["stage=export", "tracking=none", "tracking.register=a"], "tracking is off: leave out tracking=none"),
        (
            ["stage=train", "tracking.register=a"],
            "stage=train makes no model that can be served; export, ptq, pipeline do",
        ),
        (["stage=export", "export.format=sam", "tracking.register=a"], "export.format=sam is weights alone"),
        (["data.root=${nope}"], "cannot resolve data.root: Interpolation key 'nope' not found"),
    ],
)
def test_validate__names_key_value_and_what_is_wanted(overrides, message):
    cfg = build_config(overrides)

    with pytest.raises(ConfigError) as caught:
        validate(cfg)

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["callbacks.early_stopping=null"],
        ["callbacks=none", "+callbacks.mine._target_=mine.Callback"],
        ["+optimizer.amsgrad=true"],
        ["trainer.limit_train_batches=3", "trainer.limit_val_batches=0.5"],
        ["trainer.devices=auto"],
        ["trainer.devices='0,1'"],
        ["trainer.precision=bf16-mixed", "trainer.deterministic=true"],
        ["model.freeze=[]", "data.augment=[photo]"],
        ["cache=none", "data.augment=[flip,turn,photo]"],
        ["cache.precision=int8", "model.tune=full"],
        ["stage=test", "cache.precision=int8", "model.tune=last:1"],
        ["trainer.blend=auto"],
        ["trainer.blend=0.5"],
        ["resume=outputs/train/x"],
        ["stage=pipeline", "resume=latest"],
        ["stage=test", "checkpoint=null"],
        ["stage=predict", "source=photos/*.jpg", "prompts=grid", "predict.points_per_side=1"],
        ["stage=demo", "source=photos", "demo.port=null", "demo.labels=['a b',c]"],
        ["data.val_fraction=0.5", "data.limit_images=1", "prompt.max_per_image=1"],
        ["+tracking.tags.owner=me"],
        ["stage=export", "export.format=onnx", "tracking.register=my-model.2"],
        ["stage=pipeline", "tracking.register=7"],
    ],
)
def test_validate__lets_sensible_things_pass(overrides):
    validate(build_config(overrides))
