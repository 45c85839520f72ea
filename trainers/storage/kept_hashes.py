"""Hashes of large weights, kept in a small file from one process to the next: 40 GB take 20 seconds."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from pathlib import Path

from .files import write_atomically
from .reading import is_object, read_json, require

MOST = 256
"""Entries; the oldest go."""
_SHA256 = re.compile(r"[0-9a-f]{64}")
log = logging.getLogger("comfyui_fewstep")


def kept(file: Path, key: str, make: Callable[[], str]) -> str:
    """The hash that file has for key; else what make gives, which file has from then on. key: all that it depends on.

    A damaged file is begun anew. One that the disk refuses to read or write is said and ends nothing: whoever only draws need not
    be allowed to. Where two processes write at once, one's entry is lost, and made again when asked for.
    """
    known = _read(file)
    if key in known:
        return known[key]
    made = make()
    known = {**_read(file), key: made}  # with what others have made in these seconds
    newest = dict(list(known.items())[-MOST:])
    try:
        write_atomically(file, json.dumps({"hashes": newest}, indent=0).encode())
    except OSError as error:
        log.warning("a hash is not kept, and made again the next time: %s", error)
    return made


def _read(file: Path) -> dict[str, str]:
    try:
        known = require(read_json(file), {"hashes": is_object}, what=file.name)["hashes"]
        wrong = [key for key, value in known.items() if not isinstance(value, str) or not _SHA256.fullmatch(value)]
        if wrong:
            raise ValueError(f"{file.name} has no hash for {wrong[0]}")
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        log.warning("%s; it is made anew, which takes the time of hashing again.", error)
        return {}
    return dict(known)
