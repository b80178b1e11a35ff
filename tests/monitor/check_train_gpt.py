"""train_gpt --monitor DIR: trains as without it, and leaves a trace, lines of steps, a summary and a report that
a browser shows in light and dark (where there is one: Chromium)."""

import argparse
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import zlib

import check_trace

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PAGE = {"light": (0xF6, 0xF6, 0xF4), "dark": (0x16, 0x16, 0x15)}  # the page's colour
SEGMENTS = {"light": (0xD6, 0x46, 0x2F), "dark": (0xEE, 0x6B, 0x55)}  # of exposed communication


def train(program, ranks, strategy, folder=None):
    line = [program, "--ranks", str(ranks), "--steps", "8", "--batch", "12", "--layers", "2", "--strategy", strategy]
    if folder:
        line += ["--monitor", str(folder)]
    return subprocess.run(line, capture_output=True, text=True, check=True).stdout


def check_files(folder, ranks, strategy, said):
    """Yields what is wrong with what a run left in the folder."""
    yield from (f"trace.json: {line}" for line in check_trace.check((folder / "trace.json").read_text(), ranks))
    steps = [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]
    if [step["step"] for step in steps] != list(range(8)):
        yield f"steps.jsonl has the steps {[step['step'] for step in steps]}"
    if not steps[-1]["loss"] < steps[0]["loss"]:
        yield "the loss does not fall"
    summary = json.loads((folder / "summary.json").read_text())
    if len(summary["ranks"]) != ranks or summary["strategy"] != strategy:
        yield f"summary.json is of {len(summary['ranks'])} ranks and {summary['strategy']}"
    if summary["diagnosis"] not in said:
        yield "the table does not begin with the diagnosis"
    parts = sum(summary[f"{part}_ms"] for part in ("compute", "exposed_communication", "optimizer"))
    if abs(parts - summary["step_ms"]) > 1e-6 * summary["step_ms"]:
        yield f"the parts of the step add up to {parts}, not to {summary['step_ms']}"
    report = (folder / "report.html").read_text()
    if report.count("<svg") != 5 or "<script" in report:
        yield "report.html has not five drawings, or has scripts"


def pixels(png):
    """Rows of (red, green, blue) of a PNG with 8 bits a channel. (PNG, 3rd edition, sections 9 and 11.)"""
    data, at, header = b"", 8, None
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at:at + 8])
        if kind == b"IHDR":
            header = struct.unpack(">IIBBBBB", png[at + 8:at + 8 + size])
        if kind == b"IDAT":
            data += png[at + 8:at + 8 + size]
        at += size + 12
    width, height, depth, colour = header[:4]
    assert depth == 8 and colour in (2, 6), header
    channels = 3 if colour == 2 else 4
    raw, above, rows = zlib.decompress(data), bytearray(width * channels), []
    for y in range(height):
        start = y * (width * channels + 1)
        filtering, line = raw[start], bytearray(raw[start + 1:start + 1 + width * channels])
        for i, value in enumerate(line):
            left = line[i - channels] if i >= channels else 0
            corner = above[i - channels] if i >= channels else 0
            if filtering == 1:
                line[i] = (value + left) & 255
            elif filtering == 2:
                line[i] = (value + above[i]) & 255
            elif filtering == 3:
                line[i] = (value + (left + above[i]) // 2) & 255
            elif filtering == 4:
                guess = left + above[i] - corner
                nearest = min((abs(guess - left), 0, left), (abs(guess - above[i]), 1, above[i]),
                              (abs(guess - corner), 2, corner))
                line[i] = (value + nearest[2]) & 255
        rows.append([tuple(line[x:x + 3]) for x in range(0, len(line), channels)])
        above = line
    return rows


def look(browser, folder):
    """Yields what is wrong with how the report looks."""
    for scheme, value in (("dark", 0), ("light", 1)):
        shot = folder / f"{scheme}.png"
        subprocess.run([browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                        f"--screenshot={shot}", "--window-size=900,700",
                        f"--blink-settings=preferredColorScheme={value}", (folder / "report.html").as_uri()],
                       capture_output=True, check=True, timeout=100)
        rows = pixels(shot.read_bytes())
        if rows[3][3] != PAGE[scheme]:
            yield f"in {scheme} the page is {rows[3][3]}, not {PAGE[scheme]}"
        if sum(row.count(SEGMENTS[scheme]) for row in rows) < 50:
            yield f"in {scheme} no bar has the colour of exposed communication"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", required=True)
    parser.add_argument("--work", type=pathlib.Path, required=True, help="a folder to empty and fill")
    options = parser.parse_args()
    shutil.rmtree(options.work, ignore_errors=True)
    wrong = []
    for ranks, strategy in ((4, "zero3"), (1, "ddp"), (3, "zero1")):
        folder = options.work / f"{strategy}-{ranks}"
        said = train(options.program, ranks, strategy, folder)
        wrong += check_files(folder, ranks, strategy, said)
        if said.split()[-1] != train(options.program, ranks, strategy).split()[-1]:
            wrong.append(f"{strategy}: the parameters differ from those without a monitor")
    text = (options.work / "zero3-4" / "trace.json").read_text()
    wrong += [f"the check does not see {fault}" for fault in check_trace.self_test(text, 4)]
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser:
        wrong += look(browser, options.work / "zero3-4")
    for line in wrong[:20]:
        print(f"error: {line}")
    print(f"{len(wrong)} errors; {'looked at with ' + browser if browser else 'no browser to look with'}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
