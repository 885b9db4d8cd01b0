"""The verbs of the command line, one module each: parse a dataclass, call the library, print."""
