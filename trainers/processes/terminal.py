"""What a process hears when its terminal is closed, or the connection to it breaks."""

import signal


def closing_signals() -> list[signal.Signals]:
    """SIGHUP, often twice, from the system and from the shell; none on Windows, and under nohup, which is to outlive it."""
    found = [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
    return [number for number in found if signal.getsignal(number) is not signal.SIG_IGN]
