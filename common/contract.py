"""Names that symbols, files on disk and engines share."""

DATA, DET = "data", "det"  # input and output of a detection network
