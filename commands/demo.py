"""Distils the digits teacher from 64 to 4 steps inside a real ComfyUI, over its HTTP API, and shows what it bought.

Ctrl-C stops cleanly; the next start goes on where it stopped.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from ..launch import HOME, ROOT
from .server import Server, ServerError, serving

WORKFLOW = ROOT / "workflows" / "api" / "Distil digits to 4 steps.json"
IMAGES = {"pictures": "pictures.png", "quality": "quality.png", "loss": "loss.png"}


def node_of(workflow: dict[str, Any], kind: str) -> dict[str, Any]:
    """The inputs of the workflow's only node of a kind."""
    (node,) = [node for node in workflow.values() if node["class_type"] == kind]
    return dict(node)["inputs"]


def prepare(*, seed: int, iterations: int | None) -> tuple[dict[str, Any], str]:
    """(the workflow with the seed and iterations set, the run's name)."""
    workflow = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    method, trainer = node_of(workflow, "FewStepProgressiveDistillation"), node_of(workflow, "FewStepDistill")
    name = f"digits seed {seed}"
    if iterations is not None and iterations != method["iterations"]:
        method["iterations"], name = iterations, f"{name} {iterations} iterations"
    trainer["seed"], trainer["run_name"] = seed, name
    return workflow, name


class Terminal:
    """One line that is rewritten on a terminal, or one line for each tenth of the run where output goes to a file."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._tenth = -1

    def training(self, m: dict[str, Any]) -> None:
        line = (
            f"stage {m['stage'] + 1} of {m['stages']} ({m['stage_name']})  iteration {m['stage_iteration']} of "
            f"{m['stage_iterations']}  loss {m['loss']:.5f}  {m['seconds_left']:.0f} s left"
        )
        tenth = 10 * m["iteration"] // m["iterations"]
        if self._live:
            print(f"\r{line:<100}", end="", flush=True)
        elif tenth > self._tenth:
            print(line, flush=True)
        self._tenth = tenth

    def say(self, text: str) -> None:
        print(("\n" if self._live else "") + text, flush=True)


async def follow(server: Server, workflow: dict[str, Any], terminal: Terminal) -> dict[str, Any]:
    """Queues the workflow and follows it to its end. ServerError with the node's message when it fails."""
    import aiohttp  # of the environment, which --help needs not

    client = uuid.uuid4().hex
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{server.address}/ws?clientId={client}", max_msg_size=0) as socket,
    ):
        prompt = server.queue(workflow, client=client)
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                continue
            event = message.json()
            kind, data = event["type"], event.get("data") or {}
            if kind == "fewstep.metrics":
                terminal.training(data)
            elif kind == "execution_error":
                raise ServerError(f"{data['node_type']}: {data['exception_message']}")
            elif kind == "execution_interrupted":
                raise ServerError("the run was cancelled in ComfyUI; its state is saved.")
            elif kind == "executing" and data.get("prompt_id") == prompt:
                if data["node"] is None:
                    return dict(server.get(f"/history/{prompt}")[prompt])
                if workflow[data["node"]]["class_type"] == "FewStepEvaluateDigits":
                    terminal.say("Measuring: both models draw the same noise ...")
    raise ServerError(f"the connection to ComfyUI broke; its log ends:\n{server.tail()}")


def collect(history: dict[str, Any], *, base: Path, run_name: str, place: Path, seconds: float) -> dict[str, Any]:
    """Copies what the run made into one folder and returns the report, with the machine and the time added."""
    place.mkdir(parents=True, exist_ok=True)
    output = base / "output"
    for node in history["outputs"].values():
        for image in node.get("images", []):
            name = IMAGES.get(image["filename"].rsplit("_", 2)[0])
            if name and image["type"] == "output":
                shutil.copy(output / image["subfolder"] / image["filename"], place / name)
    run = output / "fewstep" / "runs" / run_name
    shutil.copy(run / "student.safetensors", place / "student.safetensors")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    report["seconds"] = round(seconds, 1)
    report["machine"] = {"platform": platform.platform(), "processor": platform.processor(), "cores": os.cpu_count()}
    report["host"] = os.environ.get("COMFYUI_PATH") or "embedded"
    (place / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return dict(report)


def show(report: dict[str, Any], *, place: Path, run: Path) -> None:
    """The table, what it means, and where everything lies."""
    print("\n  model     steps  forwards  Frechet  accuracy  PSNR to teacher  ms a picture")
    for s in report["scores"]:
        decibel = "" if s["psnr"] is None else f"{s['psnr']:.1f} dB"
        print(
            f"  {s['model']:8}  {s['steps']:5}  {s['nfe']:8}  {s['frechet']:7.2f}  {s['accuracy']:8.3f}  {decibel:>15}"
            f"  {1000 * s['seconds_per_picture']:12.2f}"
        )
    print(f"\nDone in {report['seconds']:.0f} s.")
    for name, about in (
        ("pictures.png", "same noise, teacher and student"),
        ("quality.png", "quality over steps"),
        ("loss.png", "loss over training"),
        ("student.safetensors", "the student, with its sampling recipe"),
        ("report.json", "all figures"),
    ):
        print(f"  {place / name}  ({about})")
    print(f"  {run}  (the run: settings, metrics, checkpoints, previews)")


def interrupt(server: Server) -> None:
    """Asks ComfyUI to cancel and waits until the run has saved itself."""
    print("\nStopping; the run saves itself ...", flush=True)
    server.post("/interrupt", {})
    end = time.monotonic() + 60
    while time.monotonic() < end and server.get("/queue")["queue_running"]:
        time.sleep(0.2)
    print("Stopped. Start the demo again to go on from here.")


def run_demo(*, seed: int, iterations: int | None, again: bool) -> dict[str, Any]:
    """One demo run from server start to report."""
    base, place = HOME / "host", HOME / "demo"
    workflow, name = prepare(seed=seed, iterations=iterations)
    run = base / "output" / "fewstep" / "runs" / name
    if again:
        shutil.rmtree(run, ignore_errors=True)
    print(f"Starting ComfyUI ({os.environ.get('COMFYUI_PATH') or 'embedded'}) ...", flush=True)
    start = time.monotonic()
    with serving(base=base) as server:
        terminal = Terminal()
        terminal.say(f"ComfyUI is at {server.address}; distilling the digits teacher (run {name!r}).")
        try:
            history = asyncio.run(follow(server, workflow, terminal))
        except KeyboardInterrupt:
            interrupt(server)
            raise SystemExit(130) from None
    report = collect(history, base=base, run_name=name, place=place, seconds=time.monotonic() - start)
    show(report, place=place, run=run)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(prog="launch.py demo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: %(default)s)")
    parser.add_argument("--iterations", type=int, help="in each halving (default: the workflow's)")
    parser.add_argument("--again", action="store_true", help="remove an earlier run of these settings first")
    arguments = parser.parse_args()
    try:
        run_demo(seed=arguments.seed, iterations=arguments.iterations, again=arguments.again)
    except ServerError as error:
        raise SystemExit(f"The demo stopped: {error}") from error
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
