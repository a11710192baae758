"""How a picture becomes a file: PNG and GIF bytes, the palette, and tiles with words beside them.

Knows nothing of models.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from latentry.pixels import to_pillow
from training.figures import Grid, tile

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# "muted" of Paul Tol, Colour Schemes (SRON/EPS/TN/09-002, 2021), told apart by colour-blind eyes, and a dark grey
PALETTE = (
    "#332288", "#88CCEE", "#44AA99", "#117733", "#999933", "#DDCC77", "#CC6677", "#882255", "#AA4499", "#666666",
)  # fmt: skip
DPI = 100
_INK = (40, 40, 40)
_FONT_SIZE = 12
_MARGIN = 6
_COLOURS = 64  # of a frame of a GIF, and of a chart
_FRAME_MS = 450
_LAST_MS = 2500


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of `width` x `height` hundreds of pixels."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # slow to import, and not always needed
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def one_axes(figure: Figure) -> Axes:
    """The one chart of a figure that has one."""
    axes: Axes = figure.subplots()
    return axes


def rendered(figure: Figure) -> Image.Image:
    """The figure's pixels, RGB."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)  # noqa: S101 - so `new_figure` made it
    canvas.draw()  # type: ignore[no-untyped-call]
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")  # type: ignore[no-untyped-call]


def png(picture: Image.Image | Grid | Figure) -> bytes:
    """The smallest PNG that we can make of it. Charts get a palette, as they have few colours; photographs none."""
    if isinstance(picture, np.ndarray):
        image = to_pillow(picture)
    elif isinstance(picture, Image.Image):
        image = picture
    else:
        image = rendered(picture).quantize(_COLOURS * 2, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def gif(frames: Sequence[Image.Image]) -> bytes:
    """An endless animation of equally large frames that rests on the last one. All share the last one's palette."""
    palette = frames[-1].convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE)
    reduced = [frame.convert("RGB").quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times_ms = [_FRAME_MS] * (len(frames) - 1) + [_LAST_MS]
    file = io.BytesIO()
    reduced[0].save(
        file, "GIF", save_all=True, append_images=reduced[1:], duration=times_ms, loop=0, optimize=True, disposal=1
    )
    return file.getvalue()


def captioned(picture: Image.Image, text: str) -> Image.Image:
    """`picture` under a line of text on white."""
    height = _FONT_SIZE + 2 * _MARGIN
    whole = Image.new("RGB", (picture.width, picture.height + height), "white")
    whole.paste(picture, (0, height))
    ImageDraw.Draw(whole).text((_MARGIN, _MARGIN - 2), text, _INK, _font())
    return whole


def labelled(
    images: NDArray[np.uint8], columns: int, row_names: Sequence[str] = (), column_names: Sequence[str] = ()
) -> Image.Image:
    """Images (N, H, W, C) in rows of `columns`, with a name to the left of each row and above each column."""
    grid = to_pillow(tile(images, columns))
    font = _font()
    left = max((round(font.getlength(name)) for name in row_names), default=-2 * _MARGIN) + 2 * _MARGIN
    top = _FONT_SIZE + 2 * _MARGIN if column_names else 0
    colour = "RGB" if images.shape[3] == 3 else "L"
    whole = Image.new(colour, (left + grid.width, top + grid.height), "white")
    whole.paste(grid, (left, top))
    draw, ink = ImageDraw.Draw(whole), _INK if colour == "RGB" else _INK[0]
    rows = -(-len(images) // columns)
    for row, name in enumerate(row_names):
        draw.text((left - _MARGIN, top + (row + 0.5) * grid.height / rows), name, ink, font, anchor="rm")
    for column, name in enumerate(column_names):
        width = grid.width / columns
        draw.text((left + (column + 0.5) * width, top - _MARGIN), _cut(name, width), ink, font, anchor="ms")
    return whole


def _cut(name: str, width: float) -> str:
    """As much of the name as `width` pixels hold."""
    while _font().getlength(name) > width:
        name = name.rstrip("…")[:-1] + "…"
    return name


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    """The font of the charts, which has Greek letters too."""
    import matplotlib as mpl  # slow to import

    return ImageFont.truetype(Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", _FONT_SIZE)
