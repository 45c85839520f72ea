"""Starts the editor with the pack and its workflows and prints the address. Ctrl-C stops it."""

from __future__ import annotations

import argparse
import contextlib
import os
import webbrowser

from ..launch import HOME, ROOT
from .server import LOOPBACK, ServerError, serving


def main() -> None:
    parser = argparse.ArgumentParser(prog="launch.py ui", description=__doc__)
    parser.add_argument("--port", type=int, help="default: a free one")
    parser.add_argument("--listen", default=LOOPBACK, metavar="IP", help="address to listen on (default: %(default)s)")
    parser.add_argument("--open", action="store_true", help="open the address in the default browser")
    arguments = parser.parse_args()
    try:
        show(listen=arguments.listen, port=arguments.port, browser=arguments.open)
    except ServerError as error:
        raise SystemExit(f"The editor did not start: {error}") from error


def show(*, listen: str, port: int | None, browser: bool) -> None:
    """Until Ctrl-C, or the server's own end."""
    print("Starting ComfyUI ...", flush=True)
    own = bool(os.environ.get("COMFYUI_PATH"))
    with serving(base=HOME / "host", listen=listen, port=port, own_models=own) as server:
        print(f"The editor is at  {server.address}")
        where = "under Templates > FewStep, or" if own else "by the button Load,"
        print(f"Workflows of the pack: {where} out of {ROOT / 'workflows'}.")
        print(f"The log: {server.log}. Ctrl-C stops.", flush=True)
        if browser:
            webbrowser.open(server.address)
        with contextlib.suppress(KeyboardInterrupt):
            server.process.wait()
            print(f"ComfyUI ended by itself; its log ends:\n{server.tail()}")


if __name__ == "__main__":
    main()
