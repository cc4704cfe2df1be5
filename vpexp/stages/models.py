"""``stage=models``: the models that vpexp knows, with what they cost."""

from vpexp.console import PlainTable, console
from vpexp.models.complexity import compute_complexity
from vpexp.models.registry import get_model_info, list_models
from vpexp.stages.shared.context import StageResult


def run() -> StageResult:
    """Print the table of models; no run is opened for it."""
    table = PlainTable(title="models")
    for name in ("name", "recipe", "input", "parameters", "GFLOPs", "size"):
        table.add_column(name, justify="left" if name in ("name", "recipe") else "right")
    metrics: dict[str, float] = {}
    for name in list_models():
        info = get_model_info(name)
        cost = compute_complexity(name)
        table.add_row(
            name,
            info.recipe,
            f"{info.image_size} px",
            f"{cost.parameters / 1e6:.2f} M",
            f"{cost.gflops:.2f}",
            f"{cost.megabytes:.1f} MB",
        )
        metrics |= {f"{name}/gflops": cost.gflops, f"{name}/parameters": float(cost.parameters)}
    console.print(table)
    console.print("GFLOPs: one image encoded and one box decoded, a multiply-add counted as two; size: float32 weights")
    return StageResult(metrics)
