"""Pictures of a demo's three pages, and the two crops of them that README shows.

    python docs/pages/shoot.py lorasize-demo   # all of them: light at 1280 and dark at 390 pixels, then the crops
    python docs/pages/shoot.py --crop-only     # the crops alone, out of the pictures that lie beside this script

Needs pillow, and without --crop-only playwright and Chromium (Debian: chromium). What a crop shows is told by headings;
where they stood when the pictures were taken is kept in crops.json, for --crop-only.
"""

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

HERE = Path(__file__).resolve().parent
BOXES = HERE / "crops.json"
PAGES = ("plan", "apply", "calibration")
WIDE, NARROW = (1280, "light"), (390, "dark")
CROPS = {"plan": ("Where the bits go", "Demand against capacity"), "apply": ("Stubborn tokens over time",)}
MARGIN, BELOW = 20, 8  # pixels around each part; "The numbers" stand close below a figure
Box = tuple[int, int, int, int]  # left, top, right, bottom


def shoot(folder: Path) -> dict[str, list[Box]]:
    """Take every picture; the parts of each crop."""
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    boxes: dict[str, list[Box]] = {}
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name in PAGES:
            for width, scheme in (WIDE, NARROW):
                page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
                page.goto((folder / f"{name}.html").as_uri())
                file = HERE / f"{name}-{width}.png"
                page.screenshot(path=file, full_page=True)
                save(Image.open(file).convert("RGB"), file)
                if (width, scheme) == WIDE and name in CROPS:
                    boxes[name] = [part(page, heading) for heading in CROPS[name]]
        browser.close()
    return boxes


def part(page: Any, heading: str) -> Box:
    """A section of a page, from its heading to the end of its first passage or of the words under its figure."""
    title = page.get_by_role("heading", name=heading, exact=True)
    body = page.locator("section").filter(has=title).locator("pre, figcaption").first
    above, below = title.bounding_box(), body.bounding_box()
    top, bottom = above["y"], below["y"] + below["height"]
    return round(above["x"]), round(top), round(above["x"] + above["width"]), round(bottom)


def crop(name: str, boxes: list[Box]) -> None:
    """README's picture of a page: the parts, one below the other."""
    whole = Image.open(HERE / f"{name}-{WIDE[0]}.png").convert("RGB")
    parts = [whole.crop((x - MARGIN, y - MARGIN, right + MARGIN, end + BELOW)) for x, y, right, end in boxes]
    picture = Image.new("RGB", (max(one.width for one in parts), sum(one.height for one in parts)), "white")
    for number, one in enumerate(parts):
        picture.paste(one, (0, sum(before.height for before in parts[:number])))
    save(picture, HERE / f"readme-{name}.png")


def save(picture: Image.Image, file: Path) -> None:
    """Write a picture in 256 colours."""
    picture.quantize(256).save(file, optimize=True)


def main() -> None:
    """Take and crop, or crop alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("demo", type=Path, nargs="?", help="folder of a finished demo")
    what.add_argument("--crop-only", action="store_true")
    chosen = parser.parse_args()
    if not chosen.crop_only:
        BOXES.write_text(json.dumps(shoot(chosen.demo.resolve())) + "\n", encoding="utf-8")
    for name, boxes in json.loads(BOXES.read_text(encoding="utf-8")).items():
        crop(name, boxes)


if __name__ == "__main__":
    main()
