"""Pages from templates: the report of a run and that of a campaign have one environment and one style."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
_KINDS = {".svg": "image/svg+xml", ".png": "image/png"}


def render(name: str, values: dict[str, Any]) -> str:
    """Fill the template NAME.j2; names that end in html are escaped."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=name.endswith("html"), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template(f"{name}.j2").render(values)


def embedded(path: Path) -> str:
    """Return an SVG or PNG file as the address of an image that needs no other file."""
    return f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
