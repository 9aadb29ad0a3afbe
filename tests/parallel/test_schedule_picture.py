"""Pictures of pipelines: complete, without overlaps, readable."""

import re
from xml.etree import ElementTree

import pytest

from nanigpt.cli.schedule_page import to_html
from nanigpt.parallel.schedule import SCHEDULES, arrange, simulate
from nanigpt.parallel.schedule_picture import natural_width, to_svg, to_text
from tests.config.browser import needs_browser, run_script

SVG = "{http://www.w3.org/2000/svg}"


def timeline(schedule="1F1B", ranks=4, microbatches=8, *, costs=None, **arguments):
    made = arrange(schedule=schedule, ranks=ranks, microbatches=microbatches, **arguments)
    return simulate(made, stage_costs=costs)


def test_text():
    assert to_text(timeline()) == (
        "1F1B, 4 ranks, 8 microbatches: bubble 27.3%\n"
        "rank 0 F0F1F2F3············B0--F4B1--F5B2--F6B3--F7B4--··B5--··B6--··B7--\n"
        "rank 1 ··F0F1F2········B0--F3B1--F4B2--F5B3--F6B4--F7B5--··B6--··B7--····\n"
        "rank 2 ····F0F1····B0--F2B1--F3B2--F4B3--F5B4--F6B5--F7B6--··B7--········\n"
        "rank 3 ······F0B0--F1B1--F2B2--F3B3--F4B4--F5B5--F6B6--F7B7--············\n"
        "F forward, B backward, each with the number of its microbatch; · idle\n"
        "length 33; the unit of time is a forward pass of one microbatch through a rank's stages\n"
    )


def test_text_of_actions_at_once():
    lines = to_text(timeline("DualPipeV", 2, 4), width=120).splitlines()
    assert lines[:3] == [
        "DualPipeV, 2 ranks, 2 stages per rank, 4 microbatches: bubble 7.7%",
        "rank 0 F0F1F2f0i0w0f1F3-+b1··f2-+B0b2--··f3-+B1b3--I2W2I3W3",
        "rank 1 ··F0f0F1f1F2b0--f2-+B0F3-+b1f3-+B1b2--B2--··i3I3w3W3",
    ]
    assert "small letters: stages of the rank after its first one" in lines
    assert "joined by +: both at once" in lines


def test_text_that_does_not_fit_is_scaled_and_then_cut():
    scaled = to_text(timeline(), width=50).splitlines()
    assert scaled[1] == "rank 0 FFFF······B0FB1FB2FB3FB4·B5·B6·B7"
    assert scaled[5] == "some numbers are left out; width=73 shows all"
    assert to_text(timeline(), width=72).splitlines()[5] == scaled[5]
    assert "left out" not in to_text(timeline(), width=73)
    cut = to_text(timeline(microbatches=32), width=50).splitlines()
    assert cut[1] == "rank 0 F0-F1-F2-F3-········ ⋯ --···B30---···B31---"
    assert len(cut[1]) == 50
    assert cut[5] == "the middle is left out; width=322 shows all"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("width", [40, 57, 100, 400])
@pytest.mark.parametrize("color", [False, True])
def test_text_has_a_row_for_each_rank_within_the_width(schedule, width, color):
    shown = re.sub(r"\x1b\[[0-9;]*m", "", to_text(timeline(schedule), width=width, color=color))
    rows = shown.splitlines()[1:5]
    assert [row[:7] for row in rows] == [f"rank {rank} " for rank in range(4)]
    assert len({len(row) for row in rows}) == 1
    assert len(rows[0]) <= width
    if width == 400:
        assert shown == to_text(timeline(schedule), width=width)
        forwards = [slot for slot in timeline(schedule).slots if slot.kind == "F"]
        assert sum(row.lower().count("f") for row in rows) == len(forwards)


