"""Opens images: converts a file, bytes or a PIL image to 8-bit RGB, for benchmarks, training, the viewer and lmms-eval.

Whatever cannot be opened, decoded or held in memory raises OSError with a reason that is the same in every run, so that a caller can skip
the image, name it and go on.

Colour profiles are ignored, as LLaVA does. Depth and transparency: ``pixels``.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from PIL import ExifTags, Image, UnidentifiedImageError

from blink_exp.errors import ADDRESS, UserError, flat
from blink_exp.pixels import eight_bit, on_white, opaque
from blink_exp.settings.check import check_values
from blink_exp.settings.groups import MOST_PIXELS, ImageLoading

# No format whose decoder starts a program (EPS starts Ghostscript) or opens another file.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "AVIF")
EPS = (b"%!PS", b"\xc5\xd0\xd3\xc6")
SETTINGS = "image_loading."
MOST_ASPECT = 400  # longer side / shorter side: CLIP-L/336 makes the shorter one 336 long and keeps the aspect, 45 million pixels then
CANVAS_SIDE = 8192  # of a square that an image is padded to, at most: 200 MB
URL = re.compile(r"[a-z][a-z0-9+.-]+://|(data|file|javascript):", re.IGNORECASE)
NAME = 120  # characters of a path in a message
TRANSPOSE = Image.Transpose
UPRIGHT = {  # EXIF orientation: what turns the stored pixels upright
    2: TRANSPOSE.FLIP_LEFT_RIGHT,
    3: TRANSPOSE.ROTATE_180,
    4: TRANSPOSE.FLIP_TOP_BOTTOM,
    5: TRANSPOSE.TRANSPOSE,
    6: TRANSPOSE.ROTATE_270,
    7: TRANSPOSE.TRANSVERSE,
    8: TRANSPOSE.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # those of them that exchange width and height
INVERSE = {TRANSPOSE.ROTATE_90: TRANSPOSE.ROTATE_270, TRANSPOSE.ROTATE_270: TRANSPOSE.ROTATE_90}

T = TypeVar("T")

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # max_pixels stands in for it


@dataclasses.dataclass(frozen=True)
class ImageOptions:
    """How images are opened: the settings ``image_loading``.

    Args:
        exif: whether images are turned upright where their EXIF data says how they lie.
        alpha: ``white``: transparent parts show white, as a browser shows them; ``drop``: the alpha channel is ignored, as LLaVA does with
            ``convert("RGB")``, and the colour beneath shows.
        max_pixels: width x height of a decoded image, at most. A larger JPEG is decoded at a half, a quarter or an eighth of its size.
        outside: whether the path of a row may lead out of the folder of its data set.
    """

    exif: bool = True
    alpha: str = "white"
    max_pixels: int = 50_000_000
    outside: bool = False

    def __post_init__(self) -> None:
        for name, value in check_values(ImageLoading, SETTINGS, dataclasses.asdict(self)).items():
            object.__setattr__(self, name, value)  # "false" is false
        if self.alpha is None:
            raise UserError(f"{SETTINGS}alpha=null is for a benchmark's protocol to settle; use white or drop")

    @classmethod
    def of(cls, settings: Mapping[str, object] | ImageOptions | None, protocol: str = "own", exif: bool | None = None) -> ImageOptions:
        """Options from a configuration. ``protocol``: the benchmark's, which resolves ``alpha: null``; ``exif``: overrides the setting."""
        if isinstance(settings, ImageOptions):
            options = settings
        else:
            values: dict[str, Any] = dict(settings or {})
            check_values(ImageLoading, SETTINGS, values)
            if values.get("alpha") is None:
                values["alpha"] = "drop" if protocol == "llava" else "white"
            options = cls(**values)
        return options if exif is None else dataclasses.replace(options, exif=exif)


DEFAULT = ImageOptions()


