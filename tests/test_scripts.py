"""The scripts' choice of a Python, with stand-ins for `python` on a PATH of our own: nothing is installed."""

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ["bash", "cat", "cp", "dirname", "find", "flock", "grep", "mkdir", "mv", "rm", "sed", "sleep", "tail"]
REQUIREMENTS = "mindspore~=2.9.0  # reason\n# comment\ncaptions>=1,<2\nonly-elsewhere==1 ; platform_machine == 'none'\n"
GOOD = {"mindspore": "2.9.0", "captions": "1.4"}

# A stand-in answers `check_python.py` with the real file, under a version and packages of our choice;
# `-m venv` puts a stand-in into the new folder; `-m pip` is noted down; any other program is printed.
STAND_IN = """#!{bash}
site="{site}"
if [ -e "$0.site" ]; then site="$0.site"; fi
case "$*" in
*check_python.py*) exec {real} -S -c '
import os, runpy, sys
sys.executable, site, sys.argv = os.path.abspath(sys.argv[1]), sys.argv[2], sys.argv[3:]
sys.version_info = ({version}, 0, "final", 0)
sys.path.insert(0, site)
runpy.run_path(sys.argv[0], run_name="__main__")' "$0" "$site" "$@" ;;
"-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "venv made by $0" >>"{calls}" ;;
"-m pip "*demo_requirements.txt)
    if [ -n "${{PIP_FAILS:-}}" ]; then echo "ERROR: No matching distribution found for gradio" >&2; exit 1; fi
    mkdir "$0.site/gradio-5.50.0.dist-info"
    printf "Metadata-Version: 2.1\nName: gradio\nVersion: 5.50.0\n" >"$0.site/gradio-5.50.0.dist-info/METADATA"
    echo "page installed" >>"{calls}" ;;
"-m pip "*" -r "*)
    echo "pip started" >>"{calls}"; sleep "${{PIP_SECONDS:-0}}"
    if [ -n "${{PIP_FAILS:-}}" ]; then echo "ERROR: No matching distribution found for mindspore" >&2; exit 1; fi
    cp -r "{good_site}" "$0.site"; echo "pip ended" >>"{calls}" ;;
"-m pip "*) ;;
"-c "*) ;;
*) printf "%s|" "$PWD" "${{PATH%%:*}}" "$0" "$@"; exit "${{PROGRAM_STATUS:-0}}" ;;
esac
"""


class Checkout:
    """A copy of the scripts, with its own PATH."""

    def __init__(self, folder: Path):
        self.root = folder / "a checkout"  # with a space in its path
        self.bin = folder / "bin"
        self.calls = folder / "calls"
        self.venv_python = self.root / ".venv/bin/python"
        self.stamp = self.root / ".venv/.made-from"
        shutil.copytree(ROOT / "scripts", self.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
        (self.root / "requirements.txt").write_text(REQUIREMENTS)
        self.bin.mkdir()
        for tool in TOOLS:
            if found := shutil.which(tool):
                (self.bin / tool).symlink_to(found)
        self.good_site = self.make_site("good_site", GOOD)
        self.empty_site = self.make_site("empty_site", {})

    def make_site(self, name: str, packages: dict[str, str]) -> Path:
        """Make a folder of packages that are metadata only, beside the real `packaging`."""
        site = self.bin.parent / name
        site.mkdir()
        for package, version in packages.items():
            (site / f"{package}-{version}.dist-info").mkdir()
            text = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
            (site / f"{package}-{version}.dist-info/METADATA").write_text(text)
        (site / "packaging").symlink_to(Path(importlib.util.find_spec("packaging").origin).parent)
        return site

    def add_python(self, path: Path | str, version: str = "3, 11", site: Path | None = None) -> Path:
        path = self.bin / path
        path.parent.mkdir(parents=True, exist_ok=True)
        values = {"bash": shutil.which("bash"), "real": sys.executable, "version": version, "calls": self.calls}
        text = STAND_IN.format(site=site or self.empty_site, good_site=self.good_site, **values)
        path.write_text(text)
        path.chmod(0o755)
        return path

    def start(self, script: str = "run_ce.sh", *arguments: str, **variables: str) -> subprocess.Popen:
        command = [shutil.which("bash"), str(self.root / "scripts" / script), *arguments]
        environment = {"PATH": str(self.bin), "HOME": str(self.bin.parent), **variables}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, env=environment, cwd=self.bin.parent, **pipes)

    def run(self, *arguments: str, **variables: str) -> tuple[int, str, str]:
        process = self.start(*arguments, **variables)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def ran(self, python: Path, *arguments: str) -> str:
        """Return what a stand-in prints: working directory, first folder on PATH, command."""
        return "".join(f"{word}|" for word in (self.root, python.parent, python, *arguments))

    def count(self, call: str) -> int:
        return self.calls.read_text().count(call) if self.calls.exists() else 0


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def one_error(err: str) -> str:
    """Return the only line of stderr that is an error."""
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line


