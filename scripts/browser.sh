#!/usr/bin/env bash
# Sees to it that the tests marked `browser` find a Chromium: installs Debian's where it can, says why where it cannot.
set -euo pipefail

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done

without() { echo "browser: $*; the tests of the page will be skipped" >&2; exit 0; }

command -v apt-get >/dev/null || without "no Chromium here, and no apt-get to install it with"
[ "$(id -u)" = 0 ] || without "no Chromium here; to have it: sudo apt-get install chromium"
echo "browser: installing Chromium for the tests of the page, about 300 MB" >&2
export DEBIAN_FRONTEND=noninteractive
{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium fonts-inter; } >/dev/null ||
  without "apt-get could not install Chromium"
