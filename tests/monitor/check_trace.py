"""A trace is what viewers of Chrome's trace format take: valid JSON, complete events that nest on each thread,
metadata for every process and thread, arrows that begin in a span and end in a later one, times that go forward.
(Trace Event Format, Google, 2016.)"""

import argparse
import json
import pathlib
import sys

PHASES = {"X": {"name", "cat", "pid", "tid", "ts", "dur"}, "M": {"name", "pid", "tid", "args"},
          "s": {"name", "cat", "id", "pid", "tid", "ts"}, "f": {"name", "cat", "id", "pid", "tid", "ts", "bp"}}
ROUNDING = 0.002  # microseconds: two of them are printed from nanoseconds


def check(text, ranks):
    """Returns what is wrong with a trace of so many ranks."""
    try:
        trace = json.loads(text, parse_constant=lambda word: (_ for _ in ()).throw(ValueError(f"{word} is no JSON")))
    except ValueError as error:
        return [f"no JSON: {error}"]
    events = trace.get("traceEvents") if isinstance(trace, dict) else None
    if not isinstance(events, list):
        return ["there is no list traceEvents"]
    wrong = []
    threads, named, flows = {}, set(), {"s": {}, "f": {}}
    for number, event in enumerate(events):
        phase = event.get("ph")
        if phase not in PHASES:
            wrong.append(f"event {number}: phase {phase!r}")
            continue
        missing = PHASES[phase] - event.keys()
        if missing:
            wrong.append(f"event {number}: no {', '.join(sorted(missing))}")
            continue
        place = (event["pid"], event["tid"])
        if phase == "M":
            named.add((event["name"], *place))
            continue
        if not isinstance(event["ts"], (int, float)) or event["ts"] < 0:
            wrong.append(f"event {number}: ts {event['ts']!r}")
        elif phase == "X":
            if event["dur"] < 0:
                wrong.append(f"event {number}: dur {event['dur']}")
            threads.setdefault(place, []).append(event)
        else:
            if event["id"] in flows[phase]:
                wrong.append(f"event {number}: a second {phase} of flow {event['id']}")
            flows[phase][event["id"]] = event

    if {pid for pid, _ in threads} != set(range(ranks)):
        wrong.append(f"spans of processes {sorted({pid for pid, _ in threads})}, expected 0 to {ranks - 1}")
    for pid, tid in threads:
        for name, of in (("process_name", (pid, 0)), ("thread_name", (pid, tid))):
            if (name, *of) not in named:
                wrong.append(f"no {name} for {pid}/{tid}")
    for place, spans in threads.items():
        wrong += nesting(place, spans)
    wrong += arrows(flows, threads)
    return wrong


def nesting(place, spans):
    """Spans of one thread begin in order and lie one within another or apart."""
    wrong, open_ends, last = [], [], 0
    for span in spans:
        begin, end = span["ts"], span["ts"] + span["dur"]
        if begin < last:
            wrong.append(f"{place}: '{span['name']}' begins at {begin}, after one at {last}")
        last = begin
        while open_ends and open_ends[-1] <= begin + ROUNDING:
            open_ends.pop()
        if open_ends and end > open_ends[-1] + ROUNDING:
            wrong.append(f"{place}: '{span['name']}' [{begin}, {end}] ends after what it is in ({open_ends[-1]})")
        open_ends.append(end)
    return wrong


def arrows(flows, threads):
    wrong = []
    if flows["s"].keys() != flows["f"].keys():
        wrong.append(f"{len(flows['s'].keys() ^ flows['f'].keys())} flows without a beginning or an end")
    if not flows["s"]:
        wrong.append("there are no flows")
    begins = {place: {span["ts"] for span in spans} for place, spans in threads.items()}
    for phase, events in flows.items():
        for event in events.values():
            if event["ts"] not in begins.get((event["pid"], event["tid"]), ()):
                wrong.append(f"flow {event['id']}: its {phase} at {event['ts']} is at no span's begin")
    for key in flows["s"].keys() & flows["f"].keys():
        begin, end = flows["s"][key], flows["f"][key]
        if begin["pid"] != end["pid"] or begin["tid"] == end["tid"]:
            wrong.append(f"flow {key} goes from {begin['pid']}/{begin['tid']} to {end['pid']}/{end['tid']}")
        if end["ts"] < begin["ts"]:
            wrong.append(f"flow {key} goes back in time")
    return wrong


def self_test(text, ranks):
    """What the check must refuse: returns the faults that it did not see."""
    def broken(change):
        trace = json.loads(text)
        change(trace["traceEvents"])
        return json.dumps(trace)

    def first(events, phase):
        return next(event for event in events if event["ph"] == phase)

    faults = {
        "cut off": text[:-10],
        "not a number": text.replace('"ts":', '"ts":NaN,"was":', 1),
        "no duration": broken(lambda events: first(events, "X").pop("dur")),
        "a span that leaves its parent": broken(cut_through_a_child),
        "a flow without an end": broken(lambda events: events.remove(first(events, "f"))),
        "a flow to nowhere": broken(lambda events: first(events, "f").update(ts=first(events, "f")["ts"] + 0.5)),
        "a flow back in time": broken(begin_at_the_end),
        "no name": broken(lambda events: events.remove(next(event for event in events
                                                            if event["name"] == "thread_name"))),
        "spans out of order": broken(lambda events: events.append(dict(first(events, "X")))),
        "a rank too few": broken(lambda events: events.__setitem__(
            slice(None), [event for event in events if event["pid"] > 0])),
    }
    return [name for name, bad in faults.items() if not check(bad, ranks)]


def cut_through_a_child(events):
    parent, *others = (event for event in events if event["ph"] == "X")
    child = next(span for span in others
                 if all(span[key] == parent[key] for key in ("pid", "tid")) and span["dur"] > 4 * ROUNDING)
    parent["dur"] = child["ts"] + child["dur"] / 2 - parent["ts"]


def begin_at_the_end(events):
    flow = next(event for event in events if event["ph"] == "s")
    flow["ts"] = max(event["ts"] for event in events
                     if event["ph"] == "X" and all(event[key] == flow[key] for key in ("pid", "tid")))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("trace", type=pathlib.Path)
    options = parser.parse_args()
    text = options.trace.read_text(encoding="utf-8")
    wrong = check(text, options.ranks)
    for line in wrong[:20]:
        print(f"error: {line}")
    unseen = [] if wrong else self_test(text, options.ranks)
    for name in unseen:
        print(f"error: the check does not see {name}")
    print(f"{text.count(chr(10))} lines, {len(wrong)} errors, {len(unseen)} unseen faults")
    return 1 if wrong or unseen else 0


if __name__ == "__main__":
    sys.exit(main())
