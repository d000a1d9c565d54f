"""Pictures: the files are PNG as others read it, and show what was drawn."""

import struct
import zlib

import numpy as np
import pytest

from moesaic.adapt.font import DOTS, HEIGHT, WIDTH, dots_of, glyphs
from moesaic.adapt.png import GREY, INK, SCALE, SIGNATURE, Canvas, colours
from moesaic.adapt.route_plots import draw_all
from moesaic.experts.recorder import RouteRecorder, Rows


def decoded(data):
    """The pixels of a PNG file whose rows are stored as they are; every length and checksum is right."""
    assert data.startswith(SIGNATURE)
    place, chunks = len(SIGNATURE), []
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        content = data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length :][:4])[0] == zlib.crc32(kind + content)
        chunks.append((kind, content))
        place += 12 + length
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *form = struct.unpack(">IIBBBBB", chunks[0][1])
    assert form == [8, 2, 0, 0, 0]
    rows = np.frombuffer(zlib.decompress(chunks[1][1]), dtype=np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


def test_a_file_holds_the_pixels():
    canvas = Canvas(7, 5)
    canvas.box(2, 1, 3, 2)
    pixels = decoded(canvas.png())
    inked = (pixels == INK).all(-1)
    assert inked[1:3, 2:5].all() and inked.sum() == 6 and (pixels[~inked] == 255).all()


def test_others_read_it():
    image = pytest.importorskip("PIL.Image")
    from io import BytesIO

    canvas = Canvas(40, 30)
    canvas.text(1, 1, "Ag 7", scale=1)
    canvas.cells(0, 15, np.linspace(0, 1, 40)[None], 1, 15)
    assert (np.asarray(image.open(BytesIO(canvas.png())).convert("RGB")) == canvas.pixels).all()


def test_colours_go_from_light_to_dark():
    shades = colours(np.linspace(0, 1, 50)).astype(int).sum(-1)
    assert (np.diff(shades) < 0).all()
    assert (colours(np.array([0.0, 1.0, 2.0])) == SCALE[[0, -1, -1]]).all()
    assert (colours(np.array(np.nan)) == GREY).all()


def test_letters_differ_and_fit_their_places():
    letters = glyphs()
    assert set("0123456789ABCXYZabcxyz.,:-+%()/ ") <= set(letters)
    assert len({dots.tobytes() for dots in letters.values()}) == len(letters)
    assert all(dots.shape == (HEIGHT, WIDTH) and not dots[:, -1].any() for dots in letters.values())
    assert sum(dots.sum() for dots in letters.values()) == DOTS.count("#")
    assert (dots_of("a\N{SNOWMAN}")[:, WIDTH:] == dots_of("?")).all() and dots_of("").shape == (HEIGHT, 0)


@pytest.mark.parametrize("align", ["left", "centre", "right"])
def test_text_at_the_edge_is_cut_off(align):
    for x, y in ((-5, -5), (0, 0), (18, 8), (100, 100)):
        canvas = Canvas(20, 10)
        canvas.text(x, y, "words", align=align)
        assert canvas.pixels.shape == (10, 20, 3)
    canvas = Canvas(100, 40)
    canvas.text(50, 10, "words", align=align)
    columns = np.flatnonzero((canvas.pixels == INK).all(-1).any(0))
    place = {"left": columns[0] - 50, "centre": (columns[0] + columns[-1]) // 2 - 50, "right": columns[-1] - 50}[align]
    assert abs(place) <= 4


def test_pictures_of_recorded_routes(tmp_path):
    """Of two layers of 4 and 3 experts: cells are as dark as their share, and those that are not there are grey."""
    made = RouteRecorder("tiny", [0, 2], [4, 3], [1, 1])
    ids = np.array([[[0], [2]]] * 3 + [[[1], [2]]], dtype=np.int16)
    made.add(Rows(ids, np.ones(ids.shape, np.float32), ["a/../b", "c"]))
    paths = draw_all(made.profile(), str(tmp_path / "new" / "folder"))
    names = [path.rsplit("/", 1)[1] for path in paths]
    assert names == ["experts.png", "experts-0-a-b.png", "experts-1-c.png"]  # one choice a token: none together
    pixels = decoded((tmp_path / "new" / "folder" / "experts.png").read_bytes())
    for share in (3.0, 1.0, 0.0):  # of layer 0, in multiples of an even share; all of layer 2 go to one expert
        assert (pixels == colours(np.array(share / 3))).all(-1).sum() >= 28 * 28
    assert (pixels == GREY).all(-1).sum() == 28 * 28

    both = RouteRecorder("tiny", [0], [3], [2])
    ids = np.array([[[0, 2]], [[2, 1]], [[0, 2]]], dtype=np.int16)
    both.add(Rows(ids, np.ones(ids.shape, np.float32), []))
    paths = draw_all(both.profile(), str(tmp_path))
    assert [path.rsplit("/", 1)[1] for path in paths] == ["experts.png", "together.png"]
    pixels = decoded((tmp_path / "together.png").read_bytes())
    assert (pixels == GREY).all(-1).sum() == 3 * 16 * 16