def open_image(source: Any, options: ImageOptions = DEFAULT, root: str | Path | None = None) -> Image.Image:
    """Opens an image as a new RGB image without metadata.

    Args:
        source: a path, encoded bytes, or a cell of an image column, {"bytes": ..., "path": ...}, whose bytes come first.
        root: the folder of the data set: a relative path starts there, and none may leave it; None: any path, from the working folder.

    Raises OSError, in one line of up to 200 characters, for whatever cannot be opened.
    """
    return _read(source, options, root, to_rgb)


def image_size(source: Any, options: ImageOptions = DEFAULT, root: str | Path | None = None) -> tuple[int, int]:
    """(width, height) of what ``open_image`` opens. A JPEG file is not decoded, and its size is that before ``max_pixels`` shrinks it."""
    return _read(source, options, root, _upright_size)


def _read(source: Any, options: ImageOptions, root: str | Path | None, convert: Callable[[Image.Image, ImageOptions], T]) -> T:
    """What ``convert`` makes of the source of ``open_image``."""
    data, path = (source.get("bytes"), source.get("path")) if isinstance(source, dict) else (source, None)
    data = path if data is None else data
    if data is None:
        raise OSError("the row has no image")
    if isinstance(data, bytes | bytearray):
        return _decode(io.BytesIO(data), "the image", options, convert)
    if not isinstance(data, str | os.PathLike):
        raise OSError(f"the row's image is neither bytes nor a path but {type(data).__name__}")
    name = os.fspath(data)
    path_on_disk, label = resolve_path(name, root, options.outside), flat(name, NAME)
    with _open_file(path_on_disk, label) as file:
        return _decode(file, label, options, convert)


def _open_file(path: str, name: str) -> IO[bytes]:
    """Opens a regular file. Raises OSError for anything else: a FIFO would block, and a device would be read forever."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except FileNotFoundError:
        raise OSError(f"{name} is missing (No such file or directory)") from None
    except OSError as error:
        raise OSError(f"{name} cannot be read ({error.strerror or type(error).__name__})") from None
    raise OSError(f"{name} is {'a folder' if stat.S_ISDIR(mode) else 'no ordinary file'}, not an image")


def resolve_path(name: str, root: str | Path | None, outside: bool) -> str:
    """The real path of a data set's image path. Raises OSError if it is no valid path or leaves ``root``."""
    if not name or "\0" in name:
        raise OSError("the row's image is an empty path" if not name else "the row's image is no path (it holds a NUL)")
    if URL.match(name):
        raise OSError(why_refused(name))
    if root is None:
        return name
    path = os.path.join(root, name)
    if outside:
        return path
    path = os.path.realpath(path)
    if not is_inside(path, os.path.realpath(root)):
        raise OSError(why_refused(name))
    return path


def why_refused(name: str) -> str:
    """Why an image path of a data set that is a URL, or leads out of its folder, is not opened."""
    if URL.match(name):
        return f"{flat(name, 80)} is a URL, and nothing is downloaded; put the file in the data's folder"
    return f"{flat(name, 80)} leads out of the data's folder; image_loading.outside=true opens it all the same"


def is_inside(path: str, root: str) -> bool:
    """Whether one real path lies below another."""
    return path.startswith(os.path.join(root, ""))


