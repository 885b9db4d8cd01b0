"""Many clients at once: start a demo, let them ask for a minute, and say who was served, how fast, and what memory it took.

    python demos/load_test.py --clients 100 --seconds 60

First every tab is asked once, as by the first visitor: seconds until something is there to look at, and until the end. Then each client asks
for reconstructions, waits for the answer, and asks again; one that is told that the queue is full waits a second. Ends with code 1
if anything but an answer or "queue full" came back, or the memory kept growing.
"""

import argparse
import asyncio
import dataclasses
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter

import httpx

#: Growth of the server's memory from the middle of the run to its end that counts as flat, in MiB.
FLAT = 40


@dataclasses.dataclass
class Tally:
    """What came back so far."""

    first: dict[str, str] = dataclasses.field(default_factory=dict)
    served: list[float] = dataclasses.field(default_factory=list)
    full: int = 0
    errors: Counter = dataclasses.field(default_factory=Counter)
    memory: list[tuple[float, float]] = dataclasses.field(default_factory=list)


async def ask(client: httpx.AsyncClient, rng: random.Random, tally: Tally, titles: list[str]) -> None:
    data = [rng.choice(titles), None, rng.randrange(10)]
    started = time.monotonic()
    posted = await client.post("/gradio_api/call/reconstruct", json={"data": data})
    if posted.status_code == 503 and "full" in posted.text:
        tally.full += 1
        await asyncio.sleep(1)
        return
    if posted.status_code != 200:
        tally.errors[f"status {posted.status_code}"] += 1
        return
    answer = await client.get(f"/gradio_api/call/reconstruct/{posted.json()['event_id']}")
    if "event: complete" in answer.text:
        tally.served.append(time.monotonic() - started)
    else:
        tally.errors[f"answer {answer.text[-120:]!r}"] += 1


def processors(pid: int) -> float:
    """Return what a process has computed so far, in seconds."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def ask_each_tab(client: httpx.AsyncClient, pid: int, tally: Tally, endpoints: dict) -> None:
    for name, endpoint in endpoints.items():
        data = []
        for parameter in endpoint["parameters"]:
            choices = parameter["type"].get("enum", [None])
            data.append(parameter.get("parameter_default") if parameter["parameter_has_default"] else choices[0])
        started, before = time.monotonic(), processors(pid)
        event = (await client.post(f"/gradio_api/call{name}", json={"data": data})).json()["event_id"]
        said, lines = [], []
        async with client.stream("GET", f"/gradio_api/call{name}/{event}") as answer:
            async for line in answer.aiter_lines():
                lines.append(line)
                # The first picture, mesh or clip, and the end.
                if ('"path"' in line and not said) or line == "event: complete":
                    took, computed = time.monotonic() - started, processors(pid) - before
                    said.append(f"{took:.1f} s ({computed:.1f} s of processors)")
        if "event: complete" not in lines:
            tally.errors[f"{name} answered {lines[-3:]}"] += 1
        tally.first[name] = ", all: ".join(said)


async def work(client: httpx.AsyncClient, number: int, until: float, tally: Tally, titles: list[str]) -> None:
    rng = random.Random(number)
    while time.monotonic() < until:
        try:
            await ask(client, rng, tally, titles)
        except httpx.HTTPError as error:
            tally.errors[type(error).__name__] += 1


def resident(pid: int) -> float:
    """Return the memory of a process, in MiB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


async def measure(pid: int, started: float, until: float, tally: Tally) -> None:
    while time.monotonic() < until:
        tally.memory.append((time.monotonic() - started, resident(pid)))
        await asyncio.sleep(1)


async def run(url: str, pid: int, clients: int, seconds: float) -> Tally:
    tally, started = Tally(), time.monotonic()
    limits = httpx.Limits(max_connections=clients + 10, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        endpoints = (await client.get("/gradio_api/info")).json()["named_endpoints"]
        await ask_each_tab(client, pid, tally, endpoints)
        titles = endpoints["/reconstruct"]["parameters"][0]["type"]["enum"]
        until = time.monotonic() + seconds
        jobs = [work(client, number, until, tally, titles) for number in range(clients)]
        await asyncio.gather(measure(pid, started, until, tally), *jobs)
        # One more, alone: the server still answers.
        await ask(client, random.Random(0), tally, titles)
    return tally


def summary(tally: Tally, clients: int, seconds: float) -> tuple[dict, bool]:
    """Return the figures, and whether the server held."""
    times = sorted(tally.served)
    memory = [value for _, value in tally.memory]
    grown = memory[-1] - memory[len(memory) // 2] if memory else float("inf")
    figures = {
        "first result of each tab": tally.first,
        "clients": clients,
        "seconds": seconds,
        "served": len(times),
        "told that the queue is full": tally.full,
        "errors": dict(tally.errors),
        "seconds to an answer, median": round(times[len(times) // 2], 2) if times else None,
        "seconds to an answer, 95 of 100": round(times[int(0.95 * len(times))], 2) if times else None,
        "memory in MiB, start": round(memory[0]),
        "memory in MiB, middle": round(memory[len(memory) // 2]),
        "memory in MiB, end": round(memory[-1]),
    }
    return figures, bool(times) and not tally.errors and grown < FLAT


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--models", nargs="*", default=[], help="models beside those of the package")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/log", "w") as log:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "GRADIO_TEMP_DIR": folder}
        command = [sys.executable, "-m", "hiergen", "demo", *options.models]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as server:
            found = None
            while found is None and (line := server.stdout.readline()):
                found = re.search(r"http://\S+", line)
            if found is None:
                raise SystemExit("the demo did not start")
            try:
                tally = asyncio.run(run(found[0].rstrip("/"), server.pid, options.clients, options.seconds))
            finally:
                server.terminate()
    figures, held = summary(tally, options.clients, options.seconds)
    print(json.dumps(figures, indent=2))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
