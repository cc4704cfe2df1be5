"""The types of the configuration: what every key of ``conf/`` may hold, and what it holds by default.

The sections ``optimizer``, ``scheduler``, ``callbacks`` and ``metrics`` are free: their keys are the arguments of their
``_target_``. ``metrics`` holds metrics of your own, measured beside vpexp's wherever a model is evaluated: docs/extending.md.
Schedules: ``build_scheduler_factory`` of ``vpexp/training/build.py``.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING, DictConfig

from vpexp.registry import EXPORT_TARGETS, FORMATS, STAGES, VPEXP

SCHEMA_NAME = "vpexp_schema"
PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
TUNE_PATTERN = re.compile(r"none|neck|full|last:[1-9][0-9]*")


def setting(default: Any, *, choices: Any = (), lowest: float | None = None, highest: float | None = None) -> Any:
    """Declare a key: its default, and what ``validate`` checks; of a list, ``choices`` holds for each entry."""
    metadata = {"choices": tuple(choices), "lowest": lowest, "highest": highest}
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def _open_section(element_type: Any = Any) -> Any:
    """Declare a section that takes new keys without ``+``."""
    kinds = {"key_type": str, "element_type": element_type, "ref_type": dict[str, element_type]}
    return field(default_factory=lambda: DictConfig({}, **kinds, is_optional=False, flags={"struct": False}))


@dataclass
class StageConfig:
    """What to do."""

    name: str = setting(MISSING, choices=STAGES)
    """Which stage runs: data, train, test, export, ptq, predict, demo, pipeline, models or sync."""
    test: bool = False
    """Train: also test before and after training, on ``stage.split``."""
    onnx: bool = False
    """Pipeline: also export to ONNX and test that."""
    split: str = setting("test", choices=("train", "val", "test"))
    """The split that is tested: train, val or test."""
    controls: bool = True
    """Test: also score the two baselines, the filled box and the model given another image's embedding. Train: also measure, before and
    after, other kinds of prompts than the trained, and prompts on background."""
    overlays: int = setting(8, lowest=0)
    """How many images are drawn, with prompt and prediction; tested ones beside the truth."""
    duplicates: bool = True
    """Data: read all image files, to find pictures that occur twice and files that are damaged."""
    _target_: str | None = None
    """A function of your own that runs another stage: ``run(context)`` that returns a ``StageResult``."""


@dataclass
class ModelConfig:
    """Which Segment Anything model, its weights, and which of its parts learn."""

    name: str = MISSING
    """The name in the table of ``stage=models``."""
    _target_: str = MISSING
    """The function that builds the torch module; it is given ``image_size``."""
    image_size: int = setting(MISSING, lowest=16, highest=4096)
    """Length in pixels that the longest side of an image is resized to."""
    weights: str = "auto"
    """auto (packaged, or downloaded once), random, or the path of a weights file."""
    freeze: list[str] = setting(["image_encoder", "prompt_encoder"], choices=PARTS)
    """Parts that do not learn, of image_encoder, prompt_encoder and mask_decoder."""
    tune: str = "none"
    """What of the image encoder learns, though freeze names it: none, neck (what follows its blocks), last:<k> (its last k blocks and
    the neck; what comes before runs once an image, and is cached), or full."""


@dataclass
class AdapterConfig:
    """How the blocks of the image encoder learn that ``model.tune`` names; merged into the weights in whatever is exported."""

    kind: str = setting("none", choices=("none", "lora"))
    """none (their weights change), or lora (low-rank changes beside them learn; without model.tune, of all blocks)."""
    rank: int = setting(8, lowest=1)
    """LoRA: rank of the changes."""
    alpha: float = setting(16.0, lowest=0)
    """LoRA: the changes are multiplied with alpha / rank."""
    targets: list[str] = setting(["attention", "mlp"], choices=("attention", "mlp"))
    """LoRA: linear layers that are changed, of attention and mlp."""


@dataclass
class SyntheticConfig:
    """The images that vpexp draws itself."""

    scene: str = setting("vineyard", choices=("cells", "vineyard", "shapes"))
    """cells (with bright nuclei), vineyard (clusters of berries among leaves) or shapes (stars, rings, crescents)."""
    image_size: int = setting(256, lowest=32, highest=4096)
    """Width and height of a drawn image, in pixels."""
    train: int = setting(48, lowest=1)
    """Images of the train split."""
    val: int = setting(12, lowest=0)
    """Images of the val split."""
    test: int = setting(16, lowest=0)
    """Images of the test split."""
    seed: int = setting(0, lowest=0)
    """What the drawing starts from: the same seed, the same images."""


@dataclass
class DataConfig:
    """Which images, and how they are read."""

    name: str = "${data.format}"
    """What the run is tagged with."""
    _target_: str | None = None
    """A class of your own that reads another format, a subclass of ``vpexp.data.readers.base.Reader``; null: ``format`` says."""
    options: dict[str, Any] = _open_section()
    """What ``_target_`` takes beside the folder."""
    format: str = setting(MISSING, choices=(*FORMATS, "auto", "synthetic"))
    """coco, voc, datumaro, common_semantic_segmentation, auto (found by looking) or synthetic."""
    root: str | None = None
    """Folder of the data set; null only for synthetic images, which then lie in the cache folder."""
    train_split: str = "train"
    """The data set's own name of the split to learn from."""
    val_split: str = "val"
    """The data set's own name of the split that early stopping looks at."""
    test_split: str = "test"
    """The data set's own name of the split to test on; where it is missing, the val split is tested."""
    val_fraction: float = 0.2
    """Share of the train split that is set aside where there is no val split."""
    instances: str = setting("components", choices=("components", "classes"))
    """Semantic masks: one object for each connected component, or one for each class (classes)."""
    crowd: str = setting("skip", choices=("skip", "keep"))
    """Regions annotated as crowd: skip and count them, or keep them as objects (CVAT writes all masks of its brush as crowd)."""
    unannotated: str = setting("skip", choices=("skip", "keep"))
    """Images without any annotation: skip and count them, or keep them as images in which there is nothing to find."""
    allow_outside: bool = False
    """Use files outside of the folder (data.root, source) that links, absolute paths or .. name; otherwise they are counted."""
    strict: bool = False
    """A broken image or object is an error instead of being skipped and counted."""
    batch_size: int = setting(2, lowest=1)
    """Images of a training step; testing goes image by image."""
    num_workers: int = setting(2, lowest=0)
    """Processes that read images beside the training; 0 reads in the training process."""
    limit_images: int | None = setting(None, lowest=1)
    """At most so many images of each split, for a trial."""
    tile: int | None = setting(None, lowest=32)
    """Side in pixels of the square tiles that images are cut into, each shown to the model by itself; null: whole images are resized."""
    tile_overlap: float = setting(0.25, lowest=0, highest=0.75)
    """Share of its side that a tile has in common with the next: 0 to 0.75. What is smaller than this lies whole in a tile."""
    augment: list[str] = setting([], choices=("flip", "turn", "photo"))
    """Training images also mirrored (flip) and turned by 90 degrees (turn), each variant with an embedding of its own; and in other
    colours in each epoch (photo), which needs cache=none: docs/training.md."""
    keep: str | None = None
    """Train: folder of another data set, whose format is found by looking; what the training costs on its val split is said."""
    synthetic: SyntheticConfig | None = None
    """What to draw, for the format synthetic."""


