"""The report page's style: paper and ink, light and dark, narrow and wide, screen and print. No external request.

Row colours (`s0`...) are told apart under the common colour-vision deficiencies (after Okabe and Ito), darkened for the
light page and lightened for the dark one; charts add a marker and a dash to each.
"""

LIGHT = ("#0a62b0", "#c2500a", "#0b7d5c", "#a33f80", "#5f6368", "#7a5c00", "#3f8fb8", "#7b4fc9")
DARK = ("#62b3f2", "#f59652", "#3fcf9f", "#ea92c6", "#a9adb2", "#e2c044", "#9ad7f5", "#bb9bf5")


def colours(palette: tuple[str, ...]) -> str:
    return "".join(f"--s{n}:{value};" for n, value in enumerate(palette))


INK_LIGHT = (
    "--page:#faf8f3;--card:#fffefb;--ink:#22261f;--soft:#63675c;--rule:#e3dfd3;--leaf:#2f6b4a;--petal:#b8486a;"
    "--bed:#f1eee5;color-scheme:light;" + colours(LIGHT)
)
INK_DARK = (
    "--page:#14170f;--card:#1c2018;--ink:#e9e8df;--soft:#a3a798;--rule:#343a2d;--leaf:#8fcfa6;--petal:#f08fae;"
    "--bed:#23281e;color-scheme:dark;" + colours(DARK)
)

