"""The panels' words in other languages: every text has its translation, with the same values in it, and none is left over."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "web").glob("*.js")}
LANGUAGES = sorted((ROOT / "web" / "words").glob("*.json"))


def end_of(script, at):
    """Behind the bracket that closes what stands at a place of a script."""
    depth = 0
    while depth or script[at] not in ")}":
        if script[at] in '"`':
            at = end_of_text(script, at)
        else:
            depth += (script[at] in "({[") - (script[at] in ")}]")
            at += 1
    return at + 1


def end_of_text(script, at):
    """Behind a string or a template that begins at a place."""
    mark, at = script[at], at + 1
    while script[at] != mark:
        at = end_of(script, at + 2) if mark == "`" and script.startswith("${", at) else at + 1
    return at + 1


def said(script):
    """The texts that say is given as they stand, values as {0}, {1}. Those that come in a variable are not among them."""
    for call in re.finditer(r"\bsay([`(])", script):
        at = call.end() - 1
        if call[1] == "(":
            yield from re.findall(r'"([^"]+[^"_ ][^"]*)"', script[at : end_of(script, at + 1)])
            continue
        text, end, values = "", end_of_text(script, at) - 1, 0
        at += 1
        while at < end:
            if script.startswith("${", at):
                text, at, values = text + f"{{{values}}}", end_of(script, at + 2), values + 1
            else:
                text, at = text + script[at], at + 1
        yield text


SAID = {text for script in SCRIPTS.values() for text in said(script)}


def test_the_texts_are_found():
    script = 'say("One") + say`of ${f(`${a} {b}`)} and ${c ? "d" : e(1)}` + say(x ? "Two, or" : "Three")'
    assert list(said(script)) == ["One", "of {0} and {1}", "Two, or", "Three"]
    assert {"Copy", "Training: {0}", "stage {0} of {1} ({2})"} < SAID
    assert len(SAID) > 90


@pytest.mark.parametrize("path", LANGUAGES, ids=lambda path: path.stem)
def test_a_language_has_all_of_them(path):
    words = json.loads(path.read_text(encoding="utf-8"))
    assert SAID - words.keys() == set()
    everything = "\n".join(SCRIPTS.values()).replace("_", " ")
    assert [
        text for text in words if text not in SAID and f'"{text}"' not in everything and f" {text}:" not in everything
    ] == []
    values = re.compile(r"\{\d\}")
    assert [
        text for text, other in words.items() if sorted(values.findall(text)) != sorted(values.findall(other))
    ] == []
    assert f'"{path.stem}"' in re.search(r"const LANGUAGES = \[(.*?)\]", SCRIPTS["fewstep_words.js"])[1]
