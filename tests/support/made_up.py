"""Made-up documents of tables and figures, with what goes wrong in real ones: missing cells, failed runs, long labels, marks in words."""

import json
import struct
import zlib

CURVE = """<?xml version="1.0" encoding="utf-8" standalone="no"?>
<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" "http://www.w3.org/Graphics/SVG/1.1/DTD/svg11.dtd">
<svg xmlns:xlink="http://www.w3.org/1999/xlink" width="240pt" height="120pt" viewBox="0 0 240 120" xmlns="http://www.w3.org/2000/svg">
 <metadata><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"/></metadata>
 <defs><style type="text/css">*{stroke-linejoin: round; stroke-linecap: butt}</style>
  <clipPath id="clip"><rect x="10" y="10" width="220" height="100"/></clipPath><path id="dot" d="M-3 0H3"/></defs>
 <script>alert(1)</script>
 <g id="line" clip-path="url(#clip)" style="fill: url('#clip')" onclick="alert(2)"><path d="M1 9L230 20"/></g>
 <g id="tip7"><title>layer 14: 1,143.75</title><use xlink:href="#dot" x="120" y="60" stroke="#000"/></g>
 <image xlink:href="https://example.org/spy.png" width="1" height="1"/>
</svg>"""


def png(width):
    """A black PNG."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes(3 * width)
    head = struct.pack(">IIBBBBB", width, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


def run(total, **more):
    return {
        "status": "done",
        "scores": {"total": total, "GQA <acc> & more": 61.5},
        "stderr": {"total": 22.4},
        "samples": 640,
        "seconds": 200.4,
        "backbone": "scale-llava-1.5@9fe7e957393c",
        "commit": "07272d01fc3456789+changes",
        "command": "python evaluate.py method=blink 'layers.indices=[12,13]'",
    } | more


def table(name="blink_table2", model="scale-llava-1.5", scale=True, **more):
    """Three rows: measured, measured against a baseline, failed. A published cell is derived, one is missing."""
    columns = {"total": {"value": "scores.total", "per": 1, "digits": 2, "error_digits": 0, "published": "total"}}
    rows = [
        {
            "point": "Vanilla",
            "baseline": None,
            "published": {"total": 1863.58, "lost": 3},
            "derived": ["total"],
            "runs": {"mosaic": run(1143.75)},
        },
        {
            "point": "Blink <full> & τ",
            "baseline": "Vanilla",
            "published": {"total": 1881.53, "lost": None},
            "missing": {"lost": "lost in the print"},
            "published_deltas": {"total": 17.95},
            "runs": {"mosaic": run(1200.0)},
            "deltas": {"mosaic": {"total": {"delta": 56.25, "p": 0.012, "test": "bootstrap", "n": 640, "low": 12.5, "high": 100.0}}},
        },
        {
            "point": "w/o Drop",
            "baseline": "Vanilla",
            "published": {"total": 1884.03, "lost": 5},
            "runs": {"mosaic": {"status": "failed", "error": "out of memory <here>", "command": "python evaluate.py thresholds=no_drop"}},
        },
    ]
    label = f"{model} ({'scale model' if scale else 'named backbone'}) on mosaic, 640 questions"
    return {
        "kind": "table",
        "name": name,
        "title": "Blink, Table 2: key modules <b>",
        "paper": "blink",
        "source": "blink-table-2",
        "published_on": "LLaVA-1.5-7B, MME",
        "note": "",
        "error_over": "images",
        "command": f"python sweep.py table={name}",
        "model": model,
        "scale": scale,
        "footnotes": [{"kind": "discrepancy", "text": "The text says 3 & the cell < 2."}, {"kind": "info", "text": "All sums are exact."}],
        "figures": ["blink_fig7", "blink_fig3"],
        "published_columns": {"total": {"column": "mme_total", "digits": 2}, "lost": {"column": "lost", "digits": 0}},
        "groups": [{"benchmark": "mosaic", "label": label, "columns": columns}],
        "rows": rows,
        "provenance": {"commit": "0123456789abcdef", "versions": {"torch": "2.13.0"}, "date": "2026-11-21T10:00:00.123", "seconds": 3725},
    } | more


def wide():
    """Twenty-two columns on two benchmarks and a label of a hundred letters."""
    headings = [f"a long sub task {k}" for k in range(11)]
    columns = {h: {"value": "scores.total", "per": 1, "digits": 1, "error_digits": 1, "published": None} for h in headings}
    groups = [{"benchmark": b, "label": f"llava_1_5_7b on {b}, 2374 questions", "columns": columns} for b in ("mme", "gqa")]
    rows = [
        {"point": f"row {k} " + "long_label_" * 9, "baseline": None, "published": {}, "runs": {"mme": run(1000.0 + k)}} for k in range(12)
    ]
    return table("blink_table10", "llava_1_5_7b", False, groups=groups, rows=rows, published_columns={}, figures=[], source="blink-table-1")


def recipe():
    rows = [
        {"point": "# GPUs", "published": {"paper": 2}, "settings": {"here": 2}},
        {"point": "Data type", "published": {"paper": "bfloat16"}},
    ]
    columns = {"paper": {"column": "value", "digits": None}}
    return table("blink_table4", "", None, rows=rows, groups=[], published_columns=columns, source="blink-table-4", figures=[])


def figure(name="blink_fig7", model="scale-llava-1.5", scale=True, **more):
    claims = [
        {
            "said": "Single layers 7-26 beat 4-6.",
            "how": "mean over 640 samples",
            "numbers": {"7-26 <mean>": 1143.75, "4-6": 0.123456},
            "holds": True,
        },
        {"said": "Leaving out 4-9 helps.", "how": "start sweep", "numbers": {"change": -3.0}, "holds": False},
        {"said": "14-18 matter.", "how": "no points", "numbers": {"change": None}, "holds": None},
    ]
    return {
        "kind": "figure",
        "name": name,
        "title": "Blink, Fig. 7: layer ranges",
        "paper": "blink",
        "source": name.replace("_fig", "-fig-"),
        "command": f"python sweep.py figure={name}",
        "model": model,
        "scale": scale,
        "plots": "Change of the total",
        "claim": "Excluding 4-9 helps",
        "footnotes": [],
        "caption": "Change of MME's total & <its> error by layer.",
        "measured_on": f"{model}, mosaic, 640 questions",
        "claims": claims,
        "pictures": {"curve": ["curve.png", "curve.svg", "curve.pdf"], "again": ["again.svg", "again.png"]},
        "rows": [
            {"point": "layer 4", "series": "single", "x": 4} | run(3.0),
            {"point": "layer 5", "status": "failed", "error": "no module"},
        ],
        "provenance": {"commit": "0123456789abcdef", "versions": {}, "date": "2026-11-21", "seconds": 9.0},
    } | more


def put(root, document, folder=None):
    """A document and its pictures where the report looks for them."""
    folder = root / (folder or f"{document['name']}/{document['model'] or 'none'}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{document['kind']}.json").write_text(json.dumps(document), encoding="utf-8")
    for stem in document.get("pictures", {}):
        (folder / f"{stem}.svg").write_text(CURVE, encoding="utf-8")
        (folder / f"{stem}.png").write_bytes(png(680))
    return folder


def everything(root):
    """A folder with every kind of document, as the report finds them."""
    for document in (
        table(),
        table(model="llava_1_5_7b", scale=False),
        wide(),
        recipe(),
        figure(),
        figure("blink_fig3", "llava_1_5_7b", False, pictures={}),
        table(figures=[], command="python sweep.py table=blink_table2 limit=24"),
        table("parity", "scale-llava-1.5", True, paper=None, source=None, title="Parity", figures=[], footnotes=[]),
    ):
        short = "limit=24" in document["command"]
        put(root, document, "blink_table2/scale-llava-1.5,limit=24" if short else None)
    drawn = figure("blink_fig3", title="Drawn from the table's own points")
    put(root, drawn, "blink_table2/scale-llava-1.5/blink_fig3")
    (root / "blink_table2/scale-llava-1.5/table.csv").write_text("point\n", encoding="utf-8")
    return root
