"""Which versions of a model are served, and which labels name them: the small grammars of `versions` and `labels`.

    versions   latest | latest:N | all | 1,3       for every model, or for one: NAME=latest:2
    labels     NAME:LABEL=VERSION

Knows nothing of folders: versions are numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from latentry.manifest import ManifestError, check_name, parse_version

POLICIES = "latest, latest:N, all, a list such as 1,3, or NAME= and one of these"
LABELS = "NAME:LABEL=VERSION, such as fashion:stable=3"
_MOST = 6  # digits of N in latest:N


class Unfit(ValueError):
    """A value that a setting cannot have: what was got, what was wanted, and which setting, if that is not plain."""

    def __init__(self, got: object, wanted: str, key: str = "") -> None:
        self.got = got
        self.wanted = wanted
        self.key = key
        super().__init__(f"got {got}, wanted {wanted}")


@dataclass(frozen=True, slots=True)
class Policy:
    """Which of a model's versions serve: the `latest` so many, those `listed`, or all when neither is given."""

    latest: int | None = None
    listed: frozenset[int] = frozenset()

    def choose(self, versions: Iterable[int]) -> set[int]:
        """Those of `versions` that serve."""
        there = set(versions)
        if self.listed:
            return there & self.listed
        return there if self.latest is None else set(sorted(there, reverse=True)[: self.latest])


def read_policies(entries: Iterable[str]) -> dict[str, Policy]:
    """Policies by model name; the name "" stands for every model without a policy of its own. Raises `Unfit`."""
    policies: dict[str, Policy] = {}
    for entry in entries:
        name, equals, text = entry.rpartition("=")
        try:
            if equals:
                check_name(name)
            policy = _policy(text)
        except ManifestError as error:
            raise Unfit(repr(entry), POLICIES) from error
        if name in policies:
            raise Unfit(f"two policies for {name or 'every model'}", "one")
        policies[name] = policy
    policies.setdefault("", Policy(latest=1))
    return policies


def _policy(text: str) -> Policy:
    if text == "all":
        return Policy()
    if text == "latest":
        return Policy(latest=1)
    counted = re.fullmatch(rf"latest:([1-9][0-9]{{0,{_MOST - 1}}})", text)
    if counted:
        return Policy(latest=int(counted[1]))
    return Policy(listed=frozenset(parse_version(part) for part in text.split(",")))


def read_labels(entries: Iterable[str]) -> dict[str, Mapping[str, int]]:
    """Versions by label, by model name. Raises `Unfit`."""
    labels: dict[str, dict[str, int]] = {}
    for entry in entries:
        model, _, rest = entry.partition(":")
        label, _, version = rest.partition("=")
        try:
            named = labels.setdefault(check_name(model), {})
            number = parse_version(version)
            if named.setdefault(check_name(label), number) != number:
                raise Unfit(f"{model}:{label} with versions {named[label]} and {number}", "one version a label")
        except ManifestError as error:
            raise Unfit(repr(entry), LABELS) from error
    return dict(labels)
