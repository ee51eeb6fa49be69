#!/usr/bin/env bash
# Sees to it that there is a Chromium for tests/test_report_page.py, which opens the report page in one. Uses what is on the
# PATH, or what RLDK_CHROMIUM names; else installs Debian's or Ubuntu's, if it may.
set -euo pipefail
for name in "${RLDK_CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    if [ -n "$name" ] && command -v "$name" >/dev/null; then
        exit 0
    fi
done
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    echo "[chromium] installing it for the tests of the report page" >&2
    "${as_root[@]}" apt-get update -qq >&2
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        chromium fonts-dejavu-core >/dev/null
else
    echo "[chromium] no Chromium, and it cannot be installed from here: tests/test_report_page.py is skipped. Install chromium, or name one in RLDK_CHROMIUM." >&2
fi
