"""The command line: parse, call, print. One file per command; what costs time to import is imported inside."""
