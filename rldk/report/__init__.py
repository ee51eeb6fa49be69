"""The report of a run: what it comes to, and its renderings. All are pure functions of what flowed.

- `build_report`: the content of final_report.json, from the fold of a run.
- `render_text`: a few lines for a terminal.
- `render_markdown`: for a pull request or a chat.
- `render_html`: the page, one file that opens from disk.
- `plot`: a matplotlib figure of a DataFrame, for notebooks.
- `Curves`: the fold that gives the page its curves.
"""

from ._series import Curves
from .build import STATUSES, build_report
from .html import render_html
from .markdown import render_markdown
from .plain import render_text
from .plot import plot

__all__ = ["STATUSES", "Curves", "build_report", "plot", "render_html", "render_markdown", "render_text"]
