"""The pictures of the documents: small, and drawn as the terminal has them."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests.pictures.drawing import draw

PICTURES = sorted((Path(__file__).parent.parent / "docs" / "pictures").iterdir())
SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.name)
def test_pictures_are_small(picture: Path) -> None:
    assert picture.stat().st_size < 150 * 1024


def test_text_stands_at_its_columns_with_its_looks() -> None:
    screen = "\x1b[1mhead\x1b[0m  <b>\n漢字  \x1b[7mx\x1b[0m\n"
    root = ElementTree.fromstring(draw(screen, 20))
    head, angle, wide, turned = root.findall(f"{SVG}text")
    assert (head.text, head.get("font-weight")) == ("head", "bold")
    assert (angle.text, angle.get("font-weight")) == ("<b>", None)
    assert float(angle.get("x", 0)) - float(head.get("x", 0)) == pytest.approx(6 * 8.4, abs=0.1)
    assert float(wide.get("textLength", 0)) == pytest.approx(4 * 8.4, abs=0.1)
    assert float(turned.get("x", 0)) == pytest.approx(float(angle.get("x", 0)), abs=0.1)
    assert len(root.findall(f"{SVG}rect")) == 2
