"""The kit of all report pages: templates, pictures and numbers."""

import base64
import hashlib
import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Picture:
    """An image of the page: where it came from is said in ``caption``, what it shows in ``alt``."""

    source: str
    alt: str
    caption: str


def render(template: str, **context: Any) -> str:
    """Fill a template. The page may load nothing: its policy allows its own style sheet and inline images only.

    Args:
        template: name of a file in `templates`.
        **context: the template's variables; one that is missing is an error.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    loader = PackageLoader("nnunet_topomae.reports")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["number"] = format_number
    environment.filters["p_value"] = format_p
    style = (environment.get_template("report.css").render()).strip()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    # The style sheet is our own file, not data.
    return environment.get_template(template).render(style=Markup(style), style_hash=digest, **context)


def script(program: str) -> tuple[Any, str]:
    """A program for the inside of a script element, and its hash for the page's policy."""
    from markupsafe import Markup

    safe = program.strip().replace("</script", "<\\/script")
    return Markup(safe), base64.b64encode(hashlib.sha256(safe.encode()).digest()).decode()


def format_p(value: float | None) -> str:
    """A p-value with four digits; never a bare 0."""
    return "< 0.0001" if value is not None and value < 1e-4 else format_number(value, 4)


def format_number(value: float | None, digits: int) -> str:
    """A number with fixed digits; a dash where it is undefined.

    Args:
        value: None, NaN and infinity give the dash.
        digits: after the decimal point.
    """
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"
