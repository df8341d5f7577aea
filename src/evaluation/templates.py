"""Jinja2 templates of the pages: every value is escaped, and an undefined name is an error."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def build_templates(folder: Path) -> Environment:
    """Load templates from a folder; they may also call zip."""
    loader = FileSystemLoader(folder)
    templates = Environment(autoescape=True, undefined=StrictUndefined, loader=loader, trim_blocks=True)
    templates.globals["zip"] = zip
    return templates
