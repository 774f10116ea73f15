"""The page itself: head, style and the one script, which nothing needs but the search."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from string import Template


def page(search: bool, **parts: str) -> str:
    """The page of these parts, which are escaped already; with `search` also the script for that.

    Of scripts the page's policy lets only this one run, by its hash.
    """
    script = _beside("page.js") if search else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return PAGE.substitute(
        style=_beside("page.css"),
        policy=f"; script-src 'sha256-{digest}'" if search else "",
        script=f"<script>{script}</script>\n" if search else "",
        **parts,
    )


def _beside(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'$policy">
<title>$title</title>
<style>$style</style>
</head>
<body>
<a class="skip" href="#main">Skip to the report</a>
<header class="$worst">
<p class="tool">precaudit</p>
<h1>$verdict</h1>
<ul class="setup">$opening</ul>
<nav aria-label="Sections">$links</nav>
</header>
<main id="main">
$body
</main>
<footer>$closing</footer>
$script</body>
</html>
""")