STYLE = (
    (
        ":root{"
        + INK_LIGHT
        + "}@media (prefers-color-scheme:dark){:root{"
        + INK_DARK
        + "}}@media print{:root{"
        + INK_LIGHT
        + "--page:#fff;--card:#fff}}"
        + "".join(f".s{n}{{--c:var(--s{n})}}" for n in range(len(LIGHT)))
        + """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,
"DejaVu Sans",sans-serif}
main,header,footer{max-width:1120px;margin:0 auto;padding:0 24px}
h1,h2,.value{font-family:"Iowan Old Style","Palatino Linotype",Palatino,"URW Palladio L",Georgia,"DejaVu Serif",serif}
h1{font-size:2.3rem;line-height:1.15;margin:0;font-weight:600;letter-spacing:-.01em}
h2{font-size:1.45rem;margin:0 0 4px;font-weight:600}
h3{font-size:.95rem;margin:0 0 4px;font-weight:600}
p{margin:0 0 14px;max-width:72ch}
section{margin:52px 0 0}
.note,.soft,figcaption{color:var(--soft)}
.note{margin-bottom:18px}
header{padding-top:44px}
.brand{display:flex;align-items:center;gap:10px;color:var(--leaf);font-size:.82rem;letter-spacing:.14em;
text-transform:uppercase;margin-bottom:14px}
.brand svg{width:34px;height:34px}
.facts{display:flex;flex-wrap:wrap;gap:8px;margin:18px 0 0;padding:0;list-style:none}
.facts li{border:1px solid var(--rule);border-radius:99px;padding:3px 13px;font-size:.87rem;background:var(--card)}
.facts b{font-weight:600}
.banner{border:1px solid var(--petal);border-radius:10px;padding:10px 16px;margin:20px 0 0;max-width:none}
p.lead{font-size:1.12rem;margin:24px 0 16px;max-width:78ch}
figure.lead{max-width:820px;margin-top:6px}
figure.lead div{display:grid;grid-template-columns:auto 1fr;gap:6px 12px;align-items:center;font-size:.8rem;
color:var(--soft)}
figure.lead img{width:100%;height:auto;image-rendering:pixelated;border-radius:4px;background:#fff;display:block}
figure.lead figcaption{font-size:.8rem;margin-top:8px}
.cards{display:grid;gap:14px;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));margin-top:30px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:16px 16px 14px}
.card h3{color:var(--soft);font-weight:500;font-size:.86rem}
.value{font-size:2.15rem;line-height:1.2;font-weight:600;white-space:nowrap}
.value small{font-size:1.05rem;font-weight:400;color:var(--soft);margin-left:3px}
.value.pair{font-size:1.4rem;line-height:1.3}.value.pair span{display:block}
.card dl{margin:8px 0 0;font-size:.82rem;display:grid;grid-template-columns:1fr auto;gap:2px 8px}
.card dt{color:var(--soft)}
.card dd{margin:0;text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.up{color:var(--leaf)}.down{color:var(--petal)}
.plots{display:grid;gap:18px;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr))}
figure{margin:0;background:var(--card);border:1px solid var(--rule);border-radius:12px;padding:14px 16px 10px}
svg{display:block;max-width:100%}
svg text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;fill:var(--soft)}
svg.chart,svg.votes{width:100%;height:auto}svg.votes{margin:0 auto}
.rule{stroke:var(--rule);stroke-width:1}
.line{stroke:var(--c);stroke-width:2.2;fill:none;stroke-linejoin:round}
.mark{fill:var(--c);stroke:var(--card);stroke-width:1}
.error{stroke:var(--c);stroke-width:1.4;stroke-opacity:.6}
svg text.end{fill:var(--c);font-weight:600;font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:3px 16px;font-size:.8rem;color:var(--soft);margin:0 0 8px}
.legend span{display:inline-flex;align-items:center;gap:7px}
.swatch{width:30px;height:14px;flex:none}
.scroll{overflow-x:auto;border:1px solid var(--rule);border-radius:12px;background:var(--card)}
.scroll.plain{padding:16px}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:9px 14px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap;vertical-align:top}
th{font-weight:600;font-size:.82rem;color:var(--soft);vertical-align:bottom}
tr:last-child td{border-bottom:0}
th:first-child,td:first-child,.words{text-align:left}
td.words{white-space:normal}td.words:last-child{min-width:220px}
td small{display:block;color:var(--soft);font-size:.78rem}
tr.main td{background:var(--bed)}
tr.main td:first-child{font-weight:600}
td .swatch{display:inline-block;vertical-align:-1px;margin-right:8px}
.bars{height:19px;margin:3px 0 0 auto}.bar{fill:var(--leaf)}
.heat{fill:var(--s0)}.bed{fill:var(--bed)}
.diagonal{fill:none;stroke:var(--soft);stroke-opacity:.55;stroke-width:1}
svg.votes text{font-size:11px}
.plates{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,var(--plate)),1fr))}
.plate{padding:12px 14px 14px;break-inside:avoid}
.plate h3{text-transform:capitalize}
.strip{display:grid;grid-template-columns:72px 1fr;gap:10px;align-items:center;margin-top:7px;font-size:.74rem;
line-height:1.25;color:var(--soft)}
.strip img{width:100%;max-width:220px;height:auto;
image-rendering:pixelated;border-radius:4px;background:#fff;display:block}
.notes{padding-left:20px;max-width:76ch;margin:10px 0 0}.notes li{margin-bottom:8px}
details{border:1px solid var(--rule);border-radius:12px;background:var(--card);padding:12px 18px}
summary{cursor:pointer;font-weight:600}
pre{overflow-x:auto;font:.8rem/1.5 ui-monospace,"DejaVu Sans Mono",monospace;margin:14px 0 4px}
footer{color:var(--soft);font-size:.84rem;margin-top:56px;padding-bottom:40px}
@media (max-width:600px){main,header,footer{padding:0 16px}header{padding-top:28px}
h1{font-size:1.8rem}
section{margin-top:40px}.cards{grid-template-columns:repeat(2,minmax(0,1fr));gap:10px}
.card{padding:12px 13px}.value{font-size:1.6rem}

.value.pair span{display:inline-block;margin-right:18px}
.card.wide{grid-column:1/-1}figure{padding:12px 10px 8px}th,td{padding:8px 10px}}
@media print{body{font-size:12px}section{break-inside:auto;margin-top:28px}figure,.card,.plate,tr{break-inside:avoid}
.plots{grid-template-columns:1fr 1fr}.plates{grid-template-columns:repeat(3,1fr)}details{display:none}}
"""
    )
    .replace(",\n", ",")
    .replace("\n", "")
)

FLOWER = (
    '<svg viewBox="0 0 40 40" aria-hidden="true"><g fill="none" stroke="currentColor" stroke-width="1.5" '
    'stroke-linecap="round"><path d="M20 19V38"/><path d="M20 31c-5 0-8-2-9-6 5 0 8 2 9 6Z"/>'
    '<path d="M20 34c4-1 6-3 7-7-4 1-6 3-7 7Z"/></g><g fill="var(--petal)">'
    + "".join(
        f'<ellipse cx="20" cy="6.6" rx="3.3" ry="5.4" transform="rotate({60 * n} 20 13)" opacity=".85"/>'
        for n in range(6)
    )
    + '</g><circle cx="20" cy="13" r="3" fill="var(--s5)"/></svg>'
)