@dataclass
class PromptConfig:
    """The prompts that the model is given for each object."""

    type: str = setting("box", choices=("box", "point", "both", "clicks", "auto"))
    """box, point, both (each object by one of the two; the box wins), clicks (a first prompt, then clicks on its errors), or auto
    (test: nothing, the model finds the objects by its prompter)."""
    jitter: float = setting(0.0, lowest=0)
    """Training: each side of a box moves outwards by U(0, jitter) of its length."""
    test_jitter: float = setting(0.0, lowest=0)
    """The same in val and test, seeded by image and object."""
    max_per_image: int | None = setting(None, lowest=1)
    """Training: at most so many objects of an image in a step; null takes all."""
    clicks: int = setting(5, lowest=1)
    """Clicks in val and test: at most so many for each object."""
    first: str = setting("point", choices=("point", "box"))
    """Clicks in val and test: what comes first, point (the first click, deepest inside the object) or box (clicks correct it)."""
    box_share: float = setting(0.5, lowest=0, highest=1)
    """Clicks in training: share of the objects whose first prompt is a box, so that boxes are not forgotten."""
    train_rounds: int = setting(3, lowest=0)
    """Clicks in training: each object's mask is corrected 0 to so many times before it is learnt from."""
    feed_mask: bool = True
    """Clicks: the decoder is also given the mask that a click corrects."""
    multimask: str = setting("auto", choices=("auto", "always", "never"))
    """Which prompts are answered by the best of three masks: auto (one point alone), always, never."""