@pytest.mark.parametrize(
    ("script", "program"),
    [
        ("run_ce.sh", ["-m", "src.commands.pipeline", "ce"]),
        ("run_grpo.sh", ["-m", "src.commands.pipeline", "grpo"]),
        ("run_eval.sh", ["-m", "src.commands.pipeline", "eval"]),
        ("run_tests.sh", ["-m", "pytest"]),
        ("prepare_mindrecord.sh", ["-m", "src.commands.prepare_mindrecord"]),
        ("make_questions.sh", ["-m", "src.commands.make_questions"]),
    ],
)
def test_script_runs_its_program_at_the_root_and_passes_arguments_and_status_on(checkout, script, program):
    python = checkout.add_python("python", site=checkout.good_site)
    status, out, err = checkout.run(script, "--config", "a b.yaml", PROGRAM_STATUS="5")
    assert (status, out, err) == (5, checkout.ran(python, *program, "--config", "a b.yaml"), "")


def test_tests_are_found_from_the_folder_of_the_caller(checkout):
    python = checkout.add_python("python", site=checkout.good_site)
    here = checkout.bin.parent
    (here / "test_x.py").touch()
    status, out, _ = checkout.run("run_tests.sh", "test_x.py::test_a", "-k", "none", "tests/test_y.py", str(here))
    words = [f"{here}/test_x.py::test_a", "-k", "none", "tests/test_y.py", str(here)]
    assert (status, out) == (0, checkout.ran(python, "-m", "pytest", *words))


def test_a_search_path_of_cd_does_not_matter(checkout):
    python = checkout.add_python("python", site=checkout.good_site)
    (checkout.root / "scripts/scripts").mkdir()
    status, out, err = checkout.run("run_ce.sh", CDPATH=f".:{checkout.root.parent}:{checkout.root / 'scripts'}")
    assert (status, out, err) == (0, checkout.ran(python, "-m", "src.commands.pipeline", "ce"), "")


def test_given_python_wins(checkout):
    checkout.add_python("python", site=checkout.good_site)
    given = checkout.add_python("given/bin/python", site=checkout.good_site)
    status, out, _ = checkout.run("run_ce.sh", PYTHON="bin/given/bin/python")  # relative to the caller's folder
    assert (status, out) == (0, checkout.ran(given, "-m", "src.commands.pipeline", "ce"))


@pytest.mark.parametrize(
    ("packages", "version", "message"),
    [
        ({"mindspore": "2.9.0"}, "3, 11", "missing: captions (run "),
        ({"mindspore": "2.10.0", "captions": "1"}, "3, 11", "mindspore is 2.10.0, not ~=2.9.0 (run "),
        ({"mindspore": "2.9.0", "captions": "2.0"}, "3, 11", "captions is 2.0, not <2,>=1 (run "),
        (GOOD, "3, 13", "Python 3.13.0 is not supported: MindSpore 2.9 needs Python 3.10, 3.11 or 3.12"),
    ],
)
def test_given_python_that_lacks_something_is_named_and_left_alone(checkout, packages, version, message):
    checkout.add_python("python", site=checkout.good_site)  # must not be fallen back to
    given = checkout.add_python("given/bin/python", version, checkout.make_site("site", packages))
    status, out, err = checkout.run("run_ce.sh", PYTHON=str(given))
    assert (status, out) == (2, "")
    assert one_error(err).startswith(f"error: PYTHON={given}: {message}")
    assert not checkout.calls.exists() and not checkout.venv_python.exists()


def test_given_python_that_does_not_exist(checkout):
    status, _, err = checkout.run("run_ce.sh", PYTHON="/nowhere/python")
    assert status == 2
    assert one_error(err) == "error: PYTHON=/nowhere/python: it does not start; fix it, or unset PYTHON to use .venv"


