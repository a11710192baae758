"""The commands `latentry serve` and `latentry doctor`: flags to settings, settings to a running service or a report."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys

from serving import logs, settings_sources, settings_text
from serving.errors import StartError
from serving.settings import Settings

log = logging.getLogger(__name__)

SERVE = """\
Serve the models of a repository, <DIR>/<name>/<version>/, over gRPC. Without arguments: the model that comes with
Latentry, for callers on this machine. SIGTERM and Ctrl-C let running calls finish; a second one does not.

  latentry serve
  latentry serve --models models --device cuda --tls-certificate server.pem --tls-key server.key \\
      --identities identities.toml --host 0.0.0.0

Each flag is also a variable (--port: LATENTRY_PORT) and a key of the TOML file (port = 50051); a flag wins over the
environment, that over the file. docs/configuration.md has the same list as a table.

exit status: 0 stopped as told; 1 another cause; 2 a setting makes no sense; 3 a port is taken; 4 no model to serve;
5 a model is bad; 6 the device cannot be used
"""

DOCTOR = """\
Say in plain words what works on this machine for `latentry serve` with the same flags: versions, driver and libraries,
device, threads, memory, ports, models, certificates. Exit status 0 unless something is a problem, else 1.
"""


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `latentry serve`."""
    parser.usage, parser.description = "%(prog)s [--FLAG VALUE ...]", SERVE
    parser.add_argument(
        "--print-config", action="store_true", help="print the settings in effect as TOML, and where each is from; exit"
    )
    settings_text.add_flags(parser)


def add_doctor_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `latentry doctor`: those of `latentry serve`."""
    parser.usage, parser.description = "%(prog)s [--FLAG VALUE ...]", DOCTOR
    settings_text.add_flags(parser)


def run_serve(args: argparse.Namespace) -> int:
    """Serve until told to stop. Returns the exit status: 0, or the `StartError`'s if the service could not start."""
    try:
        given = settings_text.given(args)
        settings = Settings(args.config, **given)
        if args.print_config:
            sources = settings_sources.read(given, os.environ, args.config, settings_text.FIELDS)
            print(settings_text.to_toml(settings, sources), end="", flush=True)
            return 0
        logs.configure(settings.log_level, settings.log_format)
        gc.disable()  # imports make little garbage, and looking for it takes a tenth of the start; `settle` enables it
        from serving import event_loop
        from serving.process import serve  # here, so that `--help` does not wait for onnxruntime

        event_loop.run(serve(settings, lambda: Settings(args.config, **given)))
    except StartError as error:
        _say(f"latentry serve: {error}")
        return error.exit_code
    except Exception as error:  # what nobody thought of; the log has the particulars
        log.exception("it cannot go on")
        _say(f"latentry serve: {type(error).__name__}: {error}")
        return StartError.exit_code
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """Print the report; 1 if it has a problem."""
    from serving import doctor  # here, so that `--help` does not wait for onnxruntime

    findings = doctor.examine(args.config, settings_text.given(args))
    for finding in findings:
        print(finding)
    return 1 if any(finding.verdict == "problem" for finding in findings) else 0


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:  # a full disk: what is left in the buffer would fail again at exit, and change the exit status
        sys.stderr = None
