"""Drawn scenes: images whose every object is known to the pixel."""

from vpexp.data.scenes.shapes import SHAPES, draw_shapes
from vpexp.data.scenes.types import Scene, SceneDrawer
from vpexp.data.scenes.vineyard import VINEYARD, draw_vineyard

SCENES: dict[str, SceneDrawer] = {"vineyard": VINEYARD, "shapes": SHAPES}

__all__ = ["SCENES", "Scene", "SceneDrawer", "draw_shapes", "draw_vineyard"]
