"""Pictures: a canvas to draw on, and PNG files (ISO/IEC 15948), which numpy and zlib suffice to write."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

from moesaic.adapt.font import HEIGHT, WIDTH, dots_of

Colour = tuple[int, int, int]
INK, FRAME, GREY = (40, 40, 40), (150, 150, 150), (222, 222, 222)
SIGNATURE = b"\x89PNG\r\n\x1a\n"
# from little to much, light to dark, so that it reads in grey too
SCALE = np.array([(247, 251, 255), (198, 219, 239), (107, 174, 214), (33, 113, 181), (8, 48, 107), (3, 19, 43)])


def colours(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Colours `[..., 3]` of numbers from 0 to 1; grey where there is none (NaN)."""
    place = np.nan_to_num(np.clip(values, 0, 1)) * (len(SCALE) - 1)
    low = np.minimum(place.astype(int), len(SCALE) - 2)
    part = (place - low)[..., None]
    mixed = SCALE[low] * (1 - part) + SCALE[low + 1] * part
    mixed[np.isnan(values)] = GREY
    return mixed.round().astype(np.uint8)


class Canvas:
    """A white picture `[height, width]`; x goes right, y down."""

    def __init__(self, width: int, height: int) -> None:
        self.pixels = np.full((height, width, 3), 255, dtype=np.uint8)

    def box(self, x: int, y: int, width: int, height: int, colour: Colour = INK) -> None:
        """A filled rectangle."""
        self.pixels[y : y + height, x : x + width] = colour

    def text(self, x: int, y: int, text: str, scale: int = 2, colour: Colour = INK, align: str = "left") -> None:
        """A line of text from, around ("centre") or up to ("right") x; what would stand outside is cut off."""
        dots = dots_of(text).repeat(scale, 0).repeat(scale, 1)
        x -= {"left": 0, "centre": dots.shape[1] // 2, "right": dots.shape[1]}[align]
        left = max(0, -x)
        area = self.pixels[max(0, y) : y + dots.shape[0], max(0, x) : max(0, x + dots.shape[1])]
        dots = dots[max(0, -y) :, left:]
        area[dots[: area.shape[0], : area.shape[1]]] = colour

    def cells(self, x: int, y: int, values: NDArray[np.floating], width: int, height: int) -> None:
        """A matrix of numbers from 0 to 1, each a rectangle."""
        image = colours(values).repeat(height, 0).repeat(width, 1)
        self.pixels[y : y + image.shape[0], x : x + image.shape[1]] = image

    def framed(self, x: int, y: int, values: NDArray[np.floating], width: int, height: int) -> None:
        """The same, with a line around it."""
        rows, columns = values.shape
        self.box(x - 1, y - 1, columns * width + 2, rows * height + 2, FRAME)
        self.cells(x, y, values, width, height)

    def png(self) -> bytes:
        """The file."""
        height, width, _ = self.pixels.shape
        rows = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each begins with 0: stored as it is
        rows[:, 1:] = self.pixels.reshape(height, -1)
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, red green blue
        body = zlib.compress(rows.tobytes(), 9)
        return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def text_width(text: str, scale: int = 2) -> int:
    """Pixels that a text takes."""
    return len(text) * WIDTH * scale


def text_height(scale: int = 2) -> int:
    """Pixels of a line."""
    return HEIGHT * scale


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
