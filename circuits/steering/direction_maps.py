"""Heatmaps of a search for a direction: how well each layer and token separates, and how alike the layers' are."""

from pathlib import Path

from circuits.drawing.heatmap import heatmap
from circuits.scores import Floats

AREAS, COSINES = "directions.svg", "cosines.svg"


def draw_areas(areas: Floats, folder: Path, *, what: str) -> None:
    """Draw ``directions.svg``: AUC by layer (from layer 1 up) and token (the last one last), ``(layer, token)``."""
    layers, tokens = areas.shape
    heatmap(
        areas - 0.5,
        rows=[str(layer) for layer in range(1, layers + 1)],
        columns=[str(token) for token in range(-tokens, 0)],
        title=f"{what}: how well directions tell other pairs apart",
        colour_label="AUC above chance (0.5)",
        path=folder / AREAS,
        row_label="layer",
        column_label="token from the end",
    )


def draw_cosines(cosines: Floats, folder: Path, *, what: str) -> None:
    """Draw ``cosines.svg``: between the directions of every two layers from layer 1 up, ``(layer, layer)``."""
    labels = [str(layer) for layer in range(1, len(cosines) + 1)]
    heatmap(
        cosines,
        rows=labels,
        columns=labels,
        title=what,
        colour_label="cosine",
        path=folder / COSINES,
        row_label="layer",
        column_label="layer",
    )
