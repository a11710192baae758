"""Photographs made as small as a model's images before they travel: the pixels are those that a server would make of
the files, but a few kilobytes arrive instead of megabytes. Knows nothing of messages.
"""

from __future__ import annotations

from PIL import Image

from latentry import pixels

# A file of no more than these travels as it is: 1024 of them, the most of a request, are within a server's limits.
SMALL_BYTES, SMALL_PIXELS = 1 << 14, 1 << 16
_MOST_PIXELS = 1 << 28  # of a file that is opened here
_FITS = {"crop": pixels.cover, "stretch": pixels.stretch}


class Fitting:
    """What `resize` is left to do with the image files of one call, for a model's `shape` (height, width, channels).

    Large files are fitted here, small ones travel as they are, and the server fits those.
    """

    def __init__(self, shape: tuple[int, int, int], resize: str | None) -> None:
        self._shape = shape
        self._resize = resize
        self.used = False  # whether any file was fitted

    def large(self, data: bytes) -> bytes:
        """A PNG of the model's size instead of a large file. One that cannot be read stays: the server says why."""
        if self._resize not in _FITS:
            return data
        try:
            if not self._is_large(data):
                return data
            fitted = pixels.to_file(pixels.to_array(as_read(data, self._shape, self._resize)), "PNG", 100)
        except Exception:  # Pillow raises a dozen kinds for broken files
            return data
        self.used = True
        return fitted

    def _is_large(self, data: bytes) -> bool:
        with pixels.open_file(data) as image:
            area = image.width * image.height
            fits = image.size == (self._shape[1], self._shape[0])
        return not fits and area <= _MOST_PIXELS and (len(data) > SMALL_BYTES or area > SMALL_PIXELS)


def as_read(data: bytes, shape: tuple[int, int, int], resize: str | None) -> Image.Image:
    """The image in a PNG, JPEG or WebP file as a server reads it for a model of this shape: upright, grey or RGB, and
    fitted if there is a `resize`. Raises what Pillow raises."""
    height, width, channels = shape
    if data.startswith(pixels.PNG):
        with pixels.open_file(data) as image:
            image.verify()  # its checksums, which loading passes over
    with pixels.open_file(data) as image:
        image.load()
        turn = pixels.turn(image)
        plain = pixels.plain(image, channels)
    upright = plain if turn is None else plain.transpose(turn)
    return upright if resize is None else _FITS[resize](upright, height, width)
