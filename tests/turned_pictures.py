"""One picture as a camera stores it in each of the eight orientations, in every container, and how it looks upright."""

import io
import struct
import warnings

import datasets
import numpy as np
from hostile_images import png_chunk
from PIL import Image, PngImagePlugin, TiffImagePlugin

ORIENTATION = 0x0112
EIGHT = range(1, 9)
JPEG = {"quality": 95, "subsampling": 0}
# Upright: no row, column, or diagonal of it is a mirror of another. Its colours survive JPEG in blocks of 8.
UPRIGHT = np.kron(
    np.random.default_rng(3).integers(0, 256, (3, 4, 3), dtype=np.uint8), np.ones((16, 16, 1), dtype=np.uint8)
)


def stored(orientation: int, upright: np.ndarray = UPRIGHT) -> np.ndarray:
    """The rows and columns that are stored, by the table of the EXIF standard: where row 0 and column 0 lie.

    1 top, left; 2 top, right; 3 bottom, right; 4 bottom, left; 5 left, top; 6 right, top; 7 right, bottom; 8 left,
    bottom.
    """
    lines = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1]}
    columns = upright.swapaxes(0, 1)
    lines |= {5: columns, 6: columns[::-1], 7: columns[::-1, ::-1], 8: columns[:, ::-1]}
    return np.ascontiguousarray(lines[orientation])


def exif_of(orientation: object, order: str = "<") -> bytes:
    """EXIF of a camera: maker, orientation, resolution and software in the first directory, and a thumbnail's second.

    Laid out by hand; the text and the fractions lie behind both directories.
    """
    kind, value = (3, struct.pack(f"{order}HH", orientation, 0)) if isinstance(orientation, int) else (2, orientation)
    second = 8 + 2 + 4 * 12 + 4
    values = second + 2 + 12 + 4
    entries = [
        (0x010F, 2, 6, struct.pack(f"{order}I", values)),
        (ORIENTATION, kind, 1 if kind == 3 else 4, value),
        (0x011A, 5, 1, struct.pack(f"{order}I", values + 6)),
        (0x0131, 2, 5, struct.pack(f"{order}I", values + 14)),
    ]
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8)
    first = struct.pack(f"{order}H", 4) + b"".join(
        struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries
    )
    thumbnail = struct.pack(f"{order}HHHIHHI", 1, 0x0103, 3, 1, 6, 0, 0)
    texts = b"Maker\0" + struct.pack(f"{order}II", 72, 1) + b"Soft\0"
    return b"Exif\0\0" + head + first + struct.pack(f"{order}I", second) + thumbnail + texts


def xmp_of(orientation: object) -> bytes:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Make="M" '
        f'tiff:Orientation="{orientation}"/></rdf:RDF></x:xmpmeta>'
    ).encode()


def save(pixels: np.ndarray, container: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, container, **options)
    return file.getvalue()


def with_exif(pixels: np.ndarray, container: str, exif: bytes) -> bytes:
    """`pixels` in a container that carries these bytes as EXIF, whatever they are."""
    if container == "PNG behind the pixels":
        png = save(pixels, "PNG")
        return png[:-12] + png_chunk(b"eXIf", exif.removeprefix(b"Exif\0\0")) + png[-12:]
    if container == "PNG as ImageMagick":
        text = PngImagePlugin.PngInfo()
        text.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n", zip=True)
        return save(pixels, "PNG", pnginfo=text)
    options = JPEG if container == "JPEG" else {"lossless": True}
    return save(pixels, container, exif=exif, **options)


def turned(orientation: int, container: str) -> bytes:
    """The upright picture, stored in this orientation, with the tag that says so."""
    pixels = stored(orientation)
    if container.startswith("TIFF"):
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[ORIENTATION] = orientation
        return save(pixels, "TIFF", tiffinfo=tags, compression="tiff_lzw" if "LZW" in container else None)
    if container.endswith("XMP"):
        name = container.removesuffix(" XMP")
        if name == "PNG":
            text = PngImagePlugin.PngInfo()
            text.add_itxt("XML:com.adobe.xmp", xmp_of(orientation).decode())
            return save(pixels, name, pnginfo=text)
        return save(
            pixels,
            name,
            xmp=xmp_of(orientation),
            **(JPEG if name == "JPEG" else {"lossless": True}),
        )
    name, _, order = container.partition(", ")
    return with_exif(pixels, name, exif_of(orientation, ">" if order == "Motorola" else "<"))


CONTAINERS = (
    "JPEG, Intel", "JPEG, Motorola", "JPEG XMP", "PNG", "PNG behind the pixels", "PNG as ImageMagick", "PNG XMP",
    "WEBP", "WEBP XMP", "TIFF", "TIFF LZW",
)  # fmt: skip


def pixels_of(data: bytes) -> np.ndarray:
    """As Pillow alone reads them; it warns of broken EXIF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def plain(pixels: np.ndarray, container: str) -> np.ndarray:
    """What this container makes of pixels where no tag is: JPEG is not exact, but the same for each of flat blocks."""
    return pixels_of(save(pixels, "JPEG", **JPEG)) if container.startswith("JPEG") else pixels


def same(found: Image.Image | np.ndarray, expected: np.ndarray) -> bool:
    return np.array_equal(np.asarray(found), expected)


def as_datasets_decodes(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        # Pillow warns of broken EXIF.
        warnings.simplefilter("ignore")
        return datasets.Image(mode="RGB").decode_example({"bytes": data, "path": None})