@dataclass
class PrompterConfig:
    """What finds objects without prompts, and names them; it is learnt after the decoder, from the same embeddings and annotations."""

    enabled: bool = True
    """false learns none: the model then answers prompts only."""
    steps: int = setting(500, lowest=1)
    """Steps of its training at most; early stopping may end it sooner."""
    batch_size: int = setting(4, lowest=1)
    """Images or tiles of a step."""
    lr: float = setting(2e-3, lowest=0)
    """Highest learning rate: it rises for a tenth of the steps, and falls to 0."""
    evaluate_every: int = setting(100, lowest=1)
    """Steps between two looks at val."""
    patience: int = setting(4, lowest=1)
    """Looks at val without a better one, after which training ends."""
    width: int = setting(128, lowest=16)
    """Channels of the head; a multiple of 32."""
    depth: int = setting(1, lowest=0)
    """Residual blocks of the head before it enlarges its maps."""
    limit: int = setting(300, lowest=1)
    """Boxes of an image or tile, at most."""
    classifier_steps: int = setting(400, lowest=1)
    """Steps in which what names the masks learns from crops of them."""
    max_overlap: float = setting(0.6, lowest=0, highest=1)
    """Of masks whose IoU is higher, only the best is kept."""


@dataclass
class LossConfig:
    """The weighted sum that training minimises."""

    focal_weight: float = setting(20.0, lowest=0)
    """Weight of the focal loss of the mask."""
    dice_weight: float = setting(1.0, lowest=0)
    """Weight of the dice loss of the mask."""
    iou_weight: float = setting(1.0, lowest=0)
    """Weight of the squared error of the predicted IoU."""
    focal_alpha: float = 0.25
    """Weight of object pixels against background pixels (1 - alpha) in the focal loss."""
    focal_gamma: float = setting(2.0, lowest=0)
    """How strongly the focal loss ignores pixels that are right already."""
    resolution: str = setting("input", choices=("low", "input", "original"))
    """Where masks are compared: low (the decoder's cells, 4 x 4 pixels), input (the resized image) or original (slow, no better)."""
    _target_: str | None = None
    """A loss of your own: a class that is built with this section, as ``vpexp.training.losses.MaskLoss`` is."""
    options: dict[str, Any] = _open_section()
    """Settings of a loss of your own."""


