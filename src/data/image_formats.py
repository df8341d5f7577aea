"""Kinds of image files: those that are always read, those that need a package, and undeveloped (raw) photographs.

A package is imported only when a file needs it: the import takes time.
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
    """The name of a format, its suffixes and brands (of ISO media files), and how to install its package."""

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
_BY_SUFFIX = {suffix: format for format, extra in _EXTRAS.items() for suffix in extra.suffixes}
KNOWN_SUFFIXES = (*SUFFIXES, *_BY_SUFFIX)


def formats_of(data: bytes) -> tuple[str, ...]:
    """Return the formats that Pillow may try on a file's bytes. Raises UnusableImage if it can read none."""
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
    """Return why a file is not read that Pillow does not recognise."""
    kind = next((kind for signature, kind in _SIGNATURES.items() if data.startswith(signature)), None)
    return f"a {kind} file that is broken or of an unsupported kind" if kind else "not an image"


def is_read(suffix: str) -> bool:
    """Return whether files of a suffix, in lower case with its dot, are images that can be read here."""
    return suffix in SUFFIXES or (suffix in _BY_SUFFIX and _is_installed(_BY_SUFFIX[suffix]))


def needs(suffix: str) -> str | None:
    """Return what to do before files of a suffix can be read; None if these are no images."""
    if suffix in _BY_SUFFIX:
        return f"{suffix} needs {_EXTRAS[_BY_SUFFIX[suffix]].install}"
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
