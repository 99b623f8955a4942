"""`python -m obclip`, and what the script `obclip` runs: an interrupt is exit code 130 from the first import on."""

from __future__ import annotations

import sys


def main() -> None:
    """Beside the packages, whose own imports would come first."""
    try:
        from obclip.edge.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
