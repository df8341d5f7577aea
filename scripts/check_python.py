"""Say whether this Python can run the project: `python check_python.py [REQUIREMENTS]`.

Prints the interpreter's path with status 0, or one line on what is wrong and how to fix it with status 1.
Without REQUIREMENTS, checks whether this Python can create `.venv`.
Reads the metadata of packages without importing them: 0.1 s, where importing MindSpore takes seconds.
"""

import importlib.util
import re
import sys

VERSIONS = ((3, 10), (3, 11), (3, 12))  # MindSpore 2.9 and all other requirements install on these


def find_problem(requirements_path=None):
    """Return why this Python cannot be used, or None."""
    if sys.version_info[:2] not in VERSIONS:
        found = ".".join(map(str, sys.version_info[:3]))
        return f"Python {found} is not supported: MindSpore 2.9 needs Python 3.10, 3.11 or 3.12"
    if requirements_path is None:
        if importlib.util.find_spec("venv") and importlib.util.find_spec("ensurepip"):
            return None
        return f"{sys.executable} cannot create environments: install its venv and ensurepip (Debian: python3-venv)"
    missing, unfit = find_unmet(requirements_path)
    if missing:
        unfit.append(f"missing: {', '.join(missing)}")
    return f"{'; '.join(unfit)} (run '{sys.executable} -m pip install -r {requirements_path}')" if unfit else None


def find_unmet(requirements_path):
    """Return the names of missing packages, and a phrase for each package installed in another version."""
    from importlib import metadata

    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement  # a bare Python has only pip's copy

    with open(requirements_path, encoding="utf-8") as file:
        lines = [re.sub(r"(^|\s)#.*", "", line).strip() for line in file]
    missing, unfit = [], []
    for requirement in map(Requirement, filter(None, lines)):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = None
        if version is None:
            missing.append(requirement.name)
        elif not requirement.specifier.contains(version, prereleases=True):
            unfit.append(f"{requirement.name} is {version}, not {requirement.specifier}")
    return missing, unfit


if __name__ == "__main__":
    try:
        problem = find_problem(*sys.argv[1:])
    except ImportError:
        problem = f"{sys.executable} has neither packaging nor pip: MindSpore is not installed there"
    print(problem or sys.executable)
    sys.exit(1 if problem else 0)