def test_only_python_3_13(checkout):
    for name in ("python", "python3", "python3.13"):
        checkout.add_python(name, "3, 13", checkout.good_site)
    status, out, err = checkout.run()
    assert (status, out) == (2, "")
    assert "Python 3.13.0 is not supported: MindSpore 2.9 needs Python 3.10, 3.11 or 3.12" in one_error(err)
    assert not checkout.calls.exists()


def test_no_python_at_all(checkout):
    status, _, err = checkout.run()
    assert status == 2
    assert "no Python on PATH can create .venv: none starts" in one_error(err)


def test_venv_is_made_once_and_programs_find_it_on_path(checkout):
    checkout.add_python("python3.12")
    status, out, err = checkout.run()
    assert (status, out) == (0, checkout.ran(checkout.venv_python, "-m", "src.commands.pipeline", "ce"))
    assert f"setting up .venv with {checkout.bin}/python3.12 (about 3 minutes and 3.5 GB, once)" in err
    assert "another run" not in err
    assert checkout.run() == (0, out, "")
    assert checkout.count("venv made") == checkout.count("pip started") == 1


def test_broken_pyenv_shim_is_passed_over(checkout):
    for name in ("python", "python3", "python3.11", "python3.12"):
        shim = checkout.bin / name
        shim.write_text(f"#!{shutil.which('bash')}\necho 'pyenv: {name}: command not found' >&2\nexit 127\n")
        shim.chmod(0o755)
    python = checkout.add_python("python3.10", "3, 10")
    status, _, err = checkout.run()
    assert status == 0
    assert checkout.calls.read_text().startswith(f"venv made by {python}\n")
    assert "command not found" not in err


def test_active_python_that_has_mindspore_but_lacks_the_rest_is_mentioned(checkout):
    python = checkout.add_python("python", site=checkout.make_site("site", {"mindspore": "2.9.0"}))
    status, out, err = checkout.run()
    assert status == 0 and str(checkout.venv_python) in out
    why = f"missing: captions (run '{python} -m pip"
    assert f"the active python does not satisfy requirements.txt, using .venv: {why}" in err


def test_pip_that_fails_is_one_line_with_the_log_and_the_next_run_starts_over(checkout):
    checkout.add_python("python3.11")
    status, out, err = checkout.run(PIP_FAILS="1")
    assert (status, out) == (2, "")
    error = one_error(err)
    assert f"ERROR: No matching distribution found for mindspore (log: {checkout.root}/.venv/setup.log)" in error
    assert "set PYTHON" in error
    (checkout.root / ".venv/leftover").touch()
    assert checkout.run()[0] == 0
    assert checkout.count("venv made") == 2
    assert not (checkout.root / ".venv/leftover").exists()


def test_killed_set_up_is_redone(checkout):
    checkout.add_python("python3.11")
    process = checkout.start(PIP_SECONDS="2")
    wait_for(lambda: checkout.count("pip started"))
    process.kill()
    process.communicate(timeout=60)
    wait_for(lambda: checkout.count("pip ended"))  # the orphan fills the folder: every package is there, but no stamp
    assert checkout.run()[0] == 0
    assert checkout.count("venv made") == 2


def test_two_runs_at_once_make_it_once(checkout):
    if not shutil.which("flock"):
        pytest.skip("this machine has no flock")
    checkout.add_python("python3.11")
    first = checkout.start(PIP_SECONDS="2")
    wait_for(lambda: checkout.count("pip started"))
    status, out, err = checkout.run()
    assert status == 0 and str(checkout.venv_python) in out
    assert "another run is setting up .venv: waiting for it" in err
    assert first.communicate(timeout=60)[0] == out and first.returncode == 0
    assert checkout.count("venv made") == checkout.count("pip started") == 1


def test_changed_requirements_update_the_venv(checkout):
    checkout.add_python("python3.11")
    checkout.run()
    requirements = checkout.root / "requirements.txt"
    requirements.write_text(REQUIREMENTS.replace("# reason", "# another reason"))
    assert checkout.run()[2] == ""
    requirements.write_text(REQUIREMENTS.replace("captions>=1", "captions>=1.2"))
    assert "requirements.txt has changed: updating .venv" in checkout.run()[2]
    assert checkout.run()[2] == ""
    assert (checkout.count("venv made"), checkout.count("pip started")) == (1, 2)