@dataclass
class TrainerConfig:
    """The training loop and the device it runs on."""

    max_epochs: int = setting(100, lowest=1)
    """Epochs at most; early stopping may end sooner."""
    accelerator: str = setting("auto", choices=("auto", "cpu", "gpu", "cuda", "mps"))
    """Where everything runs, in all stages: auto (a GPU where there is one), cpu, gpu, cuda (NVIDIA, AMD) or mps (Apple)."""
    devices: Any = 1
    """How many devices, or which: 2, auto, [1], "0,1". Each takes data.batch_size images a step, in a process of its own; what does
    not train runs on the first."""
    strategy: str = "auto"
    """auto (ddp where there are several devices), ddp, or for one device another strategy of PyTorch Lightning."""
    blend: int | float | str | None = None
    """Weights between the start and the best epoch: auto (the mixture that keeps 90 % of the gain and costs other prompts least, on val),
    the best epoch's share, 0 to 1, or null: docs/training.md."""
    precision: str = setting("auto", choices=("auto", "32", "32-true", "16", "16-mixed", "bf16", "bf16-mixed"))
    """What steps compute in: auto (bf16-mixed on a GPU that computes it, else 32-true), 32-true, bf16-mixed, 16-mixed, ..."""
    compile: bool = False
    """Compile the image encoder by torch.compile, which takes a minute or more: for many images on a GPU. Embeddings are torch's then."""
    gradient_clip_val: float | None = setting(None, lowest=0)
    """Largest norm of the gradient; null does not clip."""
    gradient_checkpointing: bool = False
    """Compute the image encoder's blocks again in the backward pass instead of remembering them: less memory, a third more time."""
    accumulate_grad_batches: int = setting(1, lowest=1)
    """Batches whose gradients are summed before a step."""
    log_every_n_steps: int = setting(10, lowest=1)
    """Steps between two logged training losses."""
    deterministic: bool | str = "warn"
    """true, false, or warn: deterministic where the device can, a warning where it cannot."""
    limit_train_batches: int | float | None = None
    """Train batches of an epoch: a number, or a share of all; null takes all."""
    limit_val_batches: int | float | None = None
    """The same for val batches."""
    threads: int | None = setting(None, lowest=1)
    """CPU threads of torch; null leaves torch's own choice."""
    logger: bool = True
    """Write TensorBoard's files; metrics.csv is written either way."""
    extra: dict[str, Any] = _open_section()
    """Further arguments of Lightning's Trainer, as ``trainer.extra.overfit_batches=1``; what has a ``_target_`` is built."""


@dataclass
class CacheConfig:
    """The embeddings of a frozen image encoder, kept below ``paths.cache_dir``, so that each image is encoded once."""

    enabled: bool = True
    """false encodes each image whenever it is used."""
    max_gb: float = 20.0
    """What the embeddings of all encoders may take, in 10^9 bytes; what was not used for longest goes first."""
    precision: str = setting("float16", choices=("float16", "float32", "int8"))
    """float16 (at 1024 px 2.1 MB an image, SAM 2 8.4 MB), float32 (twice that), or int8 (half of it, each channel in 256 levels)."""
    compute: str = setting("auto", choices=("auto", "float32", "bfloat16"))
    """What the encoder computes in: float32, bfloat16, or auto: a training's filling in bfloat16 where trainer.precision comes to it."""
    backend: str = setting("auto", choices=("auto", "torch", "openvino"))
    """What encodes on a CPU: torch, openvino (converted in ten seconds), or auto: openvino from 32 images of 1024 px on."""


@dataclass
class ExportConfig:
    """What a trained model is written as."""

    format: str = setting("openvino", choices=("openvino", "onnx", "sam"))
    """openvino (IR), onnx, or sam (one file of weights in the official layout)."""
    precision: str = setting("FP32", choices=("FP32", "FP16"))
    """FP32, or FP16: weights at half the size. The decoder stays FP32 then, unless decoder_precision says otherwise."""
    decoder_precision: str = setting("FP32", choices=("FP32", "FP16"))
    """FP32, or FP16, which moves some mask pixels."""
    target: str = setting(VPEXP, choices=EXPORT_TARGETS)
    """Which tool runs the files: vpexp, official (segment-anything's ports), model_api, x_anylabeling, cvat or label_studio."""
    return_single_mask: bool = True
    """Target official: the decoder gives one mask, chosen by the number of points; false: all four."""


