"""A map of all images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, assert_never

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from finetune.errors import UsageError
from finetune.reporting.style import THEMES, ThemeName, display_names, font_families, new_axes
from finetune.tasks.class_scores import Floats, Integers

Projection = Literal["pca", "tsne"]
MARKERS = "osD^vP*X<>"


def embedding_figure(
    embeddings: NDArray[np.floating],
    labels: Integers,
    class_names: Sequence[str],
    *,
    projection: Projection = "pca",
    seed: int = 0,
    theme: ThemeName = "light",
) -> Figure:
    """Images as points in the plane, from ``embeddings (N, D)`` and ``labels (N,)``.

    Up to ten classes have a colour and a marker each; the members of more are labelled by their
    class's name at its middle.
    """
    points, title = project(embeddings, projection, seed=seed)
    figure, (ax,) = new_axes(theme, 5.2, 4.2)
    colours = THEMES[theme]
    present = np.unique(labels)
    names = display_names(class_names, limit=18)
    for order, index in enumerate(present):
        own = points[labels == index]
        if len(present) <= len(MARKERS):
            colour, marker = colours.palette[order % len(colours.palette)], MARKERS[order]
        else:
            colour, marker = colours.blue, "o"
        ax.scatter(
            own[:, 0],
            own[:, 1],
            s=18,
            marker=marker,
            color=colour,
            alpha=0.75,
            linewidths=0,
            label=names[index],
        )
    if len(present) > len(MARKERS):
        _name_middles(ax, points, labels, names, theme)
    else:
        legend = figure.legend(
            loc="outside right upper", frameon=False, labelcolor=colours.text, fontsize=9
        )
        for text in legend.get_texts():
            text.set_fontfamily(font_families())
    ax.set(xticks=[], yticks=[], title=title)
    return figure


def project(
    embeddings: NDArray[np.floating], projection: Projection, *, seed: int = 0
) -> tuple[Floats, str]:
    """Embeddings ``(N, D)`` as points ``(N, 2)``, and a title that says how.

    Raises:
        UsageError: fewer than two images.
    """
    if len(embeddings) < 2:
        raise UsageError(f"Expected at least two images to draw a map, found {len(embeddings)}.")
    match projection:
        case "pca":
            n_components = min(2, *embeddings.shape)
            pca = PCA(n_components, random_state=seed)
            points = pca.fit_transform(embeddings)
            points = np.pad(points, ((0, 0), (0, 2 - n_components)))
            share = 100 * float(np.nan_to_num(pca.explained_variance_ratio_).sum())
            return points, f"Map of the images (PCA, {share:.0f} % of the variance)"
        case "tsne":
            perplexity = min(30.0, (len(embeddings) - 1) / 3)
            tsne = TSNE(perplexity=max(perplexity, 0.3), init="pca", random_state=seed)
            return tsne.fit_transform(embeddings), "Map of the images (t-SNE)"
        case _:
            assert_never(projection)


def _name_middles(
    ax: Axes, points: Floats, labels: Integers, names: list[str], theme: ThemeName
) -> None:
    """Names at the middle of their class, or else at the image of it that is the nearest to the
    middle and still has room; none where the whole class lies under other names.
    """
    colours = THEMES[theme]
    room = np.ptp(points, axis=0) * (0.16, 0.035)  # what a name takes, roughly
    placed: list[Floats] = []
    for index in np.unique(labels):
        own = points[labels == index]
        middle = np.median(own, axis=0)
        outwards = own[np.linalg.norm(own - middle, axis=1).argsort(kind="stable")]
        free = (
            place
            for place in (middle, *outwards)
            if not any((np.abs(place - other) < room).all() for other in placed)
        )
        place = next(free, None)
        if place is None:
            continue
        placed.append(place)
        x, y = place
        ax.text(
            x,
            y,
            names[index],
            ha="center",
            va="center",
            fontsize=7,
            color=colours.text,
            fontfamily=font_families(),
            bbox={"facecolor": colours.background, "alpha": 0.6, "edgecolor": "none", "pad": 0.8},
        )
