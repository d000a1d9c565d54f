"""Everything in docs/steer.md, run from its top to its end in an empty folder."""

import shutil

import pytest

from tests.server.docs_reader import Reader, blocks_of


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page's commands need curl")
def test_everything_that_the_page_says(tmp_path):
    blocks = blocks_of("steer.md")
    assert len(blocks) > 6
    with Reader(tmp_path) as reader:
        for kind, block in blocks:
            reader.do(kind, block)