def test_failed_update_is_not_taken_for_complete(checkout):
    checkout.add_python("python3.11")
    checkout.run()
    (checkout.root / "requirements.txt").write_text("mindspore~=2.9.0\n")
    assert checkout.run(PIP_FAILS="1")[0] == 2
    assert checkout.run()[0] == 0
    assert checkout.count("venv made") == 2


def test_moved_checkout_gets_a_new_venv(checkout):
    checkout.add_python("python3.11")
    checkout.run()
    checkout.stamp.write_text(checkout.stamp.read_text().replace("a checkout", "elsewhere"))
    assert checkout.run()[0] == 0
    assert checkout.count("venv made") == 2


def test_venv_made_by_hand_is_used_if_complete_and_never_touched(checkout):
    checkout.add_python("python3.11")
    checkout.add_python(checkout.venv_python, site=checkout.good_site)
    assert checkout.run()[0] == 0
    checkout.add_python(checkout.venv_python, site=checkout.empty_site)
    status, _, err = checkout.run()
    assert status == 2
    why = "was not created by these scripts: missing: mindspore, captions"
    assert f"error: {checkout.root}/.venv {why}" in one_error(err)
    assert checkout.venv_python.exists() and not checkout.calls.exists()


def test_the_page_runs_where_its_requirements_are(checkout):
    site = checkout.make_site("site", {**GOOD, "gradio": "5.50.0"})
    python = checkout.add_python("python", site=site)
    status, out, err = checkout.run("run_demo.sh", "--checkpoint", "A=a b")
    assert (status, err) == (0, "")
    assert out == checkout.ran(python, "-m", "src.captioning.serve", "--checkpoint", "A=a b")


def test_what_the_page_needs_is_installed_into_venv_alone(checkout):
    python = checkout.add_python("python", site=checkout.good_site)
    status, out, err = checkout.run("run_demo.sh")
    assert (status, out) == (2, "")
    file = checkout.root / "scripts/demo_requirements.txt"
    assert one_error(err) == f"error: {python}: missing: gradio (run '{python} -m pip install -r {file}')"
    python.unlink()
    checkout.add_python("python3.11")
    status, out, err = checkout.run("run_demo.sh", PIP_FAILS="")
    assert (status, out) == (0, checkout.ran(checkout.venv_python, "-m", "src.captioning.serve"))
    assert "environment: installing scripts/demo_requirements.txt into .venv\n" in err
    assert checkout.run("run_demo.sh") == (0, out, "")
    assert checkout.run("run_ce.sh")[2] == ""
    assert checkout.count("page installed") == checkout.count("pip started") == 1


def test_a_page_that_cannot_be_installed_is_one_line(checkout):
    checkout.add_python("python3.11")
    checkout.run()
    status, out, err = checkout.run("run_demo.sh", PIP_FAILS="1")
    assert (status, out) == (2, "")
    assert "ERROR: No matching distribution found for gradio (log: " in one_error(err)


@pytest.mark.parametrize("root", [True, False])
def test_ci_runs_both_commands_in_order_with_all_that_tests_can_use(checkout, root):
    checkout.add_python("python3.11")
    (checkout.root / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", checkout.root / ".ci/run")
    for name, text in (("id", f"echo {0 if root else 1000}"), ("apt-get", f'echo "apt-get $*" >>"{checkout.calls}"')):
        (checkout.bin / name).write_text(f"#!{shutil.which('bash')}\n{text}\n")
        (checkout.bin / name).chmod(0o755)
    status, out, _ = checkout.run("../.ci/run", PROGRAM_STATUS="1")
    assert (status, out) == (
        1,
        checkout.ran(checkout.venv_python, "-m", "src.commands.pipeline", "grpo"),
    )  # and ends there
    status, out, _ = checkout.run("../.ci/run")
    commands = [("-m", "src.commands.pipeline", "grpo"), ("-m", "pytest")]
    assert (status, out) == (0, "".join(checkout.ran(checkout.venv_python, *command) for command in commands))
    assert checkout.count("page installed") == 1
    assert checkout.count("install -qq -y --no-install-recommends chromium chromium-driver") == (2 if root else 0)


def wait_for(condition, seconds: float = 30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
