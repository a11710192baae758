"""The command `latentry inspect`: prints what `inspection` finds, for people or for programs."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from latentry import inspection
from latentry.manifest import ManifestError
from latentry.onnx_summary import Port
from latentry.printable import plain

_EPILOG = """\
examples:
  latentry inspect models/fashion/1
  latentry inspect models/fashion/1/encoder.onnx
  latentry inspect models/fashion/1 --card
  latentry inspect models/fashion/1 --json | jq '.graphs."encoder.onnx".operators'

Files are parsed, and ONNX Runtime's CPU provider is asked whether it can load each graph; nothing is run. Whether a
folder is fit to be served, `latentry verify` says.
"""
_WIDTH = 120  # columns
_MOST = 400  # characters of a value of the metadata


def add_inspect_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `latentry inspect`."""
    parser.description = "Say what a model folder or an ONNX file holds: manifest, graphs, operators, providers."
    parser.epilog = _EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("path", metavar="FOLDER|FILE.onnx", type=Path, help="NAME/VERSION, or one graph")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="print it for programs")
    how.add_argument("--card", action="store_true", help="print the model card instead")


def run_inspect(args: argparse.Namespace) -> int:
    """Print what is there; 1 if it cannot be read."""
    try:
        if args.card:
            print(inspection.card(args.path))
            return 0
        found = inspection.of(args.path)
    except (ManifestError, OSError) as error:
        print(f"latentry inspect: {plain(str(error))}", file=sys.stderr)
        return 1
    print(json.dumps(found, indent=2) if args.json else "\n".join(_lines(found)))
    return 0


def _lines(found: Mapping[str, Any]) -> Iterator[str]:
    if "manifest" in found:
        yield plain(found["folder"])
        rows = _manifest_rows(found["manifest"])
        yield from _table({**rows, "digest": found["digest"], "card": found["card"] or "none"})
        yield ""
    for at, (file, graph) in enumerate(found["graphs"].items()):
        yield from [""] if at else []
        yield plain(file)
        yield from _table(_graph_rows(graph))


def _table(rows: Mapping[str, str]) -> Iterator[str]:
    """Keys beside values; neither can be more than text, wherever the file is from."""
    column = max(map(len, rows)) + 4
    for key, value in rows.items():
        line = f"{f'  {plain(key)}':<{column}}{plain(' '.join(value.split()))}".rstrip()
        yield from textwrap.wrap(line, _WIDTH, subsequent_indent=" " * column)


def _manifest_rows(about: Mapping[str, Any]) -> dict[str, str]:
    likelihood, prior = about["likelihood"], about["prior"]
    return {
        "model": f"{about['name']} version {about['version']}",
        "images": f"{' x '.join(map(str, about['image_shape']))} (height, width, channels)",
        "latents": str(about["latent_dim"]),
        "likelihood": f"{likelihood['name']} {_numbers(likelihood['parameters'])}".strip(),
        "prior": "N(0, I)" if prior is None else f"{prior['kind']}, made of {prior['noise_dim']} normal numbers",
        **({"classes": f"{about['classes']}, which the graphs want as labels"} if about["classes"] else {}),
        "labels": _list(about["labels"]),
        "attributes": _list(about["attributes"]),
        "precisions": _list(list(about["precisions"])),
        **{f"  {name}": _numbers(figures) for name, figures in about["precisions"].items() if figures},
    }


def _graph_rows(graph: Mapping[str, Any]) -> dict[str, str]:
    operators, metadata = graph["operators"], graph["metadata"]
    opsets = _list([f"{domain} {version}" for domain, version in graph["opsets"].items()])
    tried = _list([f"{name} ({said})" for name, said in graph["providers"].items()])
    return {
        **({"problem": graph["problem"]} if graph["problem"] else {}),
        **{f"{side}s": "; ".join(str(Port(**each)) for each in graph[f"{side}s"]) for side in ("input", "output")},
        "operators": f"{sum(operators.values())}: {_list([f'{n} {kind}' for kind, n in operators.items()])}",
        "weights": _list([f"{n:,} {kind}" for kind, n in graph["weights"].items()]),
        "size": f"{graph['bytes']:,} bytes",
        "opset": f"{opsets}; IR version {graph['ir_version']}; made by {graph['producer'] or 'an unknown exporter'}",
        "runs on": f"{tried}; ONNX Runtime {graph['onnxruntime']}",
        "metadata": "" if metadata else "none",
        **{f"  {key}": value[:_MOST] for key, value in metadata.items()},
    }


def _list(items: Sequence[str]) -> str:
    return ", ".join(items) or "none"


def _numbers(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
