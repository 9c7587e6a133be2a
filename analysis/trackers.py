"""Training records replayed into a tracker: TensorBoard, Weights & Biases, trackio.

A record's rows of one step, training and validation, go out in ONE call with that step, so that a tracker can draw
validation loss against TAR. Every tracker is imported here and nowhere else. Exporting twice doubles nothing:
TensorBoard's file of a record is written anew, and a run that was sent is noted by the record's digest and not sent
again. A tracker's copy is for looking at; the record stays what counts.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from analysis.files import put
from analysis.load import Library
from selectkd_eval.environment import require, sha256_file
from selectkd_eval.errors import InputError, SetupError
from selectkd_eval.records import Record, canonical
from selectkd_eval.verbs import ExportOptions

Curve = dict[int, dict[str, float]]
_PARTS = {"step": "train", "validation": "validation"}
_PLACES = ("step", "key", "event")


def curve(record: Record) -> Curve:
    """Every number of a training record by step, named train/... or validation/...; lists by their places from 1."""
    found: Curve = {}
    for row in record.good:
        part = _PARTS.get(str(row.get("event")))
        if part is None or "step" not in row:
            continue
        values = found.setdefault(int(row["step"]), {})
        for name, value in sorted(row.items()):
            if name not in _PLACES:
                values |= {f"{part}/{label}": number for label, number in _numbers(name, value)}
    return dict(sorted(found.items()))


def _numbers(name: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, list):
        for place, item in enumerate(value, start=1):
            yield from _numbers(f"{name}/{place}", item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def config(record: Record) -> dict[str, Any]:
    """What a tracker shows beside the curves: options, the method's settings, and which record they are from."""
    facts = record.facts
    told = {"method": facts.get("method"), "base_method": facts.get("base_method"), "training": facts.get("training")}
    return {**told, "options": record.options, "record": record.path.name, "record_sha256": sha256_file(record.path)}


def _trained(library: Library) -> list[Record]:
    found = library.of("train")
    if not found:
        raise InputError("trackers take training curves, and there is no train record here: give --records with some")
    return found


# ---- TensorBoard ------------------------------------------------------------


def tensorboard(library: Library, options: ExportOptions) -> list[str]:
    """An events file per record, in a folder of its own: `tensorboard --logdir OUT` shows them as runs."""
    require("tensorboard", "export tensorboard", "tensorboard")
    lines = []
    for record in _trained(library):
        found = curve(record)
        path = Path(options.out) / options.project / record.path.stem / "events.out.tfevents.0.selectkd-eval"
        put(path, events(record, found))
        lines.append(f"{path}  {len(found)} steps")
    return lines


def events(record: Record, found: Curve) -> bytes:
    """The bytes of an events file. Its clock is the training's own seconds, from 0, where the rows tell them."""
    Event, Summary = _tensorboard("compat.proto.event_pb2").Event, _tensorboard("compat.proto.summary_pb2").Summary
    buffer = io.BytesIO()
    writer = _tensorboard("summary.writer.record_writer").RecordWriter(buffer)
    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
    writer.write(Event(wall_time=0.0, step=0, summary=_config_summary(record)).SerializeToString())
    elapsed = 0.0
    for step, values in found.items():
        elapsed += values.get("train/seconds", 0.0)
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=number) for tag, number in values.items()])
        writer.write(Event(wall_time=elapsed, step=step, summary=summary).SerializeToString())
    return buffer.getvalue()


def _config_summary(record: Record) -> Any:
    """The settings on TensorBoard's text page, as a code block."""
    summary, tensors = _tensorboard("compat.proto.summary_pb2"), _tensorboard("compat.proto.tensor_pb2")
    shape = _tensorboard("compat.proto.tensor_shape_pb2").TensorShapeProto()
    kind = _tensorboard("compat.proto.types_pb2").DT_STRING
    text = "\n".join(f"    {line}" for line in json.dumps(config(record), indent=2, sort_keys=True).split("\n"))
    tensor = tensors.TensorProto(dtype=kind, tensor_shape=shape, string_val=[text.encode()])
    plugin = summary.SummaryMetadata.PluginData(plugin_name="text")
    metadata = summary.SummaryMetadata(plugin_data=plugin)
    return summary.Summary(value=[summary.Summary.Value(tag="config", metadata=metadata, tensor=tensor)])


def _tensorboard(module: str) -> Any:
    """A module of TensorBoard's, which has no types to check."""
    return require(f"tensorboard.{module}", "export tensorboard", "tensorboard")


# ---- Weights & Biases, trackio ------------------------------------------------------------


def wandb(library: Library, options: ExportOptions) -> list[str]:
    """A run per record, its id the record's digest; online or, with WANDB_MODE=offline, below --out."""
    module: Any = require("wandb", "export wandb", "wandb")

    def send(record: Record, found: Curve, settings: Mapping[str, Any]) -> None:
        Path(options.out).mkdir(parents=True, exist_ok=True)
        digest = str(settings["record_sha256"])[:16]
        try:
            run = module.init(
                project=options.project, id=digest, name=record.path.stem, config=dict(settings), dir=str(options.out)
            )
        except module.errors.Error as error:
            raise SetupError(
                f"Weights & Biases does not take the run ({str(error).splitlines()[0]}): `wandb login`, or set "
                "WANDB_MODE=offline"
            ) from None
        for step, values in found.items():
            run.log(values, step=step)
        run.finish()

    return _sent("wandb", library, options, send)


def trackio(library: Library, options: ExportOptions) -> list[str]:
    """A run per record in trackio's own directory, where `trackio show` finds it."""
    module: Any = require("trackio", "export trackio", "trackio")

    def send(record: Record, found: Curve, settings: Mapping[str, Any]) -> None:
        module.init(project=options.project, name=record.path.stem, config=dict(settings), embed=False)
        for step, values in found.items():
            module.log(values, step=step)
        module.finish()

    return _sent("trackio", library, options, send)


def _sent(tracker: str, library: Library, options: ExportOptions, send: Any) -> list[str]:
    """Send what was not sent before; a note per record in --out says what was, to which project."""
    lines = []
    for record in _trained(library):
        settings = config(record)
        note = Path(options.out) / f"sent-to-{tracker}" / f"{record.path.stem}.json"
        said = canonical({"project": options.project, "record_sha256": settings["record_sha256"]}) + "\n"
        if note.is_file() and note.read_text() == said:
            lines.append(f"{record.path.stem}: sent to {tracker} before, see {note}; delete that to send it again")
            continue
        found = curve(record)
        send(record, found, settings)
        put(note, said)
        lines.append(f"{record.path.stem}: {len(found)} steps sent to {tracker}, project {options.project}")
    return lines
