"""Pictures embedded in a page, so that it is self-contained."""

from __future__ import annotations

import base64
import html
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

SVG, XLINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
LARGEST = 1_500_000  # bytes of an SVG in a page; above, the PNG is smaller and as good
DPI = 200  # of the PNGs (figures.base.write_drawing)
# elements that draw; all others are left out: they hold addresses, run or load something, or set what does
DRAWING = {
    *("svg", "g", "defs", "symbol", "use", "path", "rect", "circle", "ellipse", "line", "polyline", "polygon"),
    *(
        "text",
        "tspan",
        "textPath",
        "image",
        "title",
        "desc",
        "clipPath",
        "mask",
        "pattern",
        "marker",
        "linearGradient",
        "radialGradient",
        "stop",
        "filter",
    ),
}
REFERENCE = re.compile(r"url\(\s*['\"]?#([^)'\"\s]+)['\"]?\s*\)")


@dataclass(frozen=True)
class Picture:
    """``markup``: an svg or img element. ``width``: of the drawing, in points (1/72 inch). ``files``: names of all its formats."""

    stem: str
    markup: str
    width: float
    files: tuple[str, ...] = ()


def picture(stem: str, names: list[str], folder: Path, prefix: str, alt: str) -> Picture | None:
    """The picture of the files ``names`` in ``folder``: as SVG, where the pointer shows numbers, else as PNG. None if neither is there.

    ``prefix``: put before every id, so that two pictures of a page share none.
    """
    files = {Path(name).suffix: folder / Path(name).name for name in names}
    files = {suffix: path for suffix, path in files.items() if path.is_file()}
    formats = tuple(path.name for path in files.values())
    svg, png = files.get(".svg"), files.get(".png")
    if svg is not None and (png is None or svg.stat().st_size <= LARGEST):
        try:
            markup, width = inlined(svg.read_bytes(), prefix, alt)
            return Picture(stem, markup, width, formats)
        except ElementTree.ParseError:
            pass  # cut off or no SVG: the PNG shows the same
    if png is None:
        return None
    data = png.read_bytes()
    encoded = base64.b64encode(data).decode()
    return Picture(stem, f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{encoded}">', png_width(data), formats)


def png_width(data: bytes) -> float:
    """Width of a PNG in points, as drawn at ``DPI``; one column of a paper where the header is not a PNG's."""
    return struct.unpack(">I", data[16:20])[0] * 72 / DPI if data[:4] == b"\x89PNG" and len(data) >= 20 else 245.0


def inlined(svg: bytes, prefix: str, alt: str) -> tuple[str, float]:
    """An SVG file as an element of a page, and its width in points.

    Every id and every reference to one gets ``prefix``. Rules for all elements (``*{...}``), which would reach the whole page, become
    inherited properties of the picture. What would load or run something is left out. Raises ElementTree.ParseError if it is no SVG.
    """
    ElementTree.register_namespace("", SVG)
    ElementTree.register_namespace("xlink", XLINK)
    root = ElementTree.fromstring(svg)
    if root.tag != f"{{{SVG}}}svg":
        raise ElementTree.ParseError(f"{root.tag} is no svg element")
    width = _points(root)
    styles = _stripped(root)
    for element in root.iter():
        for name, value in list(element.attrib.items()):
            element.attrib.update(_renamed(name, value, prefix))
            if _unwanted(name, value):
                del element.attrib[name]
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    root.attrib.update({"role": "img", "aria-label": alt, "style": ";".join(filter(None, [*styles, root.get("style", "")]))})
    if not root.get("style"):
        del root.attrib["style"]
    return ElementTree.tostring(root, encoding="unicode"), width


def _points(root: ElementTree.Element) -> float:
    """Width of an svg element: its own in points, else its view box's, else one column of a paper."""
    match = re.fullmatch(r"([\d.]+)(pt|px|in)?", root.get("width", ""))
    box = root.get("viewBox", "").replace(",", " ").split()
    if match:
        width = float(match[1]) * {"in": 72.0, "px": 0.75}.get(match[2], 1.0)
        if len(box) != 4 and root.get("height"):  # without a view box the drawing would not follow its width
            height = float(re.sub(r"[a-z]+$", "", root.get("height", "")))
            root.set("viewBox", f"0 0 {match[1]} {height:g}")
        return width
    return float(box[2]) if len(box) == 4 else 245.0


def _stripped(root: ElementTree.Element) -> list[str]:
    """Takes out what a page must not hold; returns the declarations that the picture's style sheets make for all its elements."""
    styles = []
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag == f"{{{SVG}}}style":
                styles += re.findall(r"\*\s*\{\s*([^}]*?)\s*;?\s*\}", child.text or "")
            if child.tag not in {f"{{{SVG}}}{name}" for name in DRAWING}:
                parent.remove(child)
    return [style for style in styles if not _unwanted("style", style)]


def _renamed(name: str, value: str, prefix: str) -> dict[str, str]:
    """The attribute with the ids in it prefixed."""
    local = name.rpartition("}")[2]
    if local == "id":
        return {name: prefix + value}
    if local == "href" and value.startswith("#"):
        return {name: f"#{prefix}{value[1:]}"}
    if local in ("aria-labelledby", "aria-describedby"):
        return {name: " ".join(prefix + word for word in value.split())}
    return {name: REFERENCE.sub(lambda match: f"url(#{prefix}{match[1]})", value)}


def _unwanted(name: str, value: str) -> bool:
    """Whether an attribute runs a script or loads something from outside the page."""
    local = name.rpartition("}")[2].lower()
    outside = re.search(r"url\((?!\s*['\"]?(#|data:image/))|@import|expression\(", value, re.IGNORECASE)
    return local.startswith("on") or bool(outside) or (local in ("href", "src") and not value.startswith(("#", "data:image/")))
