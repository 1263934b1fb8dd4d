"""Iconify icon sets: which icon is which emoji, and how it is drawn at 32x32 on white."""

import io
import re
import unicodedata
from pathlib import Path

import resvg_py
from npm_packages import STYLES, read_json
from PIL import Image

SIDE = 32
SHORTCODES = ("cldr", "emojibase", "github", "iamcal", "joypixels")


def plain_code(hexcode: str) -> str:
    """'2764-FE0F' -> '2764': variation selectors differ between sources, so they never take part in a match."""
    return "-".join(part for part in hexcode.lower().split("-") if part != "fe0f")


def squeezed(name: str) -> str:
    """'Red apple', 'red-apple' and 'redapple' are one name; Firefox's set writes no separators."""
    ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]", "", ascii_name.lower().replace("&", "and"))


def icon_sets(modules: Path, styles: dict[str, str]) -> dict[str, dict]:
    return {style: read_json(modules / package / "icons.json") for style, package in styles.items()}


def character_names(modules: Path, styles: dict[str, str]) -> dict[str, dict[str, str]]:
    """style -> {code point: icon name}, for the sets that ship a filled chars.json."""
    files = {style: modules / package / "chars.json" for style, package in styles.items()}
    charts = {style: read_json(file) if file.exists() else {} for style, file in files.items()}
    plain = {style: {plain_code(code): name for code, name in chart.items()} for style, chart in charts.items()}
    plain["fluent"] = {**plain["fluent-flat"], **plain["fluent"]}  # one vendor, one naming, one chart
    return plain


class Finder:
    """Finds the icon of an emoji in each style: by the set's own chart, else by name."""

    def __init__(self, modules: Path, styles: dict[str, str] = STYLES):
        self.modules = modules
        self.sets = icon_sets(modules, styles)
        self.charts = character_names(modules, styles)
        self.by_name = {}
        for style, icons in self.sets.items():
            self.by_name[style] = {squeezed(name): name for name in (*icons["icons"], *icons.get("aliases", {}))}
        self.shortcodes = {s: read_json(modules / f"emojibase-data/en/shortcodes/{s}.json") for s in SHORTCODES}

    def names(self, emoji: dict) -> list[str]:
        names = [emoji["label"]]
        codes = plain_code(emoji["hexcode"]).split("-")
        if len(codes) == 1:
            names.append(unicodedata.name(chr(int(codes[0], 16)), ""))
        names += [chart[code] for chart in self.charts.values() if (code := plain_code(emoji["hexcode"])) in chart]
        for shortcodes in self.shortcodes.values():
            found = shortcodes.get(emoji["hexcode"], [])
            names += [found] if isinstance(found, str) else found
        return [name for name in dict.fromkeys(map(squeezed, names)) if name]

    def icon(self, style: str, emoji: dict) -> str | None:
        code = plain_code(emoji["hexcode"])
        if code in self.charts[style]:
            return self.charts[style][code]
        if self.charts[style] and style != "fluent":
            return None  # a set with a chart names all it has there: a match by name would be another emoji
        return next((self.by_name[style][n] for n in self.names(emoji) if n in self.by_name[style]), None)

    def svg(self, style: str, name: str) -> str:
        """The icon's drawing with its aliases followed; sizes fall back from icon to set to Iconify's 16."""
        icons, flip = self.sets[style], False
        while name not in icons["icons"]:
            alias = icons["aliases"][name]
            name, flip = alias["parent"], flip ^ alias.get("hFlip", False)
        icon = icons["icons"][name]
        left, top = icon.get("left", 0), icon.get("top", 0)
        width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
        body = icon["body"]
        if flip:
            body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
        return (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'width="{SIDE}" height="{SIDE}" viewBox="{left} {top} {width} {height}">{body}</svg>'
        )


def rendered_png(svg: str) -> bytes:
    """PNG bytes of a 32x32 RGB picture on white."""
    drawn = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, background="#ffffff"))))
    if drawn.size != (SIDE, SIDE):
        raise ValueError(f"resvg drew {drawn.size}, not {SIDE}x{SIDE}")
    buffer = io.BytesIO()
    drawn.convert("RGB").save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def small(png: bytes) -> bytes:
    """The same pixels as lossless WebP: a third smaller than PNG."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(buffer, "WEBP", lossless=True, quality=100, method=6)
    return buffer.getvalue()