@functools.cache
def formats() -> tuple[str, ...]:
    """The members of ``FORMATS`` that this Pillow supports."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _decode(file: IO[bytes], name: str, options: ImageOptions, convert: Callable[[Image.Image, ImageOptions], T]) -> T:
    try:
        start = file.read(4)
    except OSError as error:  # a file of /proc, a disk that fails
        raise OSError(f"{name} cannot be read ({error.strerror or type(error).__name__})") from None
    if not start:
        raise OSError(f"{name} is empty")
    if start in EPS:
        raise OSError(f"{name} is an EPS file, whose decoder starts another program; convert it to PNG")
    file.seek(0)
    try:
        with Image.open(file, formats=formats()) as image:
            return convert(image, options)
    except UnidentifiedImageError:  # its message holds a memory address
        raise OSError(f"{name} is no image of a format that is read here ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        raise OSError(f"{name} has more than {MOST_PIXELS} pixels, and image_loading.max_pixels={options.max_pixels}") from None
    except Exception as error:  # on broken bytes a decoder raises whatever it met: OSError, SyntaxError, KeyError, struct.error, ...
        reason = f"{name}: {_error_text(error)}"
        raise OSError(flat(reason, 200)) from None


def _error_text(error: Exception) -> str:
    """An error's message without memory addresses, which differ from run to run; its type if the message is empty."""
    return ADDRESS.sub("the file", str(error)).strip() or type(error).__name__


def to_rgb(image: Image.Image, options: ImageOptions = DEFAULT, copy: bool = True) -> Image.Image:
    """Converts a PIL image of any mode to a new upright RGB image without metadata; idempotent. With ``copy=False``, an RGB image
    without metadata is returned unchanged.

    Raises OSError where it is too large or too thin; a file that is cut off raises what Pillow does.
    """
    check_aspect(image.size)
    shrink(image, options.max_pixels)
    check_pixels(image.size, options.max_pixels)  # before the metadata: a PNG may have them behind its pixels, and is decoded for them
    method = UPRIGHT.get(_orientation(image)) if options.exif or image.format == "TIFF" else None
    image.load()
    turned = image.format == "TIFF"  # Pillow applies the orientation of a TIFF on load
    if method is not None and turned != options.exif:
        image = image.transpose(INVERSE.get(method, method) if turned else method)
    image = eight_bit(image)
    if image.has_transparency_data:
        image = on_white(image) if options.alpha == "white" else opaque(image)
    if not copy and image.mode == "RGB" and not image.info:
        return image
    out = image.convert("RGB")  # a copy, where it was RGB before
    out.info = {}
    return out


def _upright_size(image: Image.Image, options: ImageOptions) -> tuple[int, int]:
    if image.format not in ("JPEG", "MPO"):  # the others may have their metadata behind their pixels
        return to_rgb(image, options).size
    check_aspect(image.size)
    width, height = image.size
    return (height, width) if options.exif and _orientation(image) in SIDEWAYS else (width, height)


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 where there is none or its data is broken."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken metadata does not make the image unusable
        return 1


def shrink(image: Image.Image, max_pixels: int) -> None:
    """Has a JPEG file with too many pixels decoded at the largest half, quarter or eighth of its size that has not. A progressive one is
    left alone: its decoder holds all of it whatever it returns."""
    if image.width * image.height <= max_pixels or image.format not in ("JPEG", "MPO") or image.info.get("progressive"):
        return
    for scale in (2, 4, 8):
        width, height = (-(-side // scale) for side in image.size)
        if width * height <= max_pixels:
            image.draft(None, (max(1, image.width // scale), max(1, image.height // scale)))  # None: the file's mode
            return


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Raises OSError for an image with more than ``max_pixels``."""
    if size[0] * size[1] > max_pixels:
        raise OSError(f"{size[0]} x {size[1]} pixels are more than image_loading.max_pixels={max_pixels}")


def check_aspect(size: tuple[int, int]) -> None:
    """Raises OSError for an image without a pixel, or one so thin that preprocessing, which keeps the aspect, would blow it up."""
    if not min(size) or max(size) > MOST_ASPECT * min(size):
        raise OSError(f"{size[0]} x {size[1]} pixels are too thin: no side may be more than {MOST_ASPECT} times the other")


def shrink_to_side(image: Image.Image, side: int = CANVAS_SIDE) -> Image.Image:
    """The image, made smaller where a square around it would be larger than ``side`` x ``side``."""
    longest = max(image.size)
    if longest <= side:
        return image
    width, height = (max(1, round(length * side / longest)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)
