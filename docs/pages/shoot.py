"""Pictures of a demo's three pages, light at 1280 and dark at 390 pixels: `python docs/pages/shoot.py lorasize-demo`.

Needs playwright, pillow and Chromium (Debian: chromium); the pictures lie beside this script.
"""

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).resolve().parent
SIZES = ((1280, "light"), (390, "dark"))

folder = Path(sys.argv[1]).resolve()
chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
    for name in ("plan", "apply", "calibration"):
        for width, scheme in SIZES:
            page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
            page.goto((folder / f"{name}.html").as_uri())
            file = HERE / f"{name}-{width}.png"
            page.screenshot(path=file, full_page=True)
            Image.open(file).convert("RGB").quantize(256).save(file, optimize=True)
    browser.close()
