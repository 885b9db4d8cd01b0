"""From a folder of meshes to a folder of records: parallel, resumable, and one bad file never stops the rest.

A record is a pure function of the source file's content and the settings: the number of processes, the order of work and the
file's place on disk do not matter.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hiergen.data.shapes.building import (
    PrepareShapesSettings,
    ShapeJob,
    build_record,
    count_names,
    find_jobs,
    source_digest,
)
from hiergen.data.shapes.records import (
    UNFINISHED_NAME,
    ShapeMeta,
    load_meta,
    record_path,
    save_record,
    write_index,
)
from hiergen.data.worker_pool import Outcome, run_isolated
from hiergen.files import check_writable, write_json
from hiergen.geometry.meshes import MeshError, require_shape_libraries
from hiergen.telling import counted, progress, say

SUMMARY_NAME = "summary.json"


@dataclasses.dataclass(frozen=True)
class PrepareSummary:
    """What a run did.

    Attributes:
        out: Folder of the records.
        num_prepared: Records written by this run.
        num_reused: Records that were there already.
        skipped: Source -> why it has no record.
        ignored: Suffix -> number of files that are no meshes by their name.
        methods: How surfaces were closed -> number of shapes.
        classes: Class -> number of shapes.
        seconds: Duration of the run.
    """

    out: str
    num_prepared: int
    num_reused: int
    skipped: dict[str, str]
    ignored: dict[str, int]
    methods: dict[str, int]
    classes: dict[str, int]
    seconds: float

    def __str__(self) -> str:
        total = self.num_prepared + self.num_reused
        lines = [
            f"{total} shapes in {self.out}: {self.num_prepared} prepared, {self.num_reused} there already, "
            f"{len(self.skipped)} skipped, in {self.seconds:.1f} s"
        ]
        for title, counts in (("closed by", self.methods), ("classes", self.classes), ("not meshes", self.ignored)):
            if counts:
                lines.append(
                    f"  {title}: " + ", ".join(f"{name or '(none)'} {count}" for name, count in counts.items())
                )
        lines += [f"  skipped {source}: {reason}" for source, reason in self.skipped.items()]
        return "\n".join(lines)


def prepare_shapes(settings: PrepareShapesSettings, *, command: str = "") -> PrepareSummary:
    """Write a record for every shape of a source, and return what was done; run again, it only adds what is missing.

    Files that cannot be used are skipped with a reason, which is kept: they are tried again when they change, or with
    `retry_skipped`. Interrupted, it keeps what is finished, which can be trained on.

    Args:
        settings: What to prepare, and how.
        command: Command that whoever opens the folder of a stopped preparation is told to run again.

    Raises:
        ValueError: If the source does not exist or holds no shapes, or the output folder cannot be written to.
        ImportError: If a library is missing.
        RuntimeError: If a record cannot be written, e.g. because the disk is full.
    """
    require_shape_libraries()
    started = time.monotonic()
    jobs, ignored = find_jobs(settings)
    out = check_writable(settings.out)
    workers = settings.num_workers if settings.num_workers is not None else (os.cpu_count() or 1)
    tasks = [(job, settings) for job in jobs]
    if settings.show_progress:
        kinds = counted(len({job.class_name for job in jobs}), "class")
        processes = counted(max(min(workers, len(tasks)), 1), "process")
        say(f"prepare: {counted(len(tasks), 'shape')} of {kinds} in {settings.source}, by {processes} -> {out}")
    # There until all is done: so a folder says that its preparation was stopped.
    write_json(out / UNFINISHED_NAME, {"total": len(tasks), "command": command})
    states: dict[str, str] = {}
    skipped: dict[str, str] = {}
    outcomes = run_isolated(_prepare_task, tasks, num_workers=min(workers, len(tasks)), timeout=settings.timeout)
    try:
        for outcome in _with_progress(outcomes, len(tasks), settings.show_progress):
            job = jobs[outcome.index]
            state, reason = _judge(outcome, job, settings)
            states[job.key] = state
            if state == "skipped":
                skipped[job.source] = reason
    finally:
        finished = [job for job in jobs if states.get(job.key) in ("prepared", "reused")]
        metas = sorted((load_meta(record_path(out, job.key)) for job in finished), key=lambda meta: meta.source)
        repeated = {} if settings.keep_duplicates else find_duplicates(metas)
        metas = [meta for meta in metas if meta.key not in repeated]
        write_index(out, metas, settings.record_settings())
    (out / UNFINISHED_NAME).unlink()
    for job in finished:
        if job.key in repeated:
            states[job.key] = "skipped"
            skipped[job.source] = repeated[job.key]
    summary = PrepareSummary(
        out=str(out),
        num_prepared=sum(state == "prepared" for state in states.values()),
        num_reused=sum(state == "reused" for state in states.values()),
        skipped=dict(sorted(skipped.items())),
        ignored=ignored,
        methods=count_names(_method(meta) for meta in metas),
        classes=count_names(meta.class_name for meta in metas),
        seconds=round(time.monotonic() - started, 2),
    )
    write_json(out / SUMMARY_NAME, dataclasses.asdict(summary))
    return summary


def _prepare_task(task: tuple[ShapeJob, PrepareShapesSettings]) -> tuple[str, str]:
    """Prepare one shape unless that was done; return "prepared", "reused" or "skipped" and why."""
    job, settings = task
    target, note = record_path(settings.out, job.key), _skip_path(settings.out, job.key)
    try:
        digest = source_digest(job)
    except MeshError as error:
        # No note: there is no content by which a later run could tell that nothing changed.
        return "skipped", error.reason
    state = {"digest": digest, "settings": settings.record_fingerprint()}
    if target.is_file():
        try:
            meta = load_meta(target)
        except ValueError:
            # Damaged, or of an older format: made anew.
            meta = ShapeMeta(job.key)
        same_place = (meta.source, meta.class_name) == (job.source, job.class_name)
        if same_place and {"digest": meta.source_digest, "settings": meta.settings} == state:
            return "reused", ""
    if note.is_file() and not settings.retry_skipped:
        known = json.loads(note.read_text(encoding="utf-8"))
        if {name: known.get(name) for name in state} == state:
            return "skipped", known["reason"]
    try:
        record = build_record(job, digest, settings)
    except Exception as error:
        # Whatever a foreign mesh makes the libraries do, it concerns this shape alone.
        is_ours = isinstance(error, ValueError)
        reason = getattr(error, "reason", str(error)) if is_ours else f"{type(error).__name__}: {error}"
        write_json(note, {**state, "source": job.source, "reason": reason})
        target.unlink(missing_ok=True)
        return "skipped", reason
    save_record(record, target)
    note.unlink(missing_ok=True)
    return "prepared", ""


def _judge(outcome: Outcome[tuple[str, str]], job: ShapeJob, settings: PrepareShapesSettings) -> tuple[str, str]:
    if outcome.status == "done" and outcome.value is not None:
        return outcome.value
    if outcome.status == "failed":
        raise RuntimeError(f"preparing {job.source!r} failed:\n{outcome.message}")
    try:
        state = {"digest": source_digest(job), "settings": settings.record_fingerprint()}
    except MeshError as error:
        return "skipped", error.reason
    write_json(_skip_path(settings.out, job.key), {**state, "source": job.source, "reason": outcome.message})
    return "skipped", outcome.message


def _skip_path(out: str, key: str) -> Path:
    return Path(out) / "skipped" / f"{key}.json"


def find_duplicates(metas: Sequence[ShapeMeta]) -> dict[str, str]:
    """Return the keys of shapes whose file or normalized surface equals that of an earlier one, each with the reason."""
    first: dict[str, str] = {}
    repeated = {}
    for meta in metas:
        for what, value in (("content", meta.source_digest), ("surface", meta.notes.get("geometry", ""))):
            known = first.setdefault(value, meta.source) if value else meta.source
            if known != meta.source:
                repeated[meta.key] = f"has the same {what} as {known!r}"
                break
    return repeated


def _method(meta: ShapeMeta) -> str:
    return f"{meta.method} {meta.notes['resolution']}" if "resolution" in meta.notes else meta.method


def _with_progress(outcomes: Iterator[Any], total: int, is_shown: bool) -> Iterator[Any]:
    with progress("prepare", total, "shape") if is_shown else contextlib.nullcontext(lambda done: None) as show:
        for done, outcome in enumerate(outcomes, 1):
            show(done)
            yield outcome
