"""Look for known weaknesses of the installed packages with pip-audit, and say how much was looked at.

    python -m tests.audit

pip-audit passes over a package that its service does not know, and ends as if all were well. Here the numbers are
told: exit code 1 where a weakness is known, 3 where nothing could be looked up.
"""

from __future__ import annotations

import json
import subprocess
import sys

MOST_SECONDS = 300


def audit(found: str) -> tuple[int, str]:
    """What pip-audit's JSON says: an exit code, and lines to print.

    Args:
        found: its standard output; empty where it could not reach its service.
    """
    try:
        packages = json.loads(found)["dependencies"]
    except (ValueError, KeyError, TypeError):
        return 3, "nothing was audited: pip-audit's service cannot be reached from here"
    looked_up = [package for package in packages if "skip_reason" not in package]
    if not looked_up:
        return (
            3,
            f"nothing was audited: the service knows none of {len(packages)} packages (a mirror of it?)",
        )
    weak = [package for package in looked_up if package["vulns"]]
    lines = [
        f"{package['name']} {package['version']}: {', '.join(weakness['id'] for weakness in package['vulns'])}"
        for package in weak
    ]
    skipped = len(packages) - len(looked_up)
    lines.append(f"{len(looked_up)} packages looked up, {skipped} unknown to the service, {len(weak)} with weaknesses")
    return int(bool(weak)), "\n".join(lines)


def main() -> None:
    command = [sys.executable, "-m", "pip_audit", "--local", "--format", "json", "--progress-spinner", "off"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=MOST_SECONDS, check=False).stdout
    except subprocess.TimeoutExpired:
        found = ""
    code, text = audit(found)
    print(text)
    sys.exit(code)


if __name__ == "__main__":
    main()
