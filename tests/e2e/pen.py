"""A pen for the pad of the live page: digits as people write them, drawn with the mouse.

Units: of the pad, 0 to 1 from its left and its top.
"""

import math


def arc(x, y, wide, high, start, end, parts=16):
    """A part of an ellipse, by degrees that go clockwise from the right."""
    angles = [math.radians(start + (end - start) * part / parts) for part in range(parts + 1)]
    return [(x + wide * math.cos(angle), y + high * math.sin(angle)) for angle in angles]


DIGITS = {
    0: [arc(0.5, 0.5, 0.2, 0.33, -90, 270)],
    1: [[(0.42, 0.3), (0.52, 0.18), (0.52, 0.82)]],
    2: [[*arc(0.5, 0.36, 0.2, 0.18, 180, 395), (0.3, 0.82), (0.74, 0.82)]],
    3: [[*arc(0.48, 0.34, 0.18, 0.16, -160, 90), *arc(0.48, 0.67, 0.21, 0.17, -90, 160)]],
    4: [[(0.55, 0.15), (0.25, 0.6), (0.75, 0.6)], [(0.58, 0.4), (0.58, 0.88)]],
    5: [[(0.7, 0.18), (0.35, 0.18), (0.33, 0.48), *arc(0.48, 0.64, 0.2, 0.19, -130, 150)]],
    6: [[(0.6, 0.14), (0.42, 0.34), *arc(0.48, 0.65, 0.18, 0.2, 190, 540)]],
    7: [[(0.25, 0.22), (0.75, 0.22)], [(0.75, 0.22), (0.42, 0.85)]],
    8: [[*arc(0.5, 0.33, 0.15, 0.16, 90, -270), *arc(0.5, 0.67, 0.19, 0.18, -90, 270)]],
    9: [[*arc(0.5, 0.34, 0.17, 0.17, 0, -360), (0.66, 0.36), (0.62, 0.85)]],
}


def draw(page, digit, size=1.0):
    """Draw a digit on an empty pad, larger or smaller."""
    pad = page.locator(".pad")
    page.get_by_role("button", name="Clear").click()
    # not under what stays at the top of the page
    pad.evaluate("pad => pad.scrollIntoView({block: 'center'})")
    box = pad.bounding_box()
    for stroke in DIGITS[digit]:
        spots = [
            (box["x"] + box["width"] * (0.5 + (x - 0.5) * size), box["y"] + box["height"] * (0.5 + (y - 0.5) * size))
            for x, y in stroke
        ]
        page.mouse.move(*spots[0])
        page.mouse.down()
        for spot in spots[1:]:
            page.mouse.move(*spot, steps=3)
        page.mouse.up()
