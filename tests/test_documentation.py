"""Documents against the code: the commands that they show, the keys that they name, and the version."""

import argparse
import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml
from tiny import ROOT, WORLD

import src
from src.bench.sizes import SHORT, Sizes
from src.bench.sizes import parse as parse_bench
from src.config.load import load_config
from src.config.plan import Plan, load_plan

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*/*.yaml")])
MARKDOWN = [path for path in DOCUMENTS if path.suffix == ".md"]
PROGRAM = re.compile(r"\bbash (scripts/\w+\.sh)|\bpython (?:-m (src\.[\w.]+)|([\w/]+\.py))")
NUMBER = re.compile(r"[+-]?\d[\d,.]*\d|[+-]?\d")
PLACEHOLDERS = {"PATH": "a/file", "PHOTO": "a/file", "URL": "http://host", "NAME": "a-name", "N": "3", "R": "1"}


class Command(NamedTuple):
    """A command as a document shows it: its program (a script, a module or a file), and what stands behind it."""

    document: Path
    program: str
    arguments: str


class Parsed(Exception):
    """Raised in place of running a program on the arguments that it has read."""


def commands() -> list[Command]:
    """Those in code of a document, and in the head of a configuration."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        if document.suffix == ".md":
            blocks = re.findall(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
            inline = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
            lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
            lines += [" ".join(code.split()) for code in inline]
        else:
            lines = [line.removeprefix("#") for line in text.splitlines() if line.startswith("#")]
        for line in lines:
            shown = re.sub(r"(^|\s)#.*", "", line)
            for match in PROGRAM.finditer(shown):
                found.append(Command(document, next(filter(None, match.groups())), shown[match.end() :]))
    return found


COMMANDS = commands()


def module_and_arguments(program: str) -> tuple[str, list[str]]:
    """What a script or file runs: a module, and the arguments that the script puts first."""
    path = ROOT / program
    if path.suffix == ".sh":
        (line,) = re.findall(r'^exec "\$PYTHON" -m (.*) "\$@"$', path.read_text(), re.MULTILINE)
        module, *first = line.split()
        return module, first
    if path.suffix == ".py":
        assert path.is_file()
        return program.removesuffix(".py").replace("/", "."), []
    return program, []


def filled_in(arguments: str, config: str) -> list[str]:
    """The arguments with what a user puts in: optional ones given, placeholders and shell variables replaced."""
    words = re.sub(r"""["'\[\]]""", "", arguments).split()
    words = [word.removesuffix("...") for word in words if word.strip(".") not in ("", "key=value")]
    words = [re.sub(r"\$\{[^}]*\}|\$\w+", "3", word) for word in words]
    values = {"FILE": config} | PLACEHOLDERS
    pairs = [word.rpartition("=") for word in words]
    return [f"{key}{equals}{values.get(value, value)}" for key, equals, value in pairs]


def program_of(module: str) -> Callable[[], None]:
    """Its main function."""
    is_package = (ROOT / module.replace(".", "/")).is_dir()
    return importlib.import_module(f"{module}.__main__" if is_package else module).main


def parsed(module: str, arguments: list[str], monkeypatch) -> argparse.Namespace:
    """What a program's own parser reads from its arguments; it is not run."""
    parse = argparse.ArgumentParser.parse_intermixed_args

    def stop(parser):
        raise Parsed(parse(parser))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", stop)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(Parsed) as raised:
        program_of(module)()
    return raised.value.args[0]


@pytest.mark.parametrize(
    "command", COMMANDS, ids=[f"{number}-{command.document.name}" for number, command in enumerate(COMMANDS)]
)
def test_a_command_is_understood_as_it_is_shown(command, monkeypatch):
    """Its program exists, has the flags, and its configuration exists and takes the keys and values."""
    module, first = module_and_arguments(command.program)
    goal = first[0] if first and first[0] != "eval" else "comparison" if module == "src.commands.comparison" else "grpo"
    arguments = filled_in(command.arguments, f"configs/demo/{goal}.yaml")
    if module == "pytest" or module.startswith("scripts."):  # without a parser of ours
        return
    if module == "src.bench":
        parse_bench(arguments)
        return
    monkeypatch.chdir(WORLD)
    if not arguments and module not in ("src.commands.pipeline", "src.commands.comparison"):  # a program is spoken of
        assert callable(program_of(module))
        return
    given = parsed(module, [*first, *arguments], monkeypatch)
    load = load_plan if module == "src.commands.comparison" else load_config
    if "config" in given:
        load(Path(given.config or f"configs/demo/{goal}.yaml"), given.overrides)


def test_commands_are_found():
    assert {"README.md", "ascend.md", "data.md", "rewards.md", "results.md", "grpo.yaml"} <= {
        command.document.name for command in COMMANDS
    }
    used = {command.program for command in COMMANDS}
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("scripts/*.sh")} - {"scripts/env.sh"} <= used
    assert {"train.py", "eval.py", "src.readiness", "src.commands.check"} <= used


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: path.name)
def test_a_key_that_a_document_names_exists(document):
    keys = dotted(yaml.safe_load((ROOT / "configs/base.yaml").read_text()))
    keys |= {*SHORT, *Sizes.__dataclass_fields__, *Plan.__dataclass_fields__, "key"}
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.DOTALL | re.MULTILINE)
    named = {
        word.partition("=")[0]
        for code in re.findall(r"`([a-z][\w.]*=[^`]*)`", text)
        for word in re.findall(r"[a-z][\w.]*=", code)
    }
    assert named - keys == set()


def dotted(tree: dict, prefix: str = "") -> set[str]:
    """The keys of nested sections, with dots."""
    nested = {key: value for key, value in tree.items() if isinstance(value, dict)}
    inner = [dotted(value, f"{prefix}{key}.") for key, value in nested.items()]
    return {prefix + key for key in tree if key not in nested}.union(*inner)


def definitions(path: Path) -> dict[str, str]:
    """The functions and classes of a file, and what their docstrings say."""
    nodes = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return {node.name: ast.get_docstring(node) or "" for node in nodes}


@pytest.mark.parametrize("document", MARKDOWN, ids=lambda path: path.name)
def test_a_file_or_function_that_a_document_names_exists(document):
    page = document.read_text()
    shown = set(re.findall(r"^`([\w/]+\.py)`:$", page, re.MULTILINE))  # files that the page has the user write
    text = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    for path, name in re.findall(r"`([\w/]+\.py)(?:: (\w+))?`", text):
        assert path in shown or (ROOT / path).is_file(), path
        assert not name or name in definitions(ROOT / path), f"{path}: {name}"
    for module in re.findall(r"\bsrc(?:\.\w+)+", text):
        assert importlib.util.find_spec(module), module
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert "://" in link or (document.parent / link).exists(), link


def test_every_loss_and_advantage_stands_beside_its_equation():
    """And whatever else has a formula from a paper, which its docstring names."""
    page = (ROOT / "docs/algorithms.md").read_text()
    names = ("rl/advantage", "losses/grpo", "losses/tokens", "losses/cross_entropy", "training/optim", "rewards/length")
    files = [ROOT / f"src/{name}.py" for name in names]
    cited = {
        name: path
        for path in files
        for name, text in definitions(path).items()
        if re.search(r"arXiv|et al\.|Hutter", text)
    }
    assert len(cited) >= 7
    assert {name for name, path in cited.items() if f"`{path.relative_to(ROOT)}: {name}`" not in page} == set()


def test_there_is_one_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == src.__version__
    newest = re.search(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest[1] == src.__version__
    assert f"version = {{{src.__version__}}}" in (ROOT / "README.md").read_text()


def test_readme_cites_what_the_citation_file_does():
    entries = (ROOT / "README.md").read_text().partition("```bibtex\n")[2].partition("```")[0].split("@")[1:]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    for entry, cited in zip(entries, [citation, *citation["references"]], strict=True):
        flat = " ".join(entry.replace("{", "").replace("}", "").split())
        assert cited["title"] in flat
        names = [
            author.get("name") or f"{author['family-names']}, {author['given-names']}" for author in cited["authors"]
        ]
        assert f"author = {' and '.join(names)}," in flat
        assert "url" not in cited or cited["url"].rpartition("/")[2] in flat


def translated(text: str) -> dict[str, list]:
    """What the two languages of README share, section by section: links, code, commands and numbers."""
    shared: dict[str, list] = {"commands": [], "code": [], "links": [], "tables": [], "numbers": []}
    for section in re.split(r"^## ", text, flags=re.MULTILINE):
        blocks = re.findall(r"^```\w+\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
        prose = re.sub(r"^```.*?^```", "", section, flags=re.DOTALL | re.MULTILINE)
        shared["commands"].append([re.sub(r"\s+#.*", "", line) for block in blocks for line in block.splitlines()])
        shared["code"].append(sorted(re.findall(r"`([^`]+)`", prose)))
        shared["links"].append(sorted(re.findall(r"\]\(([^)]+)", prose)))
        rows = [line for line in prose.splitlines() if line.startswith("|")]
        shared["tables"].append([(row.count("|"), re.findall(NUMBER, row)) for row in rows])
        bare = re.sub(r"`[^`]+`|\]\([^)]+\)", "", prose)
        shared["numbers"].append(sorted(re.findall(NUMBER, bare)))
    return shared


@pytest.mark.parametrize("what", ["commands", "code", "links", "tables", "numbers"])
def test_both_languages_of_readme_say_the_same(what):
    """Change README_zh.md with README.md."""
    english, chinese = ((ROOT / name).read_text() for name in ("README.md", "README_zh.md"))
    assert "](README_zh.md)" in english.partition("##")[0] and "](README.md)" in chinese.partition("##")[0]
    expected = translated(english.replace("](README_zh.md)", "](README.md)"))[what]
    assert translated(chinese)[what] == expected
    assert any(expected)
