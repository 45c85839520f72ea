"""Writes locales/en from what the nodes declare: the texts that an editor shows, for translators to start from.

An editor of 2025 and later reads locales/<language>/nodeDefs.json of every pack. Outputs keep their declared names; inputs
too, but for those that declare what they are shown as.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..launch import ROOT
from .embedded import import_host

ENGLISH = ROOT / "locales" / "en" / "nodeDefs.json"


def texts_of(node: Any, *, shown: str) -> dict[str, Any]:
    """Of one node class: display_name, description, inputs by name and outputs by place, each with name and tooltip."""
    declared = node.INPUT_TYPES()
    inputs = {**declared.get("required", {}), **declared.get("optional", {})}
    names = getattr(node, "RETURN_NAMES", node.RETURN_TYPES)
    tooltips = getattr(node, "OUTPUT_TOOLTIPS", ())
    return {
        "display_name": shown,
        "description": node.DESCRIPTION,
        "inputs": {name: _text(shown_as(name, kind), tooltip_of(kind)) for name, kind in inputs.items()},
        "outputs": {
            str(i): _text(name, tooltip) for i, (name, tooltip) in enumerate(zip(names, tooltips, strict=True))
        },
    }


def tooltip_of(declared: Any) -> str:
    return str(declared[1]["tooltip"])


def shown_as(name: str, declared: Any) -> str:
    return str(declared[1].get("display_name", name))


def _text(name: str, tooltip: str) -> dict[str, str]:
    return {"name": name, "tooltip": tooltip}


def english() -> dict[str, Any]:
    """Of every node, by its id with `_` for dots, as the editor asks for it. The host must be importable."""
    from ..nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    return {
        kind.replace(".", "_"): texts_of(node, shown=NODE_DISPLAY_NAME_MAPPINGS[kind])
        for kind, node in NODE_CLASS_MAPPINGS.items()
    }


def written(texts: Mapping[str, Any]) -> str:
    """As the file holds them."""
    return json.dumps(texts, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    import_host()
    ENGLISH.parent.mkdir(parents=True, exist_ok=True)
    ENGLISH.write_text(written(english()), encoding="utf-8")
    print(f"{ENGLISH.relative_to(ROOT)}: {len(english())} nodes")


if __name__ == "__main__":
    main()
