"""Fenced blocks of a Markdown text, and the prose around them."""

import dataclasses


@dataclasses.dataclass
class Block:
    language: str
    text: str
    line: int  # of its first line of text
    before: str  # the prose since the block before it
    after: str = ""  # the prose up to the next block


def blocks(text):
    found, prose, inside = [], [], None
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        if inside is None and line.startswith("```"):
            if found:
                found[-1].after = "".join(prose)
            inside = Block(line.removeprefix("```").strip(), "", number + 1, "".join(prose))
            prose = []
        elif inside is None:
            prose.append(line)
        elif line.rstrip() == "```":
            found.append(inside)
            inside = None
        else:
            inside.text += line
    if inside is not None:
        raise ValueError(f"the block at line {inside.line} has no end")
    if found:
        found[-1].after = "".join(prose)
    return found
