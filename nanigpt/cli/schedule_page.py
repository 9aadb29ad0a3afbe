"""A page with a pipeline's timeline, in the style of the pages of configs."""

from html import escape
from string import Template

from nanigpt.config.view.html import asset, page
from nanigpt.parallel.schedule import Timeline
from nanigpt.parallel.schedule_picture import natural_width, summary, to_svg

_WIDTH = 1150  # pixels of a page

_BODY = Template("""\
<div class="nanigpt">
<style>$css
.nanigpt .timeline { overflow-x: auto; }
.nanigpt .timeline svg { display: block; }
</style>
<header><b>$title</b><span class="faint">$about</span></header>
$pictures
</div>""")


def to_html(timeline: Timeline) -> str:
    """Return a page with the timeline, below an overview if the timeline is too wide for a page."""
    widths = [None] if natural_width(timeline) <= _WIDTH else [_WIDTH, None]
    pictures = [to_svg(timeline, width=width, heading=False) for width in widths]
    title, _, bubble = summary(timeline).partition(": ")
    body = _BODY.substitute(
        css=asset("base.css").template,
        title=escape(title),
        about=escape(f"{bubble}, {timeline.length:.4g} long"),
        pictures="\n".join(f'<div class="timeline">\n{picture}</div>' for picture in pictures),
    )
    return page(body, title=summary(timeline))
