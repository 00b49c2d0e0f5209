"""Licences by their SPDX names, whoever writes them down."""

from __future__ import annotations

import difflib
import re

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from contract.errors import UsageError

UNKNOWN = "unknown"

_OF_THE_HUB = {
    "apache-2.0": "Apache-2.0", "mit": "MIT", "bsd-3-clause": "BSD-3-Clause", "cc-by-4.0": "CC-BY-4.0",
    "cc-by-sa-4.0": "CC-BY-SA-4.0", "cc-by-nc-4.0": "CC-BY-NC-4.0", "openrail": "LicenseRef-OpenRAIL",
    "gemma": "LicenseRef-Gemma", "llama2": "LicenseRef-Llama-2", "llama3": "LicenseRef-Llama-3",
    "llama3.1": "LicenseRef-Llama-3.1", "llama3.2": "LicenseRef-Llama-3.2", "llama3.3": "LicenseRef-Llama-3.3",
}  # fmt: skip
"""The hub's names for licences, where they are not SPDX's own."""

_LINE = re.compile(r"^(license|license_name):\s*['\"]?([A-Za-z0-9.+ -]{1,64}?)['\"]?\s*$", re.MULTILINE)
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9.-]+")


def check_license(text: str) -> str:
    """The SPDX expression ``text`` as SPDX writes it; ``LicenseRef-…`` names one that is not in its list.

    Raises:
        UsageError: it is none, with the one that was probably meant.
    """
    if text == UNKNOWN:
        return text
    try:
        return str(canonicalize_license_expression(text))
    except InvalidLicenseExpression as error:
        names = {name.lower(): spdx for name, spdx in _OF_THE_HUB.items()}
        near = difflib.get_close_matches(text.lower(), names, 1)
        hint = f"did you mean {names[near[0]]}?" if near else "name one of spdx.org/licenses, or LicenseRef-NAME"
        raise UsageError(f"--license {text!r} is not an SPDX expression; {hint}", field="license") from error


def license_of_card(card: str) -> str:
    """What the head of a model card says, as an SPDX expression; ``unknown`` where it says nothing that is one."""
    head = card[3:].partition("\n---")[0] if card.startswith("---") else card
    found = {key: value.strip() for key, value in _LINE.findall(head)}
    named = found.get("license", "")
    if named.lower() in _OF_THE_HUB:
        return _OF_THE_HUB[named.lower()]
    if named == "other":
        own = _NOT_A_NAME.sub("-", found.get("license_name", "")).strip("-.")
        return f"LicenseRef-{own}" if own else UNKNOWN
    try:
        return str(canonicalize_license_expression(named))
    except InvalidLicenseExpression:
        return UNKNOWN
