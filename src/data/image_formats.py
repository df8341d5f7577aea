"""Kinds of image files: those that are always read, those that need a package, and undeveloped (raw) photographs.

A package is imported only when a file needs it: the import takes time.
"""

import functools

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


_BY_SUFFIX = {
    **dict.fromkeys((".avif", ".avifs"), "AVIF"),
    **dict.fromkeys((".heic", ".heif", ".hif", ".heics", ".heifs"), "HEIC"),
}
_BY_BRAND = {  # of ISO media files
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
}
_INSTALL = {"AVIF": "pip install 'pillow>=11.3'", "HEIC": "pip install pillow-heif"}
KNOWN_SUFFIXES = (*SUFFIXES, *_BY_SUFFIX)


def formats_of(data: bytes) -> tuple[str, ...]:
    """Return the formats that Pillow may try on a file's bytes. Raises UnusableImage if it can read none."""
    if data.startswith(_RAW_SIGNATURES) or data[4:12] == b"ftypcrx " or (data[:2] == b"II" and data[8:10] == b"CR"):
        raise UnusableImage(RAW)
    if data[4:8] != b"ftyp":
        return ALWAYS
    box = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    brands = (box[place : place + 4] for place in range(0, len(box), 4))
    kinds = {_BY_BRAND[brand] for brand in brands if brand in _BY_BRAND}
    if not kinds:
        return ALWAYS
    kind = min(kinds)  # AVIF files may name mif1 too
    if not _is_installed(kind):
        raise UnusableImage(f"{kind} needs {_INSTALL[kind]}")
    return ("HEIF" if kind == "HEIC" else kind,)  # Pillow's name


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
        return f"{suffix} needs {_INSTALL[_BY_SUFFIX[suffix]]}"
    return f"{suffix} is {RAW}" if suffix in _RAW_SUFFIXES else None


@functools.cache
def _is_installed(kind: str) -> bool:
    try:
        if kind == "AVIF":
            from PIL import AvifImagePlugin

            return AvifImagePlugin.SUPPORTED
        from pillow_heif import register_heif_opener

        register_heif_opener()
    except ImportError:
        return False
    return True
