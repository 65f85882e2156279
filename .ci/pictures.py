"""Make the pictures in docs/images that show pages and terminals: `pictures.py RUN`, in a folder that has the run.

They are of a real Chromium: the report of the run on a desk and a phone, light and dark; its card in a notebook; the
site of the documentation; and what two commands print on a terminal of 80 and of 120 columns.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
IMAGES = ROOT / "docs/images"
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

from browser import Page, browser  # noqa: E402
from terminals import on_terminal  # noqa: E402

from trainlib.runs.files.json_records import read_lines  # noqa: E402
from trainlib.runs.notebook import html as notebook  # noqa: E402
from trainlib.runs.notebook.run import open_run  # noqa: E402

COLOURS = {"31": "#ff7b72", "32": "#7ee2a8", "33": "#e3b341", "36": "#79c0ff"}
MONO = "font:13px/1.45 'DejaVu Sans Mono',monospace"
MOST_BYTES = 150_000
LAUNCH = (sys.executable, "-m", "launch")


def main(name: str) -> None:
    """Make all pictures."""
    report = subprocess.run([*LAUNCH, "report", name], env=environment(), capture_output=True, text=True, check=True)
    with tempfile.TemporaryDirectory() as folder, browser(Path(folder) / "profile") as page:
        scratch = Path(folder)
        whole = Path(report.stdout.strip())
        for file, width, height, dark in (
            ("", 1280, 1330, False),
            ("-dark", 1280, 1330, True),
            ("-phone", 390, 1500, False),
        ):
            page.open(whole, width=width, height=height, dark=dark)
            shoot(page, f"report{file}.png")
        page.open(whole, width=1280, height=900)
        heading = "[...document.querySelectorAll('h3')].find((each) => each.innerText.startsWith('Mistakes'))"
        page.evaluate(f"{heading}.scrollIntoView()")
        shoot(page, "report-mistakes.png")
        card = written(scratch / "card.html", cells(name))
        page.open(card, width=1440, height=540)
        shoot(page, "notebook.png")
        subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(scratch / "site")],
            cwd=ROOT,
            env=environment(NO_MKDOCS_2_WARNING="1"),
            check=True,
        )
        with served(scratch / "site") as address:  # search works only where the site is served
            page.open(f"{address}/coming-from.html", width=1280, height=900)
            shoot(page, "site.png")
        for columns in (80, 120):
            text = "".join(
                f"$ {' '.join(['launch', *words])}\n{screen(columns, *words)}\n"
                for words in (("list",), ("status", name), ("check", "quickstart", "optimizer.lr=-1", "train.epoch=5"))
            )
            shown = written(scratch / "terminal.html", terminal(text))
            page.open(shown, width=columns * 8 + 40, height=570)
            shoot(page, f"terminal-{columns}.png")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder to this machine inside the block; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files, and says nothing."""

    def log_message(self, *args: object) -> None:
        """Do nothing."""


def environment(**more: str) -> dict[str, str]:
    """Return this process's variables, with which its programs find this clone."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def shoot(page: Page, name: str) -> None:
    """Write what is on the screen, with fewer colours where it takes more than MOST_BYTES."""
    page.screenshot(IMAGES / name)
    if (IMAGES / name).stat().st_size < MOST_BYTES:
        return
    Image.open(IMAGES / name).convert("P", palette=Image.Palette.ADAPTIVE, colors=256).save(
        IMAGES / name, optimize=True
    )


def written(path: Path, text: str) -> Path:
    """Write a page, and return where it is."""
    path.write_text(f'<meta charset="utf-8">{text}')
    return path


def cells(name: str) -> str:
    """Return two cells of a notebook with what they show, light beside dark: a run that trains, one that is over."""
    run = open_run(name)
    rows = read_lines(run.metrics_file)
    last = max(row["step"] for row in rows)
    begun = [row for row in rows if row["step"] <= 0.7 * last]
    newest = [row for row in begun if row.get("scope") == "step"][-1]
    told = f"step {newest['step']}/{last} · loss {newest['loss']:.4f}  accuracy {newest['accuracy']:.4f}"
    live = notebook.block(
        notebook.text(told), notebook.bar(newest["step"], last), notebook.curves(begun)
    )  # as the console of a notebook shows it
    card = run._repr_html_().replace(str(Path.cwd()), "/home/you")

    def side(ink: str, paper: str, tint: str) -> str:
        cell = f'<pre style="background:{tint};padding:8px 12px;border-radius:4px;margin:14px 0 8px;{MONO}">%s</pre>'
        shown = cell % f'run = trainlib.fit("{name}.yaml")' + live + cell % "run" + card
        return f'<div style="flex:1;min-width:0;padding:6px 18px;background:{paper};color:{ink}">{shown}</div>'

    both = side("#1b1d1f", "#fff", "#f2f2f2") + side("#e4e6e8", "#131517", "#22262a")
    return f'<body style="margin:0;display:flex;height:100vh">{both}</body>'


def screen(columns: int, *words: str) -> str:
    """Return what a command prints on a terminal of this width, with its colours."""
    variables = environment(COLUMNS=str(columns), TERM="xterm-256color")
    _, text = on_terminal([*LAUNCH, *words], variables)
    return text.replace(str(Path.cwd()), "/home/you")


def terminal(text: str) -> str:
    """Return a terminal's text as HTML, its colours and bold letters as spans."""
    parts = re.split(r"\x1b\[([0-9;]*)m", text)
    shown = html.escape(parts[0])
    for codes, words in zip(parts[1::2], parts[2::2], strict=True):
        styles = [f"color:{COLOURS[code]}" for code in codes.split(";") if code in COLOURS]
        styles += ["font-weight:bold"] if "1" in codes.split(";") else []
        shown += f'<span style="{";".join(styles)}">{html.escape(words)}</span>'
    return (
        f'<body style="margin:0;background:#131517;color:#e4e6e8"><pre style="margin:16px;{MONO}">{shown}</pre></body>'
    )


if __name__ == "__main__":
    main(sys.argv[1])
