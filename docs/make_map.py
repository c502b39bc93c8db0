"""Makes docs/latent_map.png from the report of a run: python docs/make_map.py REPORT.

The report is that of ``pyro-vae vae.latent_dim=2``. It needs Chromium and the extra ``dev``.
"""

import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

OUT = Path(__file__).with_name("latent_map.png")


def main() -> None:
    """Saves the map after a click on its middle, with 256 colours."""
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.goto(Path(sys.argv[1]).resolve().as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        page.locator("#map").click()
        page.locator(".map").screenshot(path=OUT)
        browser.close()
    Image.open(OUT).convert("RGB").quantize(256).save(OUT, optimize=True)


if __name__ == "__main__":
    main()
