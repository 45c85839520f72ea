"""A ComfyUI server of ours: starting it with the pack, asking it for things over HTTP, stopping it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, cast

from ..launch import HOME, PACKAGE, ROOT, link
from ..trainers.processes.terminal import closing_signals
from .embedded import cpu_options

LOOPBACK = "127.0.0.1"
START_SECONDS = 180
KEPT_LOGS = 5
"""Of servers that have ended, each of a port of its own."""


_APART: dict[str, Any] = (
    {"creationflags": 0x00000200} if os.name == "nt" else {"start_new_session": True}  # CREATE_NEW_PROCESS_GROUP
)
"""Keeps a Ctrl-C from the terminal away from the server, which is stopped after it has saved."""


class ServerError(RuntimeError):
    """The server did not start, or refused what it was given; the message says why."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def require_port(listen: str, port: int) -> None:
    """ServerError where a server cannot listen: another one's answer would be taken for ours."""
    if not 1 <= port <= 65535:
        raise ServerError(f"--port is {port}; give 1 to 65535, or leave it out for a free one.")
    try:
        places = socket.getaddrinfo(listen or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, _, _, address = places[0]
        with socket.socket(family, kind) as probe:
            if os.name != "nt":  # as servers do, which need not wait for what is left of the last one there
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ServerError(
            f"nothing can listen at --listen {listen} --port {port} ({error.strerror}); give another port, or leave it out "
            "for a free one."
        ) from error


def command(*, base: Path, listen: str, port: int, own_models: bool) -> list[str]:
    """The command line of the embedded server, or of the user's own when COMFYUI_PATH is set.

    base: the folder with custom_nodes, models, input, output and user. own_models: let a user's ComfyUI keep its own
    folders, with the pack added to them.
    """
    options = ["--listen", listen, "--port", str(port), "--disable-auto-launch", *cpu_options()]
    comfyui = os.environ.get("COMFYUI_PATH")
    if not comfyui:
        link(ROOT, base / "custom_nodes" / PACKAGE)
        return [sys.executable, "-m", f"{PACKAGE}.commands.embedded", "--cwd", str(base), *options]
    start = [sys.executable, str(Path(comfyui) / "main.py"), *options]
    if not own_models:
        link(ROOT, base / "custom_nodes" / PACKAGE)
        return [*start, "--base-directory", str(base)]
    installed = [path.resolve() for path in (Path(comfyui) / "custom_nodes").iterdir()]
    if ROOT in installed:
        return start
    paths = HOME / "extra_model_paths.yaml"
    paths.write_text(f"fewstep:\n  custom_nodes: {json.dumps(str(HOME / 'packages'))}\n", encoding="utf-8")
    return [*start, "--extra-model-paths-config", str(paths)]


def address_of(listen: str, port: int) -> str:
    """Where a server that listens there answers this machine, as a browser takes it."""
    host = {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(listen, listen)  # noqa: S104 (compared only)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """A running server at `address`; its log is a file."""

    def __init__(self, process: subprocess.Popen[bytes], *, address: str, log: Path) -> None:
        self.process, self.address, self.log = process, address, log

    def get(self, path: str) -> Any:
        return self._ask(urllib.request.Request(self.address + path))  # noqa: S310 (our own http address)

    def post(self, path: str, data: dict[str, Any]) -> Any:
        body = json.dumps(data).encode()
        headers = {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(self.address + path, data=body, headers=headers))  # noqa: S310

    def queue(self, workflow: dict[str, Any], *, client: str) -> str:
        """Queues an API-format workflow and returns its id. ServerError when any node was refused.

        ComfyUI would run the outputs that do not depend on that node, and may have begun; they are taken back.
        """
        answer = self.post("/prompt", {"prompt": workflow, "client_id": client})
        if answer["node_errors"]:
            self.post("/queue", {"delete": [answer["prompt_id"]]})
            self.post("/interrupt", {})
            raise ServerError(refusal(json.dumps(answer)))
        return str(answer["prompt_id"])

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise ServerError(refusal(error.read().decode(errors="replace"))) from error
        return json.loads(text) if text else None

    def wait_until_ready(self) -> None:
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
                self.get("/system_stats")
                return
            time.sleep(0.3)
        raise ServerError(f"ComfyUI did not start; the end of its log ({self.log}):\n{self.tail()}")

    def tail(self, lines: int = 25) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def stop(self) -> None:
        """Politely, then firmly."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM if os.name == "nt" else signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def serving(
    *, base: Path, listen: str = LOOPBACK, port: int | None = None, own_models: bool = False
) -> Iterator[Server]:
    """Starts a server, waits until it answers, and stops it at the end. Its Ctrl-C is ours to handle.

    What ends this process, or closes its terminal, is a Ctrl-C here: the server is apart, and would stay.
    """
    base.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    require_port(listen, port)
    log = base / f"server-{port}.log"
    _remove_old_logs(base)
    arguments = command(base=base, listen=listen, port=port, own_models=own_models)
    environment = {**os.environ, "PYTHONPATH": str(HOME / "packages")}
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # as in a shell's background, which the server would inherit and then not hear how it is stopped
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("wb") as output:
        process = subprocess.Popen(
            arguments, cwd=base, env=environment, stdout=output, stderr=subprocess.STDOUT, **_APART
        )
    server = Server(process, address=address_of(listen, port), log=log)
    with _ended_as_by_ctrl_c():
        try:
            server.wait_until_ready()
            yield server
        finally:
            server.stop()


def _remove_old_logs(base: Path) -> None:
    """But those of the newest starts, and of servers that run. Nothing where the disk refuses: they are in nobody's way."""
    with contextlib.suppress(OSError):
        logs = sorted(base.glob("server-*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
        for log in logs[KEPT_LOGS:]:
            port = log.stem.removeprefix("server-")
            if port.isdecimal() and not _answers(int(port)):
                log.unlink()


def _answers(port: int) -> bool:
    """Whether somebody listens there, on this machine, by either protocol."""
    for host in (LOOPBACK, "::1"):
        with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=1.0):
            return True
    return False


@contextlib.contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    def end(number: int, _: FrameType | None) -> None:
        if number != signal.SIGTERM:
            signal.signal(number, lambda *_: None)  # which comes again
            sys.stdout = sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 (writing to it fails)
        raise KeyboardInterrupt

    heard = [signal.SIGTERM, *closing_signals()]
    before = {number: signal.getsignal(number) for number in heard}
    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def refusal(text: str) -> str:
    """What the server says of a workflow that it refuses, one line for each node."""
    try:
        answer = cast(dict[str, Any], json.loads(text))
        nodes = answer.get("node_errors") or {}
        lines = [
            f"node {number} ({node['class_type']}): {error['message']}: {error['details']}"
            for number, node in nodes.items()
            for error in node["errors"]
        ]
        return "\n".join(lines) or str(answer.get("error", text))
    except (ValueError, KeyError, TypeError, AttributeError):
        return text