@dataclass
class PtqConfig:
    """How an exported model is quantized by NNCF."""

    parts: list[str] = setting(
        ["image_encoder", "decoder", "prompter"], choices=("image_encoder", "decoder", "prompter")
    )
    """Parts that are quantized, of image_encoder, decoder and, where the model has one, prompter."""
    method: str = setting("int8", choices=("int8", "weights"))
    """int8 (weights and activations) or weights (weights only)."""
    preset: str = setting("mixed", choices=("mixed", "performance"))
    """Activations: mixed (asymmetric where it helps) or performance (symmetric)."""
    model_type: str | None = setting("transformer", choices=("transformer",))
    """transformer (attention kept precise), or null."""
    overflow_fix: str = setting("enable", choices=("enable", "first_layer", "disable"))
    """enable (weights use 7 bits, safe on CPUs without VNNI), first_layer or disable."""
    smooth_quant: bool = True
    """Move large values from activations into weights before rounding."""
    bias_correction: str = setting("fast", choices=("fast", "full", "none"))
    """fast, full (layer after layer, slow) or none."""
    activation_range: str = setting("minmax", choices=("minmax", "mean"))
    """minmax (what all calibration images reach), or mean (the mean of each image's extremes: finer, but cuts off)."""
    subset_size: int = setting(32, lowest=1)
    """Training images to calibrate on, at most."""
    max_drop: float | None = setting(None, lowest=0)
    """Largest loss of f1-score on the val split; parts become safer until it holds. null: no limit."""


@dataclass
class PredictConfig:
    """How images without annotation are segmented."""

    points_per_side: int = setting(16, lowest=1, highest=256)
    """prompts=grid: points along each side of the image."""
    min_score: float = setting(0.0, lowest=0, highest=1)
    """Masks whose predicted IoU is lower are left out; 0 keeps all. For prompts=grid it is at least grid_min_score, for
    prompts=auto the score is meant, and it is at least auto_score."""
    grid_min_score: float = setting(0.7, lowest=0, highest=1)
    """prompts=grid: lowest predicted IoU of a mask that is kept."""
    grid_stability: float = setting(0.0, lowest=0, highest=1)
    """prompts=grid: lowest stability score of a mask that is kept; 0.95 suits official weights, 0.3 sam_micro: docs/stages.md."""
    grid_box_overlap: float = setting(0.7, lowest=0, highest=1)
    """prompts=grid: of masks whose boxes have a higher IoU, only the best is kept; before grid_overlap. 1: all are."""
    grid_overlap: float = setting(0.7, lowest=0, highest=1)
    """prompts=grid: of masks whose IoU with each other is higher, only the best is kept; 1 leaves it at their boxes."""
    grid_min_area: int = setting(0, lowest=0)
    """prompts=grid: islands and holes of fewer pixels are removed from masks; 0: none."""
    auto_score: float | None = setting(None, lowest=0, highest=1)
    """prompts=auto: lowest score of a mask that is kept; null: the one that the training chose on val."""
    keep_annotated: bool = True
    """prompts=dataset: objects that have a mask keep it, and only boxes without one are predicted; false predicts all."""


@dataclass
class OutputConfig:
    """The data set that predicted masks become."""

    format: str | None = setting(None, choices=FORMATS)
    """Predict: coco, voc, datumaro or common_semantic_segmentation; null writes no data set."""
    folder: str | None = None
    """Where it is written, a new folder; null: ``dataset`` in the run's folder."""
    split: str = setting("train", choices=("train", "val", "test"))
    """The split that images of ``source`` belong to; those of prompts=dataset keep theirs."""
    masks: str = setting("polygon", choices=("polygon", "rle"))
    """COCO: polygon (exact; masks with holes, which polygons cannot have, as run lengths) or rle (all as run lengths)."""
    images: str = setting("copy", choices=("copy", "symlink"))
    """copy the image files, or symlink to them."""
    overlap: str = setting("keep", choices=("keep", "cut"))
    """Masks that overlap: keep (both have the pixels) or cut (the better score has them); formats of images always cut."""
    max_iou: float = setting(1.0, lowest=0, highest=1)
    """Of two masks of an image whose IoU is higher only the better one is written; 1 keeps both."""