def test_text_in_color_prefers_numbers():
    text = to_text(timeline(), width=50, color=True)
    assert "\x1b[48;2;47;111;191;38;2;255;255;255m0123\x1b[0m" in text
    assert text.count("\x1b[0m") == text.count("\x1b[48;2;") > 32


def test_text_needs_some_width():
    with pytest.raises(ValueError, match="^width=39: expected at least 40 characters$"):
        to_text(timeline(), width=39)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("width", [None, 600])
def test_svg_has_every_slot_and_none_overlap(schedule, width):
    shown = timeline(schedule, 4, 12)
    root = ElementTree.fromstring(to_svg(shown, width=width))
    rows = [group for group in root.iter(f"{SVG}g") if group.get("class") == "rank"]
    assert len(rows) == 4
    told = set()
    for rank, row in enumerate(rows):
        assert row.find(f"{SVG}text").text == str(rank)
        idle, boxes = _box(row.find(f"{SVG}rect")), []
        for slot in row.iter(f"{SVG}g"):
            if slot.get("class") == "slot":
                boxes.append(_box(slot.find(f"{SVG}rect")))
                told.add(slot.find(f"{SVG}title").text)
        assert len(boxes) == sum(slot.rank == rank for slot in shown.slots)
        for x1, y1, x2, y2 in boxes:
            assert x1 < x2 and y1 < y2
            assert x1 >= idle[0] and y1 >= idle[1] and x2 <= idle[2] and y2 <= idle[3]
        for i, (x1, y1, x2, y2) in enumerate(boxes):
            assert all(x2 <= a1 or a2 <= x1 or y2 <= b1 or b2 <= y1 for a1, b1, a2, b2 in boxes[:i])
    assert len(told) == len(shown.slots)
    bubble = f"bubble {shown.bubble:.1%}"
    assert any(bubble in (text.text or "") for text in root.iter(f"{SVG}text"))


def _box(rect):
    x, y, w, h = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
    return x, y, x + w, y + h


def test_svg_leaves_out_numbers_without_room():
    shown = timeline(microbatches=32)
    numbers = r'class="number" fill="#'
    assert len(re.findall(numbers, to_svg(shown))) == len(shown.slots)
    assert not re.findall(numbers, to_svg(shown, width=520))
    assert 'width="520"' in to_svg(shown, width=520)
    with pytest.raises(ValueError, match="^width=100: expected at least 504 pixels$"):
        to_svg(shown, width=100)


def test_costs_beyond_measure_are_still_drawn():
    shown = timeline(ranks=2, microbatches=2, costs=[1e-9, 1.0])
    assert "left out" in to_text(shown)
    ElementTree.fromstring(to_svg(shown))


def test_page_has_an_overview_where_the_picture_is_long():
    short, long = timeline(), timeline(microbatches=64)
    assert to_html(short).count("<svg") == 1
    assert to_html(long).count("<svg") == 2
    assert 'width="1150"' in to_html(long)
    assert f'width="{natural_width(long)}"' in to_html(long)
    assert "<title>1F1B, 4 ranks, 8 microbatches: bubble 27.3%</title>" in to_html(short)


@needs_browser
@pytest.mark.parametrize("microbatches", [9, 100])
def test_numbers_fit_their_boxes_and_the_page_does_not_scroll(microbatches, tmp_path):
    page = to_html(timeline("DualPipeV", 4, microbatches))
    script = """
      const slots = [...document.querySelectorAll('.slot')];
      const outside = slots.filter((slot) => {
        const box = slot.querySelector('rect').getBoundingClientRect();
        const text = slot.querySelector('text')?.getBoundingClientRect();
        return text && (text.left < box.left || text.right > box.right);
      });
      const texts = slots.filter((slot) => slot.querySelector('text'));
      const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
      return `${texts.length} ${outside.length} ${wide}`;
    """
    texts, outside, wide = run_script(page, script, tmp_path).split()
    assert int(texts) >= 2 * 4 * 2 * microbatches
    assert (outside, wide) == ("0", "false")
