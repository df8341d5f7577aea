"""Kinds of image files: those that are always read, those that need a package, and what is no developed picture.

A package is looked for when a file needs it, not before: its import takes time.
"""

import functools
from typing import NamedTuple

ALWAYS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF")  # one by one: Pillow starts external programs for some (EPS)
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"BM": "BMP",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
}
_RAW_SIGNATURES = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb")  # RAF, ORF, RW2, X3F
_RAW_SUFFIXES = (
    *(".dng", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".orf", ".rw2", ".raf", ".pef", ".srw"),
    *(".3fr", ".iiq", ".x3f", ".erf", ".mef", ".mos", ".kdc", ".dcr", ".rwl"),
)
RAW = "a raw photograph: save it as JPEG"


class UnusableImage(ValueError):
    """Says why a file cannot be used."""


class _Extra(NamedTuple):
    """What a format is called, the suffixes and brands (of ISO media files) that tell it, and how it is installed."""

    name: str
    suffixes: tuple[str, ...]
    brands: tuple[bytes, ...]
    install: str


_EXTRAS = {
    "AVIF": _Extra("AVIF", (".avif", ".avifs"), (b"avif", b"avis"), "pip install 'pillow>=11.3'"),
    "HEIF": _Extra(
        "HEIC",
        (".heic", ".heif", ".hif", ".heics", ".heifs"),
        (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"),
        "pip install pillow-heif",
    ),
}
KNOWN_SUFFIXES = (*SUFFIXES, *(suffix for extra in _EXTRAS.values() for suffix in extra.suffixes))


def formats_of(data: bytes) -> tuple[str, ...]:
    """What Pillow may take the bytes of a file for. Raises UnusableImage that says why they cannot be read."""
    if data.startswith(_RAW_SIGNATURES) or data[4:12] == b"ftypcrx " or (data[:2] == b"II" and data[8:10] == b"CR"):
        raise UnusableImage(RAW)
    if data[4:8] != b"ftyp":
        return ALWAYS
    box = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    brands = {box[place : place + 4] for place in range(0, len(box), 4)}
    for format, extra in _EXTRAS.items():  # AVIF files may name mif1 too
        if not brands.isdisjoint(extra.brands):
            if not _is_installed(format):
                raise UnusableImage(f"{extra.name} needs {extra.install}")
            return (format,)
    return ALWAYS


def unidentified(data: bytes) -> str:
    """Why a file is not read that Pillow takes for none of its formats."""
    kinds = [kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)]
    return f"a {kinds[0]} file that is broken, or of a kind that is not read" if kinds else "not an image"


def is_read(suffix: str) -> bool:
    """Whether files of a suffix, in lower case with its dot, are images that can be read here."""
    extras = [format for format, extra in _EXTRAS.items() if suffix in extra.suffixes]
    return suffix in SUFFIXES or any(map(_is_installed, extras))


def needs(suffix: str) -> str | None:
    """What must be done before files of a suffix can be read; None for those that are no images."""
    installs = [extra.install for extra in _EXTRAS.values() if suffix in extra.suffixes]
    if installs:
        return f"{suffix} needs {installs[0]}"
    return f"{suffix} is {RAW}" if suffix in _RAW_SUFFIXES else None


@functools.cache
def _is_installed(format: str) -> bool:
    try:
        if format == "AVIF":
            from PIL import AvifImagePlugin

            return AvifImagePlugin.SUPPORTED
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        return False
    return True
