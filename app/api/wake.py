"""Lets a task sleep until another task has work for it."""

from __future__ import annotations

from anyio import Event, move_on_after


class Wake:
    """Ends the pause of one task early."""

    def __init__(self) -> None:
        self._event = Event()

    def note(self) -> None:
        """There may be work: end the pause that lasts, or else the next one."""
        self._event.set()

    async def pause(self, most: float) -> None:
        """Wait until ``note`` was called since the last pause, or for ``most`` seconds."""
        with move_on_after(most):
            await self._event.wait()
        self._event = Event()