@dataclass
class DemoConfig:
    """The local page on which clicks become masks."""

    host: str = "127.0.0.1"
    """Where the page is served; the default lets in this machine only, 0.0.0.0 whoever reaches it."""
    port: int | None = setting(8000, lowest=1, highest=65535)
    """The port; null takes the next free one from 8000."""
    open_browser: bool = False
    """Also open the page in a browser."""
    folder: str | None = None
    """Where the data set of kept masks lies and grows over sessions; null: ``<paths.output_dir>/labels/<source's name>``."""
    labels: list[str] = setting(["object"])
    """What masks may be called; the page adds more, and offers those that the folder has already, and the model's classes."""
    embeddings: int = setting(16, lowest=1)
    """Encoded images that are kept in memory, 4 MB each at 1024 px."""
    learn: bool = True
    """Learn from what is kept in a process of its own, and take up what is better on labelled images that are held out."""
    learn_every: int | None = setting(None, lowest=1)
    """Images that are labelled between two rounds of learning; null: a half more than the last one knew: after 1, 2, 3, 5, 8, 12, 18, 27, 37 …"""
    learn_epochs: int = setting(3, lowest=1)
    """Epochs of the decoder in a round."""
    learn_steps: int = setting(200, lowest=1)
    """Steps of the prompter in a round, at most."""
    learn_lr: float = setting(1e-4, lowest=0)
    """Learning rate of the decoder in a round."""


@dataclass
class TrackingConfig:
    """Where MLflow records the run."""

    enabled: bool = True
    """false keeps the run folder only."""
    uri: str = "sqlite:///${paths.output_dir}/mlflow.db"
    """MLflow's store: the address of a server, or of a database; what follows ``sqlite:///`` is a path, as it stands."""
    experiment: str | None = None
    """MLflow's experiment; null: one a data set, with its name."""
    run_name: str | None = None
    """MLflow's run name; null: stage, what was asked for, model, data and time, as ``train lr=1e-3 sam_micro grapes 20261121_101500``."""
    parent: str | None = None
    """Folder of a run that this one belongs to: it is recorded below it, and does not become the latest of its stage."""
    tags: dict[str, str] = _open_section(str)
    """Tags of your own, as ``tracking.tags.project=grapes``."""
    register: str | None = None
    """Export, ptq, pipeline: the name in MLflow's model registry whose next version the exported model becomes, or null."""


@dataclass
class SweepConfig:
    """What a sweep (``python -m vpexp -m``) is after, and whether it goes on."""

    metric: str | None = None
    """The number that names the best job; null: f1-score of val, or of what was tested."""
    direction: str = setting("maximize", choices=("maximize", "minimize"))
    """maximize or minimize."""
    resume: str | None = None
    """The folder of a sweep that goes on: what has not finished is run."""


@dataclass
class PathsConfig:
    """Where vpexp writes."""

    output_dir: str = "outputs"
    """Run folders, the latest links and the MLflow database."""
    cache_dir: str = "${oc.env:VPEXP_CACHE_DIR,'~/.cache/vpexp'}"
    """Downloaded weights, drawn images, and embeddings."""


@dataclass
class Config:
    """The whole configuration."""

    stage: StageConfig = field(default_factory=StageConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = _open_section()
    prompter: PrompterConfig = field(default_factory=PrompterConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    ptq: PtqConfig = field(default_factory=PtqConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    demo: DemoConfig = field(default_factory=DemoConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    seed: int = setting(0, lowest=0)
    """Where all randomness starts."""
    checkpoint: str | None = None
    """What to start from: a .ckpt, an exported .xml or .onnx, a run folder, or latest; null: the model as it comes."""
    resume: str | None = None
    """A checkpoint or run folder whose training or pipeline goes on where it stopped. It keeps its model, optimizer, scheduler and
    what its finished steps have used; other keys may change. Classes of your own that it names are repeated: docs/trust.md."""
    source: str | None = None
    """Predict, demo: an image, a folder of images, or a pattern as ``photos/*.jpg``."""
    run: str | None = None
    """Sync: the folder of a run, a pipeline or a sweep, or one that holds many."""
    prompts: str | None = None
    """Predict: auto (the model finds and names objects by itself), grid (points all over the image), a JSON file of boxes and points by
    image, or dataset: the boxes of the data set that ``data`` names. null: auto where the model has learnt to, else grid."""
