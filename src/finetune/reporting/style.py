"""What all figures share: colours in light and dark, and names that any font can show.

Figures are built from :class:`matplotlib.figure.Figure` directly, never through pyplot: no global
state, no window, safe in threads and on machines without a display.
"""

from __future__ import annotations

import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from PIL import Image

from finetune.files import write_bytes

ThemeName = Literal["light", "dark"]
MANY = 40  # from here on not every class can have its own row of text
MISSING_GLYPH = "□"

# Installed ones are asked in this order for what DejaVu Sans lacks: Chinese, Japanese, Korean, ...
FALLBACK_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans JP", "Noto Sans SC", "Source Han Sans",
    "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Hiragino Sans", "PingFang SC", "Microsoft YaHei",
    "Yu Gothic", "Malgun Gothic", "Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Theme:
    """Colours of one appearance; Okabe and Ito's palette, which colour-blind people can tell."""

    background: str
    text: str
    muted: str
    grid: str
    blue: str
    orange: str
    palette: tuple[str, ...]
    ramp: tuple[str, str, str]

    @property
    def colormap(self) -> LinearSegmentedColormap:
        """From the background to full colour; lightness alone tells the values apart."""
        return LinearSegmentedColormap.from_list("finetune", self.ramp)


THEMES: dict[ThemeName, Theme] = {
    "light": Theme(
        background="#ffffff",
        text="#1a1d21",
        muted="#5b6470",
        grid="#dfe3e8",
        blue="#0072b2",
        orange="#d55e00",
        palette=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000"),
        ramp=("#ffffff", "#6baed6", "#08306b"),
    ),
    "dark": Theme(
        background="#15181c",
        text="#e8eaed",
        muted="#a3acb8",
        grid="#363c44",
        blue="#56b4e9",
        orange="#f28e2b",
        palette=("#56b4e9", "#f28e2b", "#2fc79a", "#e39cc6", "#f0e442", "#9db7ff", "#ffffff"),
        ramp=("#15181c", "#2b7bba", "#d6ecff"),
    ),
}


def new_axes(
    theme: ThemeName,
    width: float,
    height: float,
    *,
    rows: int = 1,
    columns: int = 1,
    **options: Any,
) -> tuple[Figure, list[Axes]]:
    """A figure of ``rows * columns`` axes, ``width`` by ``height`` inches, in a theme's colours."""
    colours = THEMES[theme]
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    figure = Figure(figsize=(width, height), facecolor=colours.background, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for ax in axes:
        _dress(ax, colours)
    return figure, axes


def _dress(ax: Axes, theme: Theme) -> None:
    ax.set_facecolor(theme.background)
    ax.tick_params(colors=theme.text, which="both", labelsize=9)
    for side, spine in ax.spines.items():
        spine.set_color(theme.muted)
        spine.set_visible(side in ("left", "bottom"))
    for text in (ax.title, ax.xaxis.label, ax.yaxis.label):
        text.set_color(theme.text)
        text.set_fontfamily(font_families())
    ax.set_axisbelow(True)


def add_legend(ax: Axes, theme: ThemeName, **options: Any) -> None:
    """A legend in the theme's colours."""
    colours = THEMES[theme]
    legend = ax.legend(frameon=False, labelcolor=colours.text, fontsize=9, **options)
    for text in legend.get_texts():
        text.set_fontfamily(font_families())


def names_width(names: Sequence[str], fontsize: float) -> float:
    """Inches that the widest of some names takes, roughly; East Asian characters take two."""
    widest = max(sum(_columns(character) for character in name) for name in names)
    return widest * fontsize * 0.54 / 72


def set_names(axis: Any, positions: Sequence[float], names: Sequence[str], **options: Any) -> None:
    """Put names at the positions of ``ax.xaxis`` or ``ax.yaxis``, in fonts that have them."""
    axis.set_ticks(positions, labels=names)
    for text in axis.get_ticklabels():
        text.set(fontfamily=font_families(), **options)


def to_png(figure: Figure, *, dpi: int = 130) -> bytes:
    """The figure as a PNG of at most 256 colours, which halves its size or better."""
    raw = io.BytesIO()
    figure.savefig(raw, format="png", dpi=dpi)
    small = io.BytesIO()
    image = Image.open(raw).convert("RGB")
    image.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True
    )
    return small.getvalue()


def save_png(figure: Figure, path: Path) -> None:
    """Write the figure beside, then rename: the file is whole or not there."""
    write_bytes(path, to_png(figure))


def display_names(names: Sequence[str], *, limit: int = 24) -> list[str]:
    """Names that can be drawn: one line, at most ``limit`` columns wide, still all different.

    Characters that no installed font has become ``□``. A name that lost characters and would look
    like another one gets its number.
    """
    shown = [_drawable(name, limit) for name in names]
    return [
        text if text == name or shown.count(text) == 1 else f"{text} #{index}"
        for index, (text, name) in enumerate(zip(shown, names, strict=True))
    ]


def escape_math(text: str) -> str:
    """Dollar signs as they are, not as the start of a formula."""
    return text.replace("$", r"\$")


def _drawable(name: str, limit: int) -> str:
    known = _known_characters()
    line = " ".join(name.split()) or "(empty)"
    if sum(map(_columns, line)) > limit:
        line = f"{_start(line, limit // 2)}…{_start(line[::-1], limit - limit // 2 - 1)[::-1]}"
    return escape_math("".join(c if ord(c) in known else MISSING_GLYPH for c in line))


def _start(text: str, columns: int) -> str:
    """As many characters as fit into so many columns."""
    for end in range(len(text), 0, -1):
        if sum(map(_columns, text[:end])) <= columns:
            return text[:end]
    return ""


def _columns(character: str) -> int:
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


@cache
def font_families() -> tuple[str, ...]:
    """DejaVu Sans, which comes with matplotlib, and the installed fonts that have what it lacks."""
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return ("DejaVu Sans", *(name for name in FALLBACK_FONTS if name in installed))


@cache
def _known_characters() -> frozenset[int]:
    paths = [font_manager.findfont(family, fallback_to_default=False) for family in font_families()]
    known: set[int] = set()
    for path in paths:
        known.update(font_manager.get_font(str(Path(path))).get_charmap())
    return frozenset(known)
