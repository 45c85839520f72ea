"""Cancels a run at the nth time that it looks for one."""

from comfyui_fewstep.commands.embedded import import_host

import_host()

from comfyui_fewstep.nodes import host


def cancel_at(monkeypatch, call, error):
    """Raises error at the nth look for a cancel. Those of hashing the weights, which comes first, are not counted."""
    own, calls = host.identity.tensors_sha256, []

    def look():
        calls.append(1)
        if len(calls) == call:
            raise error

    monkeypatch.setattr(host.identity, "tensors_sha256", lambda tensors, **_: own(tensors))
    monkeypatch.setattr(host.signals, "check_cancelled", look)
