"""Drawn scenes: images whose every object is known to the pixel."""

from vpexp.synthetic.canvas import Scene, SceneDrawer
from vpexp.synthetic.cells import CELLS
from vpexp.synthetic.shapes import SHAPES, draw_shapes
from vpexp.synthetic.vineyard import VINEYARD, draw_vineyard

SCENES: dict[str, SceneDrawer] = {"cells": CELLS, "vineyard": VINEYARD, "shapes": SHAPES}

__all__ = ["SCENES", "Scene", "SceneDrawer", "draw_shapes", "draw_vineyard"]
