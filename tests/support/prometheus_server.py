"""A real Prometheus, which scrapes what a test serves."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.parse
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from databases import program
from serving import Served
from waiting import wait_until

#: The time between two scrapes, and between two evaluations of the rules.
INTERVAL = "1s"

Series = dict[frozenset[tuple[str, str]], float]


class Prometheus(Served):
    """Run Prometheus on a free loopback port, with its data in the test's folder.

    :param scratch: The test's folder.
    :param targets: The URLs of what it scrapes, by the name of the job.
    :param rules: Files of rules.
    """

    def __init__(
        self, scratch: Path, targets: Mapping[str, str], rules: Sequence[Path] = ()
    ) -> None:
        self._targets = len(targets)
        places = {job: urllib.parse.urlsplit(url) for job, url in targets.items()}
        config = scratch / "prometheus.yml"
        # JSON is YAML.
        config.write_text(
            json.dumps(
                {
                    "global": {
                        "scrape_interval": INTERVAL,
                        "scrape_timeout": INTERVAL,
                        "evaluation_interval": INTERVAL,
                    },
                    "rule_files": [str(path) for path in rules],
                    "scrape_configs": [
                        {
                            "job_name": job,
                            "metrics_path": place.path,
                            "static_configs": [{"targets": [place.netloc]}],
                        }
                        for job, place in places.items()
                    ],
                }
            ),
            encoding="utf-8",
        )
        command = [
            str(program("prometheus")),
            f"--config.file={config}",
            f"--storage.tsdb.path={scratch / 'tsdb'}",
            "--web.listen-address=127.0.0.1:0",
        ]
        super().__init__("prometheus", scratch, command, in_children=False)

    def wait_serving(self) -> None:
        """Wait until it has read its data, and answers queries."""
        self.wait_listening()
        wait_until(lambda: self.get("/-/ready").status == 200, timeout=60)

    def api(self, path: str, **query: str) -> Any:
        """Return the data of an answer of the HTTP API, version 1."""
        reply = self.get(f"/api/v1/{path}?{urllib.parse.urlencode(query)}")
        assert reply.status == 200, reply.text
        return reply.json["data"]

    def query(self, expression: str) -> Series:
        """Return the value of each series now, by its labels."""
        return {
            frozenset(each["metric"].items()): float(each["value"][1])
            for each in self.api("query", query=expression)["result"]
        }

    def wait_for(self, expression: str) -> list[float]:
        """Return the values of an expression, once it has any that are numbers."""

        def numbers() -> list[float]:
            found = list(self.query(expression).values())
            return [] if any(map(math.isnan, found)) else found

        # On a loaded machine, a scrape may fail, and series end until the next one.
        return wait_until(numbers, what=expression)

    def number(self, expression: str) -> float:
        """Return the value of an expression that has exactly one series."""
        [found] = self.wait_for(expression)
        return found

    def firing(self) -> dict[str, dict[str, str]]:
        """Return the labels of each alert that fires, by its name."""
        return {
            alert["labels"]["alertname"]: alert["labels"]
            for alert in self.api("alerts")["alerts"]
            if alert["state"] == "firing"
        }

    def wait_scraped(self) -> None:
        """Wait until each target was scraped after this moment, without an error."""
        # An answer over a control socket is up to a tenth of a second old.
        moment = time.time() + 0.1
        wait_until(
            lambda: (
                sum(value > moment for value in self._scrapes().values())
                == self._targets
            ),
            timeout=60,
            what=lambda: f"a scrape: {self.api('targets')}",
        )

    def _scrapes(self) -> dict[str, float]:
        """Return when the last scrape of each target began; 0 after a failed one."""
        found = self.query("timestamp(up) * up")
        return {dict(labels)["job"]: value for labels, value in found.items()}


def promtool(*words: str | Path, input: str | None = None) -> str:  # noqa: A002
    """Run promtool; return its output and, as the last line, its exit code."""
    done = subprocess.run(
        [str(program("promtool")), *map(str, words)],
        input=input,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=60,
        check=False,
    )
    return f"{done.stdout}exit {done.returncode}\n"
