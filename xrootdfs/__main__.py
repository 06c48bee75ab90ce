"""python -m xrootdfs."""

from xrootdfs.cli import main

main()
