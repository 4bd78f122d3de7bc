"""W12: the clients, one thread for each connection that is kept open."""

from __future__ import annotations

import http.client
import json
import sys
import threading
import time
import typing as t


def _serve(order: dict[str, t.Any], end: float, latencies: list[float]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", order["port"], timeout=20)
    try:
        while (began := time.perf_counter()) < end:
            connection.request("GET", order["path"])
            reply = connection.getresponse()
            reply.read()
            if reply.status != 200:
                raise RuntimeError(f"{order['path']}: {reply.status}")
            latencies.append(time.perf_counter() - began)
    finally:
        connection.close()


def _run(order: dict[str, t.Any]) -> dict[str, t.Any]:
    latencies: list[float] = []
    began = time.perf_counter()
    end = began + order["seconds"]
    threads = [
        threading.Thread(target=_serve, args=(order, end, latencies))
        for _ in range(order["threads"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.perf_counter() - began
    latencies.sort()
    if not latencies:
        return {"error": "no request was answered"}
    return {
        "count": len(latencies),
        "rate": len(latencies) / took,
        "p50": latencies[len(latencies) // 2] * 1000,
        "p99": latencies[int(len(latencies) * 0.99)] * 1000,
    }


def main() -> None:
    """Serve orders, one JSON object a line, until standard input ends."""
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
