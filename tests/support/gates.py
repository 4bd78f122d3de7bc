"""Gates: files for which the views ``/block`` and ``/gate`` of ``live_app`` wait."""

from __future__ import annotations

from pathlib import Path

from waiting import wait_until


class Gates:
    """The gates of one test. A view waits at a gate until the test opens it."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder

    @property
    def env(self) -> dict[str, str]:
        """Return the variable that tells ``live_app`` where the gates are."""
        return {"FLASK_GATES": str(self.folder)}

    def arrived(self, name: str = "open") -> list[int]:
        """Return the process ID of each view that has reached the gate."""
        return [int(path.name.split(".")[1]) for path in self.folder.glob(f"{name}.*")]

    def wait(self, name: str = "open", count: int = 1, *, timeout: float = 30) -> None:
        """Wait until at least ``count`` views have reached the gate."""
        wait_until(
            lambda: len(self.arrived(name)) >= count,
            timeout=timeout,
            what=lambda: f"{len(self.arrived(name))} of {count} at gate {name!r}",
        )

    def open(self, name: str = "open") -> None:
        """Open the gate for all views, waiting and future ones."""
        (self.folder / name).touch()

    def open_all(self) -> None:
        """Open every gate that a view has reached."""
        for path in list(self.folder.glob("*.*")):
            self.open(path.name.split(".")[0])
